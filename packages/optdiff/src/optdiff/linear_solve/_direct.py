# SPDX-License-Identifier: Apache-2.0
"""Direct methods: the operator is written out as one matrix over all leaves, then factorized."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from optdiff._convergence import OnFailure, report_failure
from optdiff._options import by_name
from optdiff.linear_solve._operators import Vector
from optdiff.linear_solve._solver import LinearSolver, SolveInfo, check_lapack

norm = torch.linalg.vector_norm


@by_name
def solve_lu(
    *, ridge: float = 0.0, return_info: bool = False, on_failure: OnFailure = "warn"
) -> LinearSolver:
    """LU factorization of the matrix of ``A`` over all leaves of ``b`` together.

    The matrix is written out by a product with each unit vector, mapped by ``torch.vmap``: for a
    few hundred unknowns.

    Args:
        ridge: Added to the diagonal.
        return_info: Return ``(x, SolveInfo)``.
        on_failure: What to do when the matrix is singular, or so close to it that the residual norm
            exceeds ``eps ** (1/3)`` of that of ``b``.

    Differentiable:
        As for :func:`solve_cg`.

    Example:
        >>> import torch
        >>> solve_lu()(lambda x: {"a": x["b"], "b": -2 * x["a"]}, {"a": torch.ones(1),
        ...     "b": torch.ones(1)})
        {'a': tensor([-0.5000]), 'b': tensor([1.])}
    """
    return LU(ridge=ridge, return_info=return_info, on_failure=on_failure)


@by_name
def solve_cholesky(
    *, ridge: float = 0.0, return_info: bool = False, on_failure: OnFailure = "warn"
) -> LinearSolver:
    """Cholesky factorization, for symmetric positive definite operators; see :func:`solve_lu`.

    Args:
        ridge: Added to the diagonal.
        return_info: Return ``(x, SolveInfo)``.
        on_failure: What to do when the matrix is not symmetric positive definite.

    Differentiable:
        As for :func:`solve_cg`.

    Example:
        >>> import torch
        >>> solve_cholesky()(torch.tensor([[4.0, 0.0], [0.0, 1.0]]), torch.tensor([4.0, 1.0]))
        tensor([1., 1.])
    """
    return Cholesky(ridge=ridge, return_info=return_info, on_failure=on_failure)


@by_name
def solve_inv(
    *, ridge: float = 0.0, return_info: bool = False, on_failure: OnFailure = "warn"
) -> LinearSolver:
    """Multiplication by the inverse of the whole matrix; :func:`solve_lu` is cheaper and safer.

    Args:
        ridge: Added to the diagonal.
        return_info: Return ``(x, SolveInfo)``.
        on_failure: What to do when the matrix is singular.

    Differentiable:
        As for :func:`solve_cg`.

    Differs:
        TorchOpt's inverts the diagonal blocks of the leaves and drops what couples them.

    Example:
        >>> import torch
        >>> solve_inv()(torch.tensor([[2.0, 0.0], [0.0, 4.0]]), torch.tensor([2.0, 4.0]))
        tensor([1., 1.])
    """
    return Inverse(ridge=ridge, return_info=return_info, on_failure=on_failure)


@dataclass(frozen=True, eq=False)
class Direct(LinearSolver):
    """What the direct methods share; they take no option of iterations."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("init", "rtol", "atol", "maxiter", "M"):
            value = getattr(self, option)
            if value is not None and not (option == "atol" and value == 0):
                raise TypeError(
                    f"solve_{self.name}: expected ridge, return_info or on_failure, "
                    f"got {option}; a direct method does not iterate"
                )

    def values(
        self, matvec: Vector, b: torch.Tensor, x: torch.Tensor, precondition: Vector
    ) -> tuple[torch.Tensor, SolveInfo]:
        """Write out the matrix by products with unit vectors, then solve."""
        if not b.numel():  # a batch of no products has no shape
            return x, SolveInfo(norm(b).to(torch.int64), norm(b), norm(b) == 0)
        check_lapack(f"solve_{self.name}", b)
        unit = torch.eye(b.numel(), dtype=b.dtype, device=b.device)
        matrix = torch.vmap(matvec, out_dims=1)(unit)
        x, regular = self.solve_matrix(matrix, b)
        residual = norm(b - matrix @ x)
        # Rounding lets many a singular matrix through, but it shows in the residual.
        eps = torch.finfo(b.dtype).eps
        converged = regular & (residual <= eps ** (1 / 3) * norm(b))
        if self.symmetric:
            converged = converged & (norm(matrix - matrix.mT) <= eps**0.5 * norm(matrix))
        return x, SolveInfo(torch.ones_like(converged, dtype=torch.int64), residual, converged)

    def solve_matrix(
        self, matrix: torch.Tensor, b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The solution and whether the factorization worked."""
        raise NotImplementedError(f"{type(self).__name__}.solve_matrix")

    def report(self, info: SolveInfo, b: torch.Tensor) -> None:
        """A singular matrix, or one of another kind, is what can go wrong."""
        kind = "symmetric positive definite" if self.symmetric else "regular"
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
    """Cholesky: it reads the lower triangle, so the symmetry is checked."""

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
