# SPDX-License-Identifier: Apache-2.0
"""A root that is known already: its rule, and where the arguments of its optimality stand in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

import treeops
from optcore import describe
from optdiff._explicit import Explicit, Rebuild
from optdiff._implicit_rule import Leaves
from optdiff._root_rule import Call, RootRule, refuse_hidden
from optdiff._tracking import is_wrapped_or_tracked
from optdiff._trees import NAMESPACE, Tree
from optdiff.linear_solve import LinearSolver
from optdiff.linear_solve._operators import at_path, check_unknowns, shapes


@dataclass(frozen=True)
class Place:
    """A leaf of the arguments, and which inputs of the rule stand for it."""

    leaf: Any
    where: str
    inputs: dict[str, int]  # parameters of a module by name, a tensor by ""

    def take(self, grads: dict[int, torch.Tensor]) -> Any:
        """The leaf's gradient."""
        named = {name: grads[index] for name, index in self.inputs.items()}
        return (named or None) if isinstance(self.leaf, nn.Module) else named.get("")

    def give(self, who: str, inputs: Leaves, tangent: Any) -> dict[int, torch.Tensor]:
        """The tangents of its inputs."""
        if tangent is None:
            return {}
        by_name = isinstance(self.leaf, nn.Module) and isinstance(tangent, dict)
        named = tangent if by_name else {"": tangent}
        for name, moved in named.items():
            if name not in self.inputs:
                names = list(self.inputs) if isinstance(self.leaf, nn.Module) else "nothing"
                raise ValueError(
                    f"{who}: expected tangents of {names} in {describe(self.leaf)}, got "
                    f"{describe(moved)}{self.where}; give None where nothing moves"
                )
            at = inputs[self.inputs[name]]
            like = isinstance(moved, torch.Tensor) and moved.dtype == at.dtype
            if not like or moved.shape != at.shape:
                raise ValueError(
                    f"{who}: expected a tangent like {describe(at)}, got {describe(moved)}"
                    f"{self.where}; give None where nothing moves"
                )
        return {self.inputs[name]: moved for name, moved in named.items()}


@dataclass(frozen=True)
class KnownRoot:
    """What the derivatives at a root need."""

    rule: RootRule
    solution: Leaves
    inputs: Leaves
    places: list[Place]
    spec: Any  # of the arguments

    @staticmethod
    def of(
        who: str,
        optimality_fn: Callable[..., Tree],
        sol: Tree,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None,
        solver: LinearSolver,
    ) -> KnownRoot:
        """Open the arguments: each leaf is an input of its own, even if two are one tensor."""
        args = as_tuple(who, "args", args)
        leaves, spec = treeops.tree_flatten(sol, namespace=NAMESPACE)
        solution = check_unknowns(who, "sol", leaves, sol)
        constants = Explicit(is_wrapped_or_tracked)
        named = {name: (constants.add(value), False) for name, value in (kwargs or {}).items()}
        optimality = constants.add_function(optimality_fn)
        fixed = len(constants.tensors)

        variables: list[torch.Tensor] = []
        places: list[Place] = []
        parts = []
        for arg in args:
            given, structure = treeops.tree_flatten(arg, namespace=NAMESPACE, none_is_leaf=True)
            rebuilds: list[Rebuild] = []
            for leaf in given:
                own = Explicit(is_wrapped_or_tracked)
                rebuilds.append(partial(_after, len(variables), own.add(leaf)))
                start = fixed + len(variables)
                index = {id(tensor): start + i for i, tensor in enumerate(own.tensors)}
                inputs = {name: index[id(tensor)] for name, tensor in _floating(leaf).items()}
                places.append(Place(leaf, at_path(args, len(places), none_is_leaf=True), inputs))
                variables.extend(own.tensors)
            parts.append((partial(_tree, structure, rebuilds), True))

        call = Call(_nothing, optimality, _nothing, tuple(parts), named, fixed)
        rule = RootRule(who, call, False, solver, spec, shapes(solution))
        values = (*constants.tensors, *variables)
        still = tuple(tensor.detach() for tensor in values)
        refuse_hidden(who, lambda x: call.residual(x, still), sol)
        treedef = treeops.tree_structure(args, namespace=NAMESPACE, none_is_leaf=True)
        return KnownRoot(rule, solution, values, places, treedef)


def as_tuple(who: str, what: str, value: Any) -> tuple[Any, ...]:
    """Refuse a single argument that is not in a tuple."""
    if not isinstance(value, (tuple, list)):
        raise TypeError(
            f"{who}: expected {what} as a tuple, got {describe(value)}; write ({what},)"
        )
    return tuple(value)


def _floating(leaf: Any) -> dict[str, torch.Tensor]:
    tensors = {"": leaf} if isinstance(leaf, torch.Tensor) else {}
    if isinstance(leaf, nn.Module):
        tensors = dict(leaf.named_parameters())
    return {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}


def _after(start: int, rebuild: Rebuild, tensors: Sequence[torch.Tensor]) -> Any:
    return rebuild(tensors[start:])


def _tree(spec: Any, rebuilds: Sequence[Rebuild], tensors: Sequence[torch.Tensor]) -> Tree:
    return treeops.tree_unflatten(spec, [rebuild(tensors) for rebuild in rebuilds])


def _nothing(tensors: Sequence[torch.Tensor]) -> None:
    return None
