# SPDX-License-Identifier: Apache-2.0
"""What one outer step takes: CPU time, and memory above what is held before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode


class Cost(NamedTuple):
    """Of an outer step: the median of its CPU seconds, its peak memory in bytes."""

    cpu_seconds: float
    peak_bytes: int


class Meter(TorchDispatchMode):
    """Bytes of the living storages that operations made; the peak is exact to 2 %."""

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self._now = 0
        self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        for result in results if isinstance(results, (tuple, list)) else (results,):
            if not isinstance(result, Tensor) or result._is_zerotensor():
                continue  # the latter have no storage
            storage = result.untyped_storage()
            known, size = self._alive.get(storage.data_ptr(), (None, 0))
            if known is None or known.expired():  # an address may serve again
                self._alive[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())
                self._now += storage.nbytes() - size
        if self._now > 1.02 * self.peak:
            self._alive = {k: v for k, v in self._alive.items() if not v[0].expired()}
            self._now = sum(size for _, size in self._alive.values())
            self.peak = max(self.peak, self._now)
        return results


def peak_bytes(step: Callable[[], object]) -> int:
    """Peak memory of the tensors that ``step`` makes."""
    with Meter() as meter:
        step()
    return meter.peak
