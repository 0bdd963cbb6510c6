# SPDX-License-Identifier: Apache-2.0
"""What a call took: per worker, in bytes, and what went wrong on the way."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Report:
    """The last call of a parallelized function."""

    chunks: int = 0
    rows: int | None = None  # None: the partitioner does not count them
    seconds: float = 0.0  # from call to value and gradient
    busy: dict[str, float] = field(default_factory=dict)  # seconds in the function, per worker
    lost: list[str] = field(default_factory=list)  # workers that did not answer in this call
    retries: int = 0  # chunks that ran again elsewhere
    bytes_out: int = 0  # tensors sent by message or put into shared memory
    bytes_back: int = 0

    @property
    def rows_per_second(self) -> float | None:
        """Rows done in a second of wall time."""
        return None if self.rows is None else self.rows / max(self.seconds, 1e-9)

    def __str__(self) -> str:
        workers = ", ".join(f"{name} {busy:.3f} s" for name, busy in self.busy.items())
        speed = "" if self.rows is None else f" {self.rows_per_second:.0f} rows/s,"
        return (
            f"{self.chunks} chunks in {self.seconds:.3f} s,{speed} {self.retries} retries, "
            f"{self.bytes_out} bytes out, {self.bytes_back} back; {workers}"
        )
