# SPDX-License-Identifier: Apache-2.0
"""Which tensors that require grad a function reads past its arguments."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch._C._functorch import TransformType
from torch.overrides import TorchFunctionMode

import treeops
from optdiff._tracking import innermost_transform, is_tracked, is_wrapped, transform_depth


class Reads(TorchFunctionMode):
    """Notes tensors from outside whose gradient the operations inside would pass on or lose.

    What a function holds does not tell: ``torch.func.functional_call`` replaces the parameters of
    the module that it is given. What it returns tells too little: a number, say, has no graph.

    Args:
        who: Whom errors name.
        transformed: Whether tensors of torch.func transforms may come from elsewhere. Torch raises
            internal errors where they meet, or takes them for others.

    Example:
        >>> w = torch.ones(2, requires_grad=True)
        >>> with Reads("f", transformed=False) as reads:
        ...     loss = (w.detach() + w).sum().item()
        >>> reads.first() is w
        True
    """

    def __init__(self, who: str, transformed: bool) -> None:
        super().__init__()
        self._who = who
        self._transformed = transformed
        self._made: weakref.WeakValueDictionary[int, torch.Tensor] = weakref.WeakValueDictionary()
        self._read: list[weakref.ref[torch.Tensor]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if self._transformed:
            self._refuse_foreign(treeops.tree_leaves((args, kwargs)))
        result = func(*args, **(kwargs or {}))
        results = (result,) if isinstance(result, torch.Tensor) else treeops.tree_leaves(result)
        made = [leaf for leaf in results if isinstance(leaf, torch.Tensor) and is_tracked(leaf)]
        if made or isinstance(result, float):
            for leaf in treeops.tree_leaves((args, kwargs)):
                if isinstance(leaf, torch.Tensor) and leaf.requires_grad and leaf is not result:
                    self._note(leaf)
            for tensor in made:
                self._made[id(tensor)] = tensor
        return result

    def _note(self, tensor: torch.Tensor) -> None:
        if self._made.get(id(tensor)) is not tensor and not is_wrapped(tensor):
            self._read.append(weakref.ref(tensor))

    def _refuse_foreign(self, values: Iterable[Any]) -> None:
        if any(_is_foreign(value) for value in values):
            raise ValueError(
                f"{self._who}: expected a function that gets every tensor of a torch.func "
                "transform as an argument, got one that reads such a tensor from elsewhere; pass "
                "it as an argument"
            )

    def first(self) -> torch.Tensor | None:
        """The first of them; those that the function made for itself are gone after it."""
        alive = (read() for read in self._read)
        return next((tensor for tensor in alive if tensor is not None), None)


def _is_foreign(value: object) -> bool:
    """Whether it is a tensor of a transform that the function does not run under."""
    if not isinstance(value, torch.Tensor) or not is_wrapped(value):
        return False
    level, depth = torch._C._functorch.maybe_get_level(value), transform_depth()
    if level != depth:
        return level > depth
    by_vmap = innermost_transform().key() == TransformType.Vmap
    return torch._C._functorch.is_batchedtensor(value) != by_vmap
