# SPDX-License-Identifier: Apache-2.0
"""Plain remote calls: tensors travel as they are, torch's distributed autograd records them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed.rpc as rpc
from torch.futures import Future

from optdist import _chunk, _program
from optdist._partition import batch_partitioner
from optdist._reduce import Reducer
from optdist._session import LEAVE_SECONDS, TIMED_OUT, Session, current, is_closed
from optdist._waiting import arrives, check_seconds, in_thread
from optdist.autograd import is_recording
from optdist.errors import WorkerLostError, WorkerTimeoutError
from optdist.world import get_worker_id

UNSET_TIMEOUT: float | None = None
Started = list[tuple[int, Future[Any]]]


def remote_async_call(
    func: Callable[..., Any],
    *,
    args: tuple[Any, ...] | None = None,
    kwargs: dict[str, Any] | None = None,
    partitioner: Any = None,
    reducer: Reducer | None = None,
    timeout: float | None = UNSET_TIMEOUT,
) -> Future[Any]:
    """Call a function on workers, one part of the arguments each; return a future.

    Inside :func:`optdist.autograd.context` gradients go back through the wire, of first order. A
    lost worker is an error here; see :func:`parallelize` for calls that survive it.

    Args:
        func: At the top level of a module, as the others import it.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        partitioner: A rank or a name, :data:`batch_partitioner` (the default), or a function
            ``(*args, **kwargs) -> [(rank, args, kwargs), ...]``.
        reducer: Of the list of results; without it, the list.
        timeout: Seconds for each; RPC's (60) by default.

    Raises:
        TypeError: the function cannot be sent, or (when waited for) an argument or the result.
        ValueError: the timeout is not above 0.
        RuntimeError: RPC does not run, or gradients would be lost: arguments require grad
            outside :func:`optdist.autograd.context`.

    Example:
        >>> from optdist import auto_init_rpc
        >>> @auto_init_rpc()
        ... def main():
        ...     return remote_async_call(torch.add, args=(torch.ones(2), 1), partitioner=0).wait()
        >>> main()
        [tensor([2., 2.])]
    """
    started = _start(func, args, kwargs, partitioner, timeout)
    grad_enabled = torch.is_grad_enabled()

    def wait() -> Any:
        with torch.set_grad_enabled(grad_enabled):
            return _reduced(reducer, *started)

    return in_thread(wait, "optdist-remote")


def remote_sync_call(
    func: Callable[..., Any],
    *,
    args: tuple[Any, ...] | None = None,
    kwargs: dict[str, Any] | None = None,
    partitioner: Any = None,
    reducer: Reducer | None = None,
    timeout: float | None = UNSET_TIMEOUT,
) -> Any:
    """Call a function on workers and wait; see :func:`remote_async_call`.

    Raises:
        WorkerLostError: a worker is gone.
        WorkerTimeoutError: a worker is late.

    Example:
        >>> from optdist import auto_init_rpc, sum_reducer
        >>> @auto_init_rpc()
        ... def main():
        ...     return remote_sync_call(torch.sum, args=(torch.ones(4),), reducer=sum_reducer)
        >>> main()
        tensor(4.)
    """
    return _reduced(reducer, *_start(func, args, kwargs, partitioner, timeout))


def _start(
    func: Callable[..., Any],
    args: tuple[Any, ...] | None,
    kwargs: dict[str, Any] | None,
    partitioner: Any,
    timeout: float | None,
) -> tuple[Session, Started, float]:
    """Send the parts; return what comes, from whom, and within how many seconds."""
    who = "remote_async_call"
    session = current()
    if session is None:
        raise RuntimeError(
            f"{who}: expected RPC to run, got none; call from a function under @auto_init_rpc"
        )
    if timeout is not None:
        check_seconds(who, "a timeout", timeout)
    address = _program.name_of(func, who)
    args, kwargs = args or (), kwargs or {}
    partitioner = batch_partitioner if partitioner is None else partitioner
    if isinstance(partitioner, (int, str)):
        parts = [(partitioner, args, kwargs)]
    else:
        parts = list(partitioner(*args, **kwargs))
    recorded = is_recording()
    if not recorded and torch.is_grad_enabled() and _learns(parts):
        raise RuntimeError(
            f"{who}: expected a context for arguments that require grad, got none, and their "
            "gradients would be lost; call inside optdist.autograd.context(), or under "
            "torch.no_grad()"
        )
    seconds = session.timeout if timeout is None else timeout
    started: list[tuple[int, Future[Any]]] = []
    for worker, part, named in parts:
        rank = get_worker_id(worker)
        sent = (address, part or (), named or {}, recorded)
        try:
            future = rpc.rpc_async(session.names[rank], _call, args=sent, timeout=seconds)
        except RuntimeError as error:
            raise _typed(session, rank, error, seconds) from error
        started.append((rank, future))
    return session, started, seconds


def _reduced(reducer: Reducer | None, session: Session, started: Started, seconds: float) -> Any:
    found = [_one(session, rank, future, seconds) for rank, future in started]
    return found if reducer is None else reducer(found)


def _one(session: Session, rank: int, future: Future[Any], seconds: float) -> Any:
    if not arrives(future, seconds + LEAVE_SECONDS):
        failure = session.failure(rank, RuntimeError(TIMED_OUT), seconds)
        session.note(rank, failure)
        raise failure
    try:
        found = future.wait()
    except RuntimeError as error:
        failure = _typed(session, rank, error, seconds)
        if isinstance(failure, (WorkerLostError, WorkerTimeoutError)):
            session.note(rank, failure)
        raise failure from error
    if isinstance(found, _chunk.Failed):
        raise _chunk.raised(found, session.names[rank])
    return found


def _typed(session: Session, rank: int, error: RuntimeError, seconds: float) -> Exception:
    """Return our type for torch's error: what the function raises comes as a `Failed`."""
    text = str(error)
    if TIMED_OUT in text or is_closed(text):
        return session.failure(rank, error, seconds)
    return TypeError(
        f"remote_async_call: expected arguments and results that pickle can send, got an error of "
        f"{session.names[rank]} beside the function ({text.splitlines()[0]}); define classes and "
        "functions at the top level of a module"
    )


def _learns(parts: list[Any]) -> bool:
    found: list[bool] = []
    _program.tree_map(lambda x: found.append(_requires_grad(x)), [part[1:] for part in parts])
    return any(found)


def _requires_grad(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad


def _call(address: Any, args: tuple[Any, ...], kwargs: dict[str, Any], recorded: bool) -> Any:
    """Call the function (runs on the other side)."""
    try:
        found = _program.find(address)(*args, **kwargs)
    except BaseException as error:  # noqa: BLE001 - travels to the caller, who raises it
        return _chunk.failed(error)
    if recorded:
        return found
    # As a leaf that requires grad it would look differentiable over there, and lose the gradient.
    return _program.tree_map(lambda x: x.detach() if _requires_grad(x) else x, found)
