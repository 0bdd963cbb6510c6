# SPDX-License-Identifier: Apache-2.0
"""The Neumann series."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from optdiff._convergence import any_true
from optdiff.linear_solve._operators import Vector
from optdiff.linear_solve._solver import LinearSolver, SolveInfo

norm = torch.linalg.vector_norm


@dataclass(frozen=True, eq=False)
class Neumann(LinearSolver):
    """Partial sums of a geometric series of operators."""

    alpha: float | None = None

    name: ClassVar[str] = "neumann"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None and not self.alpha > 0:
            raise ValueError(f"solve_neumann: expected alpha > 0, got {self.alpha}")

    def limit(self, b: torch.Tensor) -> int:
        """The number of terms has nothing to do with the number of unknowns."""
        return 1000 if self.maxiter is None else self.maxiter

    def values(
        self, matvec: Vector, b: torch.Tensor, x: torch.Tensor, precondition: Vector
    ) -> tuple[torch.Tensor, SolveInfo]:
        """The iteration ``x + alpha M (b - A x)``: each step adds one term of the series."""
        stop = self.threshold(b)
        alpha = 1.0 if self.alpha is None else self.alpha
        r = b - matvec(x)
        active = norm(r) > stop
        count = torch.zeros_like(active, dtype=torch.int64)
        for _ in range(self.limit(b)):
            if not any_true(active):
                break
            x = torch.where(active, x + alpha * precondition(r), x)
            r = torch.where(active, b - matvec(x), r)
            count = count + active
            residual = norm(r)
            active = active & (residual > stop) & residual.isfinite()
        residual = norm(r)
        return x, SolveInfo(count, residual, residual <= stop)
