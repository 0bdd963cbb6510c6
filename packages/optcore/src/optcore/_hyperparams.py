# SPDX-License-Identifier: Apache-2.0
"""What a hyperparameter may be: number, schedule, tensor, or a prefix tree of the parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, TypeAlias

import torch

from optcore._tree import (
    ParamDict,
    Tree,
    describe,
    flatten_up_to,
    path_to,
    tree_leaves,
    tree_map,
    tree_structure,
)

Schedule: TypeAlias = Callable[[torch.Tensor], "float | torch.Tensor"]
Hyperparam: TypeAlias = "float | torch.Tensor | Schedule | Tree"

_READABLE = (torch.Tensor, torch.nn.Parameter)  # no subclass that only stands for a value


def check_range(
    who: str,
    name: str,
    value: Hyperparam,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """Refuse a hyperparameter outside ``[low, high]``, less its open ends.

    Tensors are checked for their type only: reading their value would wait for the device.

    Raises:
        TypeError: Not a number, schedule, floating tensor or tree of such.
        ValueError: A number outside the range, or not finite.
    """
    leaves = [value] if isinstance(value, (float, torch.Tensor)) else tree_leaves(value)
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor):
            if not leaf.dtype.is_floating_point:
                raise TypeError(
                    f"{who}: expected {name} as a floating tensor, got {describe(leaf)}"
                )
        elif isinstance(leaf, Real) and not isinstance(leaf, bool):
            number = float(leaf)
            inside = low < number if open_low else low <= number
            inside = inside and (number < high if open_high else number <= high)
            if not (inside and -math.inf < number < math.inf):  # isfinite stops the compiler
                raise ValueError(
                    f"{who}: expected {name} {_range(low, high, open_low, open_high)}, got {leaf}"
                )
        elif not callable(leaf):
            raise TypeError(
                f"{who}: expected {name} as a number, schedule, tensor or tree of such, "
                f"got {describe(leaf)}"
            )
    if not leaves:
        raise TypeError(f"{who}: expected {name} as a number, got an empty {describe(value)}")


def _range(low: float, high: float, open_low: bool, open_high: bool) -> str:
    if low == -math.inf and high == math.inf:
        return "finite"
    if high == math.inf:
        return f"{'>' if open_low else '>='} {low:g}"
    return f"in {'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"


def check_number(who: str, name: str, value: float, low: float = -math.inf) -> None:
    """Refuse what is no finite number >= ``low``, for what cannot be learned or scheduled.

    Raises:
        TypeError: Not a number.
        ValueError: A number below ``low``, or not finite.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{who}: expected {name} as a number, got {describe(value)}")
    check_range(who, name, value, low)


def check_single(
    who: str,
    name: str,
    value: Hyperparam,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """As :func:`check_range`, for what is one for all parameters: no tree, no axes.

    Raises:
        TypeError: No number, schedule or 0-d floating tensor.
        ValueError: A number outside the range, or not finite.
    """
    tree = isinstance(value, (dict, list, tuple))
    if tree or (isinstance(value, torch.Tensor) and value.ndim):
        raise TypeError(
            f"{who}: expected {name} as one value for all parameters, got {describe(value)}"
        )
    check_range(who, name, value, low, high, open_low=open_low, open_high=open_high)


def check_flag(who: str, name: str, value: bool) -> None:
    """Refuse what is no bool: a string such as ``"no"`` would count as True.

    Raises:
        TypeError: No bool.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{who}: expected {name} as a bool, got {describe(value)}")


def numbers_only(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Mark a factory: ``inject_hyperparams`` leaves these of its arguments as they are."""

    def mark(factory: Callable[..., Any]) -> Callable[..., Any]:
        factory.numbers_only = frozenset(names)  # type: ignore[attr-defined]
        return factory

    return mark


def check_pair(who: str, name: str, values: Sequence[Any]) -> tuple[Any, Any]:
    """Refuse what is not two values.

    Raises:
        TypeError: No tuple or list, or one of another length.
    """
    if not isinstance(values, (tuple, list)) or len(values) != 2:
        size = f" of {len(values)}" if isinstance(values, (tuple, list)) else ""
        raise TypeError(f"{who}: expected {name} as a pair, got {describe(values)}{size}")
    return values[0], values[1]


def check_triple(who: str, name: str, values: Sequence[Any]) -> tuple[Any, Any, Any]:
    """Refuse what is not three values.

    Raises:
        TypeError: No tuple or list, or one of another length.
    """
    if not isinstance(values, (tuple, list)) or len(values) != 3:
        raise TypeError(f"{who}: expected {name} as a triple, got {type(values).__name__}")
    return values[0], values[1], values[2]


def check_betas(who: str, betas: Sequence[Hyperparam]) -> tuple[Hyperparam, Hyperparam]:
    """Two decay rates in ``[0, 1)``, as torch.optim spells them."""
    for index, beta in enumerate(check_pair(who, "betas", betas)):
        check_range(who, f"betas[{index}]", beta, 0.0, 1.0, open_high=True)
    return betas[0], betas[1]


def is_scheduled(value: Hyperparam) -> bool:
    """Whether some part of the hyperparameter depends on the step count."""
    if isinstance(value, (float, int)):
        return False
    return callable(value) or any(callable(leaf) for leaf in tree_leaves(value))


def at_count(value: Hyperparam, count: torch.Tensor) -> Hyperparam:
    """The hyperparameter with its schedules evaluated at ``count``."""
    return tree_map(lambda leaf: leaf(count) if callable(leaf) else leaf, value)


def is_number(value: Any) -> bool:
    """Whether the hyperparameter is a number; most are floats, which is asked first."""
    return type(value) is float or isinstance(value, Real)


def read(value: Any) -> Any:
    """The number in a tensor that can be read without waiting, anything else as it is.

    Only where no graph is recorded and nothing traces: the tensor is not seen again.
    """
    if type(value) in _READABLE and not value.ndim and value.is_cpu and value.is_floating_point():
        return value.item()
    return value


def is_zero(value: Hyperparam) -> bool:
    """Whether the hyperparameter is the number 0, so that the step it scales can be left out."""
    return is_number(value) and value == 0


def per_leaf(who: str, name: str, value: Hyperparam, updates: Tree) -> list[Any] | None:
    """One value per leaf of ``updates`` if ``value`` is a prefix tree, None if it is one value."""
    if isinstance(value, (Real, torch.Tensor)):
        return None
    if not isinstance(value, (dict, list, tuple)) and callable(value):
        return None
    if type(value) is dict and isinstance(updates, ParamDict) and value.keys() == updates.keys():
        value = ParamDict((key, value[key]) for key in updates)
    try:
        parts = flatten_up_to(tree_structure(value), updates)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{who}: {name} is not a prefix of the parameters: {error}") from None
    values: list[Any] = []
    for leaf, part in zip(tree_leaves(value), parts, strict=True):
        values += [leaf] * len(tree_leaves(part))
    return values


def check_broadcast(
    who: str, value: torch.Tensor, param: torch.Tensor, tree: Tree, index: int
) -> None:
    """Refuse a hyperparameter whose axes do not fit into those of leaf ``index`` of ``tree``.

    Raises:
        ValueError: It does not broadcast, or would enlarge the parameter.
    """
    axes = zip(reversed(value.shape), reversed(param.shape), strict=False)
    if value.ndim > param.ndim or any(own not in (1, theirs) for own, theirs in axes):
        raise ValueError(
            f"{who}: expected a hyperparameter that broadcasts to {describe(param)}, got "
            f"{describe(value)}, at {path_to(tree, index)}"
        )
