# SPDX-License-Identifier: Apache-2.0
"""Newton's method and L-BFGS, with a line search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import optcore
from optdiff._convergence import OnFailure, any_true
from optdiff._iteration import SolverResult, Unknowns
from optdiff._options import check_count
from optdiff._uncompiled import uncompiled
from optdiff.linear_solve import LinearSolver, solve_cg
from optdiff.linear_solve._given import adapt
from optdiff.minimize._objective import Objective

norm = torch.linalg.vector_norm


@uncompiled
def newton(
    objective: Callable[..., torch.Tensor],
    init: Any,
    *args: Any,
    tol: float | None = None,
    maxiter: int = 100,
    max_halvings: int = 30,
    solve: LinearSolver | Callable[..., Any] | None = None,
    on_failure: OnFailure = "warn",
) -> SolverResult:
    r"""Newton's method with a line search.

    .. math::
        \nabla^2 f(x_k)\, d = -\nabla f(x_k), \qquad x_{k+1} = x_k + 2^{-j} d,

    with the first :math:`j` that satisfies Armijo's rule; where :math:`d` does not lead downhill,
    the negative gradient takes its place.

    Args:
        objective: ``objective(x, *args)``, a scalar.
        init: As for :func:`gradient_descent`, and so are the others.
        args: Handed to the objective.
        tol: Tolerance.
        maxiter: Steps at most.
        max_halvings: Of each step; 0 for full steps.
        solve: Linear solver, :func:`optdiff.linear_solve.solve_cg` by default. Its ``M`` and
            ``init``, or a function ``solve(matvec, b)``, know trees like ``x``.
        on_failure: What to do when the tolerance is not met.

    Returns:
        A :class:`SolverResult`.

    Differentiable:
        No; see :func:`optdiff.custom_root`.

    Raises:
        ValueError: An option out of range, or an objective that is no scalar.

    Example:
        >>> newton(lambda x: (x - 1).pow(4).sum() + (x - 1).square().sum(), torch.zeros(2)).solution
        tensor([1., 1.])

    Reference:
        Nocedal and Wright, 2006, Numerical Optimization, section 3.3 and equation 3.4.
    """
    who = "minimize.newton"
    unknowns = Unknowns.of(who, init, tol, maxiter, on_failure)
    solver = adapt(who, solve_cg(on_failure="ignore") if solve is None else solve)
    check_count(who, "max_halvings", max_halvings, 0)
    smooth = Objective(unknowns, objective, args)
    with torch.no_grad():
        x = unknowns.start
        value, g = smooth.value_and_grad(x)
        stop = unknowns.threshold(g)
        active = unknowns.still(norm(g), stop)
        count = torch.zeros_like(active, dtype=torch.int64)
        for _ in range(maxiter):
            if not any_true(active):
                break
            direction = unknowns.solve(solver, smooth.hessian(x), -g)
            slope = g @ direction
            downhill = slope < 0
            direction = torch.where(downhill, direction, -g)
            slope = torch.where(downhill, slope, -(g @ g))
            new = _armijo(smooth, x, value, direction, slope, active, max_halvings)
            x = torch.where(active, new, x)
            after, slopes = smooth.value_and_grad(x)
            value, g = torch.where(active, after, value), torch.where(active, slopes, g)
            count = count + active
            active = active & unknowns.still(norm(g), stop)
        return unknowns.result(x, count, norm(g), stop, "grad f(init)")


@uncompiled
def lbfgs(
    objective: Callable[..., torch.Tensor],
    init: Any,
    *args: Any,
    history: int = 10,
    max_halvings: int = 30,
    tol: float | None = None,
    maxiter: int = 1000,
    on_failure: OnFailure = "warn",
) -> SolverResult:
    r"""L-BFGS with a line search: the directions of :func:`optcore.lbfgs`.

    .. math::
        x_{k+1} = x_k - 2^{-j} P_k \nabla f(x_k),

    with the first :math:`j` that satisfies Armijo's rule; :math:`P_k` approximates the inverse
    Hessian by the last steps and is positive definite, so every step leads downhill.

    Args:
        objective: ``objective(x, *args)``, a scalar.
        init: As for :func:`gradient_descent`, and so are the others.
        args: Handed to the objective.
        history: Steps that the approximation remembers.
        max_halvings: Of each step; 0 for full steps.
        tol: Tolerance.
        maxiter: Steps at most.
        on_failure: What to do when the tolerance is not met.

    Returns:
        A :class:`SolverResult`.

    Differentiable:
        No; see :func:`optdiff.custom_root`.

    Raises:
        ValueError: An option out of range, or an objective that is no scalar.

    Example:
        >>> result = lbfgs(lambda x: (x - torch.tensor([1.0, 3.0])).cosh().sum(), torch.zeros(2))
        >>> result.solution.round(decimals=3)
        tensor([1., 3.])

    Reference:
        Nocedal and Wright, 2006, Numerical Optimization, Algorithm 7.5 and equation 3.4.
    """
    unknowns = Unknowns.of("lbfgs", init, tol, maxiter, on_failure)
    check_count("lbfgs", "history", history)
    check_count("lbfgs", "max_halvings", max_halvings, 0)
    smooth = Objective(unknowns, objective, args)
    directions = optcore.lbfgs(memory_size=history, linesearch=None)
    with torch.no_grad():
        x = unknowns.start
        value, g = smooth.value_and_grad(x)
        state = directions.init(x)
        stop = unknowns.threshold(g)
        active = unknowns.still(norm(g), stop)
        count = torch.zeros_like(active, dtype=torch.int64)
        for _ in range(maxiter):
            if not any_true(active):
                break
            # A problem that has stopped shows no step, which leaves its memory as it is.
            direction, state = directions.update(g, state, x, inplace=False)
            new = _armijo(smooth, x, value, direction, g @ direction, active, max_halvings)
            x = torch.where(active, new, x)
            after, slopes = smooth.value_and_grad(x)
            value, g = torch.where(active, after, value), torch.where(active, slopes, g)
            count = count + active
            active = active & unknowns.still(norm(g), stop)
        return unknowns.result(x, count, norm(g), stop, "grad f(init)")


def _armijo(
    smooth: Objective,
    x: torch.Tensor,
    value: torch.Tensor,
    direction: torch.Tensor,
    slope: torch.Tensor,
    active: torch.Tensor,
    max_halvings: int,
) -> torch.Tensor:
    """The first of ``x + direction / 2**j`` that decreases enough, up to rounding of the value."""
    scale = torch.ones_like(value)
    slack = 10 * torch.finfo(x.dtype).eps * value.abs()
    new = x + direction
    for _ in range(max_halvings):
        bound = value + 1e-4 * scale * slope + slack
        short = active & ~(smooth.value(new) <= bound)
        if not any_true(short):
            break
        scale = torch.where(short, scale / 2, scale)
        new = x + scale * direction
    return new
