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

    What :meth:`over` and :meth:`times` return is computed only when something reads it: as the
    last operation of a step, division and scaling are part of the addition to the parameters.
    """

    __slots__ = ("_divisor", "_scale", "_tensors", "temporary")

    def __init__(
        self,
        tensors: list[torch.Tensor],
        scale: float | None = None,
        divisor: list[torch.Tensor] | None = None,
    ) -> None:
        self._tensors = tensors
        self._scale = scale  # a factor that is still to be applied; None: nothing is
        self._divisor = divisor
        self.temporary = False  # True: nobody else reads these tensors any more

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The tensors, computed now if they are not yet."""
        if self._scale is not None:
            self._tensors = self._computed(self._scale)
            self._scale = self._divisor = None
        return self._tensors

    def _computed(self, scale: float) -> list[torch.Tensor]:
        if self._divisor is None:
            return list(torch._foreach_mul(self._tensors, _operand(scale, self._tensors)))
        quotients = list(torch._foreach_div(self._tensors, self._divisor))
        if scale != 1.0:
            torch._foreach_mul_(quotients, _operand(scale, quotients))
        return quotients

    @property
    def dtype(self) -> torch.dtype:
        """Common dtype."""
        return self._tensors[0].dtype

    @property
    def ndim(self) -> int:
        """That of a list: what single tensors need a look at for, lists never do."""
        return 1

    @property
    def device(self) -> torch.device:
        """Common device."""
        return self._tensors[0].device

    def times(self, factor: Any) -> TensorList:
        """The product with a number; nobody may overwrite ``self`` before it is read."""
        factor = factor.item() if isinstance(factor, torch.Tensor) else factor
        scale = factor if self._scale is None else factor * self._scale
        return TensorList(self._tensors, scale, self._divisor)

    def over(self, divisor: TensorList) -> TensorList:
        """The quotient; nobody may overwrite ``self`` or ``divisor`` before it is read."""
        return TensorList(self.tensors, 1.0, divisor.tensors)

    def plus(self, term: TensorList, alpha: float) -> TensorList:
        """The sum with ``alpha * term``; a temporary is overwritten."""
        if self._scale:
            sums, scale = self._computed(1.0), self._scale
            torch._foreach_add_(sums, term.tensors, alpha=alpha / scale)
            return TensorList(sums, scale)
        if not self.temporary:
            return self.add(term, alpha=alpha)
        torch._foreach_add_(self.tensors, term.tensors, alpha=alpha)
        return self

    def add_to(self, targets: list[torch.Tensor]) -> None:
        """Add these tensors to others, in place."""
        if self._divisor is not None:
            torch._foreach_addcdiv_(targets, self._tensors, self._divisor, value=self._scale)
        elif self._scale is not None:
            torch._foreach_add_(targets, self._tensors, alpha=self._scale)
        else:
            torch._foreach_add_(targets, self._tensors)

    def copy_(self, source: TensorList) -> None:
        """Overwrite."""
        torch._foreach_copy_(self.tensors, source.tensors)

    def to(self, dtype: torch.dtype) -> TensorList:
        """Each ``tensor.to(dtype)``."""
        if dtype == self.dtype:
            return self
        return TensorList([tensor.to(dtype) for tensor in self.tensors])

    def clone(self) -> TensorList:
        """Copies."""
        return TensorList([tensor.clone() for tensor in self.tensors])

    def lerp_(self, end: TensorList, weight: Any) -> TensorList:
        """Move towards ``end``."""
        torch._foreach_lerp_(self.tensors, end.tensors, weight)
        return self

    def lerp(self, end: TensorList, weight: Any) -> TensorList:
        """Go towards ``end``."""
        return TensorList(list(torch._foreach_lerp(self.tensors, end.tensors, weight)))

    def sign_(self) -> TensorList:
        """-1, 0 or 1."""
        torch._foreach_sign_(self.tensors)
        return self

    def mul_(self, factor: Any) -> TensorList:
        """Multiply."""
        torch._foreach_mul_(self.tensors, _operand(factor, self.tensors))
        return self

    def add_(self, term: Any) -> TensorList:
        """Add."""
        if isinstance(term, TensorList):
            term.add_to(self.tensors)
        else:
            torch._foreach_add_(self.tensors, _operand(term, self.tensors))
        return self

    def add(self, term: TensorList, *, alpha: float) -> TensorList:
        """Add ``alpha * term``."""
        return TensorList(list(torch._foreach_add(self.tensors, term.tensors, alpha=alpha)))

    def addcmul(self, first: TensorList, second: TensorList, *, value: float) -> TensorList:
        """The sum with ``value * first * second``."""
        products = torch._foreach_addcmul(self.tensors, first.tensors, second.tensors, value=value)
        return TensorList(list(products))

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
        return TensorList(list(torch._foreach_mul(self.tensors, _operand(factor, self.tensors))))

    def __add__(self, term: Any) -> TensorList:
        return TensorList(list(torch._foreach_add(self.tensors, _operand(term, self.tensors))))

    def __sub__(self, term: Any) -> TensorList:
        return TensorList(list(torch._foreach_sub(self.tensors, _operand(term, self.tensors))))

    def __truediv__(self, divisor: Any) -> TensorList:
        return TensorList(list(torch._foreach_div(self.tensors, _operand(divisor, self.tensors))))


def _operand(value: Any, like: list[torch.Tensor]) -> Any:
    if isinstance(value, TensorList):
        return value.tensors
    number = value.item() if isinstance(value, torch.Tensor) else value  # derived: on the CPU
    first = like[0]
    if first.is_cpu and (first.dtype is torch.float32 or first.dtype is torch.float64):
        # There a number becomes a tensor for every single element of the list, which takes longer
        # than the arithmetic on a small one. Lower precisions calculate with the exact number.
        return [torch.scalar_tensor(number, dtype=first.dtype)] * len(like)
    return number
