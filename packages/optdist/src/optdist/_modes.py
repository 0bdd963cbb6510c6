# SPDX-License-Identifier: Apache-2.0
"""Torch's modes of a thread: those that go along with a call, and those that cannot."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch.autograd import forward_ad


class Modes(NamedTuple):
    """Whether gradients are recorded, and what ``torch.autocast`` does for kinds of devices."""

    grad_enabled: bool
    autocast: tuple[tuple[str, torch.dtype], ...]
    cache: bool

    @classmethod
    def now(cls) -> Modes:
        """Read those of this thread."""
        kinds = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
        on = [kind for kind in kinds if torch.is_autocast_enabled(kind)]
        return cls(
            torch.is_grad_enabled(),
            tuple((kind, torch.get_autocast_dtype(kind)) for kind in on),
            torch.is_autocast_cache_enabled(),
        )

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Set them in this thread."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(self.grad_enabled))
            for kind, dtype in self.autocast:
                stack.enter_context(torch.autocast(kind, dtype, cache_enabled=self.cache))
            yield


def check_no_transform(who: str) -> None:
    """Refuse to work under transforms of functions, whose tensors do not cross processes.

    Raises:
        RuntimeError: one is under way.
    """
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise RuntimeError(
            f"{who}: expected no transform of torch.func around a parallelized function, got one "
            "(grad, jvp, vmap, ...); use it inside the function, or torch.autograd.grad around it"
        )


def check_no_tangents(who: str, tensors: Iterable[torch.Tensor]) -> None:
    """Refuse dual tensors, whose tangents would be lost.

    Raises:
        RuntimeError: there is one.
    """
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise RuntimeError(
            f"{who}: expected tensors without tangents, got one of forward-mode AD; use it inside "
            "the function, or torch.autograd.grad around it"
        )
