# SPDX-License-Identifier: Apache-2.0
"""The place reached in a backward pass, noted in a file so that another process can go on."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from optdiff._files import Lock, Refused, read, write

FILE = "optdiff-backward.pt"
NOTES = 100  # in a whole pass: at most a hundredth of it is done again


class Position(NamedTuple):
    """How far a backward pass has come."""

    stop: int  # steps that are still to be gone back through
    carry: list[torch.Tensor | None]  # cotangents of the carry there
    sums: list[torch.Tensor]  # of the arguments, so far


class Sketch(NamedTuple):
    """Small numbers that tell lists of tensors apart, but for rounding: random projections."""

    values: torch.Tensor  # (tensors, DIRECTIONS)
    tolerance: torch.Tensor  # (tensors, 1)

    @classmethod
    def of(cls, tensors: Sequence[torch.Tensor]) -> Sketch:
        """That of some tensors, with the same directions in every process."""
        values = torch.empty(len(tensors), DIRECTIONS, dtype=torch.float64)
        tolerance = torch.empty(len(tensors), 1, dtype=torch.float64)
        for row, tensor in enumerate(tensors):
            exact = torch.view_as_real(tensor) if tensor.is_complex() else tensor
            smooth = exact.is_floating_point()
            numbers = torch.finfo(exact.dtype if smooth else torch.float64)
            generator = torch.Generator().manual_seed(row)
            found, squares = torch.zeros(DIRECTIONS, dtype=torch.float64), 0.0
            for part in exact.detach().reshape(-1).split(PART):
                part = part.cpu().double()
                along = torch.randn(len(part), DIRECTIONS, generator=generator, dtype=torch.float64)
                found += part @ along
                squares += float(part.square().sum())
            values[row], tolerance[row] = found, numbers.eps**0.5 * squares**0.5
        return cls(values, tolerance)

    def close(self, values: torch.Tensor) -> bool:
        """Whether these are the values of the same tensors."""
        if values.shape != self.values.shape:
            return False
        apart = (self.values - values).abs() > self.tolerance
        strange = self.values.isfinite() != values.isfinite()
        return not bool((apart | strange).any())


DIRECTIONS = 3
PART = 1 << 20  # numbers projected at a time, to take little memory


class Ledger:
    """Notes nothing: a backward pass that is interrupted starts over."""

    @contextmanager
    def owning(self) -> Iterator[None]:
        """Own the place where notes are while the block runs, and until :meth:`close` behind it."""
        yield

    def ended(self, carry: Sequence[torch.Tensor]) -> None:
        """The forward run has ended with this carry."""

    def resume(self, cotangents: Sequence[torch.Tensor | None]) -> Position | None:
        """Where an earlier process has come to, if one was interrupted."""
        return None

    def note(self, position: Position) -> None:
        """This far the pass has come."""

    def close(self) -> None:
        """The pass is over."""


class FileLedger(Ledger):
    """Notes the place in a directory.

    Args:
        who: Who is named in errors.
        directory: Where; made if it is not there.
        folders: What names of folders begin with that a killed process leaves there.
        identity: Fingerprint of what the loop was given.
        num_steps: Of the loop.

    Raises:
        ValueError: The directory holds the place in another loop, or a damaged file; or another
            loop works there.
        OSError: It cannot be made, or nothing can be written there.
    """

    def __init__(
        self, who: str, directory: Path, folders: str, identity: str, num_steps: int
    ) -> None:
        self._who = who
        self._directory = directory
        self._path = directory / FILE
        self._identity = identity
        self._every = -(-num_steps // NOTES)
        self._end: Sketch
        self._seed: Sketch
        self._made = not directory.exists()
        self._found: dict | None = None
        self._lock = Lock(who, directory)
        # also if there never is a backward pass
        weakref.finalize(self, self._lock.release)
        with self.owning():
            self._found = self._read() if self._path.exists() else None
            for old in directory.glob(f"{folders}*"):
                shutil.rmtree(old)

    @contextmanager
    def owning(self) -> Iterator[None]:
        """Own the directory while the block runs, and until :meth:`close` unless the block fails.

        Raises:
            ValueError: Another loop works there.
            OSError: Nothing can be written there.
        """
        self._lock.take()
        with ExitStack() as stack:
            stack.callback(self._lock.release)
            yield
            stack.pop_all()

    def _read(self) -> dict:
        try:
            found = read(self._who, self._path)
        except Refused as refused:
            raise ValueError(
                f"{self._who}: expected the place in an earlier backward pass, got {refused}, at "
                f"{self._path}; delete it to start over"
            ) from None
        if found["identity"] != self._identity:
            raise ValueError(
                f"{self._who}: expected a directory of this loop, got one of another (init, args, "
                f"num_steps or step differ), at {self._path}; give another directory, or delete "
                "the file to start over"
            )
        return found

    def ended(self, carry: Sequence[torch.Tensor]) -> None:
        """The forward run has ended with this carry.

        Raises:
            ValueError: That of the process that was interrupted ended with another.
        """
        self._end = Sketch.of(carry)
        if self._found is not None:
            self._compare("last carry", self._end)

    def resume(self, cotangents: Sequence[torch.Tensor | None]) -> Position | None:
        """Where an earlier process has come to.

        Raises:
            ValueError: That process had another loss behind the last carry.
        """
        self._seed = Sketch.of([torch.zeros(()) if c is None else c for c in cotangents])
        if self._found is None or not self._path.exists():  # deleted since, to start over
            return None
        self._compare("loss", self._seed)
        found, self._found = self._found, None
        return Position(found["stop"], found["carry"], found["sums"])

    def _compare(self, name: str, now: Sketch) -> None:
        if self._found is not None and not now.close(self._found[name]):
            raise ValueError(
                f"{self._who}: expected the {name} of the backward pass that was interrupted, "
                f"got another, at {self._path}; delete the file to start over"
            )

    def note(self, position: Position) -> None:
        """Write it down now and then.

        Raises:
            OSError: There is no room, or no right to write.
        """
        if position.stop % self._every == 0 and position.stop:
            noted = position._asdict() | {
                "identity": self._identity,
                "last carry": self._end.values,
                "loss": self._seed.values,
            }
            write(self._who, self._path, noted, lasting=True)

    def close(self) -> None:
        """Leave nothing behind."""
        self._path.unlink(missing_ok=True)
        self._lock.release()
        if self._made and not any(self._directory.iterdir()):
            self._directory.rmdir()
