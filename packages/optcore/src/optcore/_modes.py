# SPDX-License-Identifier: Apache-2.0
"""The update modes: when a step may overwrite, and what is being differentiated."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch.autograd import forward_ad

from optcore._tree import (
    Tree,
    tensors_in,
)

NO_GRAPH = "_optcore_update_without_graph"  # mark on updates whose caller asked for a graph
OUT_OF_PLACE = ContextVar("out_of_place", default=False)
_FIRST_ORDER = ContextVar("first_order", default=False)


@contextmanager
def out_of_place(*, first_order: bool = False) -> Iterator[None]:
    """Inside, ``inplace=None`` means False: for loops that differentiate what looks constant.

    Args:
        first_order: Gradients without a graph are meant: do not warn of them.

    Example:
        >>> import optcore
        >>> before = torch.ones(1)
        >>> with out_of_place():
        ...     after = optcore.apply_updates(before, torch.ones(1))
        >>> before, after
        (tensor([1.]), tensor([2.]))
    """
    tokens = OUT_OF_PLACE.set(True), _FIRST_ORDER.set(first_order)
    try:
        yield
    finally:
        OUT_OF_PLACE.reset(tokens[0])
        _FIRST_ORDER.reset(tokens[1])


def differentiates(trees: Iterable[Tree], params: Tree = None) -> bool:
    """Whether something in these trees is being differentiated, or a parameter is not a leaf."""
    if torch.compiler.is_compiling():
        return True
    transformed = under_transform()
    for tensor in tensors_in(trees):
        if tensor.requires_grad or (transformed and _is_transformed(tensor)):
            return True
    for tensor in tensors_in([params]):
        if tensor.grad_fn is not None or (transformed and _is_transformed(tensor)):
            return True
    return False


def under_transform() -> bool:
    """Whether the code runs under torch.compile, a torch.func transform or forward-mode AD."""
    # No public query exists for either; both are plain attribute reads, cheaper than any tensor op.
    return (
        torch.compiler.is_compiling()
        or torch._C._functorch.maybe_current_level() is not None
        or forward_ad._current_level >= 0
    )


def _is_transformed(tensor: torch.Tensor) -> bool:
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return True
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None


def carries_no_graph(updates: Tree) -> bool:
    if under_transform():
        return False
    found = False
    for tensor in tensors_in([updates]):
        if tensor.requires_grad:
            return False
        found = True
    return found


def mark_no_graph(updates: Tree, given: Tree) -> Tree:
    own = {id(tensor) for tensor in tensors_in([given])}  # a user's gradient stays as it is
    for tensor in tensors_in([updates]):
        if not tensor.requires_grad and id(tensor) not in own:
            setattr(tensor, NO_GRAPH, True)
    return updates


def warn_no_graph(who: str) -> None:
    if _FIRST_ORDER.get():
        return
    warnings.warn(
        f"{who}: expected gradients with a graph for inplace=False, got gradients without one "
        "although the parameters have one, so nothing flows through this step's gradients; call "
        "torch.autograd.grad(..., create_graph=True), or drop inplace=False for a first-order step",
        UserWarning,
        stacklevel=3,
    )
