# SPDX-License-Identifier: Apache-2.0
"""Ranks, the start and the end of RPC, and functions that run on some ranks only."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed.rpc as rpc

from optdist import _rendezvous, _session
from optdist._session import Session, current, log
from optdist._waiting import check_seconds
from optdist._wrapping import only_function
from optdist.errors import WorkerLostError, WorkerTimeoutError

F = TypeVar("F", bound=Callable[..., Any])
BARRIER_SECONDS = 300.0


def default_worker_name_format(
    world_rank: int, world_size: int, local_rank: int, local_world_size: int
) -> str:
    """Name workers by rank.

    Example:
        >>> default_worker_name_format(3, 16, 1, 2)
        'worker03'
    """
    return f"worker{world_rank:0{len(str(world_size - 1))}d}"


class WorldInfo(NamedTuple):
    """Where this process stands."""

    world_rank: int
    world_size: int
    local_rank: int
    local_world_size: int

    @property
    def rank(self) -> int:
        """The rank in the world."""
        return self.world_rank

    @property
    def worker_name(self) -> str:
        """The name by which RPC knows this process."""
        session = current()
        return session.name if session else default_worker_name_format(*self)


def get_world_info() -> WorldInfo:
    """Read where this process stands, now, from ``RANK``, ``WORLD_SIZE`` and their ``LOCAL_`` kin.

    Without them it is alone: rank 0 of 1.

    Raises:
        ValueError: a variable is not a number, or the rank is not below the size.

    Example:
        >>> get_world_info()
        WorldInfo(world_rank=0, world_size=1, local_rank=0, local_world_size=1)
    """
    rank, size = _number("RANK", 0), _number("WORLD_SIZE", 1)
    local_rank = _number("LOCAL_RANK", 0)
    if not 0 <= rank < size:
        raise ValueError(f"get_world_info: expected 0 <= RANK < WORLD_SIZE, got {rank} and {size}")
    return WorldInfo(rank, size, local_rank, _number("LOCAL_WORLD_SIZE", size))


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise ValueError(f"get_world_info: expected a number in {name}, got {text!r}")
    return int(text)


def get_world_rank() -> int:
    """Return the rank of this process among all.

    Example:
        >>> get_world_rank()
        0
    """
    return get_world_info().world_rank


get_rank = get_world_rank


def get_world_size() -> int:
    """Return how many processes there are.

    Example:
        >>> get_world_size()
        1
    """
    return get_world_info().world_size


def get_local_rank() -> int:
    """Return the rank of this process among those of its host.

    Example:
        >>> get_local_rank()
        0
    """
    return get_world_info().local_rank


def get_local_world_size() -> int:
    """Return how many processes its host has.

    Example:
        >>> get_local_world_size()
        1
    """
    return get_world_info().local_world_size


def get_worker_id(id: str | int | None = None) -> int:
    """Return the rank of a worker given by name or rank; without either, this process's own.

    Raises:
        ValueError: there is no such worker.

    Example:
        >>> get_worker_id(), get_worker_id(0)
        (0, 0)
    """
    session = current()
    names = session.names if session else [get_world_info().worker_name]
    if id is None:
        return get_world_rank()
    if isinstance(id, int) and not isinstance(id, bool) and 0 <= id < len(names):
        return id
    if id in names:
        return names.index(str(id))
    raise ValueError(
        f"get_worker_id: expected a rank below {len(names)} or one of the names {names}, got {id!r}"
    )


def barrier(worker_names: Iterable[str] | None = None) -> None:
    """Wait until all workers, or those named, are here; at most five minutes.

    Raises:
        WorkerTimeoutError: some did not come.
        WorkerLostError: the process that keeps the count is gone.

    Example:
        >>> barrier()  # alone: nobody to wait for
    """
    session = current()
    if session is None:
        return
    ranks = sorted(
        {get_worker_id(n) for n in (range(session.size) if worker_names is None else worker_names)}
    )
    if session.rank not in ranks:
        raise ValueError(
            f"barrier: expected the caller among the names, got ranks {ranks} on {session.rank}"
        )
    group = ",".join(map(str, ranks))
    turn = session.barriers[group] = session.barriers.get(group, 0) + 1
    key = f"barrier/{group}/{turn}"
    try:
        session.store.add(key, 1)
        deadline = time.monotonic() + BARRIER_SECONDS
        while (here := session.store.add(key, 0)) < len(ranks):
            if time.monotonic() > deadline:
                raise WorkerTimeoutError(
                    f"barrier: expected {len(ranks)} workers within {BARRIER_SECONDS:g} s, "
                    f"got {here}; see which of ranks {group} hangs"
                )
            time.sleep(0.002)
    except torch.distributed.DistNetworkError as error:
        raise WorkerLostError(
            "barrier: expected the process that keeps the store (rank 0 or the agent of torchrun), "
            "got a closed connection; start again"
        ) from error


def auto_init_rpc(
    worker_init_fn: Callable[[], None] | None = None,
    worker_name_format: Callable[..., str] = default_worker_name_format,
    *,
    backend: rpc.BackendType | None = None,
    rpc_backend_options: rpc.RpcBackendOptions | None = None,
    num_threads: int | None = 1,
    start_timeout: float = 120.0,
) -> Callable[[F], F]:
    """Start RPC before a function and end it after; every process of the world calls it.

    Ranks other than 0 serve until rank 0 has returned and leave when it is gone. Without torchrun's
    variables the world is this process alone.

    Args:
        worker_init_fn: Called in every process once RPC runs.
        worker_name_format: ``(world_rank, world_size, local_rank, local_world_size) -> name``.
        backend: Of torch; TensorPipe if not given.
        rpc_backend_options: Of torch; TensorPipe over sockets if not given. With ``init_method``
            left at its default the processes meet where optdist lets them.
        num_threads: Torch's threads in every process if there are several; ``None`` leaves them.
        start_timeout: Seconds that processes wait for one another at the start.

    Raises:
        ValueError: variables or options are missing or wrong.
        OSError: rank 0 cannot listen at ``MASTER_ADDR:MASTER_PORT``.
        WorkerTimeoutError: a process did not come in time.
        WorkerLostError: rank 0 is gone (in the other processes).

    Example:
        >>> @auto_init_rpc()
        ... def main():
        ...     return rpc.RRef(torch.ones(2)).to_here().sum().item()
        >>> main()
        2.0
    """
    check_seconds("auto_init_rpc", "a start_timeout", start_timeout)
    if rpc_backend_options is not None:
        check_seconds("auto_init_rpc", "an rpc_timeout", rpc_backend_options.rpc_timeout)

    def decorate(*decorated: F, **named: Any) -> F:
        func = only_function("auto_init_rpc", decorated, named)

        @functools.wraps(func)
        def run(*args: Any, **kwargs: Any) -> Any:
            info = get_world_info()
            if current() is not None:
                raise RuntimeError(
                    "auto_init_rpc: expected no RPC in this process, got one that runs; "
                    "decorate the outermost function only"
                )
            threads = torch.get_num_threads()
            session = _start(info, worker_name_format, backend, rpc_backend_options, start_timeout)
            before = _leave_on_sigterm()
            completed = False
            try:
                if num_threads is not None and info.world_size > 1:
                    torch.set_num_threads(num_threads)
                if worker_init_fn is not None:
                    worker_init_fn()
                result = func(*args, **kwargs)
                session.close_door()
                completed = True
            finally:
                session.leave(completed)
                torch.set_num_threads(threads)
                if before is not None:
                    signal.signal(signal.SIGTERM, before)
            return result

        return run  # type: ignore[return-value]

    return decorate


def _start(
    info: WorldInfo,
    name_format: Callable[..., str],
    backend: rpc.BackendType | None,
    options: rpc.RpcBackendOptions | None,
    seconds: float,
) -> Session:
    name = name_format(*info)
    _rendezvous.register()
    store = _rendezvous.open_store(info.world_rank, info.world_size, seconds)
    _rendezvous.choose_interface()
    options = options or _rendezvous.default_options()
    if options.init_method == "env://":
        options.init_method = f"{_rendezvous.SCHEME}://"
    names = _rendezvous.names(store, info.world_rank, name, info.world_size, seconds)
    # Before RPC: rank 0 may be there first, and done, and its release must find something.
    session = _session.begin(Session(info.world_rank, names, store, options.rpc_timeout))
    try:
        with warnings.catch_warnings(), _rendezvous.bounded(seconds):
            # torch warns of the way in which it meets itself
            warnings.filterwarnings("ignore", "You are using a Backend", UserWarning)
            rpc.init_rpc(
                name,
                backend=backend,
                rank=info.world_rank,
                world_size=info.world_size,
                rpc_backend_options=options,
            )
    except BaseException:
        _session.end()
        raise
    log.debug("optdist: %s is rank %d of %d", name, info.world_rank, info.world_size)
    return session


def _leave_on_sigterm() -> Any:
    """Turn SIGTERM into an exit that runs the clean-up; only the main thread may."""
    if threading.current_thread() is not threading.main_thread():
        return None

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    return signal.signal(signal.SIGTERM, leave)


def on_rank(*ranks: int) -> Callable[[F], F]:
    """Run a function on these ranks only; elsewhere it returns ``None``.

    Example:
        >>> on_rank(0)(lambda: "here")()
        'here'
        >>> on_rank(1, 2)(lambda: "here")()
    """
    chosen = _ranks("on_rank", ranks)
    return lambda func: _where(func, lambda rank: rank in chosen)


def not_on_rank(*ranks: int) -> Callable[[F], F]:
    """Run a function on all ranks but these; there it returns ``None``.

    Example:
        >>> not_on_rank(1, 2)(lambda: "here")()
        'here'
    """
    chosen = _ranks("not_on_rank", ranks)
    return lambda func: _where(func, lambda rank: rank not in chosen)


def _ranks(who: str, ranks: tuple[int, ...]) -> frozenset[int]:
    if wrong := [r for r in ranks if not isinstance(r, int) or isinstance(r, bool) or r < 0]:
        raise ValueError(f"{who}: expected ranks, integers from 0, got {wrong[0]!r}")
    return frozenset(ranks)


def _where(func: F, chosen: Callable[[int], bool]) -> F:
    @functools.wraps(func)
    def run(*args: Any, **kwargs: Any) -> Any:
        return func(*args, **kwargs) if chosen(get_world_rank()) else None

    return run  # type: ignore[return-value]


def rank_all(func: F) -> F:
    """Run a function on every rank: a mark for the reader.

    Example:
        >>> rank_all(lambda: "here")()
        'here'
    """
    return _where(func, lambda rank: True)


def rank_zero_only(func: F) -> F:
    """Run a function on rank 0 only; elsewhere it returns ``None``.

    Example:
        >>> rank_zero_only(lambda: "here")()
        'here'
    """
    return _where(func, lambda rank: rank == 0)


def rank_non_zero_only(func: F) -> F:
    """Run a function on all ranks but 0; there it returns ``None``.

    Example:
        >>> rank_non_zero_only(lambda: "here")()
    """
    return _where(func, lambda rank: rank != 0)
