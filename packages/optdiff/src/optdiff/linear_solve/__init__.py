# SPDX-License-Identifier: Apache-2.0
"""Linear solvers as values: ``solve_cg(rtol=1e-8)`` is a solver, ``solve_cg()(A, b)`` a solution.

Layout: `_solver` (options and calls), `_rule` (the derivative), `_operators` (what ``A`` may be),
`_krylov`, `_neumann`, `_direct` (the methods), `_given` (a function of the user).
"""

from __future__ import annotations

from typing import Any

from optdiff._convergence import ConvergenceError as ConvergenceError
from optdiff._convergence import ConvergenceWarning as ConvergenceWarning
from optdiff._convergence import OnFailure
from optdiff.linear_solve._direct import LU, Cholesky, Inverse
from optdiff.linear_solve._krylov import CG, GMRES, BiCGStab, NormalCG
from optdiff.linear_solve._neumann import Neumann
from optdiff.linear_solve._solver import LinearSolver as LinearSolver
from optdiff.linear_solve._solver import SolveInfo as SolveInfo


def solve_cg(
    *,
    ridge: float = 0.0,
    init: Any = None,
    rtol: float | None = None,
    atol: float = 0.0,
    maxiter: int | None = None,
    M: Any = None,
    return_info: bool = False,
    on_failure: OnFailure = "warn",
) -> LinearSolver:
    r"""Conjugate gradients, for symmetric positive definite operators.

    .. math::
        (A + \text{ridge}\, I)\, x = b
        \quad\text{until}\quad \|b - A x\| \le \max(\text{rtol}\,\|b\|, \text{atol})

    Args:
        ridge: Added to the diagonal of ``A``.
        init: Initial guess, like ``b``; zero by default. Carries no gradient.
        rtol: Tolerance relative to the norm of ``b``; ``eps ** (2/3)`` of its dtype by default.
        atol: Absolute tolerance.
        maxiter: Ten times the number of unknowns by default.
        M: Preconditioner, an approximation of the inverse of ``A``: of any kind that ``A`` may be.
            Carries no gradient, because the solution does not depend on it.
        return_info: Return ``(x, SolveInfo)``.
        on_failure: ``"warn"``, ``"raise"`` or ``"ignore"`` when the tolerance is not met.

    Returns:
        A solver; call it as ``solver(A, b)``. ``A`` is a square matrix, a tree of square matrices
        that fits ``b``, or a linear function of trees like ``b``.

    Differentiable:
        In ``b`` and in every tensor that ``A`` is made of or closes over (directly, through
        functions, ``functools.partial`` and modules), to any order, by the rule of a linear solve:
        a solve that stopped early differentiates as one that did not.

    Raises:
        ValueError: An option out of range.
        ConvergenceError: When called, with ``on_failure="raise"``.

    Example:
        >>> import torch
        >>> A = torch.tensor([[2.0, 0.0], [0.0, 4.0]], requires_grad=True)
        >>> x = solve_cg()(A, torch.tensor([2.0, 4.0]))
        >>> x.detach()
        tensor([1.0000, 1.0000])
        >>> torch.autograd.grad(x.sum(), A)[0]
        tensor([[-0.5000, -0.5000],
                [-0.2500, -0.2500]])

    Reference:
        Hestenes and Stiefel, 1952, Methods of conjugate gradients for solving linear systems;
        the derivative: Christianson, 1994, Reverse accumulation and attractive fixed points.
    """
    return CG(ridge, init, rtol, atol, maxiter, M, return_info, on_failure)


def solve_normal_cg(
    *,
    ridge: float = 0.0,
    init: Any = None,
    rtol: float | None = None,
    atol: float = 0.0,
    maxiter: int | None = None,
    M: Any = None,
    return_info: bool = False,
    on_failure: OnFailure = "warn",
) -> LinearSolver:
    r"""Conjugate gradients on the normal equations, for any regular operator.

    .. math::
        (A^\top A + \text{ridge}\, I)\, x = A^\top b

    The condition number of ``A`` enters squared. ``A`` is transposed by differentiating it.

    Args:
        ridge: Added to the diagonal of ``A^T A``.
        init: As for :func:`solve_cg`.
        rtol: Relative to the norm of ``A^T b``.
        atol: As for :func:`solve_cg`.
        maxiter: As for :func:`solve_cg`.
        M: Approximates the inverse of ``A^T A``.
        return_info: As for :func:`solve_cg`; the residual is that of the normal equations.
        on_failure: As for :func:`solve_cg`.

    Differentiable:
        As for :func:`solve_cg`.

    Example:
        >>> import torch
        >>> A = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
        >>> solve_normal_cg()(A, torch.tensor([1.0, 2.0]))
        tensor([-2.,  1.])

    Reference:
        Saad, 2003, Iterative methods for sparse linear systems, section 8.3.
    """
    return NormalCG(ridge, init, rtol, atol, maxiter, M, return_info, on_failure)


def solve_bicgstab(
    *,
    ridge: float = 0.0,
    init: Any = None,
    rtol: float | None = None,
    atol: float = 0.0,
    maxiter: int | None = None,
    M: Any = None,
    return_info: bool = False,
    on_failure: OnFailure = "warn",
) -> LinearSolver:
    """Stabilized biconjugate gradients, for operators that need not be symmetric.

    Two products an iteration and little memory; it breaks down on operators whose spectrum is
    close to the imaginary axis, where :func:`solve_gmres` does not.

    Args:
        ridge: As for :func:`solve_cg`, and so are the others.
        init: Initial guess.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        maxiter: Iterations of two products.
        M: Right preconditioner.
        return_info: Return ``(x, SolveInfo)``.
        on_failure: What to do when the tolerance is not met.

    Differentiable:
        As for :func:`solve_cg`.

    Example:
        >>> import torch
        >>> solve_bicgstab()(torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([3.0, 1.0]))
        tensor([1., 1.])

    Reference:
        van der Vorst, 1992, Bi-CGSTAB, SIAM J. Sci. Stat. Comput. 13(2).
    """
    return BiCGStab(ridge, init, rtol, atol, maxiter, M, return_info, on_failure)


def solve_gmres(
    *,
    ridge: float = 0.0,
    init: Any = None,
    rtol: float | None = None,
    atol: float = 0.0,
    maxiter: int | None = None,
    M: Any = None,
    return_info: bool = False,
    on_failure: OnFailure = "warn",
    restart: int | None = None,
) -> LinearSolver:
    """Generalized minimal residuals, for any regular operator.

    With no more unknowns than ``restart`` it finds the solution in as many products. Restarts can
    stall on operators far from symmetric, so by default the vectors to keep grow when they do.

    Args:
        ridge: As for :func:`solve_cg`, and so are the others.
        init: Initial guess.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        maxiter: Products with ``A``, over all restarts.
        M: Right preconditioner.
        return_info: Return ``(x, SolveInfo)``.
        on_failure: What to do when the tolerance is not met.
        restart: Vectors to keep, which bounds the memory; by default 50, and twice as many each
            time that a restart did not halve the residual.

    Differentiable:
        As for :func:`solve_cg`.

    Example:
        >>> import torch
        >>> solve_gmres()(torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([3.0, 1.0]))
        tensor([1., 1.])

    Reference:
        Saad and Schultz, 1986, GMRES, SIAM J. Sci. Stat. Comput. 7(3), algorithm 4.
    """
    return GMRES(ridge, init, rtol, atol, maxiter, M, return_info, on_failure, restart)


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
        x = \alpha \sum_{k=0}^{\text{maxiter}} (I - \alpha A)^k\, b

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


def solve_lu(
    *, ridge: float = 0.0, return_info: bool = False, on_failure: OnFailure = "warn"
) -> LinearSolver:
    """LU factorization of the matrix of ``A`` over all leaves of ``b`` together.

    The matrix is written out by a product with each unit vector, mapped by ``torch.vmap``: for a
    few hundred unknowns.

    Args:
        ridge: Added to the diagonal.
        return_info: Return ``(x, SolveInfo)``.
        on_failure: What to do when the matrix is singular.

    Differentiable:
        As for :func:`solve_cg`.

    Example:
        >>> import torch
        >>> solve_lu()(lambda x: {"a": x["b"], "b": -2 * x["a"]}, {"a": torch.ones(1),
        ...     "b": torch.ones(1)})
        {'a': tensor([-0.5000]), 'b': tensor([1.])}
    """
    return LU(ridge=ridge, return_info=return_info, on_failure=on_failure)


def solve_cholesky(
    *, ridge: float = 0.0, return_info: bool = False, on_failure: OnFailure = "warn"
) -> LinearSolver:
    """Cholesky factorization, for symmetric positive definite operators; see :func:`solve_lu`.

    Args:
        ridge: Added to the diagonal.
        return_info: Return ``(x, SolveInfo)``.
        on_failure: What to do when the matrix is not positive definite.

    Differentiable:
        As for :func:`solve_cg`.

    Example:
        >>> import torch
        >>> solve_cholesky()(torch.tensor([[4.0, 0.0], [0.0, 1.0]]), torch.tensor([4.0, 1.0]))
        tensor([1., 1.])
    """
    return Cholesky(ridge=ridge, return_info=return_info, on_failure=on_failure)


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
