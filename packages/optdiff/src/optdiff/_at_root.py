# SPDX-License-Identifier: Apache-2.0
"""Derivatives of a root that is known already."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import treeops
from optdiff._known_root import KnownRoot, as_tuple
from optdiff._trees import Tree
from optdiff._uncompiled import uncompiled
from optdiff.linear_solve import LinearSolver, solve_gmres
from optdiff.linear_solve._given import adapt
from optdiff.linear_solve._operators import like, shapes

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
        args: The other arguments, a tuple.
        cotangent: Like ``sol``.
        solve: Linear solver, as for :func:`custom_root`.
        kwargs: Keyword arguments; they get no gradient.

    Returns:
        A tree like each argument, with None where it holds no floating tensor, and gradients by
        name for a module.

    Differentiable:
        In all it is given, and in what the optimality closes over.

    Raises:
        TypeError: ``args`` is no tuple.
        ValueError: The cotangent or the optimality is not like the solution.

    Example:
        >>> square = lambda x, a: x**2 - a
        >>> root_vjp(square, torch.tensor(2.0), (torch.tensor(4.0),), torch.tensor(1.0))
        (tensor(0.2500),)
    """
    who = "root_vjp"
    solver = _DEFAULT if solve is None else adapt(who, solve)
    root = KnownRoot.of(who, optimality_fn, sol, args, kwargs, solver)
    rule, solution, inputs = root.rule, root.solution, root.inputs
    given = like(who, "the cotangent", rule.spec, shapes(solution), cotangent)
    wanted = [index for place in root.places for index in place.inputs.values()]
    grads = dict(zip(wanted, rule.backward(solution, inputs, given, wanted), strict=True))
    return treeops.tree_unflatten(root.spec, [place.take(grads) for place in root.places])


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
        args: The other arguments, a tuple.
        tangents: A tree like each argument, tensors by name for a module; None where nothing moves.
        solve: Linear solver, as for :func:`custom_root`.
        kwargs: Keyword arguments; they do not move.

    Returns:
        A tree like ``sol``.

    Differentiable:
        In all it is given, and in what the optimality closes over.

    Raises:
        TypeError: ``args`` or ``tangents`` is no tuple.
        ValueError: The tangents are not like the arguments.

    Example:
        >>> square = lambda x, a: x**2 - a
        >>> root_jvp(square, torch.tensor(2.0), (torch.tensor(4.0),), (torch.tensor(1.0),))
        tensor(0.2500)
    """
    who = "root_jvp"
    solver = _DEFAULT if solve is None else adapt(who, solve)
    root = KnownRoot.of(who, optimality_fn, sol, args, kwargs, solver)
    tangents = as_tuple(who, "tangents", tangents)
    try:
        given = root.spec.flatten_up_to(tangents)
    except (ValueError, TypeError) as error:
        raise type(error)(
            f"{who}: tangents differ from args: {error}; give None where nothing moves"
        ) from None
    moving: list[torch.Tensor | None] = [None] * len(root.inputs)
    for place, tangent in zip(root.places, given, strict=True):
        for index, moved in place.give(who, root.inputs, tangent).items():
            moving[index] = moved
    return treeops.tree_unflatten(root.rule.spec, root.rule.jvp(root.solution, root.inputs, moving))
