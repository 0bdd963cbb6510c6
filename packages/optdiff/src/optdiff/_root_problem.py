# SPDX-License-Identifier: Apache-2.0
"""A solver's call as a problem that the implicit function theorem can differentiate."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

import treeops
from optdiff._explicit import Explicit
from optdiff._implicit_rule import solve_by_rule
from optdiff._root_rule import Call, RootRule, refuse_hidden
from optdiff._tracking import is_wrapped, under_transform
from optdiff._trees import Tree
from optdiff.linear_solve import LinearSolver

Solve: TypeAlias = Callable[..., Any]


@dataclass(frozen=True)
class Problem:
    """An optimality, a solver for it, and what to differentiate."""

    who: str
    optimality: Callable[..., Tree]
    solve: Solve
    argnums: tuple[int, ...] | None
    has_aux: bool
    solver: LinearSolver

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Solve; the initial guess comes first."""
        args, kwargs = self._initial_first(args, kwargs)
        constants, variables = Explicit(is_wrapped), Explicit(is_wrapped)
        chosen = self._chosen(args, kwargs)
        init = constants.add(args[0])
        parts = [
            (variables if position in chosen else constants).add(value)
            for position, value in enumerate(args[1:], start=1)
        ]
        named = {
            name: (variables if name in chosen else constants).add(value)
            for name, value in kwargs.items()
        }
        call = Call(
            solve=constants.add_function(self.solve),
            optimality=constants.add_function(self.optimality),
            init=init,
            args=tuple((part, position in chosen) for position, part in enumerate(parts, start=1)),
            kwargs={name: (part, name in chosen) for name, part in named.items()},
            constants=len(constants.tensors),
        )
        rule = RootRule(self.who, call, self.has_aux, self.solver)
        fixed = tuple(tensor.detach() for tensor in constants.tensors)
        inputs = (*fixed, *variables.tensors)
        solution, aux = solve_by_rule(rule, inputs)
        tree = treeops.tree_unflatten(rule.spec, solution)
        self._check(tree, args, kwargs)
        return (tree, rule.aux(aux)) if self.has_aux else tree

    def _initial_first(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return args, kwargs
        first = next(iter(_parameters(self.solve)), None)
        if first not in kwargs:
            raise TypeError(
                f"{self.who}: expected the initial guess as the first argument, got none; give "
                "None if the solver needs none"
            )
        rest = dict(kwargs)
        return (rest.pop(first),), rest

    def _chosen(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> set[int | str]:
        """Positions and keywords to differentiate in."""
        if self.argnums is None:
            return {*range(1, len(args)), *kwargs}
        chosen: set[int | str] = set()
        names = _parameters(self.solve)
        for position in self.argnums:
            name = names[position] if position < len(names) else None
            if position < len(args):
                chosen.add(position)
            elif name in kwargs:
                chosen.add(name)
            elif name is None:
                raise ValueError(
                    f"{self.who}: expected argnums below the {len(args)} arguments, got "
                    f"{position}; they count the solver's arguments, the initial guess as 0"
                )
        return chosen

    def _check(self, solution: Tree, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse an optimality unlike the solution, or one whose derivative would miss a part."""
        if not torch.is_grad_enabled() and not under_transform():
            return
        every = Explicit(is_wrapped)
        rebuild = every.add((args[1:], kwargs))
        rest, named = rebuild([tensor.detach() for tensor in every.tensors])
        refuse_hidden(
            self.who,
            lambda x: self.optimality(x, *rest, **named),
            solution,
            self.optimality,
        )


def _parameters(function: Callable[..., Any]) -> list[str]:
    """Names of the parameters that can be given by position."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind in positional]
