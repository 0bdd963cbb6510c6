# SPDX-License-Identifier: Apache-2.0
"""Derivatives of solutions: of roots and fixed points, whatever found them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch

import treeops
from optdiff._explicit import Explicit
from optdiff._implicit_rule import Leaves, solve_by_rule
from optdiff._root_rule import Call, RootRule
from optdiff._tracking import is_tracked, is_wrapped, under_transform
from optdiff._trees import NAMESPACE
from optdiff._uncompiled import uncompiled
from optdiff.linear_solve import LinearSolver, solve_gmres
from optdiff.linear_solve._given import adapt
from optdiff.linear_solve._operators import (
    Tree,
    check_unknowns,
    like,
    shapes,
)

Solve: TypeAlias = Callable[..., Any]


def custom_root(
    optimality_fn: Callable[..., Tree],
    argnums: int | tuple[int, ...] | None = None,
    has_aux: bool = False,
    solve: LinearSolver | Callable[..., Tree] | None = None,
) -> Callable[[Solve], Solve]:
    r"""Give a solver the derivatives of the root that it finds.

    .. math::
        F(x^\star(\theta), \theta) = 0 \quad\Rightarrow\quad
        \frac{\partial x^\star}{\partial\theta} =
        -\Bigl(\frac{\partial F}{\partial x}\Bigr)^{-1} \frac{\partial F}{\partial\theta}

    The decorated ``solve(init, *args, **kwargs)`` runs on detached tensors with grad enabled: what
    it does, and in how many steps, leaves no trace in the derivative.

    Args:
        optimality_fn: ``optimality_fn(solution, *args, **kwargs)``, zero at the solution and of
            its structure: the initial guess is replaced by the solution. Often a gradient:
            ``torch.func.grad(objective)``, or torch.autograd.grad with ``create_graph=True``.
        argnums: Positions in the solver's signature to differentiate in, from 1; None for every
            floating tensor in the arguments, keywords and modules but the initial guess.
        has_aux: Whether the solver returns ``(solution, aux)``; ``aux`` carries no gradient.
        solve: Linear solver for the derivative; :func:`optdiff.linear_solve.solve_gmres` by
            default, which needs no symmetry. For minima ``solve_cg()`` is cheaper. A function
            ``solve(matvec, b)`` will do.

    Returns:
        A decorator for ``solve(init, *args, **kwargs)``, whose solution is any tree of floating
        tensors. ``init`` may be None.

    Differentiable:
        In reverse and forward mode, to any order, under ``vmap`` and the other transforms of
        ``torch.func``. The initial guess carries no gradient.

    Raises:
        ValueError: ``argnums`` contains 0, or a position that there is not.
        ValueError: When called: the optimality is not like the solution, or closes over a tensor
            that requires grad, which would get no gradient.
        TypeError: When called: the solution is no tree of floating tensors.

    Warns:
        ConvergenceWarning: In the derivative, when the linear solver does not converge;
            an error with ``solve_...(on_failure="raise")``.

    Example:
        >>> @custom_root(lambda x, a: x**2 - a)
        ... def square_root(init, a):
        ...     return a.sqrt()
        >>> a = torch.tensor(4.0, requires_grad=True)
        >>> torch.autograd.grad(square_root(None, a), a)[0]
        tensor(0.2500)

    Reference:
        Blondel et al., 2022, arXiv:2105.15183, equations 2 and 3.
    """
    if not callable(optimality_fn):
        raise TypeError(
            f"custom_root: expected a callable optimality_fn, got {type(optimality_fn).__name__}"
        )
    positions = _positions("custom_root", argnums)
    solver = _DEFAULT if solve is None else adapt("custom_root", solve)

    def decorate(solve_fn: Solve) -> Solve:
        problem = Problem("custom_root", optimality_fn, solve_fn, positions, has_aux, solver)

        @uncompiled
        @functools.wraps(solve_fn)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return problem(args, kwargs)

        return wrapped

    return decorate


def custom_fixed_point(
    fixed_point_fn: Callable[..., Tree],
    argnums: int | tuple[int, ...] | None = None,
    has_aux: bool = False,
    solve: LinearSolver | Callable[..., Tree] | None = None,
) -> Callable[[Solve], Solve]:
    r"""Give a solver the derivatives of the fixed point that it finds.

    .. math::
        x^\star = T(x^\star, \theta),

    that is the root of :math:`T(x, \theta) - x`.

    Args:
        fixed_point_fn: ``fixed_point_fn(solution, *args, **kwargs)`` of the solution's structure.
        argnums: As for :func:`custom_root`, and so are the others.
        has_aux: Whether the solver returns ``(solution, aux)``.
        solve: Linear solver; :func:`optdiff.linear_solve.solve_neumann` suits contractions.

    Returns:
        A decorator for ``solve(init, *args, **kwargs)``.

    Differentiable:
        As :func:`custom_root`.

    Raises:
        ValueError: As :func:`custom_root`.

    Example:
        >>> @custom_fixed_point(lambda x, a: (x + a / x) / 2)
        ... def square_root(init, a):
        ...     return a.sqrt()
        >>> a = torch.tensor(4.0, requires_grad=True)
        >>> torch.autograd.grad(square_root(None, a), a)[0]
        tensor(0.2500)

    Reference:
        Bai et al., 2019, arXiv:1909.01377, theorem 1.
    """
    return custom_root(partial(_step, fixed_point_fn), argnums, has_aux, solve)


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


_DEFAULT = solve_gmres()


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
                    f"{self.who}: expected argnums below the {len(args)} arguments, got {position}"
                )
        return chosen

    def _check(self, solution: Tree, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse an optimality unlike the solution, or one whose derivative would miss a part."""
        if not torch.is_grad_enabled() and not under_transform():
            return
        every = Explicit(is_wrapped)
        rebuild = every.add((args[1:], kwargs))
        rest, named = rebuild([tensor.detach() for tensor in every.tensors])
        leaves, spec = treeops.tree_flatten(solution, namespace=NAMESPACE)

        def residual(*x: torch.Tensor) -> Leaves:
            image = self.optimality(treeops.tree_unflatten(spec, x), *rest, **named)
            parts = like(self.who, "the optimality", spec, shapes(tuple(leaves)), image)
            if not any(part.requires_grad for part in parts):
                raise ValueError(
                    f"{self.who}: expected an optimality that depends on the solution, got one "
                    "without a derivative in it; a call of torch.autograd.grad in it needs "
                    "create_graph=True"
                )
            return parts

        with torch.enable_grad():
            image, _ = torch.func.vjp(residual, *(leaf.detach() for leaf in leaves))
        if any(is_tracked(part) for part in image):
            raise ValueError(
                f"{self.who}: expected an optimality that gets every tensor that requires grad as "
                "an argument, got one that closes over such a tensor, which would get no "
                "gradient; pass it to the solver and to the optimality, or detach it"
            )


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


def _step(fixed_point_fn: Callable[..., Tree], solution: Tree, *args: Any, **kwargs: Any) -> Tree:
    image = fixed_point_fn(solution, *args, **kwargs)
    leaves, spec = treeops.tree_flatten(solution, namespace=NAMESPACE)
    expected = shapes(tuple(leaves))
    moved = like("custom_fixed_point", "the fixed point's image", spec, expected, image)
    return treeops.tree_unflatten(
        spec, [after - before for after, before in zip(moved, leaves, strict=True)]
    )


def _positions(who: str, argnums: int | tuple[int, ...] | None) -> tuple[int, ...] | None:
    if argnums is None:
        return None
    positions = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    if not positions or any(not isinstance(p, int) or p < 1 for p in positions):
        raise ValueError(
            f"{who}: expected argnums from 1 on, got {argnums}; argument 0 is the initial guess, "
            "which the solution does not depend on"
        )
    return positions


def _parameters(function: Callable[..., Any]) -> list[str]:
    """Names of the parameters that can be given by position."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind in positional]
