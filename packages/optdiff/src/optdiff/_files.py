# SPDX-License-Identifier: Apache-2.0
"""Files of tensors that are whole or not there, and tell what they are."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import torch

from optcore import map_tensors

FORMAT = b"optdiff replay 2\n"  # the number changes when older files cannot be read any more


class Refused(ValueError):
    """A file is not one of ours, or is no longer what was written; says what it is."""


def write(who: str, path: Path, value: Any, *, lasting: bool) -> None:
    """Write a tree of tensors and plain values in one go: a reader finds the old file or the new.

    Args:
        who: Who is named in errors.
        path: The file.
        value: The tree.
        lasting: Whether it must outlive the machine too, not the process alone.

    Raises:
        OSError: There is no room, or no right to write.
    """
    buffer = io.BytesIO()
    torch.save(map_tensors(_alone, value), buffer)
    payload = buffer.getbuffer()
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        with unfinished.open("wb") as file:
            file.write(FORMAT)
            file.write(hashlib.sha256(payload).digest())
            file.write(payload)
            if lasting:
                file.flush()
                os.fsync(file.fileno())
        unfinished.replace(path)
        if lasting:
            _settle(path.parent)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise OSError(
            error.errno,
            f"{who}: expected to write {len(payload) / 1e6:.1f} MB, got {error.strerror!r}; make "
            "room, give another directory, or take offload='cpu'",
            str(path),
        ) from error


def read(who: str, path: Path) -> Any:
    """Read what :func:`write` has written, onto the CPU.

    Raises:
        Refused: The file is not one of ours, or damaged.
        OSError: It is not there, or cannot be read.
    """
    content = memoryview(path.read_bytes())
    size = hashlib.sha256().digest_size
    if content[: len(FORMAT)] != FORMAT:
        raise Refused("a file of another kind or version")
    digest, payload = content[len(FORMAT) :][:size], content[len(FORMAT) + size :]
    if hashlib.sha256(payload).digest() != digest:
        raise Refused("a damaged file")
    return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)


def fingerprint(values: Any) -> str:
    """A number that tells trees of tensors and plain values apart."""
    buffer = hashlib.sha256()

    def add(tensor: torch.Tensor) -> torch.Tensor:
        plain = tensor.detach().cpu().contiguous()
        buffer.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
        buffer.update(plain.reshape(-1).view(torch.uint8).numpy())
        return tensor

    map_tensors(add, values)
    return buffer.hexdigest()


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor without the rest of a memory that it shares, which would be written too."""
    tensor = tensor.detach().cpu()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _settle(folder: Path) -> None:
    """Have the file system note the new name for good."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
