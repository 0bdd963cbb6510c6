# SPDX-License-Identifier: Apache-2.0
"""How updates reach parameters."""

from __future__ import annotations

import torch

from optcore._modes import (
    NO_GRAPH,
    OUT_OF_PLACE,
    differentiates,
    warn_no_graph,
)
from optcore._tree import (
    Tree,
    describe,
    flatten_like,
    path_to,
    tree_flatten,
    tree_unflatten,
)


def apply_updates(params: Tree, updates: Tree, *, inplace: bool | None = None) -> Tree:
    r"""Add updates to parameters: :math:`\theta' = \theta + u`.

    Args:
        params: Tree of tensors.
        updates: Tree like ``params``; a None leaf leaves its parameter alone. A tensor that stands
            at several leaves is one parameter: it gets the sum of their updates and stays one.
        inplace: False: new tensors, differentiable in both arguments. True: parameters are
            overwritten and returned. None: True only if no update requires grad or was made with
            ``inplace=False``, and every parameter is a leaf outside any transform.

    Returns:
        The new parameters, in the dtype of the old ones.

    Raises:
        TypeError: A leaf is neither a tensor nor None, or an integer parameter has an update.
        ValueError: Different structures or shapes; no parameter is changed then.

    Example:
        >>> import torch
        >>> apply_updates({"w": torch.ones(2)}, {"w": torch.full((2,), -0.5)})
        {'w': tensor([0.5000, 0.5000])}
    """
    who = "apply_updates"
    old, spec = tree_flatten(params)
    steps = flatten_like(who, "updates differ from params", spec, updates)
    for index, (p, u) in enumerate(zip(old, steps, strict=True)):
        if u is None or p is None:
            continue
        if not (isinstance(p, torch.Tensor) and isinstance(u, torch.Tensor)):
            raise TypeError(
                f"{who}: expected tensors, got a parameter {describe(p)} and an update "
                f"{describe(u)}, at leaf {path_to(params, index)}"
            )
        if not (p.dtype.is_floating_point or p.dtype.is_complex):
            raise TypeError(
                f"{who}: expected a floating parameter, got {describe(p)}, at leaf "
                f"{path_to(params, index)}; give it the update None"
            )
        if u.shape != p.shape:
            raise ValueError(
                f"{who}: expected an update like its parameter {describe(p)}, got {describe(u)}, "
                f"at leaf {path_to(params, index)}"
            )
    marked = any(getattr(u, NO_GRAPH, False) for u in steps if u is not None)
    if inplace is None:
        inplace = not (marked or differentiates([steps], old) or OUT_OF_PLACE.get())
    if marked and any(p is not None and p.grad_fn is not None for p in old):
        warn_no_graph(who)
    if inplace:
        moving = [i for i in range(len(old)) if old[i] is not None and steps[i] is not None]
        with torch.no_grad():
            if moving:
                torch._foreach_add_([old[i] for i in moving], [steps[i] for i in moving])
        return params
    moved: dict[torch.Tensor, torch.Tensor] = {}  # hashed by identity: tied leaves stay tied
    for p, u in zip(old, steps, strict=True):
        if u is not None and p is not None:
            moved[p] = _moved(moved.get(p, p), u)
    return tree_unflatten(spec, [p if p is None else moved.get(p, p) for p in old])


def _moved(param: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
    new = param + update
    return new if new.dtype == param.dtype else new.to(param.dtype)
