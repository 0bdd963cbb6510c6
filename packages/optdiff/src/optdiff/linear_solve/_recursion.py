# SPDX-License-Identifier: Apache-2.0
"""Krylov methods that update their residual by a recursion, which drifts away from the true one.

Each iteration updates the systems that have not converged and leaves the others as they are, so a
batch of systems under ``vmap`` takes as many iterations as its slowest, and every system gets the
result it would get alone (but all restart at once). Only the stopping test reads from the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from optdiff._convergence import any_true
from optdiff.linear_solve._operators import Vector
from optdiff.linear_solve._solver import LinearSolver, SolveInfo

norm = torch.linalg.vector_norm


@dataclass(frozen=True, eq=False)
class Recursive(LinearSolver):
    """What updates its residual by a recursion, and begins anew where that has drifted."""

    def values(
        self, matvec: Vector, b: torch.Tensor, x: torch.Tensor, precondition: Vector
    ) -> tuple[torch.Tensor, SolveInfo]:
        """Run until the residual of ``x`` itself is small, or gains nothing any more."""
        stop = self.threshold(b)
        r = b - matvec(x)
        active = norm(r) > stop
        count = torch.zeros_like(active, dtype=torch.int64)
        left = self.limit(b)
        while left > 0 and any_true(active):
            new, steps, used = self.run(matvec, x, r, stop, active, precondition, left)
            after = b - matvec(new)
            gained = active & (norm(after) < norm(r))
            # The residual of CG is not monotone: a first run that stopped early may end above.
            kept = gained | (active & (count == 0))
            x, r = torch.where(kept, new, x), torch.where(kept, after, r)
            count, left = count + steps, left - used
            active = gained & (norm(r) > stop)
        residual = norm(r)
        return x, SolveInfo(count, residual, residual <= stop)

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
        """One run from a residual: the new ``x``, iterations of each system, and of the slowest."""
        raise NotImplementedError(f"{type(self).__name__}.run")


def ratio(a: Any, b: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
    """``a / b`` in active systems, 0 in the others and where ``b`` is 0."""
    valid = active & (b != 0)
    return torch.where(valid, a / torch.where(valid, b, 1.0), 0.0)
