# SPDX-License-Identifier: Apache-2.0
"""A user's own function as a linear solver."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch

import treeops
from optdiff._implicit_rule import Leaves
from optdiff._trees import NAMESPACE, Tree
from optdiff.linear_solve._operators import Factory, Flat, Vector, Zeros, like
from optdiff.linear_solve._solver import LinearSolver, SolveInfo


@dataclass(frozen=True, eq=False)
class GivenSolver(LinearSolver):
    """A user's function ``solve(matvec, b)``, on trees; it gets the derivative of a solve too."""

    function: Callable[[Callable[[Tree], Tree], Tree], Tree] | None = None
    who: str = "solve"

    name: ClassVar[str] = "given"

    def solve_leaves(
        self, factory: Factory, tensors: Leaves, b: Leaves, spec: Any, *, adjoint: bool = False
    ) -> tuple[Leaves, SolveInfo]:
        """The trees that the function works on become known here."""
        on_trees = _GivenOnTrees(
            function=self.function, who=self.who, spec=spec, like=Zeros.like(b)
        )
        return LinearSolver.solve_leaves(on_trees, factory, tensors, b, spec, adjoint=adjoint)


@dataclass(frozen=True, eq=False)
class _GivenOnTrees(GivenSolver):
    spec: Any = None
    like: tuple[Zeros, ...] = ()

    def values(
        self, matvec: Vector, b: torch.Tensor, x: torch.Tensor, precondition: Vector
    ) -> tuple[torch.Tensor, SolveInfo]:
        """What the function returns; whether it has converged is its own affair."""
        flat = Flat(tuple(zeros.make() for zeros in self.like))

        def product(tree: Tree) -> Tree:
            leaves = treeops.tree_leaves(tree, namespace=NAMESPACE)
            image = flat.unravel(matvec(flat.ravel(tuple(leaves))))
            return treeops.tree_unflatten(self.spec, image)

        right = treeops.tree_unflatten(self.spec, flat.unravel(b))
        try:
            with torch.enable_grad():
                tree = self.function(product, right)
        except TypeError as error:
            called = error.__traceback__
            if called is not None and called.tb_next is not None:  # from inside the function
                raise
            raise _unlike(self.who, self.function) from error
        shapes_ = tuple(zeros.shape for zeros in self.like)
        leaves = like("solve", "the linear solver's result", self.spec, shapes_, tree)
        x = flat.ravel(leaves).detach()
        residual = torch.linalg.vector_norm(b - matvec(x))
        converged = residual.isfinite()
        return x, SolveInfo(torch.ones_like(converged, dtype=torch.int64), residual, converged)


def adapt(who: str, solve: Any) -> LinearSolver:
    """A linear solver; one without its parentheses, or a function ``solve(matvec, b)``, as one."""
    if isinstance(solve, LinearSolver):
        return solve
    inner = solve.func if isinstance(solve, partial) else solve
    if getattr(inner, "makes_solver", False):  # solve_cg for solve_cg(), as JAXopt writes it
        return solve()
    if isinstance(inner, LinearSolver) and not solve.args:
        return inner.override(solve.keywords)
    if callable(solve):
        try:
            inspect.signature(solve).bind(None, None)
        except ValueError:
            pass  # compiled functions do not tell; the first call does
        except TypeError:
            raise _unlike(who, solve) from None
        return GivenSolver(function=solve, who=who)
    raise TypeError(
        f"{who}: expected solve to be a linear solver such as optdiff.linear_solve.solve_cg(), "
        f"got {type(solve).__name__}"
    )


def _unlike(who: str, solve: Any) -> TypeError:
    """The error for a function that does not take a product and a right side."""
    name = getattr(solve, "__name__", type(solve).__name__)
    return TypeError(
        f"{who}: expected solve to be a function solve(matvec, b), matvec a function of trees like "
        f"b, got {name}, which cannot be called so; pass a linear solver such as "
        "optdiff.linear_solve.solve_cg(), or solve_lu() for a dense matrix"
    )
