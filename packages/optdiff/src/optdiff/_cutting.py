# SPDX-License-Identifier: Apache-2.0
"""Cutting tensors off the graph they came from."""

from __future__ import annotations

from numbers import Number
from typing import Any

import torch
from torch import nn

import treeops
from optdiff._containers import replace_tensors


def cut(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, outside the graph; itself if it is there already."""
    if tensor.grad_fn is None:
        return tensor
    return tensor.detach().requires_grad_(tensor.requires_grad)


def stop_module(module: nn.Module) -> None:
    """Replace the tensors of a module that have a graph."""
    new: dict[int, torch.Tensor] = {}
    for owner in module.modules():
        for tensor in owner._parameters.values():
            if tensor is not None and tensor.grad_fn is not None:
                new[id(tensor)] = nn.Parameter(tensor.detach(), tensor.requires_grad)
        for tensor in owner._buffers.values():
            if tensor is not None and tensor.grad_fn is not None:
                new[id(tensor)] = cut(tensor)
    replace_tensors(module, new)


def stop_tree(tree: Any) -> None:
    """Detach the tensors of a tree in place.

    Raises:
        TypeError: A leaf is no tensor, number or None.
        ValueError: One is a view.
    """
    paths, leaves, _ = treeops.tree_flatten_with_path(tree, none_is_leaf=True, namespace="optcore")
    for path, leaf in zip(paths, leaves, strict=True):
        if not isinstance(leaf, (torch.Tensor, Number, type(None))):
            where = "".join(f"[{key!r}]" for key in path)
            raise TypeError(
                "stop_gradient: expected modules, optimizers or trees of tensors, got "
                f"{type(leaf).__name__}{where and f', at {where}'}; give the module instead of its "
                "parameters()"
            )
    tensors = [
        leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.grad_fn is not None
    ]
    for tensor in tensors:
        if tensor._is_view():
            raise ValueError(
                "stop_gradient: expected tensors that torch can detach in place, got a view; "
                "replace it by view.detach()"
            )
    for tensor in tensors:
        requires_grad = tensor.requires_grad
        tensor.detach_().requires_grad_(requires_grad)
