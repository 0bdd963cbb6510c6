# SPDX-License-Identifier: Apache-2.0
"""First-order methods: gradient descent and proximal gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from optdiff._convergence import OnFailure, any_true, default_tolerance
from optdiff._iteration import SolverResult, Unknowns
from optdiff._options import check_positive
from optdiff._uncompiled import uncompiled
from optdiff.minimize._objective import Objective

norm = torch.linalg.vector_norm


@uncompiled
def gradient_descent(
    objective: Callable[..., torch.Tensor],
    init: Any,
    *args: Any,
    stepsize: float | None = None,
    acceleration: bool = False,
    tol: float | None = None,
    maxiter: int = 1000,
    on_failure: OnFailure = "warn",
) -> SolverResult:
    r"""Gradient descent, with a line search unless a step size is given.

    .. math::
        x_{k+1} = x_k - \eta_k\, \nabla f(x_k)
        \quad\text{until}\quad \|\nabla f(x)\| \le \text{tol}\,\max(1, \|\nabla f(x_0)\|)

    Args:
        objective: ``objective(x, *args)``, a scalar.
        init: First ``x``, a tree of floating tensors.
        args: Handed to the objective.
        stepsize: A constant; by default found by halving and doubling.
        acceleration: Nesterov's, begun anew where it leads uphill.
        tol: Tolerance; ``eps ** (2/3)`` of the dtype by default.
        maxiter: Steps at most.
        on_failure: ``"warn"``, ``"raise"`` or ``"ignore"`` when the tolerance is not met.

    Returns:
        A :class:`SolverResult`.

    Differentiable:
        No; see :func:`optdiff.custom_root`.

    Raises:
        ValueError: An option out of range, or an objective that is no scalar.
        ConvergenceError: With ``on_failure="raise"``.

    Example:
        >>> gradient_descent(lambda x: (x - 1).square().sum(), torch.zeros(2)).solution
        tensor([1., 1.])

    Reference:
        Nesterov, 2004, Introductory lectures on convex optimization, section 2.2.
    """
    unknowns = Unknowns.of("gradient_descent", init, tol, maxiter, on_failure)
    return _descend(unknowns, objective, args, None, stepsize, acceleration)


@uncompiled
def proximal_gradient(
    objective: Callable[..., torch.Tensor],
    init: Any,
    *args: Any,
    prox: Callable[[Any, torch.Tensor], Any],
    stepsize: float | None = None,
    acceleration: bool = True,
    tol: float | None = None,
    maxiter: int = 1000,
    on_failure: OnFailure = "warn",
) -> SolverResult:
    r"""Minimize a smooth objective plus a term that is known by its proximal operator.

    .. math::
        x_{k+1} = \operatorname{prox}_{\eta g}\bigl(y_k - \eta\,\nabla f(y_k)\bigr)
        \quad\text{until}\quad
        \tfrac{1}{\eta}\|x_{k+1} - y_k\| \le \text{tol}\,\max(1, \|\nabla f(x_0)\|)

    Args:
        objective: ``objective(x, *args)``, a scalar: the smooth part.
        init: First ``x``.
        args: Handed to the objective.
        prox: ``prox(x, stepsize)``, a tree like ``x``; a projection needs no step size.
        stepsize: As for :func:`gradient_descent`, and so are the others.
        acceleration: FISTA, begun anew where it leads uphill.
        tol: Tolerance.
        maxiter: Steps at most.
        on_failure: What to do when the tolerance is not met.

    Returns:
        A :class:`SolverResult`.

    Differentiable:
        No; the solution is the fixed point of ``prox(x - grad(f)(x), 1)``, for
        :func:`optdiff.custom_fixed_point`.

    Raises:
        ValueError: An option out of range, or an image unlike ``x``.

    Example:
        >>> def shrink(x, stepsize):
        ...     return x.sign() * (x.abs() - 0.5 * stepsize).clamp(min=0)
        >>> square = lambda x: 0.5 * (x - torch.tensor([2.0, 0.1])).square().sum()
        >>> proximal_gradient(square, torch.zeros(2), prox=shrink).solution
        tensor([1.5000, 0.0000])

    Reference:
        Beck and Teboulle, 2009, SIAM J. Imaging Sci. 2(1), FISTA with backtracking; the restarts:
        O'Donoghue and Candes, 2015, arXiv:1204.3982.
    """
    unknowns = Unknowns.of("proximal_gradient", init, tol, maxiter, on_failure)
    return _descend(unknowns, objective, args, prox, stepsize, acceleration)


def _descend(
    unknowns: Unknowns,
    objective: Callable[..., torch.Tensor],
    args: tuple[Any, ...],
    prox: Callable[[Any, torch.Tensor], Any] | None,
    stepsize: float | None,
    acceleration: bool,
) -> SolverResult:
    if stepsize is not None:
        check_positive(unknowns.who, "stepsize", stepsize)
    smooth = Objective(unknowns, objective, args)

    def forward(y: torch.Tensor, g: torch.Tensor, eta: torch.Tensor) -> torch.Tensor:
        if prox is None:
            return y - eta * g
        return unknowns.vector("the image of prox", prox(unknowns.tree(y - eta * g), eta)).detach()

    with torch.no_grad():
        x = y = unknowns.start
        value, g = smooth.value_and_grad(y)
        eta = torch.full_like(value, 1.0 if stepsize is None else stepsize)
        momentum = torch.ones_like(value)
        new = forward(y, g, eta)
        residual = norm(new - y) / eta
        stop = unknowns.threshold(g)
        active = unknowns.still(residual, stop)
        count = torch.zeros_like(active, dtype=torch.int64)
        for _ in range(unknowns.maxiter):
            if not any_true(active):
                break
            if stepsize is None:
                eta, new = _search(smooth, forward, y, value, g, eta, active)
            following = (1 + torch.sqrt(1 + 4 * momentum**2)) / 2
            uphill = (y - new) @ (new - x) > 0
            following = torch.where(uphill, 1.0, following)
            pull = torch.where(uphill, 0.0, (momentum - 1) / following)
            ahead = new + pull * (new - x) if acceleration else new
            x = torch.where(active, new, x)
            y = torch.where(active, ahead, y)
            momentum = following
            value, g = smooth.value_and_grad(y)
            if stepsize is None:
                eta = torch.where(active, 2 * eta, eta)
            new = forward(y, g, eta)
            residual = torch.where(active, norm(new - y) / eta, residual)
            count = count + active
            active = active & unknowns.still(residual, stop)
        solution = y if prox is None else new  # y may lie outside of what the prox allows
        return unknowns.result(solution, count, residual, stop, "grad f(init)")


def _search(
    smooth: Objective,
    forward: Callable[..., torch.Tensor],
    y: torch.Tensor,
    value: torch.Tensor,
    g: torch.Tensor,
    eta: torch.Tensor,
    active: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Halve the step until the quadratic that it assumes lies above the objective.

    Close to the minimum the values no longer tell two points apart, but the gradients do: there
    the quadratic's curvature along the step has to be that of the objective at least.
    """
    new = forward(y, g, eta)
    for _ in range(60):
        move = new - y
        after, slope = smooth.value_and_grad(new)
        square = (move @ move) / eta
        alike = (after - value).abs() <= default_tolerance(y.dtype) * value.abs()
        flat_enough = torch.where(
            alike, (slope - g) @ move <= square, after <= value + g @ move + square / 2
        )
        short = active & ~flat_enough
        if not any_true(short):
            break
        eta = torch.where(short, eta / 2, eta)
        new = forward(y, g, eta)
    return eta, new
