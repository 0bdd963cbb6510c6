# SPDX-License-Identifier: Apache-2.0
"""Many tensors that a formula treats as one: each operation is a single call for all of them."""

from __future__ import annotations

from typing import Any

import torch


class TensorList:
    """Tensors of one dtype and device under elementwise operations, by ``torch._foreach_*``.

    Written for formulas that run in place: nothing here records a graph. Operations with an
    underscore overwrite the tensors, the others make new ones; the other operand is a number, a
    CPU scalar, or a list alike.
    """

    __slots__ = ("tensors",)

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self.tensors = tensors

    @property
    def dtype(self) -> torch.dtype:
        """Common dtype."""
        return self.tensors[0].dtype

    @property
    def ndim(self) -> int:
        """That of a list: what single tensors need a look at for, lists never do."""
        return 1

    @property
    def device(self) -> torch.device:
        """Common device."""
        return self.tensors[0].device

    def to(self, *arguments: Any) -> TensorList:
        """Each ``tensor.to(...)``."""
        return TensorList([tensor.to(*arguments) for tensor in self.tensors])

    def clone(self) -> TensorList:
        """Copies."""
        return TensorList([tensor.clone() for tensor in self.tensors])

    def lerp_(self, end: TensorList, weight: Any) -> TensorList:
        """Move towards ``end``."""
        torch._foreach_lerp_(self.tensors, end.tensors, weight)
        return self

    def mul_(self, factor: Any) -> TensorList:
        """Multiply."""
        torch._foreach_mul_(self.tensors, _operand(factor))
        return self

    def add_(self, term: Any) -> TensorList:
        """Add."""
        torch._foreach_add_(self.tensors, _operand(term))
        return self

    def add(self, term: TensorList, *, alpha: float) -> TensorList:
        """Add ``alpha * term``."""
        return TensorList(list(torch._foreach_add(self.tensors, term.tensors, alpha=alpha)))

    def addcmul_(self, first: TensorList, second: TensorList, *, value: float) -> TensorList:
        """Add ``value * first * second``."""
        torch._foreach_addcmul_(self.tensors, first.tensors, second.tensors, value=value)
        return self

    def clamp_min(self, low: float) -> TensorList:
        """The larger of each element and ``low``."""
        return TensorList(list(torch._foreach_clamp_min(self.tensors, low)))

    def sqrt(self) -> TensorList:
        """Square root."""
        return TensorList(list(torch._foreach_sqrt(self.tensors)))

    def abs(self) -> TensorList:
        """Absolute value."""
        return TensorList(list(torch._foreach_abs(self.tensors)))

    def sign(self) -> TensorList:
        """-1, 0 or 1."""
        return TensorList(list(torch._foreach_sign(self.tensors)))

    def maximum(self, other: TensorList) -> TensorList:
        """The larger of each two elements."""
        return TensorList(list(torch._foreach_maximum(self.tensors, other.tensors)))

    def __mul__(self, factor: Any) -> TensorList:
        return TensorList(list(torch._foreach_mul(self.tensors, _operand(factor))))

    def __add__(self, term: Any) -> TensorList:
        return TensorList(list(torch._foreach_add(self.tensors, _operand(term))))

    def __sub__(self, term: Any) -> TensorList:
        return TensorList(list(torch._foreach_sub(self.tensors, _operand(term))))

    def __truediv__(self, divisor: Any) -> TensorList:
        return TensorList(list(torch._foreach_div(self.tensors, _operand(divisor))))


def _operand(value: Any) -> Any:
    if isinstance(value, TensorList):
        return value.tensors
    return value.item() if isinstance(value, torch.Tensor) else value  # derived: on the CPU
