# SPDX-License-Identifier: Apache-2.0
"""Transformations of some of the parameters: masks and what hides behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from optcore._declared import declares
from optcore._hyperparams import per_leaf
from optcore._transform import EmptyState, GradientTransformation, stateless_init
from optcore._tree import (
    Tree,
    describe,
    flatten_like,
    path_to,
    tree_flatten,
    tree_leaves,
    tree_map,
    tree_structure,
    tree_unflatten,
)


class MaskedNode(NamedTuple):
    """Stands where a leaf is hidden: a node without leaves, which every tree function skips."""


class MaskedState(NamedTuple):
    """State of :func:`masked`."""

    inner_state: Tree  # for the parameters with a :class:`MaskedNode` in place of each hidden leaf


def check_transformation(who: str, inner: object, name: str = "") -> None:
    """Refuse what is no transformation.

    Raises:
        TypeError: ``inner`` is not a :class:`GradientTransformation`.
    """
    if not isinstance(inner, GradientTransformation):
        wanted = f"{name} as a" if name else "a"
        raise TypeError(f"{who}: expected {wanted} GradientTransformation, got {describe(inner)}")


def masked(
    inner: GradientTransformation,
    mask: Tree | Callable[[Tree], Tree],
    *,
    mask_compatible_extra_args: bool = False,
) -> GradientTransformation:
    """Transform the updates of some parameters and pass the others on as they are.

    Args:
        inner: Sees the chosen leaves only; the others are :class:`MaskedNode` for it.
        mask: A tree of bools like the parameters or a prefix of them: True chooses. Or a function
            that makes one, e.g. ``lambda p: optcore.map_tensors(lambda x: x.ndim > 1, p)``: it is
            called with the parameters, or with the updates where ``update`` is given no
            parameters, and has to give the same mask every time.
        mask_compatible_extra_args: Hide the same leaves in extra arguments of the same structure
            as the updates.

    State:
        ``inner_state``: the inner one, without buffers for hidden leaves.

    Differentiable:
        As ``inner``; hidden leaves pass through.

    Raises:
        TypeError: ``inner`` is no transformation, or a leaf of the mask is no bool.
        ValueError: In ``init`` and ``update``, the mask is not a prefix of the parameters, or a
            mask function would have to do with updates some of which are None.

    Differs:
        optax puts one :class:`MaskedNode` for a whole hidden subtree. Here each leaf gets its own,
        so that hyperparameters given as trees remain prefixes of what ``inner`` sees.

    Example:
        >>> import torch
        >>> import optcore
        >>> params = {"w": torch.ones(2), "b": torch.ones(1)}
        >>> tx = masked(optcore.scale(-0.5), {"w": True, "b": False})
        >>> tx.update(params, tx.init(params))[0]
        {'w': tensor([-0.5000, -0.5000]), 'b': tensor([1.])}
    """
    who = "masked"
    check_transformation(who, inner)
    if not callable(mask):
        check_mask(who, mask)
    return GradientTransformation(
        _masked_init,
        _masked_update,
        static={
            "inner": inner,
            "mask": mask,
            "mask_compatible_extra_args": mask_compatible_extra_args,
        },
        name=who,
        needs_params=inner.needs_params,
    )


def freeze(mask: Tree | Callable[[Tree], Tree]) -> GradientTransformation:
    """Set the updates of some parameters to zero.

    What comes before in a chain still keeps state for them; :func:`selective_transform` does not.

    Args:
        mask: As in :func:`masked`: True freezes. One bool serves all parameters.

    Differentiable:
        Frozen leaves have no derivative.

    Raises:
        TypeError: A leaf of the mask is no bool.
        ValueError: In ``init`` and ``update``, the mask is not a prefix of the parameters.

    Example:
        >>> import torch
        >>> params = {"w": torch.ones(2), "b": torch.ones(1)}
        >>> tx = freeze({"w": True, "b": False})
        >>> tx.update(params, tx.init(params))[0]
        {'w': tensor([0., 0.]), 'b': tensor([1.])}
    """
    if not callable(mask):
        check_mask("freeze", mask)
    return masked(set_to_zero(), mask).named("freeze")


def set_to_zero() -> GradientTransformation:
    """Replace every update by zeros.

    Differentiable:
        The derivative is zero: nothing flows.

    Example:
        >>> import torch
        >>> tx = set_to_zero()
        >>> tx.update([torch.ones(2)], tx.init([torch.ones(2)]))[0]
        [tensor([0., 0.])]
    """
    return GradientTransformation(stateless_init, _zero_update, name="set_to_zero")


def zeros(updates: Tree) -> Tree:
    """Zeros like some updates; None stays None."""
    return tree_map(lambda u: None if u is None else torch.zeros_like(u), updates)


def _zero_update(
    updates: Tree, state: EmptyState, params: Tree, *, inplace: bool
) -> tuple[Tree, EmptyState]:
    return zeros(updates), state


def _masked_init(
    params: Tree, *, inner: GradientTransformation, mask: Any, mask_compatible_extra_args: bool
) -> MaskedState:
    return MaskedState(inner.init(hide(params, _flags("masked", mask, params))))


@declares(calls="inner")
def _masked_update(
    updates: Tree,
    state: MaskedState,
    params: Tree,
    *,
    inplace: bool,
    inner: GradientTransformation,
    mask: Any,
    mask_compatible_extra_args: bool,
    **extra: Any,
) -> tuple[Tree, MaskedState]:
    flags = _flags("masked", mask, basis("masked", "mask", mask, updates, params))
    leaves, spec = tree_flatten(updates)
    if mask_compatible_extra_args:
        extra = hide_extra(extra, spec, flags)
    new, state = apply_to(flags, leaves, spec, inner, state, params, inplace, extra)
    return tree_unflatten(spec, new), state


def apply_to(
    flags: Sequence[bool],
    leaves: Sequence[Any],
    spec: Any,
    inner: GradientTransformation,
    state: MaskedState,
    params: Tree,
    inplace: bool,
    extra: Mapping[str, Any],
) -> tuple[list[Any], MaskedState]:
    """The leaves after ``inner`` transformed the flagged ones, and its new state."""
    shown = params if params is None else hide(params, flags)
    hidden = tree_unflatten(spec, _hide_leaves(leaves, flags))
    new, inner_state = inner.apply(hidden, state.inner_state, shown, inplace, extra)
    seen = flatten_like("masked", "updates of the inner transformation", spec, new)
    merged = [n if flag else old for n, old, flag in zip(seen, leaves, flags, strict=True)]
    return merged, MaskedState(inner_state)


def hide(tree: Tree, flags: Sequence[bool]) -> Tree:
    """The tree with a :class:`MaskedNode` for each leaf that is not flagged."""
    leaves, spec = tree_flatten(tree)
    return tree_unflatten(spec, _hide_leaves(leaves, flags))


def _hide_leaves(leaves: Sequence[Any], flags: Sequence[bool]) -> list[Any]:
    return [leaf if flag else MaskedNode() for leaf, flag in zip(leaves, flags, strict=True)]


def hide_extra(extra: Mapping[str, Any], spec: Any, flags: Sequence[bool]) -> dict[str, Any]:
    """Extra arguments, those of the updates' structure with the same leaves hidden."""
    return {
        name: hide(value, flags) if tree_structure(value) == spec else value
        for name, value in extra.items()
    }


def check_mask(who: str, mask: Tree, name: str = "a mask") -> None:
    """Refuse a mask whose leaves are not bools (or None, for a parameter that is None)."""
    for index, leaf in enumerate(tree_leaves(mask)):
        if not isinstance(leaf, bool) and leaf is not None:
            raise TypeError(
                f"{who}: expected {name} of bools, got a {describe(leaf)} leaf, "
                f"at {path_to(mask, index)}"
            )


def _flags(who: str, mask: Any, params: Tree) -> list[bool]:
    """One flag per parameter."""
    wanted = mask(params) if callable(mask) else mask
    check_mask(who, wanted)
    flags = spread(who, "mask", wanted, params)
    for index, (flag, param) in enumerate(zip(flags, tree_leaves(params), strict=True)):
        if flag is None and param is not None:
            raise TypeError(
                f"{who}: expected a bool in the mask, got None, at {path_to(params, index)}"
            )
    return [bool(flag) for flag in flags]


def spread(who: str, name: str, prefix: Tree, params: Tree) -> list[Any]:
    """One leaf of the prefix per parameter."""
    leaves = per_leaf(who, name, prefix, params)
    return leaves if leaves is not None else [prefix] * len(tree_leaves(params))


def basis(who: str, name: str, tree: Any, updates: Tree, params: Tree) -> Tree:
    """What masks and labels are made for: the parameters, or updates that stand for them."""
    if params is not None:
        return params
    if callable(tree) and any(leaf is None for leaf in tree_leaves(updates)):
        raise ValueError(
            f"{who}: expected params, got None, where {name} is a function and a gradient is None; "
            "call update(updates, state, params)"
        )
    return updates
