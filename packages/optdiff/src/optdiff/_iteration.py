# SPDX-License-Identifier: Apache-2.0
"""What the solvers of nonlinear problems share: flat vectors, stopping, and the result's record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

import treeops
from optdiff._convergence import OnFailure, check_on_failure, default_tolerance, report_failure
from optdiff._implicit_rule import Leaves
from optdiff._options import check_count, check_number
from optdiff._statistics import note_solve
from optdiff._tracking import refuse_tracing
from optdiff._trees import NAMESPACE, Tree
from optdiff.linear_solve import LinearSolver
from optdiff.linear_solve._operators import Flat, MatVec, check_unknowns, like, shapes


class SolverResult(NamedTuple):
    """How a solve went; tensors without a gradient, one per problem under ``vmap``."""

    solution: Tree
    converged: torch.Tensor  # bool[]
    iterations: torch.Tensor  # i64[]
    residual: torch.Tensor  # the norm that the tolerance bounds


@dataclass(frozen=True)
class Unknowns:
    """The unknowns of a solve as one vector, and the solve's options."""

    who: str
    flat: Flat
    spec: Any
    shapes: tuple[torch.Size, ...]
    start: torch.Tensor
    tol: float
    maxiter: int
    on_failure: OnFailure

    @staticmethod
    def of(
        who: str, init: Tree, tol: float | None, maxiter: int, on_failure: OnFailure
    ) -> Unknowns:
        """Check what every solver is given."""
        refuse_tracing(who)
        leaves, spec = treeops.tree_flatten(init, namespace=NAMESPACE)
        parts = check_unknowns(who, "init", leaves, init)
        if tol is not None:
            check_number(who, "tol", tol)
        check_count(who, "maxiter", maxiter)
        check_on_failure(who, on_failure)
        flat = Flat(parts)
        start = flat.ravel(tuple(part.detach() for part in parts))
        tol = default_tolerance(start.dtype) if tol is None else tol
        return Unknowns(who, flat, spec, shapes(parts), start, tol, maxiter, on_failure)

    def tree(self, vector: torch.Tensor) -> Tree:
        """The unknowns as the user knows them."""
        return treeops.tree_unflatten(self.spec, self.flat.unravel(vector))

    def vector(self, what: str, tree: Tree) -> torch.Tensor:
        """A tree like the unknowns as a vector."""
        return self.flat.ravel(like(self.who, what, self.spec, self.shapes, tree))

    def map(
        self, what: str, function: Callable[..., Tree], args: tuple[Any, ...]
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """A function of trees as one of vectors."""
        return lambda vector: self.vector(what, function(self.tree(vector), *args))

    def numbers(
        self, what: str, function: Callable[..., Tree], args: tuple[Any, ...]
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """The same without a graph."""
        mapped = self.map(what, function, detached(args))

        def flat(vector: torch.Tensor) -> torch.Tensor:
            with torch.enable_grad():  # the function may differentiate something inside
                return mapped(vector).detach()

        return flat

    def solve(self, solver: LinearSolver, matvec: MatVec, rhs: torch.Tensor) -> torch.Tensor:
        """A linear system of one vector, by a solver that knows it as a tree."""

        def product(v: Leaves) -> Leaves:
            (image,) = matvec((self.flat.ravel(v),))
            return self.flat.unravel(image)

        x, _ = solver.solve_leaves(lambda tensors: product, (), self.flat.unravel(rhs), self.spec)
        return self.flat.ravel(x)

    def threshold(self, reference: torch.Tensor) -> torch.Tensor:
        """The residual to reach: relative to the norm of a vector where that is large."""
        return self.tol * torch.clamp(torch.linalg.vector_norm(reference), min=1.0)

    def still(self, residual: torch.Tensor, stop: torch.Tensor) -> torch.Tensor:
        """Whether to go on: not there yet, and not lost."""
        return (residual > stop) & residual.isfinite()

    def result(
        self,
        x: torch.Tensor,
        iterations: torch.Tensor,
        residual: torch.Tensor,
        stop: torch.Tensor,
        relative_to: str,
    ) -> SolverResult:
        """The record; tells of a failure as the user asked."""
        converged = residual <= stop
        note_solve(self.who, iterations, residual, converged)
        report_failure(
            self.who,
            converged,
            residual,
            f"a residual <= {self.tol:.3g} max(1, |{relative_to}|) within {self.maxiter} "
            "iterations; raise maxiter or tol, or start closer",
            self.on_failure,
        )
        return SolverResult(self.tree(x), converged, iterations, residual)


def detached(tree: Tree) -> Tree:
    """A tree whose tensors carry no graph."""
    return treeops.tree_map(
        lambda leaf: leaf.detach() if isinstance(leaf, torch.Tensor) else leaf,
        tree,
        namespace=NAMESPACE,
    )
