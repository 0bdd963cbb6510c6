# SPDX-License-Identifier: Apache-2.0
"""What the projections and proximal operators take besides a tree, and how it is checked."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from optcore._hyperparams import check_range, check_single, is_number, is_scheduled
from optcore._leafwise import check_gradient
from optcore._tree import Tree, describe, path_to, tree_flatten, tree_leaves, tree_map


@dataclass(frozen=True)
class _Range:
    """Values ``>= low``, of all leaves together if ``single``; a bound may be infinite."""

    low: float = 0.0
    open_low: bool = False
    single: bool = False
    bound: bool = False


_POSITIVE = {"scale": _Range(open_low=True, single=True)}
_RADIUS = {"scale": _Range(single=True)}
_BOUND = _Range(-math.inf, bound=True)
_STRENGTH = {"strength": _Range(), "scaling": _Range()}
_RANGES: Mapping[str, Mapping[str, _Range]] = {
    "projection_non_negative": {},
    "projection_box": {"lower": _BOUND, "upper": _BOUND},
    "projection_hypercube": {"scale": _Range()},
    "projection_simplex": _POSITIVE,
    "projection_l1_sphere": _POSITIVE,
    "projection_l1_ball": _POSITIVE,
    "projection_l2_sphere": _RADIUS,
    "projection_l2_ball": _RADIUS,
    "projection_linf_sphere": _RADIUS,
    "projection_linf_ball": {"scale": _Range()},
    "prox_l1": _STRENGTH,
    "prox_elastic_net": {**_STRENGTH, "ridge": _Range()},
    "prox_group_lasso": _STRENGTH,
    "prox_non_negative_l1": _STRENGTH,
}


def check_call(who: str, tree: Tree, **options: Any) -> None:
    """Refuse a tree of something else than floating tensors, and options outside their ranges.

    Raises:
        TypeError: A leaf or an option of the wrong type; a schedule, which needs a step count.
        ValueError: A number outside the range of its option.
    """
    for leaf in tree_leaves(tree):
        if leaf is not None:
            check_gradient(who, leaf, "tensors")
    for name, value in options.items():
        if is_scheduled(value):
            raise TypeError(f"{who}: expected {name} as a number or tensor, got a schedule")
    _check_ranges(who, _RANGES[who], options)


def check_end(who: str, function: Callable[..., Tree], options: Mapping[str, Any]) -> None:
    """Refuse options that the function at the end of a step would refuse, before any step.

    Raises:
        TypeError: An option of the wrong type, one that it does not take, or one missing.
        ValueError: A number outside its range.
    """
    name = getattr(function, "__name__", "")
    ours = getattr(function, "__module__", "").startswith("optcore.") and name in _RANGES
    ranges = _RANGES[name] if ours else {}
    if ours:
        try:
            inspect.signature(function).bind((), **options)
        except TypeError as error:
            takes = ", ".join([*inspect.signature(function).parameters][1:]) or "none"
            raise TypeError(f"{who}: expected options of {name} ({takes}), but {error}") from None
    if "axis" in options:
        check_axis(who, options["axis"])
    numbers = {key: value for key, value in options.items() if key != "axis"}
    for key in numbers.keys() - ranges.keys():
        check_range(who, key, numbers[key])
    _check_ranges(who, ranges, {key: numbers[key] for key in numbers if key in ranges})


def _check_ranges(who: str, ranges: Mapping[str, _Range], options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        allowed = ranges[name]
        check = check_single if allowed.single else check_range
        finite = tree_map(_finite, value) if allowed.bound else value
        check(who, name, finite, allowed.low, open_low=allowed.open_low)
    if "lower" in ranges:
        check_order(who, options["lower"], options["upper"])


def _finite(bound: Any) -> Any:
    return 0.0 if isinstance(bound, float) and math.isinf(bound) else bound


def check_order(who: str, lower: Any, upper: Any) -> None:
    """Refuse numbers between which nothing lies; tensors would have to be waited for.

    Raises:
        ValueError: The lower bound is above the upper one.
    """
    if is_number(lower) and is_number(upper) and lower > upper:
        raise ValueError(f"{who}: expected lower <= upper, got {lower} and {upper}")


def check_axis(who: str, axis: Any, tree: Tree = None) -> None:
    """Refuse what is no axis, or none of a leaf of the tree.

    Raises:
        TypeError: Not an int, a tuple of ints or None.
        ValueError: A leaf has no such axis, or has it twice.
    """
    axes = axis if isinstance(axis, tuple) else (axis,)
    if axis is None:
        return
    if not all(isinstance(a, int) and not isinstance(a, bool) for a in axes):
        raise TypeError(f"{who}: expected axis as an int, a tuple of ints or None, got {axis!r}")
    for index, leaf in enumerate(tree_flatten(tree)[0]):
        if leaf is None or not leaf.ndim:
            continue
        places = {a % leaf.ndim for a in axes if -leaf.ndim <= a < leaf.ndim}
        if len(places) != len(axes):
            raise ValueError(
                f"{who}: expected axes of {describe(leaf)}, each once, got axis={axis}, at "
                f"{path_to(tree, index)}"
            )
