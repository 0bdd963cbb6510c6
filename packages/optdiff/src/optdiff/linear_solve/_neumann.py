# SPDX-License-Identifier: Apache-2.0
"""The Neumann series."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from optdiff._convergence import OnFailure, any_true
from optdiff._options import by_name, check_positive
from optdiff.linear_solve._operators import Vector
from optdiff.linear_solve._solver import LinearSolver, SolveInfo

norm = torch.linalg.vector_norm


@by_name
def solve_neumann(
    *,
    ridge: float = 0.0,
    init: Any = None,
    rtol: float | None = None,
    atol: float = 0.0,
    maxiter: int | None = None,
    M: Any = None,
    return_info: bool = False,
    on_failure: OnFailure = "warn",
    alpha: float | None = None,
) -> LinearSolver:
    r"""The Neumann series, for operators with :math:`\|I - \alpha A\| < 1`.

    .. math::
        x = \alpha \sum_{k=0}^{\text{maxiter} - 1} (I - \alpha A)^k\, b

    A few terms are a cheap approximation: say ``maxiter=5, on_failure="ignore"``.

    Args:
        ridge: As for :func:`solve_cg`, and so are the others.
        init: Initial guess; zero gives the series.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        maxiter: Number of terms, 1000 by default.
        M: Preconditioner, applied to each residual.
        return_info: Return ``(x, SolveInfo)``.
        on_failure: What to do when the tolerance is not met.
        alpha: Step size, 1 by default.

    Differentiable:
        As for :func:`solve_cg`: the derivative takes a series with as many terms.

    Example:
        >>> import torch
        >>> solve_neumann()(torch.tensor([[0.5]]), torch.tensor([1.0]))
        tensor([2.0000])

    Reference:
        Lorraine et al., 2020, arXiv:1911.02590, equation 6.
    """
    return Neumann(ridge, init, rtol, atol, maxiter, M, return_info, on_failure, alpha)


@dataclass(frozen=True, eq=False)
class Neumann(LinearSolver):
    """Partial sums of a geometric series of operators."""

    alpha: float | None = None

    name: ClassVar[str] = "neumann"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None:
            check_positive("solve_neumann", "alpha", self.alpha)

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
