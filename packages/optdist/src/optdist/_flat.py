# SPDX-License-Identifier: Apache-2.0
"""Many tensors as one stretch of bytes, and back."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import nn

ALIGNMENT = 64  # bytes: a cache line, and enough for every dtype


class Spec(NamedTuple):
    """What is needed to make a tensor like another."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: str
    requires_grad: bool
    is_parameter: bool

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Spec:
        """Describe a tensor."""
        return cls(
            tuple(tensor.shape),
            tensor.dtype,
            str(tensor.device),
            tensor.requires_grad,
            isinstance(tensor, nn.Parameter),
        )

    def revive(self, values: torch.Tensor) -> torch.Tensor:
        """Make a leaf of this kind of values that nobody else holds."""
        # .data: views of one buffer would share one version counter, and a change of one
        # (batch statistics) would count as a change of all that autograd has saved.
        plain = values.data.to(self.device)
        if self.is_parameter:
            return nn.Parameter(plain, requires_grad=self.requires_grad)
        return plain.requires_grad_(self.requires_grad)


class Layout:
    """Where each tensor lies in a buffer: one stretch per dtype, in order of appearance."""

    def __init__(self, specs: Sequence[Spec]) -> None:
        self.specs = list(specs)
        self.members: dict[torch.dtype, list[int]] = {}
        for index, spec in enumerate(self.specs):
            self.members.setdefault(spec.dtype, []).append(index)
        self.sizes = [torch.Size(spec.shape).numel() for spec in self.specs]

    @cached_property
    def stretches(self) -> dict[torch.dtype, tuple[int, int]]:
        """Per dtype, the first byte and the number of elements."""
        found, start = {}, 0
        for dtype, indices in self.members.items():
            count = sum(self.sizes[index] for index in indices)
            found[dtype] = start, count
            start += aligned(count * dtype.itemsize)
        return found

    @cached_property
    def nbytes(self) -> int:
        """The size of a buffer."""
        last = list(self.stretches.items())[-1:]
        return sum(start + aligned(count * dtype.itemsize) for dtype, (start, count) in last)

    def parts(self, buffer: torch.Tensor) -> dict[torch.dtype, torch.Tensor]:
        """View a buffer as one vector per dtype."""
        return {
            dtype: buffer[start : start + count * dtype.itemsize].view(dtype)
            for dtype, (start, count) in self.stretches.items()
        }

    def pack(self, tensors: Sequence[torch.Tensor], buffer: torch.Tensor) -> torch.Tensor:
        """Copy the tensors into a buffer of bytes."""
        for dtype, part in self.parts(buffer).items():
            rows = [tensors[i].detach().to("cpu").reshape(-1) for i in self.members[dtype]]
            torch.cat(rows, out=part)
        return buffer

    def unpack(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        """View a buffer as the tensors."""
        found: list[torch.Tensor] = [buffer] * len(self.specs)
        for dtype, part in self.parts(buffer).items():
            indices = self.members[dtype]
            pieces = part.split([self.sizes[index] for index in indices])
            for index, piece in zip(indices, pieces, strict=True):
                found[index] = piece.view(self.specs[index].shape)
        return found

    def weighted_sum(
        self, buffers: Sequence[torch.Tensor], weights: Sequence[float]
    ) -> torch.Tensor:
        """Add buffers, in their order whatever order they came in."""
        total = torch.empty(self.nbytes, dtype=torch.uint8)
        parts = self.parts(total)
        for number, (buffer, weight) in enumerate(zip(buffers, weights, strict=True)):
            for dtype, part in self.parts(buffer).items():
                if number == 0:
                    torch.mul(part, weight, out=parts[dtype])
                else:
                    parts[dtype].add_(part, alpha=weight)
        return total


def aligned(size: int) -> int:
    """Round up to a whole number of cache lines."""
    return -(-size // ALIGNMENT) * ALIGNMENT
