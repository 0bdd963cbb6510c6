# SPDX-License-Identifier: Apache-2.0
"""What every linear solver is: options, and ways to call it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch

import treeops
from optcore import describe
from optdiff._convergence import (
    OnFailure,
    check_on_failure,
    default_tolerance,
    report_failure,
)
from optdiff._explicit import Explicit
from optdiff._implicit_rule import Leaves, solve_by_rule
from optdiff._options import check_count, check_number
from optdiff._tracking import (
    below_every_level,
    is_tracked,
    is_wrapped,
    is_wrapped_or_tracked,
    refuse_tracing,
    sample,
)
from optdiff._trees import NAMESPACE, Tree
from optdiff._uncompiled import uncompiled
from optdiff.linear_solve._operators import (
    Factory,
    LeafOperator,
    Ridge,
    Transposed,
    Vector,
    Zeros,
    as_product,
    check_unknowns,
    like,
    shapes,
)
from optdiff.linear_solve._rule import LinearRule


class SolveInfo(NamedTuple):
    """How a linear solve went; tensors without a gradient, one per system under ``vmap``."""

    iterations: torch.Tensor  # i64[]
    residual_norm: torch.Tensor  # of b - A x (normal_cg: of the normal equations)
    converged: torch.Tensor  # bool[]


@dataclass(frozen=True, eq=False)
class LinearSolver:
    """A linear solver with its options: call it with ``A`` and ``b``.

    Solvers are values: they pickle, and equal options make equal solvers (tensors compare by
    identity). Options can be overridden in a call: ``solver(A, b, rtol=1e-3)``.
    """

    ridge: float = 0.0
    init: Tree = None
    rtol: float | None = None
    atol: float = 0.0
    maxiter: int | None = None
    M: Any = None
    return_info: bool = False
    on_failure: OnFailure = "warn"

    name: ClassVar[str] = "linear_solve"
    symmetric: ClassVar[bool] = False  # whether A may stand for its transpose

    def __post_init__(self) -> None:
        who = f"solve_{self.name}"
        check_number(who, "ridge", self.ridge)
        check_number(who, "atol", self.atol)
        if self.rtol is not None:
            check_number(who, "rtol", self.rtol)
        if self.maxiter is not None:
            check_count(who, "maxiter", self.maxiter)
        check_on_failure(who, self.on_failure)

    @uncompiled
    def __call__(self, A: Any, b: Tree, **overrides: Any) -> Any:
        """Solve ``(A + ridge I) x = b``.

        Args:
            A: A square matrix, a tree of square matrices (one per leaf of ``b``), or a linear
                function of trees like ``b``.
            b: A tensor or tree of tensors.
            overrides: Options that hold for this call.

        Returns:
            The solution, like ``b``; with ``return_info`` a pair of it and a :class:`SolveInfo`.

        Raises:
            TypeError: ``A`` or ``b`` is of the wrong kind, or there is no such option.
            ValueError: Their shapes do not fit.
            ConvergenceError: No convergence with ``on_failure="raise"``.
        """
        return self.override(overrides)._solve(A, b)

    def override(self, options: dict[str, Any]) -> LinearSolver:
        """The same solver with other options."""
        known = [field.name for field in dataclasses.fields(self)]
        for name in options:
            if name not in known:
                raise TypeError(
                    f"solve_{self.name}: expected options among {', '.join(known)}, got {name}; "
                    "a tolerance is rtol or atol"
                )
        return dataclasses.replace(self, **options) if options else self

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        pairs = [(getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self)]
        return all(
            mine is theirs
            or (not _holds_tensors(mine) and not _holds_tensors(theirs) and mine == theirs)
            for mine, theirs in pairs
        )

    def __hash__(self) -> int:
        kept = (f.name for f in dataclasses.fields(self) if f.name not in ("init", "M"))
        return hash((type(self), *(getattr(self, name) for name in kept)))

    def _solve(self, A: Any, b: Tree) -> Any:
        who = f"solve_{self.name}"
        leaves, spec = treeops.tree_flatten(b, namespace=NAMESPACE)
        b_leaves = check_unknowns(who, "b", leaves, b)
        product = as_product(who, "A", A, spec, b_leaves)
        operator, tensors = _explicit_operator(who, product, spec, b_leaves)
        solution, info = self.solve_leaves(operator, tensors, b_leaves, spec)
        tree = treeops.tree_unflatten(spec, solution)
        return (tree, info) if self.return_info else tree

    def solve_leaves(
        self, factory: Factory, tensors: Leaves, b: Leaves, spec: Any, *, adjoint: bool = False
    ) -> tuple[Leaves, SolveInfo]:
        """Solve, differentiably in the operator's tensors and in ``b``, on the leaves of trees.

        Args:
            factory: The operator.
            tensors: What it holds.
            b: The right side.
            spec: Structure of the trees that ``M`` and ``init`` are given as.
            adjoint: Whether the operator is the transpose of what ``M`` approximates.
        """
        who = f"solve_{self.name}"
        start: Leaves = ()
        if self.init is not None:
            start = like(who, "init", spec, shapes(b), self.init)
        if self.ridge:
            factory = Ridge(factory, self.ridge)
        preconditioner: Factory | None = None
        held = Explicit(is_wrapped)
        if self.M is not None:
            rebuild = held.add_function(as_product(who, "M", self.M, spec, b))
            preconditioner = LeafOperator(who, "M", rebuild, spec, shapes(b))
            if adjoint and not self.symmetric:
                preconditioner = Transposed(preconditioner, Zeros.like(b))
        rule = LinearRule(self, factory, preconditioner, (len(b), len(tensors), len(held.tensors)))
        constants = [tensor.detach() for tensor in (*held.tensors, *start)]
        inputs = (*b, *tensors, *constants)
        if any(is_tracked(tensor) for tensor in inputs):
            solution, info = solve_by_rule(rule, inputs)
        else:
            solution, info = rule.run(inputs)
        return solution, SolveInfo(*info)

    def values(
        self, matvec: Vector, b: torch.Tensor, x: torch.Tensor, precondition: Vector
    ) -> tuple[torch.Tensor, SolveInfo]:
        """Numbers of the solution, from an initial guess; everything is one flat vector here."""
        raise NotImplementedError(f"{type(self).__name__}.values")

    def report(self, info: SolveInfo, b: torch.Tensor) -> None:
        """Tell of systems that have not converged, as ``on_failure`` asks."""
        report_failure(
            f"solve_{self.name}",
            info.converged,
            info.residual_norm,
            f"a residual norm <= max(rtol |b|, atol) within {self.limit(b)} iterations; raise "
            "maxiter, rtol or ridge, or give a preconditioner M",
            self.on_failure,
        )

    def threshold(self, b: torch.Tensor) -> torch.Tensor:
        """The residual norm at which to stop."""
        refuse_tracing(f"solve_{self.name}")
        rtol = default_tolerance(b.dtype) if self.rtol is None else self.rtol
        return torch.clamp(rtol * torch.linalg.vector_norm(b), min=self.atol)

    def limit(self, b: torch.Tensor) -> int:
        """How many iterations at most: ten per unknown, and 0-d unknowns count."""
        return 10 * max(b.numel(), 1) if self.maxiter is None else self.maxiter


def check_lapack(who: str, b: torch.Tensor) -> None:
    """Refuse a precision in which torch factorizes nothing."""
    if torch.finfo(b.dtype).bits < 32:
        raise TypeError(
            f"{who}: expected unknowns in float32 or float64, got {describe(b)}; convert them, or "
            "take a solver that does not factorize, such as solve_bicgstab()"
        )


def _holds_tensors(value: Any) -> bool:
    return any(isinstance(leaf, torch.Tensor) for leaf in treeops.tree_leaves(value))


def _explicit_operator(
    who: str, product: Callable[[Tree], Tree], spec: Any, b: Leaves
) -> tuple[Factory, Leaves]:
    """The operator as a function of the tensors that derivatives and batching must see.

    What a function closes over is replaced only where that is needed: one that holds a graph of an
    earlier result would not survive it.
    """
    constant = LeafOperator(who, "A", lambda tensors: product, spec, shapes(b))
    tree = treeops.tree_unflatten(spec, tuple(part.detach() for part in b))
    image = like(who, "the image of A", spec, shapes(b), product(tree))
    moves = any(is_tracked(part) for part in image)
    if not moves and not any(is_tracked(part) for part in b):
        return constant, ()
    explicit = Explicit(is_wrapped_or_tracked if moves else is_wrapped)
    operator = LeafOperator(who, "A", explicit.add_function(product), spec, shapes(b))
    held, vector = tuple(map(sample, explicit.tensors)), tuple(map(sample, b))
    try:
        with below_every_level():
            hidden = any(is_wrapped_or_tracked(part) for part in operator(held)(vector))
    except RuntimeError as error:  # how torch tells of a tensor that belongs to a level
        raise ValueError(_hidden(who)) from error
    if hidden:
        raise ValueError(_hidden(who))
    return operator, tuple(explicit.tensors)


def _hidden(who: str) -> str:
    return (
        f"{who}: expected A to hold the tensors to differentiate in as a matrix, in its closure, a "
        "functools.partial or a module, got one that holds them in the graph of an earlier result, "
        "as what torch.func.vjp returned, in a list or dict among the globals, or as attributes of "
        "an object that is not callable; compute with them inside A, from local variables, or "
        "detach them"
    )
