# SPDX-License-Identifier: Apache-2.0
"""Files of tensors that are whole or not there, and tell what they are."""

from __future__ import annotations

import gc
import hashlib
import io
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from optcore import map_tensors

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# torch.save of torch 2.9 and before leaves what it has saved in a cycle of references.
_SAVE_LEAVES_A_CYCLE = torch.__version__ < "2.11"

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
    if _SAVE_LEAVES_A_CYCLE:
        gc.collect(1)  # the young objects, which takes no time
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
            f"{who}: expected to write {_amount(len(payload))}, got {error.strerror!r}; make "
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


def folder_inside(who: str, prefix: str, directory: Path | None) -> Path:
    """Make a new folder in a directory, or where temporary files belong.

    Raises:
        OSError: It cannot be made.
    """
    try:
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)  # an earlier pass removes it
        return Path(tempfile.mkdtemp(prefix=prefix, dir=directory))
    except OSError as error:
        raise _unfit(who, directory or "the directory of temporary files", error) from error


class Lock:
    """Keeps other loops out of a directory while its owner lives; a killed owner has let go of it.

    Args:
        who: Who is named in errors.
        directory: Which.
    """

    def __init__(self, who: str, directory: Path) -> None:
        self._who = who
        self._directory = directory
        self._path = directory / "optdiff.lock"
        self._handle: int | None = None

    def take(self) -> None:
        """Own the directory, which is made if it is not there.

        Raises:
            ValueError: Another loop owns it.
            OSError: It cannot be made, or nothing can be written there.
            NotImplementedError: The system has no locks of this kind.
        """
        if fcntl is None:
            raise NotImplementedError(
                f"{self._who}: expected a POSIX system for a directory that a killed run can go "
                "on from, got another; leave directory= out, or take offload='cpu'"
            )
        while self._handle is None:
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
                handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise _unfit(self._who, self._directory, error) from error
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(handle, self._path):  # else the last owner has just removed it
                    self._handle, handle = handle, -1
            except BlockingIOError:
                raise ValueError(
                    f"{self._who}: expected a directory of its own, got one that another loop "
                    f"works in, at {self._directory}; give each its own, or let go of the results "
                    "of the other one"
                ) from None
            except OSError as error:
                raise _unfit(self._who, self._directory, error) from error
            finally:
                if handle >= 0:
                    os.close(handle)

    def release(self) -> None:
        """Let others have the directory."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            self._path.unlink(missing_ok=True)
            fcntl.flock(handle, fcntl.LOCK_UN)  # a forked process may have the handle too
            os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _unfit(who: str, path: Path | str, error: OSError) -> OSError:
    return OSError(
        error.errno,
        f"{who}: expected a directory to write to, got {error.strerror!r}; give another directory, "
        "or take offload='cpu'",
        str(path),
    )


def _amount(size: int) -> str:
    """A number of bytes, to be read."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} bytes"


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
