# SPDX-License-Identifier: Apache-2.0
"""Solvers of ``x = T(x)``: plain iteration, Anderson acceleration, Broyden's method.

They give numbers; :func:`optdiff.custom_fixed_point` gives these their derivatives. Under ``vmap``
each problem of a batch stops when it has converged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from optdiff._convergence import OnFailure, any_true
from optdiff._iteration import SolverResult, Unknowns
from optdiff._options import check_count, check_number, check_positive
from optdiff._uncompiled import uncompiled

norm = torch.linalg.vector_norm


@uncompiled
def fixed_point_iteration(
    fixed_point_fn: Callable[..., Any],
    init: Any,
    *args: Any,
    tol: float | None = None,
    maxiter: int = 1000,
    damping: float = 0.0,
    on_failure: OnFailure = "warn",
) -> SolverResult:
    r"""Iterate a map until it moves no more.

    .. math::
        x_{k+1} = (1 - \text{damping})\, T(x_k) + \text{damping}\; x_k
        \quad\text{until}\quad \|T(x) - x\| \le \text{tol}\,\max(1, \|x\|)

    Args:
        fixed_point_fn: ``fixed_point_fn(x, *args)``, of the structure of ``x``.
        init: First ``x``, a tree of floating tensors.
        args: Handed to the function.
        tol: Tolerance; ``eps ** (2/3)`` of the dtype by default.
        maxiter: Iterations at most.
        damping: Weight of the old ``x``, in ``[0, 1)``.
        on_failure: ``"warn"``, ``"raise"`` or ``"ignore"`` when the tolerance is not met.

    Returns:
        A :class:`SolverResult`.

    Differentiable:
        No; see :func:`optdiff.custom_fixed_point`.

    Raises:
        ValueError: An option out of range, or an image unlike ``x``.
        ConvergenceError: With ``on_failure="raise"``.

    Example:
        >>> fixed_point_iteration(torch.cos, torch.tensor(1.0)).solution
        tensor(0.7391)
    """
    unknowns = Unknowns.of("fixed_point_iteration", init, tol, maxiter, on_failure)
    check_number("fixed_point_iteration", "damping", damping)
    if damping >= 1:
        raise ValueError(
            f"fixed_point_iteration: expected damping in [0, 1), got {damping}; 1 would not move"
        )
    function = unknowns.numbers("the image", fixed_point_fn, args)
    with torch.no_grad():
        x = unknowns.start
        step = function(x) - x
        active, count = _begin(unknowns, x, step)
        for _ in range(maxiter):
            if not any_true(active):
                break
            x = torch.where(active, x + (1 - damping) * step, x)
            step = torch.where(active, function(x) - x, step)
            count = count + active
            active = active & unknowns.still(norm(step), unknowns.threshold(x))
        return unknowns.result(x, count, norm(step), unknowns.threshold(x), "x")


@uncompiled
def anderson(
    fixed_point_fn: Callable[..., Any],
    init: Any,
    *args: Any,
    tol: float | None = None,
    maxiter: int = 200,
    history: int = 5,
    mixing: float = 1.0,
    ridge: float = 1e-12,
    on_failure: OnFailure = "warn",
) -> SolverResult:
    r"""Anderson acceleration: extrapolate from the last few residuals.

    With :math:`r_k = T(x_k) - x_k` and the differences of the last ``history`` of each,

    .. math::
        \gamma &= \arg\min_\gamma \|r_k - \Delta R\,\gamma\|^2 \\
        x_{k+1} &= x_k + \text{mixing}\; r_k - (\Delta X + \text{mixing}\,\Delta R)\,\gamma

    Args:
        fixed_point_fn: As for :func:`fixed_point_iteration`, and so are the others.
        init: First ``x``.
        args: Handed to the function.
        tol: Tolerance.
        maxiter: Iterations at most.
        history: Differences to keep.
        mixing: Weight of the residual.
        ridge: Regularizes the least squares problem, relative to its scale.
        on_failure: What to do when the tolerance is not met.

    Returns:
        A :class:`SolverResult`.

    Differentiable:
        No; see :func:`optdiff.custom_fixed_point`.

    Raises:
        ValueError: An option out of range, or an image unlike ``x``.

    Example:
        >>> anderson(torch.cos, torch.tensor(1.0)).solution
        tensor(0.7391)

    Reference:
        Walker and Ni, 2011, SIAM J. Numer. Anal. 49(4), algorithm AA.
    """
    unknowns = Unknowns.of("anderson", init, tol, maxiter, on_failure)
    check_count("anderson", "history", history)
    check_positive("anderson", "mixing", mixing)
    check_number("anderson", "ridge", ridge)
    function = unknowns.numbers("the image", fixed_point_fn, args)
    with torch.no_grad():
        x = unknowns.start
        r = function(x) - x
        active, count = _begin(unknowns, x, r)
        moves: list[torch.Tensor] = []
        changes: list[torch.Tensor] = []
        for _ in range(maxiter):
            if not any_true(active):
                break
            step = mixing * r
            if changes:
                dx, dr = torch.stack(moves), torch.stack(changes)
                gram = dr @ dr.mT
                scale = gram.diagonal().sum()
                eye = torch.eye(len(changes), dtype=x.dtype, device=x.device)
                # A problem that is done has no differences left, so its matrix needs a unit.
                shift = torch.where(scale > 0, ridge * scale, 1.0)
                gamma, _ = torch.linalg.solve_ex(gram + shift * eye, (dr @ r)[:, None])
                bent = step - gamma[:, 0] @ (dx + mixing * dr)
                step = torch.where(bent.isfinite().all(), bent, step)
            new = torch.where(active, x + step, x)
            after = torch.where(active, function(new) - new, r)
            moves = [*moves, new - x][-history:]
            changes = [*changes, after - r][-history:]
            x, r = new, after
            count = count + active
            active = active & unknowns.still(norm(r), unknowns.threshold(x))
        return unknowns.result(x, count, norm(r), unknowns.threshold(x), "x")


@uncompiled
def broyden(
    fixed_point_fn: Callable[..., Any],
    init: Any,
    *args: Any,
    tol: float | None = None,
    maxiter: int = 200,
    history: int = 50,
    on_failure: OnFailure = "warn",
) -> SolverResult:
    r"""Broyden's method: keep an approximate inverse of the Jacobian of ``T(x) - x``.

    From :math:`H = -I`, with :math:`r = T(x) - x` and after each step :math:`s = -H r`,

    .. math::
        H \leftarrow H + \frac{(s - H\,\Delta r)\, s^\top H}{s^\top H\,\Delta r}

    Args:
        fixed_point_fn: As for :func:`fixed_point_iteration`, and so are the others.
        init: First ``x``.
        args: Handed to the function.
        tol: Tolerance.
        maxiter: Iterations at most.
        history: Updates to keep before beginning anew from ``-I``.
        on_failure: What to do when the tolerance is not met.

    Returns:
        A :class:`SolverResult`.

    Differentiable:
        No; see :func:`optdiff.custom_fixed_point`.

    Raises:
        ValueError: An option out of range, or an image unlike ``x``.

    Example:
        >>> broyden(torch.cos, torch.tensor(1.0)).solution
        tensor(0.7391)

    Reference:
        Broyden, 1965, Math. Comp. 19; the form with vectors: Bai et al., 2019, arXiv:1909.01377,
        appendix A.
    """
    unknowns = Unknowns.of("broyden", init, tol, maxiter, on_failure)
    check_count("broyden", "history", history)
    function = unknowns.numbers("the image", fixed_point_fn, args)
    with torch.no_grad():
        x = unknowns.start
        r = function(x) - x
        active, count = _begin(unknowns, x, r)
        left: list[torch.Tensor] = []
        right: list[torch.Tensor] = []
        for _ in range(maxiter):
            if not any_true(active):
                break
            step = -_inverse(left, right, r)
            new = torch.where(active, x + step, x)
            after = torch.where(active, function(new) - new, r)
            if len(left) == history:
                left, right = [], []
            image = _inverse(left, right, after - r)
            row = _inverse(right, left, step)
            pivot = step @ image
            usable = active & (pivot != 0)
            factor = torch.where(usable, 1 / torch.where(usable, pivot, 1.0), 0.0)
            left, right = [*left, (step - image) * factor], [*right, row]
            x, r = new, after
            count = count + active
            active = active & unknowns.still(norm(r), unknowns.threshold(x))
        return unknowns.result(x, count, norm(r), unknowns.threshold(x), "x")


def _inverse(left: list[torch.Tensor], right: list[torch.Tensor], v: torch.Tensor) -> torch.Tensor:
    """``H v``, or ``H^T v`` with the lists exchanged."""
    if not left:
        return -v
    return (torch.stack(right) @ v) @ torch.stack(left) - v


def _begin(
    unknowns: Unknowns, x: torch.Tensor, r: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    active = unknowns.still(norm(r), unknowns.threshold(x))
    return active, torch.zeros_like(active, dtype=torch.int64)
