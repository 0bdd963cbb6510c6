# SPDX-License-Identifier: Apache-2.0
"""States of Meta optimizers, kept with the parameters they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

import treeops
from optcore import GradientTransformation, ParamDict


class Place(NamedTuple):
    """Where a parameter is: what it is known by when names change."""

    owner: nn.Module | None  # that holds it
    name: str  # what the owner calls it
    shape: torch.Size


def places_of(module: nn.Module, params: Mapping[str, torch.Tensor]) -> dict[str, Place]:
    """Where parameters of a module are, by name."""
    owners = dict(module.named_modules())
    split = {name: name.rpartition(".") for name in params}
    return {
        name: Place(owners.get(split[name][0]), split[name][2], param.shape)
        for name, param in params.items()
    }


def grow(state: Any, fresh: Any, known: Mapping[str, Place], places: Mapping[str, Place]) -> Any:
    """A state with zeros for parameters it does not know, without those that are gone.

    Args:
        state: Of the parameters at ``known``.
        fresh: The first state of those at ``places``, where the zeros come from.
        known: Where the parameters were.
        places: Where they are.
    """
    # a parameter is known by its module and its name there, which outlive renaming
    names = {(id(p.owner), p.name, p.shape): name for name, p in known.items()}
    before = {n: names.get((id(p.owner), p.name, p.shape)) for n, p in places.items()}
    old, _ = _slots(state)
    zeros, spec = _slots(fresh)
    merged = [
        ParamDict((name, was.get(before[name], zero)) for name, zero in slot.items())
        if isinstance(slot, ParamDict)
        else was
        for was, slot in zip(old, zeros, strict=True)
    ]
    return treeops.tree_unflatten(spec, merged)


def check_structure(
    who: str, state: Any, like: Any, transformation: GradientTransformation, index: int
) -> None:
    """Refuse a state of another transformation.

    Raises:
        ValueError: It is not built like the state ``like``.
    """
    (slots, structure), (known, expected) = _slots(state), _slots(like)
    if structure != expected or [*map(type, slots)] != [*map(type, known)]:
        raise ValueError(
            f"{who}: expected a state of {transformation!r}, got one of another structure, at "
            f"{index}"
        )


def places_in(
    who: str, state: Any, fresh: Any, places: Mapping[str, Place], index: int
) -> dict[str, Place]:
    """Where the parameters of a state are, by their names in it.

    Args:
        who: The method that is named in errors.
        state: Of some of the parameters at ``places``.
        fresh: The first state of those that the module has now.
        places: By name.
        index: Of the group that the state is for.

    Raises:
        ValueError: It has a parameter that is not at ``places``, or is of another shape.
    """
    slots, _ = _slots(state)
    for slot, like in zip(slots, _slots(fresh)[0], strict=True):
        if isinstance(slot, ParamDict):
            _check_names(f"{who}: expected a state of parameters", slot, like, places, index)
    names = [name for slot in slots if isinstance(slot, ParamDict) for name in slot]
    return {name: places[name] for name in dict.fromkeys(names)}


def _check_names(
    expected: str, slot: ParamDict, like: ParamDict, places: Mapping[str, Place], index: int
) -> None:
    """Refuse a slot of a state whose parameters are not those at some places."""
    for name, value in slot.items():
        if name not in places:
            raise ValueError(f"{expected} {[*places]}, got one of {[*slot]}, at {index}")
        shapes = [getattr(buffer, "shape", None) for buffer in (value, like.get(name, value))]
        if shapes[0] != shapes[1]:
            got, fit = (None if shape is None else list(shape) for shape in shapes)
            raise ValueError(f"{expected} with {name!r} {fit}, got {got}, at {index}")


def _slots(state: Any) -> tuple[list[Any], Any]:
    """The per-parameter buffers and the other leaves of a state."""
    return treeops.tree_flatten(
        state, lambda node: isinstance(node, ParamDict), none_is_leaf=True, namespace="optcore"
    )
