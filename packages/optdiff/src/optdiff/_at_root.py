# SPDX-License-Identifier: Apache-2.0
"""Derivatives of a root that is known already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

import treeops
from optdiff._explicit import Explicit
from optdiff._implicit_rule import Leaves
from optdiff._root_rule import Call, RootRule
from optdiff._tracking import is_wrapped
from optdiff._trees import NAMESPACE
from optdiff._uncompiled import uncompiled
from optdiff.linear_solve import LinearSolver, solve_gmres
from optdiff.linear_solve._given import adapt
from optdiff.linear_solve._operators import Tree, check_unknowns, like, shapes

_DEFAULT = solve_gmres()


@uncompiled
def root_vjp(
    optimality_fn: Callable[..., Tree],
    sol: Tree,
    args: tuple[Any, ...],
    cotangent: Tree,
    solve: LinearSolver | Callable[..., Tree] | None = None,
    *,
    kwargs: dict[str, Any] | None = None,
) -> tuple[Tree, ...]:
    """Pull a cotangent of a root back to the arguments of its optimality.

    Args:
        optimality_fn: ``optimality_fn(sol, *args, **kwargs)``, zero at ``sol``.
        sol: The root.
        args: The other arguments.
        cotangent: Like ``sol``.
        solve: Linear solver, as for :func:`custom_root`.
        kwargs: Keyword arguments; they get no gradient.

    Returns:
        A tree like each argument, with None where it holds no floating tensor.

    Differentiable:
        In all it is given.

    Raises:
        ValueError: The cotangent or the optimality is not like the solution.

    Example:
        >>> square = lambda x, a: x**2 - a
        >>> root_vjp(square, torch.tensor(2.0), (torch.tensor(4.0),), torch.tensor(1.0))
        (tensor(0.2500),)
    """
    who = "root_vjp"
    rule, solution, inputs, positions, spec = _at_root(who, optimality_fn, sol, args, kwargs, solve)
    given = like(who, "the cotangent", rule.spec, shapes(solution), cotangent)
    wanted = sorted({index for index in positions if index is not None})
    grads = dict(zip(wanted, rule.backward(solution, inputs, given, wanted), strict=True))
    return treeops.tree_unflatten(
        spec, [None if index is None else grads[index] for index in positions]
    )


@uncompiled
def root_jvp(
    optimality_fn: Callable[..., Tree],
    sol: Tree,
    args: tuple[Any, ...],
    tangents: tuple[Any, ...],
    solve: LinearSolver | Callable[..., Tree] | None = None,
    *,
    kwargs: dict[str, Any] | None = None,
) -> Tree:
    """Push tangents of the arguments of an optimality forward to its root.

    Args:
        optimality_fn: ``optimality_fn(sol, *args, **kwargs)``, zero at ``sol``.
        sol: The root.
        args: The other arguments.
        tangents: A tree like each argument; None where nothing moves.
        solve: Linear solver, as for :func:`custom_root`.
        kwargs: Keyword arguments; they do not move.

    Returns:
        A tree like ``sol``.

    Differentiable:
        In all it is given.

    Raises:
        ValueError: The tangents are not like the arguments.

    Example:
        >>> square = lambda x, a: x**2 - a
        >>> root_jvp(square, torch.tensor(2.0), (torch.tensor(4.0),), (torch.tensor(1.0),))
        tensor(0.2500)
    """
    who = "root_jvp"
    rule, solution, inputs, positions, spec = _at_root(who, optimality_fn, sol, args, kwargs, solve)
    try:
        given = spec.flatten_up_to(tuple(tangents))
    except (ValueError, TypeError) as error:
        raise type(error)(f"{who}: tangents differ from args: {error}") from None
    moving: list[torch.Tensor | None] = [None] * len(inputs)
    for index, tangent in zip(positions, given, strict=True):
        if index is not None and tangent is not None:
            moving[index] = tangent if moving[index] is None else moving[index] + tangent
    return treeops.tree_unflatten(rule.spec, rule.jvp(solution, inputs, moving))


def _at_root(
    who: str,
    optimality_fn: Callable[..., Tree],
    sol: Tree,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None,
    solve: LinearSolver | Callable[..., Tree] | None,
) -> tuple[RootRule, Leaves, Leaves, list[int | None], Any]:
    """The rule at a known root, and which input each leaf of the arguments is."""
    solver = _DEFAULT if solve is None else adapt(who, solve)
    leaves, spec = treeops.tree_flatten(sol, namespace=NAMESPACE)
    solution = check_unknowns(who, "sol", leaves, sol)
    constants, variables = Explicit(is_wrapped), Explicit(is_wrapped)
    named = {name: (constants.add(value), False) for name, value in (kwargs or {}).items()}
    parts = tuple((variables.add(value), True) for value in args)
    optimality = constants.add_function(optimality_fn)
    fixed = tuple(constants.tensors)
    call = Call(_nothing, optimality, _nothing, parts, named, len(fixed))
    rule = RootRule(who, call, False, solver, spec, shapes(solution))
    given, given_spec = treeops.tree_flatten(tuple(args), namespace=NAMESPACE, none_is_leaf=True)
    places = {id(tensor): len(fixed) + i for i, tensor in enumerate(variables.tensors)}
    positions = [
        places[id(leaf)] if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else None
        for leaf in given
    ]
    return rule, solution, (*fixed, *variables.tensors), positions, given_spec


def _nothing(tensors: Sequence[torch.Tensor]) -> None:
    return None
