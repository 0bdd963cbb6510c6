# SPDX-License-Identifier: Apache-2.0
"""Memory that processes of one host share: without a name, so that nothing is left behind."""

from __future__ import annotations

import mmap
import os
import secrets
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

HEADER = 64  # bytes before the first buffer: a number that proves it is the right memory


class Handle(NamedTuple):
    """How another process finds the memory."""

    host: str
    pid: int
    fd: int
    nonce: bytes
    size: int
    inode: int


class Segment:
    """A stretch of memory that others of this host may open while this process lives."""

    def __init__(self, size: int) -> None:
        self._fd = os.memfd_create("optdist")
        os.ftruncate(self._fd, HEADER + size)
        nonce = secrets.token_bytes(16)
        memory = mmap.mmap(self._fd, HEADER + size)
        memory[: len(nonce)] = nonce
        self.bytes = torch.frombuffer(memory, dtype=torch.uint8)[HEADER:]
        inode = os.fstat(self._fd).st_ino
        self.handle = Handle(host_key(), os.getpid(), self._fd, nonce, HEADER + size, inode)

    def __del__(self) -> None:
        os.close(self._fd)


def is_available() -> bool:
    """Tell whether this system has such memory (Linux has)."""
    return hasattr(os, "memfd_create") and host_key() != ""


@cache
def host_key() -> str:
    """Name this running system and its numbering of processes; empty where it cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def is_gone(handle: Handle) -> bool:
    """Tell whether the process has closed its memory, or is gone itself."""
    try:
        return os.stat(f"/proc/{handle.pid}/fd/{handle.fd}").st_ino != handle.inode
    except OSError:
        return True


def attach(handle: Handle) -> torch.Tensor | None:
    """Open another process's memory; ``None`` where that is another host or not permitted."""
    if handle.host != host_key():
        return None
    try:
        fd = os.open(f"/proc/{handle.pid}/fd/{handle.fd}", os.O_RDWR)
    except OSError:
        return None
    try:
        memory = mmap.mmap(fd, handle.size)
    finally:
        os.close(fd)
    if memory[: len(handle.nonce)] != handle.nonce:
        return None
    return torch.frombuffer(memory, dtype=torch.uint8)[HEADER:]
