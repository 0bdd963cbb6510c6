# SPDX-License-Identifier: Apache-2.0
"""Chunks as tasks of Ray, which places them, and repeats those whose process dies.

Ray is imported when an engine is made: this module must import without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch

from optdist import _chunk, _program
from optdist.errors import WorkerLostError

RETRIES = 3  # by Ray, before we hear of a loss


@cache
def cloud_writer() -> type[_program.Apart]:
    """Make the writer that sends functions and classes of the main program along.

    Ray's processes run another main program.
    """
    from ray import cloudpickle

    class CloudWriter(_program.Apart, cloudpickle.CloudPickler):
        def otherwise(self, obj: Any) -> Any:
            return cloudpickle.CloudPickler.reducer_override(self, obj)

    return CloudWriter


class RayEngine:
    """The processors of a cluster, as many chunks at a time; the caller is one of them.

    Raises:
        RuntimeError: Ray does not run.
    """

    rank, timeout = 0, 60.0
    shares_memory = False  # Ray has an object store of its own

    def __init__(self) -> None:
        import ray

        if not ray.is_initialized():
            raise RuntimeError(
                "parallelize(engine='ray'): expected a Ray that runs, got none; call ray.init() "
                "before"
            )
        self._ray, self.writer = ray, cloud_writer()
        self._live = list(range(max(1, int(ray.cluster_resources().get("CPU", 1)))))
        self._flat: Any = None  # the call's tensors in the object store
        self._running: dict[int, Any] = {}
        self._task = ray.remote(num_cpus=1, max_retries=RETRIES)(answer)

    def address(self, func: Callable[..., Any], who: str) -> Any:
        """The function itself."""
        return func

    def ranks(self, workers: Sequence[int | str]) -> list[int]:
        """Ray chooses.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"parallelize(engine='ray'): expected a partitioner that names no workers, got "
            f"{list(workers)}; Ray places chunks itself"
        )

    def live(self) -> list[int]:
        """One for each processor, but those whose chunk failed in this call."""
        return list(self._live)

    def name(self, rank: int) -> str:
        """A name for reports: Ray may run it anywhere."""
        return f"ray{rank}" if rank else "caller"

    def submit(
        self, rank: int, job: _chunk.Job, timeout: float, done: Callable[[Any], None]
    ) -> None:
        """Start a task; the tensors that all chunks need are stored once a call."""
        if self._flat is None:
            self._flat = self._ray.put(job.flat.numpy())
        self._running[rank] = task = self._task.remote(job._replace(flat=None), self._flat)
        task.future().add_done_callback(partial(self._arrived, rank, done))

    def _arrived(self, rank: int, done: Callable[[Any], None], future: Any) -> None:
        try:
            done(future.result())
        except self._ray.exceptions.RayError as error:
            failure = WorkerLostError(
                f"{self.name(rank)}: expected an answer, got {type(error).__name__} after "
                f"{RETRIES} retries of Ray; see its logs"
            )
            failure.__cause__ = error
            done(failure)

    def note(self, rank: int, failure: Exception) -> None:
        """Give this place no more work in this call, and end what still runs there."""
        self._live = [one for one in self._live if one != rank]
        self._ray.cancel(self._running[rank], force=True)


def answer(job: _chunk.Job, flat: Any) -> Any:
    """Run a chunk (in a process of Ray); ``flat`` is an array of bytes."""
    from ray import cloudpickle

    # A copy: the object store is read-only memory, and torch warns of it.
    return _chunk.answer(job._replace(flat=torch.from_numpy(flat.copy())), dumps=cloudpickle.dumps)
