# SPDX-License-Identifier: Apache-2.0
"""One call: chunks to workers, results back, and whatever a lost worker leaves undone."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from optdist import _chunk, _shared
from optdist._engine import Engine
from optdist._flat import Layout, Spec, aligned
from optdist._modes import Modes, check_no_tangents
from optdist._report import Report
from optdist.errors import WorkerLostError, WorkerTimeoutError

GRACE_SECONDS = 5.0  # beyond torch's own timeout, in case it does not keep it
_plans = itertools.count()


@dataclass(frozen=True)
class Policy:
    """What the user wants when things go wrong."""

    timeout: float | None
    redispatch: bool
    min_workers: int


@dataclass
class Chunk:
    """A part of a call: its program, its own tensors, and who should run it (or anybody)."""

    program: bytes
    rows: list[torch.Tensor]
    rank: int | None = None


class Plan:
    """What stays from call to call of one function: shared memory, and who cannot reach it."""

    def __init__(self) -> None:
        self.number = next(_plans)
        self.calls = itertools.count()
        self.busy = threading.Lock()
        self.apart: set[int] = set()  # ranks on other hosts
        self._segment: _shared.Segment | None = None

    def segment(self, size: int) -> _shared.Segment:
        """Return shared memory of at least this size."""
        if self._segment is None or self._segment.bytes.numel() < size:
            self._segment = None
            self._segment = _shared.Segment(size)
        return self._segment

    def drop(self) -> None:
        """Leave the shared memory to those that may still write to it."""
        self._segment = None


class Call:
    """Runs the chunks of one call; use once."""

    def __init__(
        self,
        func: Callable[..., Any],
        who: str,
        engine: Engine,
        plan: Plan,
        chunks: Sequence[Chunk],
        whole: Sequence[torch.Tensor],
        policy: Policy,
        scalar: bool,
        aside: bool = False,
    ) -> None:
        self.aside = aside  # the caller's thread takes chunks only if nobody else can
        self.func, self.who, self.engine, self.plan = func, who, engine, plan
        self.policy = policy
        self.chunks, self.whole, self.scalar = chunks, whole, scalar
        self.modes = Modes.now()
        everything = [*whole, *itertools.chain(*(chunk.rows for chunk in chunks))]
        check_no_tangents(who, everything)
        self.differentiate = self.modes.grad_enabled and any(t.requires_grad for t in everything)
        self.specs = tuple(Spec.of(tensor) for tensor in whole)
        self.layout = Layout(self.specs)
        self.learned = Layout([spec for spec in self.specs if spec.requires_grad])
        self.seed = int(torch.randint(2**62, (), dtype=torch.int64))
        self.number = next(plan.calls)
        self.timeout = engine.timeout if policy.timeout is None else policy.timeout
        self.report = Report(chunks=len(chunks))
        self.results: dict[int, _chunk.Result] = {}
        self.gradients: dict[int, torch.Tensor] = {}
        self._changed = threading.Condition()
        self._queue = deque(range(len(chunks)))
        self._running: dict[int, tuple[int, float]] = {}  # rank -> chunk, deadline
        self._slots: dict[int, int] = {}  # rank -> chunk whose gradient lies in shared memory
        self._informed: set[int] = set()  # ranks that have this call's tensors
        self._failure: BaseException | None = None
        self._members: list[int] = []
        self._segment: _shared.Segment | None = None
        self._flat = torch.empty(0, dtype=torch.uint8)
        self._over = self._stale = False

    def run(self, members: Sequence[int] | None) -> None:
        """Fill ``results`` and ``gradients``, or raise the first failure that counts."""
        live = self.engine.live()
        self._check_enough(live)
        self._members = self._chosen(live, members)
        others = [rank for rank in self._members if rank != self.engine.rank]
        started = time.perf_counter()
        sharing = bool(others) and self.engine.shares_memory and _shared.is_available()
        sharing = sharing and self.plan.busy.acquire(blocking=False)
        try:
            self._pack(sharing)
            with self._changed:
                # a lone chunk stays here
                kept = int(self.engine.rank in self._members and not self.aside)
                for rank in others[: max(0, len(self.chunks) - kept)]:
                    self._give(rank)
            self._work_and_wait()
        finally:
            with self._changed:
                self._over = True  # whatever still comes is late
                stale = self._stale or bool(self._running)
            if sharing:
                # Results may lie in the shared memory: the next call must not find them there.
                self.gradients = {i: g.clone() for i, g in self.gradients.items()}
                if stale:  # a late writer hits memory that nobody reads
                    self.plan.drop()
                self.plan.busy.release()
        self.report.seconds = time.perf_counter() - started

    def _chosen(self, live: Sequence[int], members: Sequence[int] | None) -> list[int]:
        """Return the workers that take part; the chunks of those that cannot are anybody's."""
        if members is None:
            return list(live)
        absent = [rank for rank in members if rank not in live]
        if absent and not self.policy.redispatch:
            raise WorkerLostError(
                f"{self.who}: expected {self.engine.name(absent[0])} to run its part, got one that "
                "is lost or frozen; name another, or give on_worker_lost='redispatch'"
            )
        for chunk in self.chunks:
            if chunk.rank in absent:
                chunk.rank = None
        return [rank for rank in members if rank in live]

    def _pack(self, sharing: bool) -> None:
        if sharing:
            slots = aligned(self.learned.nbytes) * (max(self._members) + 1)
            self._segment = self.plan.segment(self.layout.nbytes + slots)
            buffer = self._segment.bytes[: self.layout.nbytes]
        else:
            buffer = torch.empty(self.layout.nbytes, dtype=torch.uint8)
        self._flat = self.layout.pack(self.whole, buffer)
        self.report.bytes_out += self.layout.nbytes

    def _slot(self, rank: int) -> int:
        return self.layout.nbytes + rank * aligned(self.learned.nbytes)

    def _job(self, index: int) -> _chunk.Job:
        chunk = self.chunks[index]
        return _chunk.Job(
            who=self.who,
            program=chunk.program,
            whole=self.specs,
            rows=tuple(Spec.of(tensor) for tensor in chunk.rows),
            row_values=[tensor.detach() for tensor in chunk.rows],
            seed=(self.seed + index) % 2**63,
            modes=self.modes,
            differentiate=self.differentiate,
            scalar=self.scalar,
            plan=(self.engine.rank, self.plan.number),
            call=self.number,
            flat=None,
            segment=None,
        )

    def _next(self, rank: int) -> int | None:
        """Take the first chunk that this worker may run."""
        anybody = not self.aside or rank != self.engine.rank or len(self._members) == 1
        for index in self._queue:
            chosen = self.chunks[index].rank
            if chosen == rank or (chosen is None and anybody):
                self._queue.remove(index)
                return index
        return None

    def _give(self, rank: int) -> None:
        """Send a worker its next chunk, if there is one (the lock is held)."""
        index = None if self._over or self._failure else self._next(rank)
        if index is None:
            return
        if rank in self._slots:  # the worker will write over its last gradient
            last = self._slots.pop(rank)
            self.gradients[last] = self.gradients[last].clone()
        job = self._job(index)
        # A view would take all of its storage along.
        job = job._replace(row_values=[t.cpu().clone() for t in job.row_values])
        self.report.bytes_out += sum(t.nbytes for t in job.row_values)
        if self._segment is not None and rank not in self.plan.apart:
            job = job._replace(segment=(self._segment.handle, self._slot(rank)))
        elif rank not in self._informed:
            job = job._replace(flat=self._flat)
            self._informed.add(rank)
        self._running[rank] = index, time.monotonic() + self.timeout + GRACE_SECONDS
        self.engine.submit(rank, job, self.timeout, partial(self._done, rank, index))

    def _done(self, rank: int, index: int, found: Any) -> None:
        """Take what came from a worker, and give it more."""
        with self._changed:
            if self._over or self._running.get(rank, (None,))[0] != index:
                return  # late: the chunk went elsewhere
            del self._running[rank]
            try:
                self._take(rank, index, found)
            except BaseException as error:  # noqa: BLE001 - raised by run(), which waits for us
                self._failure = error
            self._changed.notify_all()

    def _take(self, rank: int, index: int, found: Any) -> None:
        if isinstance(found, _chunk.Result):
            self._keep(rank, index, found)
            self._give(rank)
        elif isinstance(found, _chunk.Missing):
            if found.shared:
                self.plan.apart.add(rank)
            self._informed.discard(rank)  # the tensors come along: no second time
            self._queue.appendleft(index)
            self._give(rank)
        elif isinstance(found, _chunk.Failed):
            self._failure = _chunk.raised(found, self.engine.name(rank))
        elif isinstance(found, (WorkerLostError, WorkerTimeoutError)):
            self._lost(rank, index, found)
        else:
            self._failure = found

    def _keep(self, rank: int, index: int, result: _chunk.Result) -> None:
        self.results[index] = result
        name = self.engine.name(rank)
        self.report.busy[name] = self.report.busy.get(name, 0.0) + result.seconds
        if not result.used:
            return
        if result.flat is None and self._segment is not None:
            start = self._slot(rank)
            slot = self._segment.bytes[start : start + self.learned.nbytes]
            self.gradients[index], self._slots[rank] = slot, index
        elif result.flat is not None:
            self.gradients[index] = result.flat
        if rank != self.engine.rank:
            self.report.bytes_back += self.learned.nbytes
            self.report.bytes_back += sum(g.nbytes for g in result.row_grads)

    def _lost(self, rank: int, index: int, failure: Exception) -> None:
        """Put a lost worker's chunk first in the queue (the lock is held)."""
        self._stale = True
        self.engine.note(rank, failure)
        self.report.lost.append(self.engine.name(rank))
        self._members = [member for member in self._members if member != rank]
        if not self.policy.redispatch:
            self._failure = failure
            return
        for chunk in self.chunks:
            if chunk.rank == rank:
                chunk.rank = None
        self.report.retries += 1
        self._queue.appendleft(index)
        for idle in self._members:
            if idle != self.engine.rank and idle not in self._running:
                self._give(idle)

    def _work_and_wait(self) -> None:
        """Run chunks here while there are any, then wait for the others."""
        while True:
            with self._changed:
                if self._failure is not None:
                    raise self._failure
                if self.report.lost:
                    self._check_enough(self.engine.live())
                if len(self.results) == len(self.chunks):
                    return
                self._expire()
                mine = self._mine()
                if mine is None:
                    self._changed.wait(0.5)  # a bound on how late _expire may come
                    continue
            result = _chunk.run_here(self._job(mine), self._flat, self.func)
            with self._changed:
                self._keep(self.engine.rank, mine, result)

    def _mine(self) -> int | None:
        """Take a chunk if the caller is a member, or if nobody else is at work."""
        if self.engine.rank in self._members:
            index = self._next(self.engine.rank)
            if index is not None:
                return index
        # Who is not at work now gets nothing more: what is left would be left for ever.
        return self._queue.popleft() if self._queue and not self._running else None

    def _expire(self) -> None:
        """Give up workers whose answer should have come or failed long ago (the lock is held)."""
        for rank, (index, deadline) in list(self._running.items()):
            if time.monotonic() > deadline:
                del self._running[rank]
                name = self.engine.name(rank)
                waited = self.timeout + GRACE_SECONDS
                text = f"{name}: expected an answer within {waited:g} s, got none"
                self._lost(rank, index, WorkerTimeoutError(text))

    def _check_enough(self, live: Sequence[int]) -> None:
        if len(live) < self.policy.min_workers:
            raise WorkerLostError(
                f"{self.who}: expected at least {self.policy.min_workers} live workers "
                f"(min_workers), got {len(live)}; start again from a checkpoint"
            )
