# SPDX-License-Identifier: Apache-2.0
r"""The implicit function theorem as a rule.

Where :math:`F(x, \theta) = 0`, the implicit function theorem gives

.. math::
    A = \frac{\partial F}{\partial x}, \qquad
    A^\top u = g, \quad
    \bar\theta = -\Bigl(\frac{\partial F}{\partial\theta}\Bigr)^\top u, \qquad
    A\,\dot x = -\frac{\partial F}{\partial\theta}\,\dot\theta .

The linear systems are solved by a :mod:`optdiff.linear_solve` solver, from products with ``A`` and
its transpose; neither is ever written out unless the solver does so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

import treeops
from optcore import describe
from optdiff._explicit import Explicit, Rebuild, held_at
from optdiff._implicit_rule import Leaves
from optdiff._iteration import SolverResult
from optdiff._repeats import foreign_leaves
from optdiff._tracking import is_tracked
from optdiff._trees import NAMESPACE, Tree
from optdiff.linear_solve import LinearSolver
from optdiff.linear_solve._operators import (
    Factory,
    MatVec,
    Transposed,
    Zeros,
    check_unknowns,
    like,
    linearize,
    shapes,
)


@dataclass(frozen=True)
class Call:
    """One call of a solver as a function of tensors: constants first, then variables."""

    solve: Rebuild
    optimality: Rebuild
    init: Rebuild
    args: tuple[tuple[Rebuild, bool], ...]  # and whether it is built of the variables
    kwargs: dict[str, tuple[Rebuild, bool]]
    constants: int

    def arguments(self, inputs: Leaves) -> tuple[list[Any], dict[str, Any]]:
        """What both functions get after the initial guess or the solution."""
        fixed, varied = inputs[: self.constants], inputs[self.constants :]
        args = [part(varied if moves else fixed) for part, moves in self.args]
        kwargs = {
            name: part(varied if moves else fixed) for name, (part, moves) in self.kwargs.items()
        }
        return args, kwargs

    def run(self, inputs: Leaves) -> Any:
        """The solver's result."""
        fixed = inputs[: self.constants]
        args, kwargs = self.arguments(inputs)
        return self.solve(fixed)(self.init(fixed), *args, **kwargs)

    def residual(self, solution: Tree, inputs: Leaves) -> Tree:
        """The optimality at a solution."""
        args, kwargs = self.arguments(inputs)
        return self.optimality(inputs[: self.constants])(solution, *args, **kwargs)


@dataclass
class RootRule:
    """The implicit function theorem; the solution's structure is known once it has run."""

    who: str
    call: Call
    has_aux: bool
    solver: LinearSolver
    spec: Any = None
    shapes: tuple[torch.Size, ...] = ()
    aux: Callable[[Leaves], Tree] = field(default=lambda tensors: None)

    @property
    def settings(self) -> dict[str, str]:
        return {"by": self.who, "linear solver": self.solver.name}

    def run(self, inputs: Leaves) -> tuple[Leaves, Leaves]:
        result = self.call.run(inputs)
        aux: Leaves = ()
        if self.has_aux:
            if not (isinstance(result, tuple) and len(result) == 2):
                raise TypeError(
                    f"{self.who}: expected the solver to return (solution, aux), got "
                    f"{type(result).__name__}"
                )
            result, extra = result
            aux = self._open_aux(extra)
        if isinstance(result, SolverResult):
            raise TypeError(
                f"{self.who}: expected the solver to return the solution, got a SolverResult; "
                "return result.solution"
            )
        leaves, self.spec = treeops.tree_flatten(result, namespace=NAMESPACE)
        solution = check_unknowns(self.who, "the solution", leaves, result)
        self.shapes = shapes(solution)
        return tuple(leaf.clone() for leaf in solution), aux  # it may be the initial guess itself

    def _open_aux(self, aux: Tree) -> Leaves:
        explicit = Explicit(lambda tensor: False)
        self.aux = explicit.add(aux)
        return tuple(tensor.detach().clone() for tensor in explicit.tensors)

    def residual(self, x: Leaves, inputs: Leaves) -> Leaves:
        """The optimality on leaves."""
        image = self.call.residual(treeops.tree_unflatten(self.spec, x), inputs)
        return like(self.who, "the optimality", self.spec, self.shapes, image)

    def backward(
        self, solution: Leaves, inputs: Leaves, cotangents: Leaves, wanted: Sequence[int]
    ) -> Leaves:
        transposed = TransposedJacobian(self, len(solution))
        u, _ = self.solver.solve_leaves(
            transposed, (*solution, *inputs), cotangents, self.spec, adjoint=True
        )
        with torch.enable_grad():
            _, pull = torch.func.vjp(
                self._varied(inputs, wanted), *solution, *(inputs[index] for index in wanted)
            )
        return pull(tuple(-part for part in u))[len(solution) :]

    def jvp(
        self, solution: Leaves, inputs: Leaves, tangents: Sequence[torch.Tensor | None]
    ) -> Leaves:
        moving = [index for index, tangent in enumerate(tangents) if tangent is not None]
        still = tuple(torch.zeros_like(part) for part in solution)
        at = (*solution, *(inputs[index] for index in moving))
        moved = (*still, *(tangents[index] for index in moving))
        change = linearize(self._varied(inputs, moving), at)(moved)
        rhs = tuple(-part for part in change)
        jacobian: Factory = TransposedJacobian(self, len(solution))
        if not self.solver.symmetric:
            jacobian = Transposed(jacobian, Zeros.like(solution))
        tangent, _ = self.solver.solve_leaves(jacobian, (*solution, *inputs), rhs, self.spec)
        return tangent

    def _varied(self, inputs: Leaves, moving: Sequence[int]) -> Callable[..., Leaves]:
        """The residual in the solution and some inputs.

        In the solution too, because an optimality may differentiate an objective in it.
        """

        def residual(*values: torch.Tensor) -> Leaves:
            size = len(values) - len(moving)
            every = list(inputs)
            for index, tensor in zip(moving, values[size:], strict=True):
                every[index] = tensor
            return self.residual(values[:size], tuple(every))

        return residual


def refuse_hidden(
    who: str,
    optimality: Callable[[Tree], Tree],
    solution: Tree,
    given: Callable[..., Tree] | None = None,
) -> None:
    """Refuse an optimality without a derivative, or with one that the rule would not see.

    Args:
        who: Name of the caller.
        optimality: As a function of the solution; all it is given besides is detached.
        solution: Where to try it.
        given: The optimality as the user wrote it, to tell where it holds such a tensor.
    """
    leaves, spec = treeops.tree_flatten(solution, namespace=NAMESPACE)

    def residual(*x: torch.Tensor) -> Leaves:
        image = optimality(treeops.tree_unflatten(spec, x))
        parts = like(who, "the optimality", spec, shapes(tuple(leaves)), image)
        if not any(part.requires_grad for part in parts):
            raise ValueError(
                f"{who}: expected an optimality that depends on the solution, got one without a "
                "derivative in it; a call of torch.autograd.grad in it needs create_graph=True"
            )
        return parts

    with torch.enable_grad():
        image, _ = torch.func.vjp(residual, *(leaf.detach() for leaf in leaves))
    if any(is_tracked(part) for part in image):
        alive = (leaf() for leaf in foreign_leaves(image, ()))
        hidden = next((leaf for leaf in alive if leaf is not None), None)
        place, module = ("", "") if hidden is None else held_at(given, hidden)
        found = "" if hidden is None else f" {describe(hidden)}{place and f' at {place}'},"
        passed = f"{module} (the module)" if module else "it"
        raise ValueError(
            f"{who}: expected an optimality that gets every tensor that requires grad as an "
            f"argument, got one that closes over such a tensor,{found} which would get no "
            f"gradient; pass {passed} as an argument, or detach it"
        )


@dataclass(frozen=True)
class TransposedJacobian:
    """``u -> (dF/dx)^T u``, of the solution and the inputs; linearized once per solve."""

    rule: RootRule
    size: int

    def __call__(self, tensors: Leaves) -> MatVec:
        solution, inputs = tensors[: self.size], tensors[self.size :]
        with torch.enable_grad():
            _, pull = torch.func.vjp(lambda *x: self.rule.residual(x, inputs), *solution)
        return pull
