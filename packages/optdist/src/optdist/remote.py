# SPDX-License-Identifier: Apache-2.0
"""Plain remote calls: tensors travel as they are, torch's distributed autograd records them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed.rpc as rpc
from torch.futures import Future

from optdist import _program
from optdist._partition import batch_partitioner
from optdist._reduce import Reducer
from optdist._session import LEAVE_SECONDS, TIMED_OUT, Session, current
from optdist._waiting import arrives
from optdist.autograd import is_recording
from optdist.world import get_worker_id

UNSET_TIMEOUT: float | None = None


def remote_async_call(
    func: Callable[..., Any],
    *,
    args: tuple[Any, ...] | None = None,
    kwargs: dict[str, Any] | None = None,
    partitioner: Any = None,
    reducer: Reducer | None = None,
    timeout: float | None = UNSET_TIMEOUT,
) -> RemoteResults:
    """Call a function on workers, one part of the arguments each; return what to wait for.

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
        TypeError: the function cannot be sent.
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
    who = "remote_async_call"
    session = current()
    if session is None:
        raise RuntimeError(
            f"{who}: expected RPC to run, got none; call from a function under @auto_init_rpc"
        )
    if timeout is not None and not timeout > 0:
        raise ValueError(f"{who}: expected a timeout above 0 s, got {timeout!r}")
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
    return RemoteResults(session, started, reducer, seconds)


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
    return remote_async_call(
        func, args=args, kwargs=kwargs, partitioner=partitioner, reducer=reducer, timeout=timeout
    ).wait()


class RemoteResults:
    """Results on their way."""

    def __init__(
        self,
        session: Session,
        started: list[tuple[int, Future[Any]]],
        reducer: Reducer | None,
        seconds: float,
    ) -> None:
        self._session, self._started = session, started
        self._reducer, self._seconds = reducer, seconds

    def done(self) -> bool:
        """Tell whether all are here."""
        return all(future.done() for _, future in self._started)

    def wait(self) -> Any:
        """Return the reduced results, or their list.

        Raises:
            WorkerLostError: a worker is gone.
            WorkerTimeoutError: a worker is late.
        """
        found = [self._one(rank, future) for rank, future in self._started]
        return found if self._reducer is None else self._reducer(found)

    def _one(self, rank: int, future: Future[Any]) -> Any:
        if not arrives(future, self._seconds + LEAVE_SECONDS):
            failure = self._session.failure(rank, RuntimeError(TIMED_OUT), self._seconds)
            self._session.note(rank, failure)
            raise failure
        try:
            return future.wait()
        except RuntimeError as error:
            failure = _typed(self._session, rank, error, self._seconds)
            if failure is error:
                raise
            self._session.note(rank, failure)
            raise failure from error


def _typed(session: Session, rank: int, error: RuntimeError, seconds: float) -> Exception:
    """Return our type for a failed connection, and the function's own error as it is."""
    if str(error).startswith("On WorkerInfo("):  # torch's preface to what the function raised
        return error
    return session.failure(rank, error, seconds)


def _learns(parts: list[Any]) -> bool:
    found: list[bool] = []
    _program.tree_map(lambda x: found.append(_requires_grad(x)), [part[1:] for part in parts])
    return any(found)


def _requires_grad(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad


def _call(address: Any, args: tuple[Any, ...], kwargs: dict[str, Any], recorded: bool) -> Any:
    """Call the function (runs on the other side)."""
    found = _program.find(address)(*args, **kwargs)
    if recorded:
        return found
    # As a leaf that requires grad it would look differentiable over there, and lose the gradient.
    return _program.tree_map(lambda x: x.detach() if _requires_grad(x) else x, found)
