# SPDX-License-Identifier: Apache-2.0
"""Linear solves as functions: on matrices, operators and trees."""

from __future__ import annotations

from typing import Any

import torch

import treeops
from optcore import describe
from optdiff._convergence import OnFailure
from optdiff._trees import NAMESPACE
from optdiff.linear_solve import solve_cg, solve_neumann
from optdiff.linear_solve._operators import at_path


def cg(
    A: Any,
    b: Any,
    x0: Any = None,
    *,
    rtol: float = 1e-5,
    atol: float = 0.0,
    maxiter: int | None = None,
    M: Any = None,
    on_failure: OnFailure = "warn",
) -> Any:
    """Solve ``A x = b`` by conjugate gradients; ``A`` is symmetric positive definite.

    Args:
        A: A matrix, a tree of matrices that fits ``b``, or a linear function of trees like ``b``.
        b: A tensor or tree of tensors.
        x0: Initial guess, zero by default.
        rtol: Stop at this norm of the residual, relative to the norm of ``b``.
        atol: Or at this one.
        maxiter: Ten times the number of unknowns by default.
        M: Preconditioner, an approximation of the inverse of ``A``.
        on_failure: ``"warn"``, ``"raise"`` or ``"ignore"`` when the tolerance is not met.

    Differentiable:
        As a linear solve, however early it stops; see :func:`optdiff.linear_solve.solve_cg`.

    Raises:
        ConvergenceError: With ``on_failure="raise"``.

    Example:
        >>> cg(torch.tensor([[2.0, 0.0], [0.0, 4.0]]), torch.tensor([2.0, 4.0]))
        tensor([1.0000, 1.0000])
    """
    solver = solve_cg(init=x0, rtol=rtol, atol=atol, maxiter=maxiter, M=M, on_failure=on_failure)
    return solver(A, b)


def ns(
    A: Any,
    b: Any,
    maxiter: int | None = None,
    *,
    alpha: float | None = None,
    rtol: float = 1e-5,
    atol: float = 0.0,
    on_failure: OnFailure = "warn",
) -> Any:
    r"""Solve ``A x = b`` by the Neumann series; see :func:`optdiff.linear_solve.solve_neumann`.

    Args:
        A: As for :func:`cg`, with :math:`\|I - \alpha A\| < 1`.
        b: A tensor or tree of tensors.
        maxiter: Number of terms at most, 1000 by default.
        alpha: Step size, 1 by default.
        rtol: Stop at this norm of the residual, relative to the norm of ``b``.
        atol: Or at this one.
        on_failure: ``"warn"``, ``"raise"`` or ``"ignore"`` when the tolerance is not met.

    Differentiable:
        As a linear solve.

    Raises:
        ConvergenceError: With ``on_failure="raise"``.

    Example:
        >>> ns(torch.tensor([[0.5]]), torch.tensor([1.0]), rtol=1e-7)
        tensor([2.0000])
    """
    solver = solve_neumann(
        rtol=rtol, atol=atol, maxiter=maxiter, alpha=alpha, on_failure=on_failure
    )
    return solver(A, b)


def ns_inv(
    A: Any,
    maxiter: int | None = None,
    *,
    alpha: float | None = None,
    rtol: float = 1e-5,
    atol: float = 0.0,
    on_failure: OnFailure = "warn",
) -> Any:
    """Inverse of each matrix of a tree by the Neumann series.

    Args:
        A: A square matrix or a tree of square matrices.
        maxiter: As for :func:`ns`, and so are the others.
        alpha: Step size, 1 by default.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        on_failure: What to do when the tolerance is not met.

    Differentiable:
        As the inverse.

    Raises:
        TypeError: A leaf is no square matrix.

    Example:
        >>> ns_inv({"a": torch.tensor([[0.5]])}, rtol=1e-7)
        {'a': tensor([[2.0000]])}
    """
    for index, leaf in enumerate(treeops.tree_leaves(A, namespace=NAMESPACE)):
        square = isinstance(leaf, torch.Tensor) and leaf.shape == leaf.shape[:1] * 2
        if not square:
            raise TypeError(
                f"ns_inv: expected square matrices, got {describe(leaf)}{at_path(A, index)}"
            )
    solver = solve_neumann(
        rtol=rtol, atol=atol, maxiter=maxiter, alpha=alpha, on_failure=on_failure
    )
    return treeops.tree_map(lambda leaf: solver(leaf, _identity(leaf)), A, namespace=NAMESPACE)


def _identity(matrix: torch.Tensor) -> torch.Tensor:
    eye = torch.eye(matrix.shape[0] if matrix.ndim else 1, dtype=matrix.dtype, device=matrix.device)
    return eye.reshape(matrix.shape)
