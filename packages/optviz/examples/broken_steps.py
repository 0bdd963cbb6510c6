# SPDX-License-Identifier: Apache-2.0
"""Inner steps of `meta_graph.py`: one that keeps its graph, and six that lose it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

INNER_LR = 0.1
Step: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # from w, phi, x, y


def weighted(w: Tensor, phi: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """An inner loss whose examples have weights."""
    return (phi.sigmoid() * (x @ w - y).square()).mean()


def as_it_should_be(w: Tensor, phi: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """A step that keeps its graph."""
    (g,) = torch.autograd.grad(weighted(w, phi, x, y), w, create_graph=True)
    return w - INNER_LR * g


def without_create_graph(w: Tensor, phi: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The gradient is a number, not a function of phi."""
    (g,) = torch.autograd.grad(weighted(w, phi, x, y), w)
    return w - INNER_LR * g


def detached(w: Tensor, phi: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The gradient has a graph, and is taken off it."""
    (g,) = torch.autograd.grad(weighted(w, phi, x, y), w, create_graph=True)
    return w - INNER_LR * g.detach()


def under_no_grad(w: Tensor, phi: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """As optimizers of torch do it."""
    (g,) = torch.autograd.grad(weighted(w, phi, x, y), w, create_graph=True)
    with torch.no_grad():
        moved = w - INNER_LR * g
    return moved.requires_grad_()


def into_data(w: Tensor, phi: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The weights are overwritten past the graph."""
    (g,) = torch.autograd.grad(weighted(w, phi, x, y), w, create_graph=True)
    w.data.sub_(INNER_LR * g)
    return w


def by_numbers(w: Tensor, phi: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """What phi decides leaves torch on its way: the length of a step."""
    trust = phi.sigmoid().mean().item()
    (g,) = torch.autograd.grad((x @ w - y).square().mean(), w, create_graph=True)
    return w - g * trust


def into_a_parameter(w: Tensor, phi: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """A parameter is a leaf: it forgets what it was made of."""
    (g,) = torch.autograd.grad(weighted(w, phi, x, y), w, create_graph=True)
    return nn.Parameter(w - INNER_LR * g)


STEPS: dict[str, Step] = {
    "as it should be": as_it_should_be,
    "grad without create_graph": without_create_graph,
    "detach": detached,
    "no_grad": under_no_grad,
    "writing into .data": into_data,
    ".item()": by_numbers,
    "nn.Parameter of a tensor": into_a_parameter,
}
