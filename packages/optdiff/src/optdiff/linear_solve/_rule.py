# SPDX-License-Identifier: Apache-2.0
r"""The derivative of a linear solve.

For :math:`A x = b` with a cotangent :math:`g` of :math:`x`,

.. math::
    A^\top w = g, \qquad \bar b = w, \qquad \bar\theta = -\Bigl(\frac{\partial A_\theta
    x}{\partial\theta}\Bigr)^\top w, \qquad \dot x = A^{-1}(\dot b - \dot A x),

whatever the iterations that led to :math:`x`, and however early they stopped. The solves with
:math:`A^\top` and :math:`A` are linear solves again, by the same solver.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from optdiff._implicit_rule import Leaves, solve_by_rule
from optdiff._statistics import note_solve
from optdiff.linear_solve._operators import Factory, Flat, Transposed, Vector, Zeros, linearize

if TYPE_CHECKING:
    from optdiff.linear_solve._solver import LinearSolver


@dataclass(frozen=True)
class LinearRule:
    """The rule of ``A x = b``.

    Inputs: the leaves of ``b``, the tensors of ``A``, those of ``M``, and the initial guess.
    """

    solver: LinearSolver
    factory: Factory
    preconditioner: Factory | None
    sizes: tuple[int, int, int]  # of the first three

    @property
    def settings(self) -> dict[str, str]:
        return {"by": f"solve_{self.solver.name}"}

    def run(self, inputs: Leaves) -> tuple[Leaves, Leaves]:
        b, tensors, held, start = self._split(inputs)
        flat = Flat(b)
        matvec = flat.operator(self.factory(tensors))
        precondition: Vector = _same
        if self.preconditioner is not None:
            precondition = flat.operator(self.preconditioner(held))
        with torch.no_grad():
            target = flat.ravel(b)
            initial = flat.ravel(start) if start else torch.zeros_like(target)
            x, info = self.solver.values(matvec, target, initial, precondition)
            note_solve(self.solver.name, *info)
            self.solver.report(info, target)
            x = torch.where(info.residual_norm.isfinite(), x, torch.nan)  # not the zero it began at
            return flat.unravel(x), tuple(info)

    def backward(
        self, solution: Leaves, inputs: Leaves, cotangents: Leaves, wanted: Sequence[int]
    ) -> Leaves:
        b, tensors, held, _ = self._split(inputs)
        adjoint = self if self.solver.symmetric else self._transposed(b)
        w = adjoint._solve_again(tensors, held, cotangents)
        moving = [index - len(b) for index in wanted if index >= len(b)]
        pulled: Leaves = ()
        if moving:
            with torch.enable_grad():
                pull = torch.func.vjp(
                    _image(self.factory, tensors, moving, solution),
                    *(tensors[index] for index in moving),
                )[1]
            pulled = pull(tuple(-part for part in w))
        return (*(w[index] for index in wanted if index < len(b)), *pulled)

    def jvp(
        self, solution: Leaves, inputs: Leaves, tangents: Sequence[torch.Tensor | None]
    ) -> Leaves:
        b, tensors, held, _ = self._split(inputs)
        moved = tangents[len(b) : len(b) + len(tensors)]
        moving = [index for index, tangent in enumerate(moved) if tangent is not None]
        rhs = [
            torch.zeros_like(part) if tangent is None else tangent
            for part, tangent in zip(b, tangents[: len(b)], strict=True)
        ]
        if moving:
            image = _image(self.factory, tensors, moving, solution)
            at = tuple(tensors[index] for index in moving)
            change = linearize(image, at)(tuple(moved[index] for index in moving))
            rhs = [part - shift for part, shift in zip(rhs, change, strict=True)]
        return self._solve_again(tensors, held, tuple(rhs))

    def _transposed(self, b: Leaves) -> LinearRule:
        zeros = Zeros.like(b)
        other = self.preconditioner and Transposed(self.preconditioner, zeros)
        return LinearRule(self.solver, Transposed(self.factory, zeros), other, self.sizes)

    def _solve_again(self, tensors: Leaves, held: Leaves, b: Leaves) -> Leaves:
        return solve_by_rule(self, (*b, *tensors, *held))[0]

    def _split(self, inputs: Leaves) -> tuple[Leaves, Leaves, Leaves, Leaves]:
        first, second = self.sizes[0], self.sizes[0] + self.sizes[1]
        third = second + self.sizes[2]
        return inputs[:first], inputs[first:second], inputs[second:third], inputs[third:]


def _image(
    factory: Factory, tensors: Leaves, moving: Sequence[int], x: Leaves
) -> Callable[..., Leaves]:
    """``A x`` as a function of some of A's tensors."""

    def image(*moved: torch.Tensor) -> Leaves:
        every = list(tensors)
        for index, tensor in zip(moving, moved, strict=True):
            every[index] = tensor
        return factory(tuple(every))(x)

    return image


def _same(vector: torch.Tensor) -> torch.Tensor:
    return vector
