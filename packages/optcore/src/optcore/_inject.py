# SPDX-License-Identifier: Apache-2.0
"""Hyperparameters that stand in the state, where they can be read and set between steps."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any, NamedTuple

import torch

from optcore._hyperparams import is_scheduled, is_zero
from optcore._transform import GradientTransformation, new_count, stateless_init
from optcore._tree import Tree, describe, tree_leaves, tree_map


class InjectHyperparamsState(NamedTuple):
    """State of what :func:`inject_hyperparams` makes."""

    count: torch.Tensor  # i64[]: updates so far; what schedules are evaluated at
    hyperparams: dict[str, Tree]  # by the factory's name; may be assigned to
    inner_state: Tree


def inject_hyperparams(
    inner_factory: Callable[..., GradientTransformation],
    static_args: str | Iterable[str] = (),
    hyperparam_dtype: torch.dtype | None = None,
) -> Callable[..., GradientTransformation]:
    """Keep the hyperparameters of an optimizer in its state.

    ``state.hyperparams["lr"] = 0.01`` changes what the next update does, and reading it back tells
    what the last update used.

    Args:
        inner_factory: Makes the transformation from named arguments, e.g. ``optcore.adam``.
        static_args: Names of arguments that are no hyperparameters although they are numbers
            or functions (``mask``). Bools, None, strings, transformations and what optcore's own
            factories take as a number only (start values, ``ns_steps``) are never hyperparameters.
        hyperparam_dtype: Of the tensors made from numbers; None means float64.

    Returns:
        A function with the arguments of ``inner_factory`` that gives the transformation. A number
        becomes a 0-d CPU tensor in the state. A tensor is kept as it is: a learned one keeps its
        graph. A function is a schedule: it is evaluated at every update, and assigning to it has no
        effect. Trees and pairs (``betas``) may hold any of these.

    State:
        ``count``, ``hyperparams`` and ``inner_state``.

    Differentiable:
        As the transformation, also in tensors of ``state.hyperparams``.

    Raises:
        TypeError: ``inner_factory`` is no function of named arguments or makes no transformation,
            or a schedule gives no number.
        ValueError: ``static_args`` names no argument, an argument is out of range, or (in
            ``update``) ``state.hyperparams`` has other names than at the start or an assigned
            number is out of range.

    Differs:
        A default of 0 that the caller did not write out stays a constant, because factories leave
        out what 0 turns off (``weight_decay``, ``dampening``): write it out to set it later.

    Example:
        >>> import torch
        >>> import optcore
        >>> tx = inject_hyperparams(optcore.sgd)(lr=0.5)
        >>> state = tx.init([torch.ones(1)])
        >>> state.hyperparams["lr"] = 0.25
        >>> updates, state = tx.update([torch.ones(1)], state)
        >>> updates
        [tensor([-0.2500])]
    """
    who = "inject_hyperparams"
    if not callable(inner_factory):
        raise TypeError(
            f"{who}: expected a factory such as optcore.adam, got {describe(inner_factory)}"
        )
    signature = inspect.signature(inner_factory)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    for parameter in signature.parameters.values():
        if parameter.kind not in named:
            raise TypeError(
                f"{who}: expected a factory of named arguments, got {parameter} in its signature"
            )
    static = {static_args} if isinstance(static_args, str) else set(static_args)
    static |= getattr(inner_factory, "numbers_only", frozenset()) & set(signature.parameters)
    unknown = sorted(static - set(signature.parameters))
    if unknown:
        raise ValueError(
            f"{who}: expected static_args among {list(signature.parameters)}, got {unknown}"
        )

    @functools.wraps(inner_factory)
    def injected(*args: Any, **kwargs: Any) -> GradientTransformation:
        bound = signature.bind(*args, **kwargs)
        given = set(bound.arguments)
        bound.apply_defaults()
        fixed, numbers, schedules = {}, {}, {}
        for name, value in bound.arguments.items():
            if (
                name in static
                or not _is_hyperparam(value)
                or (name not in given and is_zero(value))
            ):
                fixed[name] = value
            elif is_scheduled(value):
                schedules[name] = value
            else:
                numbers[name] = value
        start = {name: _evaluated(name, value, new_count()) for name, value in schedules.items()}
        _made(inner_factory, {**fixed, **numbers, **start})  # it checks ranges of plain numbers
        as_state = _tensors({**numbers, **start}, hyperparam_dtype)
        inner = _made(inner_factory, {**fixed, **as_state})
        return GradientTransformation(
            _inject_init,
            _inject_update,
            static={
                "inner_factory": inner_factory,
                "fixed": fixed,
                "numbers": numbers,
                "schedules": schedules,
                # never applied: through it the update mode sees the tensors that schedules give
                "shown": GradientTransformation(stateless_init, _pass, schedules, name="schedules"),
                "hyperparam_dtype": hyperparam_dtype,
                "extra_checks": inner.extra_checks,
            },
            name=f"{who}({getattr(inner_factory, '__name__', 'factory')})",
            needs_params=inner.needs_params,
        )

    return injected


def injected(transformation: GradientTransformation) -> dict[str, Any]:
    """The arguments that :func:`inject_hyperparams` keeps in the state, as they were given."""
    if transformation._init is not _inject_init:
        return {}
    static = transformation._static
    return {**static["numbers"], **static["schedules"]}


def assigned(
    transformation: GradientTransformation, state: Tree, hyperparams: Mapping[str, Tree]
) -> Tree:
    """The state with other numbers in it; as it is unless :func:`inject_hyperparams` made it.

    Raises:
        ValueError: A number is out of range.
    """
    if not isinstance(state, InjectHyperparamsState) or not injected(transformation):
        return state
    static = transformation._static
    new = {name: hyperparams.get(name) for name in static["numbers"]}
    _made(static["inner_factory"], {**static["fixed"], **state.hyperparams, **new})
    return state._replace(hyperparams={**state.hyperparams, **new})


def check_entries(
    who: str, transformation: GradientTransformation, entries: Mapping[str, Any]
) -> None:
    """Refuse what a group says of hyperparameters that the state keeps, if it is out of range.

    Raises:
        ValueError: A number is out of range, or stands where a schedule does.
    """
    if not injected(transformation):
        return
    static = transformation._static
    for name, schedule in static["schedules"].items():
        if name in entries and entries[name] is not schedule:
            raise ValueError(
                f"{who}: expected no {name} in a group, got {describe(entries[name])}; the base "
                f"has a schedule of it: give {name} to optcore.inject_hyperparams as a number"
            )
    numbers = {name: entries.get(name, value) for name, value in static["numbers"].items()}
    start = {
        name: _evaluated(name, value, new_count()) for name, value in static["schedules"].items()
    }
    _made(static["inner_factory"], {**static["fixed"], **start, **numbers})


def _pass(
    updates: Tree, state: Tree, params: Tree, *, inplace: bool, **_: Any
) -> tuple[Tree, Tree]:
    return updates, state


def _is_hyperparam(value: Any) -> bool:
    leaves = tree_leaves(value)
    return bool(leaves) and all(
        callable(leaf)
        or (isinstance(leaf, Real) and not isinstance(leaf, bool))
        or (isinstance(leaf, torch.Tensor) and leaf.dtype.is_floating_point)
        for leaf in leaves
    )


def _evaluated(name: str, value: Tree, count: torch.Tensor) -> Tree:
    def at(leaf: Any) -> Any:
        if not callable(leaf):
            return leaf
        now = leaf(count)
        if isinstance(now, (Real, torch.Tensor)) and not isinstance(now, bool):
            return now
        raise TypeError(
            f"inject_hyperparams: expected schedule {name} to give a number or a tensor, got "
            f"{describe(now)}; name it in static_args if it is no schedule"
        )

    return tree_map(at, value)


def _tensors(hyperparams: Mapping[str, Tree], dtype: torch.dtype | None) -> dict[str, Tree]:
    def tensor(value: Any) -> Any:
        if not isinstance(value, Real):
            return value
        return torch.tensor(float(value), dtype=dtype or torch.float64)

    return {name: tree_map(tensor, value) for name, value in hyperparams.items()}


def _made(
    inner_factory: Callable[..., GradientTransformation], arguments: Mapping[str, Any]
) -> GradientTransformation:
    inner = inner_factory(**arguments)
    if not isinstance(inner, GradientTransformation):
        raise TypeError(
            "inject_hyperparams: expected a factory that makes a GradientTransformation, "
            f"got {describe(inner)} from it"
        )
    return inner


def _now(
    hyperparams: Mapping[str, Tree],
    schedules: Mapping[str, Tree],
    count: torch.Tensor,
    dtype: torch.dtype | None,
) -> dict[str, Tree]:
    scheduled = {name: _evaluated(name, value, count) for name, value in schedules.items()}
    return _tensors({**hyperparams, **scheduled}, dtype)


def _inject_init(
    params: Tree,
    *,
    inner_factory: Callable[..., GradientTransformation],
    fixed: Mapping[str, Any],
    numbers: Mapping[str, Tree],
    schedules: Mapping[str, Tree],
    hyperparam_dtype: torch.dtype | None,
    **_: Any,
) -> InjectHyperparamsState:
    count = new_count()
    hyperparams = _now(numbers, schedules, count, hyperparam_dtype)
    inner = _made(inner_factory, {**fixed, **hyperparams})
    return InjectHyperparamsState(count, hyperparams, inner.init(params))


def _inject_update(
    updates: Tree,
    state: InjectHyperparamsState,
    params: Tree,
    *,
    inplace: bool,
    inner_factory: Callable[..., GradientTransformation],
    fixed: Mapping[str, Any],
    numbers: Mapping[str, Tree],
    schedules: Mapping[str, Tree],
    hyperparam_dtype: torch.dtype | None,
    shown: GradientTransformation,
    extra_checks: tuple[Any, ...],
    **extra: Any,
) -> tuple[Tree, InjectHyperparamsState]:
    names = {*numbers, *schedules}
    if set(state.hyperparams) != names:
        raise ValueError(
            f"inject_hyperparams: expected state.hyperparams with {sorted(names)}, got "
            f"{sorted(state.hyperparams)}; give an argument to the factory to have it there"
        )
    hyperparams = _now(state.hyperparams, schedules, state.count, hyperparam_dtype)
    if any(isinstance(leaf, Real) for leaf in tree_leaves(state.hyperparams)):
        _made(inner_factory, {**fixed, **hyperparams, **state.hyperparams})  # assigned: check range
    inner = _made(inner_factory, {**fixed, **hyperparams})
    updates, inner_state = inner.apply(updates, state.inner_state, params, inplace, extra)
    return updates, InjectHyperparamsState(state.count + 1, hyperparams, inner_state)
