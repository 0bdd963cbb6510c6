# SPDX-License-Identifier: Apache-2.0
"""Weight decay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from optcore._deferred import defers, settled
from optcore._hyperparams import Hyperparam, check_range, per_leaf
from optcore._leafwise import leafwise, plus
from optcore._transform import EmptyState, GradientTransformation
from optcore._tree import Tree, describe, tree_leaves, tree_map


def add_decayed_weights(
    weight_decay: Hyperparam = 0.0, mask: Tree | Callable[[Tree], Tree] | None = None
) -> GradientTransformation:
    r"""Add the decayed parameters: :math:`u = g + \lambda\,\theta`.

    Args:
        weight_decay: The rate :math:`\lambda \ge 0`.
        mask: A tree of bools like the parameters or a prefix of them, or a function that makes one
            from the parameters: only where it is True is anything added. None means everywhere.

    Differentiable:
        In the updates, the parameters and a tensor ``weight_decay``.

    Raises:
        TypeError: ``mask`` has a leaf that is not a bool.
        ValueError: ``weight_decay`` is negative or not finite; ``update`` was given no ``params``.

    Example:
        >>> import torch
        >>> params = {"w": torch.full((2,), 2.0), "b": torch.full((1,), 2.0)}
        >>> tx = add_decayed_weights(0.1, mask={"w": True, "b": False})
        >>> grads = {"w": torch.zeros(2), "b": torch.zeros(1)}
        >>> tx.update(grads, tx.init(params), params)[0]
        {'w': tensor([0.2000, 0.2000]), 'b': tensor([0.])}
    """
    check_range("add_decayed_weights", "weight_decay", weight_decay, 0.0)
    if mask is not None and not callable(mask):
        _check_mask(mask)
    return GradientTransformation(
        _decay_init,
        _decay_update,
        {"weight_decay": weight_decay},
        {"mask": mask},
        name="add_decayed_weights",
        needs_params=True,
    )


def _check_mask(mask: Tree) -> None:
    for leaf in tree_leaves(mask):
        if not isinstance(leaf, bool):
            raise TypeError(
                f"add_decayed_weights: expected a mask of bools, got a {describe(leaf)} leaf"
            )


def _flags(mask: Any, params: Tree) -> list[bool]:
    """One flag per parameter."""
    wanted = mask(params) if callable(mask) else mask
    _check_mask(wanted)
    flags = per_leaf("add_decayed_weights", "mask", wanted, params)
    return flags if flags is not None else [wanted] * len(tree_leaves(params))


def _decay_init(params: Tree, *, weight_decay: Any, mask: Any) -> EmptyState:
    if mask is not None:
        _flags(mask, params)  # refuse a mask that does not fit before the first update
    return EmptyState()


@defers
def _decay_update(
    updates: Tree, state: EmptyState, params: Tree, *, inplace: bool, weight_decay: Any, mask: Any
) -> tuple[Tree, EmptyState]:
    who = "add_decayed_weights"
    masked = updates
    if mask is not None:
        updates = settled(updates)
        flag = iter(_flags(mask, params))
        masked = tree_map(lambda g: g if next(flag) else None, updates)
    (decayed,) = leafwise(
        who, _decayed, masked, params=params, inplace=inplace, weight_decay=weight_decay
    )
    if mask is not None:
        decayed = tree_map(lambda g, d: g if d is None else d, updates, decayed)
    return decayed, state


def _decayed(grad: torch.Tensor, param: torch.Tensor, *, weight_decay: Any) -> torch.Tensor:
    return plus(grad, param, weight_decay)
