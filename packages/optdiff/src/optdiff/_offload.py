# SPDX-License-Identifier: Apache-2.0
"""Where the carries of a long loop are kept: as they are, in host memory, or in files."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from optdiff._files import Refused, folder_inside, read, write

Tensors = Sequence[torch.Tensor]


class Shelf(Protocol):
    """Keeps the tensors of carries."""

    def keep(self, number: int, tensors: Tensors) -> Any:
        """Keep the tensors before a step; what is returned stands for them."""

    def get(self, kept: Any) -> list[torch.Tensor]:
        """The tensors, where they were."""

    def drop(self, kept: Any) -> None:
        """They are not needed any more."""

    def close(self) -> None:
        """Nothing that is kept is needed any more."""


class InPlace:
    """Keeps tensors as they are."""

    def keep(self, number: int, tensors: Tensors) -> Any:
        """Keep them."""
        return [tensor.detach() for tensor in tensors]

    def get(self, kept: Any) -> list[torch.Tensor]:
        """Themselves."""
        return list(kept)

    def drop(self, kept: Any) -> None:
        """They go with the last reference."""

    def close(self) -> None:
        """They go with the last reference."""


class OnHost(InPlace):
    """Keeps tensors of other devices in memory of the host, pinned where CUDA copies to it."""

    def keep(self, number: int, tensors: Tensors) -> Any:
        """Copy them; the copies run beside what follows."""
        return [(tensor.device, _to_host(tensor.detach())) for tensor in tensors]

    def get(self, kept: Any) -> list[torch.Tensor]:
        """Copies of them on their device."""
        return [tensor.to(device, non_blocking=True) for device, tensor in kept]


class _File(NamedTuple):
    path: Path
    number: int
    devices: tuple[torch.device, ...]


class OnDisk:
    """Keeps tensors in files of a folder of its own, which goes when the loop does.

    Args:
        who: Who is named in errors.
        directory: Where that folder is made; None: where temporary files belong.
    """

    def __init__(self, who: str, directory: Path | None) -> None:
        self._who = who
        self._directory = directory
        self._folder: Path | None = None
        self._delete: Callable[[], Any] = _nothing

    def keep(self, number: int, tensors: Tensors) -> Any:
        """Write them to a file.

        Raises:
            OSError: It cannot be written.
        """
        if self._folder is None:
            self._folder = folder_inside(self._who, FOLDER, self._directory)
            # also if there never is a backward pass, or it fails
            self._delete = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        path = self._folder / f"before-step-{number}.pt"
        write(self._who, path, [tensor.detach() for tensor in tensors], lasting=False)
        return _File(path, number, tuple(tensor.device for tensor in tensors))

    def get(self, kept: Any) -> list[torch.Tensor]:
        """Read them.

        Raises:
            OSError: There is no such file any more, or it cannot be read.
            ValueError: It was damaged.
        """
        try:
            found = read(self._who, kept.path)
        except Refused as refused:
            raise ValueError(
                f"{self._who}: expected the carry before step {kept.number} as it was written, got "
                f"{refused}, at {kept.path}; run again"
            ) from None
        except FileNotFoundError as error:
            raise FileNotFoundError(
                error.errno,
                f"{self._who}: expected the carry before step {kept.number}, got no such file; "
                "leave the directory alone until the backward pass is over, and run again",
                str(kept.path),
            ) from None
        return [tensor.to(device) for tensor, device in zip(found, kept.devices, strict=True)]

    def drop(self, kept: Any) -> None:
        """Delete the file."""
        kept.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Delete the folder."""
        self._delete()
        self._folder = None


FOLDER = "optdiff-carries-"


def _nothing() -> None:
    """There is no folder yet."""


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device.type != "cuda":
        return tensor.to("cpu")
    host = torch.empty_like(tensor, device="cpu", pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
