# SPDX-License-Identifier: Apache-2.0
"""Krylov methods for operators that need not be symmetric: BiCGStab and GMRES.

A batch of systems takes turns as in `_recursion`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from optdiff._convergence import OnFailure, any_true
from optdiff._options import by_name, check_count
from optdiff.linear_solve._operators import Vector
from optdiff.linear_solve._recursion import Recursive, ratio
from optdiff.linear_solve._solver import LinearSolver, SolveInfo, check_lapack

norm = torch.linalg.vector_norm

_FIRST_RESTART = 50


@by_name
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


@by_name
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


@dataclass(frozen=True, eq=False)
class BiCGStab(Recursive):
    """Stabilized biconjugate gradients."""

    name: ClassVar[str] = "bicgstab"

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
        """Right-preconditioned, so the residual is that of the system itself."""
        shadow = p = r
        rho = shadow @ r
        count = torch.zeros_like(active, dtype=torch.int64)
        used = 0
        while used < left and any_true(active):
            direction = precondition(p)
            v = matvec(direction)
            alpha = ratio(rho, shadow @ v, active)
            s = r - alpha * v
            correction = precondition(s)
            t = matvec(correction)
            omega = ratio(t @ s, t @ t, active)
            x = x + alpha * direction + omega * correction
            r = torch.where(active, s - omega * t, r)
            new = shadow @ r
            beta = ratio(new, rho, active) * ratio(alpha, omega, active)
            p = torch.where(active, r + beta * (p - omega * v), p)
            rho = new
            count, used = count + active, used + 1
            active = active & (norm(r) > stop)
            # The shadow residual became orthogonal: begin anew from the present residual.
            lost = active & (rho.abs() <= torch.finfo(r.dtype).eps * norm(shadow) * norm(r))
            shadow, p = torch.where(lost, r, shadow), torch.where(lost, r, p)
            rho = torch.where(lost, r @ r, rho)
        return x, count, used


@dataclass(frozen=True, eq=False)
class GMRES(LinearSolver):
    """Generalized minimal residuals, restarted."""

    restart: int | None = None

    name: ClassVar[str] = "gmres"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.restart is not None:
            check_count("solve_gmres", "restart", self.restart)

    def values(
        self, matvec: Vector, b: torch.Tensor, x: torch.Tensor, precondition: Vector
    ) -> tuple[torch.Tensor, SolveInfo]:
        """Right-preconditioned, so what is minimal is the residual of the system itself."""
        check_lapack("solve_gmres", b)
        stop = self.threshold(b)
        r = b - matvec(x)
        active = norm(r) > stop
        count = torch.zeros_like(active, dtype=torch.int64)
        left = self.limit(b)
        restart = _FIRST_RESTART if self.restart is None else self.restart
        while left > 0 and any_true(active):
            size = min(restart, left, b.numel())
            step, steps, used = self._cycle(matvec, r, stop, active, precondition, size)
            before = norm(r)
            x = torch.where(active, x + precondition(step), x)
            r = torch.where(active, b - matvec(x), r)
            count = count + steps
            left -= used
            active = active & (norm(r) > stop)
            if self.restart is None and size < b.numel():
                # Restarting may stall for ever where the whole space would give the solution.
                if any_true(active & (norm(r) > before / 2)):
                    restart = 2 * restart
            else:
                active = active & (norm(r) < before)  # what gained nothing would gain nothing again
        residual = norm(r)
        return x, SolveInfo(count, residual, residual <= stop)

    @staticmethod
    def _cycle(
        matvec: Vector,
        r: torch.Tensor,
        stop: torch.Tensor,
        active: torch.Tensor,
        precondition: Vector,
        size: int,
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Arnoldi's process and the least squares problem, kept triangular by rotations."""
        beta = norm(r)
        basis = ratio(1.0, beta, active) * r[None]
        unit = torch.eye(size + 1, dtype=r.dtype, device=r.device)
        rotation = unit  # all rotations so far
        columns = []
        steps = torch.zeros_like(active, dtype=torch.int64)
        for k in range(size):
            if not any_true(active):
                break
            w = matvec(precondition(basis[k]))
            scale = norm(w)
            h = basis @ w
            w = w - h @ basis
            again = basis @ w  # twice is enough
            w = w - again @ basis
            h = h + again
            length = norm(w)
            length = torch.where(length > torch.finfo(r.dtype).eps * scale, length, 0.0)
            basis = torch.cat([basis, (ratio(1.0, length, active) * w)[None]])
            padding = torch.zeros(size - k - 1, dtype=r.dtype, device=r.device)
            column = rotation @ torch.cat([h, length[None], padding])
            radius = torch.hypot(column[k], column[k + 1])
            turn = active & (radius > 0)
            c = torch.where(turn, ratio(column[k], radius, turn), 1.0)
            s = ratio(column[k + 1], radius, turn)
            upper = c * rotation[k] + s * rotation[k + 1]
            lower = c * rotation[k + 1] - s * rotation[k]
            rotation = torch.cat([rotation[:k], upper[None], lower[None], rotation[k + 2 :]])
            column = torch.cat([column[:k], radius[None], torch.zeros_like(column[k + 1 :])])
            columns.append(torch.where(turn, column, unit[k])[:size])
            # What was not turned takes no part: its coefficient is 0 in the triangular solve.
            steps = steps + turn
            active = turn & ((rotation[k + 1, 0] * beta).abs() > stop)
        used = len(columns)
        triangle = torch.stack(columns, dim=1)[:used]
        known = torch.arange(used, device=r.device) < steps
        target = torch.where(known, rotation[:used, 0] * beta, 0.0)
        y = torch.linalg.solve_triangular(triangle, target[:, None], upper=True)[:, 0]
        return y @ basis[:used], steps, used
