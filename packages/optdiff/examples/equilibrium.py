# SPDX-License-Identifier: Apache-2.0
"""Networks of one cell for `deq.py`: at its fixed point, or unrolled; and a plain one beside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

import optdiff
from optdiff import fixed_point
from optdiff.linear_solve import solve_bicgstab

CLASSES = 10
BOUND = 0.95  # of the spectral norm of W
Hidden: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # from W and U x + b


def moved(z: Tensor, weight: Tensor, given: Tensor) -> Tensor:
    """One step of the hidden layer ``(batch, width)``, given ``U x + b`` of the same shape."""
    return torch.tanh(z @ weight.mT + given)


def equilibrium(tol: float = 1e-4, maxiter: int = 50, backward: float = 1e-4) -> Hidden:
    """Build the hidden layer ``(weight, given) -> z*`` with the derivative of the fixed point.

    Args:
        tol: Tolerance of Anderson acceleration, relative; zero to use all iterations.
        maxiter: Its iterations at most.
        backward: Relative tolerance of the linear system of the derivative.
    """
    told = "warn" if tol else "ignore"

    @optdiff.custom_fixed_point(moved, solve=solve_bicgstab(rtol=backward))
    def solved(z: Tensor, weight: Tensor, given: Tensor) -> Tensor:
        return fixed_point.anderson(
            moved, z, weight, given, tol=tol, maxiter=maxiter, on_failure=told
        ).solution

    return lambda weight, given: solved(torch.zeros_like(given), weight, given)


def unrolled(depth: int, checkpoint: Literal["sqrt"] | None = None) -> Hidden:
    """Build the hidden layer of so many steps, whose graph is kept, or recomputed."""

    def step(z: Tensor, i: int, weight: Tensor, given: Tensor) -> Tensor:
        return moved(z, weight, given)

    return lambda weight, given: optdiff.unroll(
        step, torch.zeros_like(given), depth, weight, given, checkpoint=checkpoint
    )


class Tied(nn.Module):
    """A classifier whose hidden layer is one cell again and again, in a way to choose."""

    def __init__(self, hidden: Hidden, inputs: int, width: int) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, width)
        self.recurrent = nn.Linear(width, width, bias=False)
        self.readout = nn.Linear(width, CLASSES)
        self.hidden = hidden

    def weight(self) -> Tensor:
        """The cell's weights, scaled down where their spectral norm passes the bound."""
        free = self.recurrent.weight
        return free * (BOUND / torch.linalg.matrix_norm(free, 2)).clamp(max=1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(batch, classes)``."""
        return self.readout(self.hidden(self.weight(), self.input(x)))


def plain(inputs: int, width: int) -> nn.Sequential:
    """Two hidden layers with as many weights as a :class:`Tied` network."""
    return nn.Sequential(
        nn.Linear(inputs, width),
        nn.Tanh(),
        nn.Linear(width, width, bias=False),
        nn.Tanh(),
        nn.Linear(width, CLASSES),
    )
