# SPDX-License-Identifier: Apache-2.0
"""Parameters that a state keeps: taken from the first update, whose graph they shall have."""

from __future__ import annotations

from typing import Any

import torch

from optcore._modes import under_transform
from optcore._tree import Tree, describe, tree_map


def clones(who: str, params: Tree, dtype: torch.dtype | None = None) -> Tree:
    """Copies without a graph, to stand in a state until the first update.

    Raises:
        TypeError: A leaf that is no real floating tensor.
    """

    def clone(param: Any) -> Any:
        if param is None:
            return None
        if not isinstance(param, torch.Tensor) or not param.dtype.is_floating_point:
            raise TypeError(f"{who}: expected real floating parameters, got {describe(param)}")
        return param.detach().to(dtype or param.dtype, copy=True)

    return tree_map(clone, params)


def first_or_kept(first: torch.Tensor, start: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """What is kept, but in the first update the parameters, whose graph it shall have."""
    start = start.to(kept.dtype)
    if under_transform():
        return torch.where(first, start, kept)
    return start if first else kept


def anchored(
    first: torch.Tensor, start: torch.Tensor, kept: torch.Tensor, inplace: bool
) -> torch.Tensor:
    """The same for a state that holds it: never the parameter itself, which may be overwritten."""
    found = first_or_kept(first, start, kept)
    if found is kept:
        return kept
    return kept.copy_(found) if inplace and not under_transform() else found.clone()
