# SPDX-License-Identifier: Apache-2.0
"""Which tensors that require grad a function reads past its arguments."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

import treeops
from optdiff._tracking import is_tracked, is_wrapped


class Reads(TorchFunctionMode):
    """Notes tensors from outside whose gradient the operations inside would pass on or lose.

    What a function holds does not tell: ``torch.func.functional_call`` replaces the parameters of
    the module that it is given. What it returns tells too little: a number, say, has no graph.

    Example:
        >>> w = torch.ones(2, requires_grad=True)
        >>> with Reads() as reads:
        ...     loss = (w.detach() + w).sum().item()
        >>> reads.first() is w
        True
    """

    def __init__(self) -> None:
        super().__init__()
        self._made: weakref.WeakValueDictionary[int, torch.Tensor] = weakref.WeakValueDictionary()
        self._read: list[weakref.ref[torch.Tensor]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        results = (result,) if isinstance(result, torch.Tensor) else treeops.tree_leaves(result)
        made = [leaf for leaf in results if isinstance(leaf, torch.Tensor) and is_tracked(leaf)]
        if made or isinstance(result, float):
            for leaf in treeops.tree_leaves((args, kwargs)):
                if isinstance(leaf, torch.Tensor) and leaf.requires_grad and leaf is not result:
                    self._note(leaf)
            self._made.update((id(tensor), tensor) for tensor in made)
        return result

    def _note(self, tensor: torch.Tensor) -> None:
        if self._made.get(id(tensor)) is not tensor and not is_wrapped(tensor):
            self._read.append(weakref.ref(tensor))

    def first(self) -> torch.Tensor | None:
        """The first of them; those that the function made for itself are gone after it."""
        alive = (read() for read in self._read)
        return next((tensor for tensor in alive if tensor is not None), None)
