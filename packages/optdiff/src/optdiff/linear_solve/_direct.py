# SPDX-License-Identifier: Apache-2.0
"""Direct methods: the operator is written out as one matrix over all leaves, then factorized."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from optdiff._convergence import report_failure
from optdiff.linear_solve._operators import Vector
from optdiff.linear_solve._solver import LinearSolver, SolveInfo

norm = torch.linalg.vector_norm


@dataclass(frozen=True, eq=False)
class Direct(LinearSolver):
    """What the direct methods share; they take no option of iterations."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("init", "rtol", "maxiter", "M"):
            if getattr(self, option) is not None:
                raise TypeError(
                    f"solve_{self.name}: expected ridge, return_info or on_failure, "
                    f"got {option}; a direct method does not iterate"
                )

    def values(
        self, matvec: Vector, b: torch.Tensor, x: torch.Tensor, precondition: Vector
    ) -> tuple[torch.Tensor, SolveInfo]:
        """Write out the matrix by products with unit vectors, then solve."""
        unit = torch.eye(b.numel(), dtype=b.dtype, device=b.device)
        matrix = torch.vmap(matvec, out_dims=1)(unit)
        x, regular = self.solve_matrix(matrix, b)
        residual = norm(b - matrix @ x)
        converged = regular & residual.isfinite()
        return x, SolveInfo(torch.ones_like(converged, dtype=torch.int64), residual, converged)

    def solve_matrix(
        self, matrix: torch.Tensor, b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The solution and whether the factorization worked."""
        raise NotImplementedError(f"{type(self).__name__}.solve_matrix")

    def report(self, info: SolveInfo, b: torch.Tensor) -> None:
        """A singular matrix is what can go wrong."""
        kind = "positive definite" if self.symmetric else "regular"
        report_failure(
            f"solve_{self.name}",
            info.converged,
            info.residual_norm,
            f"a {kind} matrix and a small residual norm; add a ridge or take another solver",
            self.on_failure,
        )


@dataclass(frozen=True, eq=False)
class LU(Direct):
    """LU with partial pivoting."""

    name: ClassVar[str] = "lu"

    def solve_matrix(
        self, matrix: torch.Tensor, b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Factorize and substitute."""
        x, code = torch.linalg.solve_ex(matrix, b[:, None])
        return x[:, 0], code == 0


@dataclass(frozen=True, eq=False)
class Cholesky(Direct):
    """Cholesky, of the lower triangle."""

    name: ClassVar[str] = "cholesky"
    symmetric: ClassVar[bool] = True

    def solve_matrix(
        self, matrix: torch.Tensor, b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Factorize and substitute twice."""
        factor, code = torch.linalg.cholesky_ex(matrix)
        return torch.cholesky_solve(b[:, None], factor)[:, 0], code == 0


@dataclass(frozen=True, eq=False)
class Inverse(Direct):
    """The inverse of the whole matrix."""

    name: ClassVar[str] = "inv"

    def solve_matrix(
        self, matrix: torch.Tensor, b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Invert and multiply."""
        inverse, code = torch.linalg.inv_ex(matrix)
        return inverse @ b, code == 0
