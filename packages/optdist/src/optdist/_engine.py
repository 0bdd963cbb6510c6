# SPDX-License-Identifier: Apache-2.0
"""What `parallelize` needs of the world below: who is there, and running a chunk over there."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Protocol

from optdist import _chunk, _program
from optdist._session import Session, current


class Engine(Protocol):
    """Runs chunks on workers, numbered; ``rank`` is the caller."""

    rank: int
    timeout: float
    shares_memory: bool  # workers of this host may open the caller's memory
    writer: type[_program.Apart]  # how calls become bytes

    def address(self, func: Callable[..., Any], who: str) -> Any:
        """Return what workers find the function by."""

    def ranks(self, workers: Sequence[int | str]) -> list[int]:
        """Return the numbers of workers given by name or number."""

    def live(self) -> list[int]:
        """Return the workers that may be given work."""

    def name(self, rank: int) -> str:
        """Return a worker's name."""

    def submit(
        self, rank: int, job: _chunk.Job, timeout: float, done: Callable[[Any], None]
    ) -> None:
        """Run a job there; ``done`` gets what :func:`optdist._chunk.answer` returns, or a failure.

        A failure is a `WorkerLostError` or a `WorkerTimeoutError`. ``done`` may run in any thread.
        """

    def note(self, rank: int, failure: Exception) -> None:
        """Learn that a worker failed."""


class LocalEngine:
    """Everything in this process."""

    rank, timeout = 0, 60.0
    shares_memory, writer = False, _program.Writer

    def address(self, func: Callable[..., Any], who: str) -> Any:
        """None for plain functions; what carries tensors of its own travels like an argument."""
        owner = getattr(func, "__self__", None)
        plain = inspect.isroutine(func) and (owner is None or isinstance(owner, (ModuleType, type)))
        return None if plain or _program.is_at_its_address(func) else func

    def ranks(self, workers: Sequence[int | str]) -> list[int]:
        """The caller, whoever was meant."""
        return [0] * len(workers)

    def live(self) -> list[int]:
        """Only the caller."""
        return [0]

    def name(self, rank: int) -> str:
        """The caller's name."""
        return "local"

    def submit(
        self, rank: int, job: _chunk.Job, timeout: float, done: Callable[[Any], None]
    ) -> None:
        """There is nobody else."""
        raise RuntimeError(f"optdist: expected work for the caller only, got rank {rank}")

    def note(self, rank: int, failure: Exception) -> None:
        """Nobody can fail."""


class RpcEngine:
    """Workers that torch's RPC reaches."""

    shares_memory, writer = True, _program.Writer

    def __init__(self, session: Session) -> None:
        self._session = session
        self.rank, self.timeout = session.rank, session.timeout

    def address(self, func: Callable[..., Any], who: str) -> Any:
        """By name."""
        return _program.name_of(func, who)

    def ranks(self, workers: Sequence[int | str]) -> list[int]:
        """As RPC numbers them."""
        from optdist.world import get_worker_id

        return [get_worker_id(worker) for worker in workers]

    def live(self) -> list[int]:
        """All but the lost and the frozen."""
        return self._session.live()

    def name(self, rank: int) -> str:
        """The name that RPC has for a worker."""
        return self._session.names[rank]

    def submit(
        self, rank: int, job: _chunk.Job, timeout: float, done: Callable[[Any], None]
    ) -> None:
        """Send a job."""
        self._session.call(rank, _chunk.answer, (job,), timeout, done)

    def note(self, rank: int, failure: Exception) -> None:
        """Keep the worker out of later calls until it answers again."""
        self._session.note(rank, failure)


def choose(name: str | None) -> Engine:
    """Return the engine by name; by default RPC where it runs, and this process inside chunks."""
    session = current()
    if name == "local" or _chunk.is_inside():
        return LocalEngine()
    if name == "ray":
        from optdist._ray import RayEngine

        return RayEngine()
    if session is not None:
        return RpcEngine(session)
    if name == "rpc":
        raise RuntimeError(
            "parallelize: expected a world of workers for engine='rpc', got none; "
            "call from a function under @auto_init_rpc"
        )
    return LocalEngine()
