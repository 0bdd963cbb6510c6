# SPDX-License-Identifier: Apache-2.0
"""Choosing at run time which of two things a step does, and checking what chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from optcore._leafwise import check_gradient
from optcore._masking import zeros
from optcore._modes import under_transform
from optcore._tree import Tree, describe, flatten_like, tree_flatten, tree_leaves, tree_unflatten


def cond(
    who: str,
    flag: torch.Tensor,
    updates: Tree,
    take: Callable[[Tree, bool], Tree],
    leave: Callable[[], Tree],
    inplace: bool,
) -> Tree:
    """``take(updates, inplace)`` if ``flag`` else ``leave()``; both give trees of one structure.

    A flag that Python may read without waiting for an accelerator and outside every transform
    decides which of the two runs. Any other flag chooses tensor by tensor after both ran: out of
    place, and ``take`` sees zeros where it is not taken, because a NaN there would reach the
    derivatives through the branch that was not chosen.
    """
    if type(flag) is torch.Tensor and flag.device.type == "cpu" and not under_transform():
        return take(updates, inplace) if flag else leave()
    quiet = select(who, flag, updates, zeros(updates))
    return select(who, flag, take(quiet, False), leave())


def select(who: str, flag: torch.Tensor, new: Tree, old: Tree) -> Tree:
    """``new`` where ``flag``, else ``old``, leaf by leaf; what is shared stays shared."""
    leaves, spec = tree_flatten(new)
    others = flatten_like(who, "states to choose from differ", spec, old)
    chosen: dict[tuple[torch.Tensor, torch.Tensor], torch.Tensor] = {}  # hashed by identity
    results = []
    for n, o in zip(leaves, others, strict=True):
        if isinstance(n, torch.Tensor) and isinstance(o, torch.Tensor):
            if (n, o) not in chosen:
                chosen[n, o] = n if n is o else torch.where(flag, n, o)
            results.append(chosen[n, o])
        elif n is o or n == o:
            results.append(n)
        else:
            raise TypeError(
                f"{who}: expected tensors to choose between, got {describe(n)} and {describe(o)}; "
                "keep numbers that change as tensors in the state"
            )
    return tree_unflatten(spec, results)


def gradients(who: str, updates: Tree) -> list[torch.Tensor]:
    """The leaves that are not None."""
    leaves = [leaf for leaf in tree_leaves(updates) if leaf is not None]
    for leaf in leaves:
        check_gradient(who, leaf)
    return leaves


def total(values: Iterable[torch.Tensor]) -> torch.Tensor:
    """The sum of scalars from any devices."""
    result = torch.zeros((), dtype=torch.int64)
    for value in values:  # a CPU scalar mixes with any device; two accelerators do not mix
        result = value + (result.to(value.device) if result.device.type != "cpu" else result)
    return result


def as_flag(who: str, name: str, value: Any) -> torch.Tensor:
    """What a condition returned, as a bool tensor.

    Raises:
        TypeError: Neither a bool nor a bool tensor of shape ``()``.
    """
    if isinstance(value, bool):
        return torch.tensor(value)
    if not isinstance(value, torch.Tensor) or value.dtype != torch.bool or value.ndim:
        raise TypeError(
            f"{who}: expected {name} to return a bool or a bool tensor of shape (), "
            f"got {describe(value)}"
        )
    return value


def check_int(who: str, name: str, value: object, low: int) -> None:
    """Refuse what is no int >= ``low``.

    Raises:
        TypeError: No int.
        ValueError: Below ``low``.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{who}: expected {name} as an int, got {describe(value)}")
    if value < low:
        raise ValueError(f"{who}: expected {name} >= {low}, got {value}")


def check_closure(who: str, closure: object) -> None:
    """Refuse what a class cannot evaluate the loss by.

    Raises:
        TypeError: It is no function.
    """
    if not callable(closure):
        raise TypeError(
            f"{who}: expected a closure, got {describe(closure)}; pass a function that zeroes the "
            "gradients, computes the loss, calls backward and returns the loss"
        )
