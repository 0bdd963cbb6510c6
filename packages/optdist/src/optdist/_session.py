# SPDX-License-Identifier: Apache-2.0
"""One run of RPC: who is here, who is lost, and how everybody leaves in bounded time."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
import torch.distributed.rpc as rpc

from optdist.errors import WorkerLostError, WorkerTimeoutError

log = logging.getLogger("optdist")
PING_SECONDS = 1.0  # how often a waiting worker asks whether rank 0 is there
SILENCE_SECONDS = 60.0  # how long rank 0 may be silent, with its connection open
LINGER_SECONDS = 300.0  # how long rank 0 waits at its end for the others' programs
LEAVE_SECONDS = 5.0  # how long torch may take to end RPC before the process ends itself
TIMED_OUT = "RPC ran for more than set timeout"  # torch has no type for it
CLOSED = (  # nor these: what TensorPipe and libuv say of connections
    "EOF: end of file", "pipe closed", "broken pipe", "socket is not connected", "connection reset",
    "connection refused", "connection aborted", "connection timed out", "operation canceled",
    "unreachable",
)  # fmt: skip


def is_closed(text: str) -> bool:
    """Tell whether torch's message is of a connection, and not of what ran at its end."""
    return any(words in text for words in CLOSED)


class Session:
    """What this process knows of the others."""

    def __init__(self, rank: int, names: list[str], store: dist.Store, timeout: float) -> None:
        self.rank, self.names, self.store, self.timeout = rank, names, store, timeout
        self.barriers: dict[str, int] = {}
        self.finished, self.released = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._lost: set[int] = set()
        self._frozen: dict[int, bool] = {}  # rank -> a question is under way

    @property
    def name(self) -> str:
        """The name of this process."""
        return self.names[self.rank]

    @property
    def size(self) -> int:
        """The number of processes at the start."""
        return len(self.names)

    def live(self) -> list[int]:
        """Return the ranks that may be given work; ask the frozen ones whether they are back."""
        with self._lock:
            ask = [rank for rank, asked in self._frozen.items() if not asked]
            self._frozen.update(dict.fromkeys(ask, True))
        for rank in ask:
            self.call(rank, here, (), SILENCE_SECONDS, lambda found, r=rank: self._answer(r, found))
        with self._lock:
            return [r for r in range(self.size) if r not in self._lost and r not in self._frozen]

    def note(self, rank: int, failure: Exception) -> None:
        """Remember that a worker is lost, or frozen if it only did not answer in time."""
        with self._lock:
            known = rank in self._lost or rank in self._frozen
            if isinstance(failure, WorkerLostError):
                self._lost.add(rank)
                self._frozen.pop(rank, None)
            else:
                self._frozen.setdefault(rank, False)
        if not known:
            log.warning("optdist: %s", failure)

    def _answer(self, rank: int, found: Any) -> None:
        with self._lock:
            if found is True:
                self._frozen.pop(rank, None)
                log.warning("optdist: %s answers again", self.names[rank])
            elif isinstance(found, WorkerLostError):
                self._lost.add(rank)
                self._frozen.pop(rank, None)
            else:
                self._frozen[rank] = False

    def call(
        self,
        rank: int,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        timeout: float,
        done: Callable[[Any], None],
    ) -> None:
        """Call a function of optdist over there; ``done`` gets its result or the failure."""

        def finish(future: Any) -> None:
            try:
                found = future.value()
            except RuntimeError as error:  # our functions raise nothing: this is the connection
                found = self.failure(rank, error, timeout)
            except Exception as error:  # noqa: BLE001 - whoever waits must hear of it
                found = error
            done(found)

        try:
            future = rpc.rpc_async(self.names[rank], func, args=args, timeout=timeout)
        except RuntimeError as error:  # the connection was known to be closed
            done(self.failure(rank, error, timeout))
        else:
            future.add_done_callback(finish)

    def failure(self, rank: int, error: RuntimeError, timeout: float) -> Exception:
        """Return torch's error of a connection as one of our types."""
        name = self.names[rank]
        if TIMED_OUT in str(error):
            found: Exception = WorkerTimeoutError(
                f"{name}: expected an answer within {timeout:g} s, got none; "
                "give a longer timeout if the task takes longer"
            )
        else:
            found = WorkerLostError(
                f"{name}: expected an answer, got a closed connection; "
                "see that process's last output"
            )
        found.__cause__ = error
        return found

    def ask(
        self, rank: int, func: Callable[..., Any], args: tuple[Any, ...], timeout: float
    ) -> Any:
        """Call and wait, open to signals; return the result or the failure."""
        arrived = threading.Event()
        box: list[Any] = []
        self.call(rank, func, args, timeout, lambda found: (box.append(found), arrived.set()))
        if not arrived.wait(timeout + LEAVE_SECONDS):
            return self.failure(rank, RuntimeError(TIMED_OUT), timeout)
        return box[0]

    def close_door(self) -> None:
        """Wait until the program is over everywhere: rank 0 for all, the others for rank 0."""
        self.finished.set()
        if self.rank != 0:
            self._serve()
            return
        latest = time.monotonic() + LINGER_SECONDS
        for rank in range(1, self.size):
            silent = time.monotonic()
            while rank in self.live() or time.monotonic() - silent < 2 * LEAVE_SECONDS:
                if time.monotonic() > latest:
                    log.warning(
                        "optdist: %s is still busy %g s after rank 0 was done; leaving without it",
                        self.names[rank],
                        LINGER_SECONDS,
                    )
                    break
                found = self.ask(rank, is_finished, (PING_SECONDS,), PING_SECONDS + LEAVE_SECONDS)
                if found is True or isinstance(found, WorkerLostError):
                    break
                if isinstance(found, Exception):
                    self.note(rank, found)

    def _serve(self) -> None:
        heard = time.monotonic()
        while not self.released.wait(PING_SECONDS):
            found = self.ask(0, here, (), SILENCE_SECONDS / 4)
            if found is True:
                heard = time.monotonic()
            gone = isinstance(found, WorkerLostError)
            if (gone or time.monotonic() - heard > SILENCE_SECONDS) and not self.released.is_set():
                raise WorkerLostError(f"{self.name}: expected rank 0, got no answer; leaving")

    def leave(self, completed: bool) -> None:
        """Release the others (rank 0), end RPC, and end the process if torch does not."""
        watchdog = watch(self.name)
        if self.rank == 0:
            waiting = [threading.Event() for _ in range(1, self.size)]
            for rank, event in enumerate(waiting, start=1):
                self.call(rank, release, (), LEAVE_SECONDS / 2, lambda found, e=event: e.set())
            deadline = time.monotonic() + LEAVE_SECONDS / 5
            for event in waiting:
                event.wait(max(0.0, deadline - time.monotonic()))
        end()
        rpc.shutdown(graceful=False)
        watchdog.cancel()
        log.debug("optdist: %s has left, %s", self.name, "done" if completed else "interrupted")


def watch(name: str) -> threading.Timer:
    """Bound the end of RPC: cancel the result when it is over."""
    watchdog = threading.Timer(LEAVE_SECONDS, _give_up, (name,))
    watchdog.daemon = True
    watchdog.start()
    return watchdog


def _give_up(name: str) -> None:
    """End a process whose tasks do not end."""
    log.error("optdist: %s could not end RPC within %g s; ending the process", name, LEAVE_SECONDS)
    os._exit(1)


_current: Session | None = None


def current() -> Session | None:
    """Return the session of this process, or ``None``."""
    return _current


def begin(session: Session) -> Session:
    """Make a session the one of this process."""
    global _current
    _current = session
    return session


def end() -> None:
    """Leave this process without one."""
    global _current
    _current = None


def here() -> bool:
    """Answer a ping (runs on the other side)."""
    return True


def is_finished(seconds: float) -> bool:
    """Tell whether this worker's program is over (runs on the other side)."""
    return _current is None or _current.finished.wait(seconds)


def release() -> None:
    """Let this worker leave (runs on the other side)."""
    if _current is not None:
        _current.released.set()
