# SPDX-License-Identifier: Apache-2.0
"""Newton's method for ``F(x) = 0``; :func:`optdiff.custom_root` gives roots their derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from optdiff._convergence import OnFailure, any_true
from optdiff._iteration import SolverResult, Unknowns, detached
from optdiff._options import check_count
from optdiff._uncompiled import uncompiled
from optdiff.linear_solve import LinearSolver, solve_gmres
from optdiff.linear_solve._given import adapt
from optdiff.linear_solve._operators import linearize

norm = torch.linalg.vector_norm


@uncompiled
def newton(
    optimality_fn: Callable[..., Any],
    init: Any,
    *args: Any,
    tol: float | None = None,
    maxiter: int = 100,
    max_halvings: int = 30,
    solve: LinearSolver | Callable[..., Any] | None = None,
    on_failure: OnFailure = "warn",
) -> SolverResult:
    r"""Newton's method with a line search on the norm of the residual.

    .. math::
        \frac{\partial F}{\partial x}(x_k)\, d = -F(x_k), \qquad x_{k+1} = x_k + 2^{-j} d,

    with the first :math:`j` for which :math:`\|F\|` falls by the factor
    :math:`1 - 10^{-4}\, 2^{-j}`.

    Args:
        optimality_fn: ``optimality_fn(x, *args)``, of the structure of ``x``.
        init: First ``x``, a tree of floating tensors.
        args: Handed to the function.
        tol: Stop at ``|F(x)| <= tol max(1, |F(init)|)``; ``eps ** (2/3)`` of the dtype by default.
        maxiter: Steps at most.
        max_halvings: Of each step; 0 for full steps.
        solve: Linear solver, :func:`optdiff.linear_solve.solve_gmres` by default. Its ``M`` and
            ``init``, or a function ``solve(matvec, b)``, know trees like ``x``.
        on_failure: ``"warn"``, ``"raise"`` or ``"ignore"`` when the tolerance is not met.

    Returns:
        A :class:`SolverResult`.

    Differentiable:
        No; see :func:`optdiff.custom_root`.

    Raises:
        ValueError: An option out of range, or an image unlike ``x``.
        ConvergenceError: With ``on_failure="raise"``.

    Example:
        >>> newton(lambda x, a: x**2 - a, torch.tensor(1.0), torch.tensor(4.0)).solution
        tensor(2.)

    Reference:
        Nocedal and Wright, 2006, Numerical Optimization, section 11.2.
    """
    who = "root.newton"
    unknowns = Unknowns.of(who, init, tol, maxiter, on_failure)
    solver = adapt(who, solve_gmres(on_failure="ignore") if solve is None else solve)
    check_count(who, "max_halvings", max_halvings, 0)
    residual = unknowns.numbers("the optimality", optimality_fn, args)
    graph = unknowns.map("the optimality", optimality_fn, detached(args))
    with torch.no_grad():
        x = unknowns.start
        r = residual(x)
        stop = unknowns.threshold(r)
        active = unknowns.still(norm(r), stop)
        count = torch.zeros_like(active, dtype=torch.int64)
        for _ in range(maxiter):
            if not any_true(active):
                break
            direction = unknowns.solve(solver, linearize(lambda x: (graph(x),), (x,)), -r)
            new, after = x + direction, residual(x + direction)
            scale = torch.ones_like(norm(r))
            for _ in range(max_halvings):
                short = active & ~(norm(after) <= (1 - 1e-4 * scale) * norm(r))
                if not any_true(short):
                    break
                scale = torch.where(short, scale / 2, scale)
                new = x + scale * direction
                after = residual(new)
            x, r = torch.where(active, new, x), torch.where(active, after, r)
            count = count + active
            active = active & unknowns.still(norm(r), stop)
        return unknowns.result(x, count, norm(r), stop, "F(init)")
