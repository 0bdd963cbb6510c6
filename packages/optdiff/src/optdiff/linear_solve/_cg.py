# SPDX-License-Identifier: Apache-2.0
"""Conjugate gradients, on the normal equations too."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch

from optdiff._convergence import OnFailure, any_true
from optdiff._implicit_rule import Leaves
from optdiff._options import by_name
from optdiff.linear_solve._operators import Factory, Normal, Transposed, Vector, Zeros
from optdiff.linear_solve._recursion import Recursive, ratio
from optdiff.linear_solve._solver import LinearSolver, SolveInfo

norm = torch.linalg.vector_norm


@by_name
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


@by_name
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


@dataclass(frozen=True, eq=False)
class CG(Recursive):
    """Conjugate gradients."""

    name: ClassVar[str] = "cg"
    symmetric: ClassVar[bool] = True

    def run(
        self,
        matvec: Vector,
        x: torch.Tensor,
        r: torch.Tensor,
        stop: torch.Tensor,
        active: torch.Tensor,
        precondition: Vector,
        left: int,
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Preconditioned CG from an initial guess."""
        z = precondition(r)
        p, rz = z, r @ z
        count = torch.zeros_like(active, dtype=torch.int64)
        used = 0
        while used < left and any_true(active):
            q = matvec(p)
            alpha = ratio(rz, p @ q, active)
            x = x + alpha * p
            r = r - alpha * q
            z = precondition(r)
            new = r @ z
            p = z + ratio(new, rz, active) * p
            rz = new
            count, used = count + active, used + 1
            active = active & (norm(r) > stop) & (alpha != 0)
        return x, count, used


@dataclass(frozen=True, eq=False)
class NormalCG(LinearSolver):
    """Conjugate gradients on ``(A^T A + ridge I) x = A^T b``."""

    name: ClassVar[str] = "normal_cg"

    def solve_leaves(
        self, factory: Factory, tensors: Leaves, b: Leaves, spec: Any, *, adjoint: bool = False
    ) -> tuple[Leaves, SolveInfo]:
        """Differentiable in what stands on both sides."""
        domain = Zeros.like(b)
        rhs = Transposed(factory, domain)(tensors)(b)
        options = {field.name: getattr(self, field.name) for field in fields(self)}
        inner = _OnNormalEquations(**options)
        return inner.solve_leaves(Normal(factory, domain), tensors, rhs, spec)


@dataclass(frozen=True, eq=False)
class _OnNormalEquations(CG):
    """CG under the name that the user knows."""

    name: ClassVar[str] = "normal_cg"
