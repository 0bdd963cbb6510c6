# SPDX-License-Identifier: Apache-2.0
"""Tensors that a function takes from around it, whose gradients would not reach the caller."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn


def check_nothing_outside(
    who: str, func: Callable[..., Any], value: torch.Tensor, inputs: Sequence[torch.Tensor]
) -> None:
    """Refuse a value that depends on globals, or a closure, that require grad.

    Seen are those that the function itself names, not those of functions that it calls.

    Raises:
        TypeError: it depends on one.
    """
    found = [(name, tensor.grad_fn or tensor) for name, tensor in _outside(func)]
    if not found:
        return  # the rule, and free: no graph to walk
    # Functions that were sent with their globals (by Ray) have inputs for them.
    known = {id(tensor) for tensor in inputs}
    outside = {id(origin): name for name, origin in found if id(origin) not in known}
    seen, todo = set(), [value.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        name = outside.get(id(getattr(node, "variable", node)))
        if name is not None:
            raise TypeError(
                f"{who}: expected gradients for arguments only, got a result that depends on "
                f"{name}, which requires grad and is none; pass it as an argument, or detach it"
            )
        todo.extend(following for following, _ in node.next_functions)


def _outside(func: Callable[..., Any]) -> Iterator[tuple[str, torch.Tensor]]:
    func = inspect.unwrap(func)
    if not inspect.isfunction(func):
        return
    found = {name: func.__globals__.get(name) for name in func.__code__.co_names}
    for name, cell in zip(func.__code__.co_freevars, func.__closure__ or (), strict=True):
        found[name] = next(iter(_content(cell)), None)
    for name, thing in found.items():
        tensors = [thing] if isinstance(thing, torch.Tensor) else []
        if isinstance(thing, nn.Module):
            tensors = list(thing.parameters())
        yield from ((name, tensor) for tensor in tensors if tensor.requires_grad)


def _content(cell: Any) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # empty yet
        return []
