# SPDX-License-Identifier: Apache-2.0
"""Norms of tensors and trees, exact and finite at zero, and products with a coefficient of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch

from optcore._leafwise import check_gradient, fit, leafwise
from optcore._modes import under_transform
from optcore._tree import Tree, tree_leaves, tree_map


def global_norm(updates: Tree) -> torch.Tensor:
    r"""Euclidean norm of all leaves together: :math:`\sqrt{\sum_i g_i^2}`.

    Half precision is squared and summed in float32.

    Args:
        updates: Tree of tensors; None leaves count nothing.

    Returns:
        A tensor ``()``, on the device of the first leaf.

    Differentiable:
        Twice. Where all is zero both derivatives are 0.

    Raises:
        TypeError: A leaf that is no dense, real, floating tensor.

    Example:
        >>> global_norm({"a": torch.tensor([3.0]), "b": torch.tensor([0.0, 4.0])})
        tensor(5.)
    """
    return total_norm("global_norm", updates, 2.0)


def total_norm(who: str, updates: Tree, order: float, inplace: bool = False) -> torch.Tensor:
    """The norm of some order of all leaves together; in place nothing is differentiated."""
    leaves = [leaf for leaf in tree_leaves(updates) if leaf is not None]
    for leaf in leaves:
        check_gradient(who, leaf)
    leaves = [_wide(leaf) for leaf in leaves if leaf.numel()]
    if inplace and leaves and not under_transform():
        return torch.linalg.vector_norm(_stack(torch._foreach_norm(leaves, order)), order)
    if order == math.inf:
        return _stack([leaf.abs().amax() for leaf in leaves]).amax()
    if order == 2:
        return safe_sqrt(_stack([leaf.square().sum() for leaf in leaves]).sum())
    return _root(_stack([_powers(leaf, order).sum() for leaf in leaves]).sum(), order)


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _stack(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    if not parts:
        return torch.zeros(1)
    dtype = reduce(torch.promote_types, (part.dtype for part in parts))
    return torch.stack([part.to(parts[0].device, dtype) for part in parts])


def _powers(x: torch.Tensor, order: float) -> torch.Tensor:
    zero = x == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, x).abs() ** order)


def _root(x: torch.Tensor, order: float) -> torch.Tensor:
    zero = x == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, x) ** (1 / order))


def safe_sqrt(square: torch.Tensor) -> torch.Tensor:
    """Square root that is exactly 0 at 0, as its derivatives are there."""
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())


def block_norm(x: torch.Tensor) -> torch.Tensor:
    """Euclidean norm of one tensor."""
    return safe_sqrt(_wide(x).square().sum())


def block_rms(x: torch.Tensor) -> torch.Tensor:
    """Root of the mean square of one tensor; 0 if it is empty."""
    return safe_sqrt(_wide(x).square().sum() / max(x.numel(), 1))


def unitwise_norm(x: torch.Tensor, axis: int | tuple[int, ...] | None = None) -> torch.Tensor:
    r"""Euclidean norm of the weights of each output unit.

    Args:
        x: A weight as torch.nn lays it out: ``(out, ...)``. What has at most one dimension longer
            than 1 is one unit.
        axis: The dimensions to sum over, instead of all but the first.

    Returns:
        The norms, expanded to the shape of ``x``; of half precision in float32.

    Differentiable:
        Twice. Where a unit is all zero both derivatives are 0.

    Differs:
        optax takes the output dimension to be the last one, as its layers lay weights out.

    Example:
        >>> unitwise_norm(torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
        tensor([[5., 5.],
                [2., 2.]])

    Reference:
        Brock et al., 2021, arXiv:2102.06171, section 4.
    """
    if axis is None:
        single = sum(size != 1 for size in x.shape) <= 1
        axis = tuple(range(0 if single else 1, x.ndim))
    square = _wide(x).square()
    if x.ndim:  # over no dimensions, sum would sum over all
        square = square.sum(axis, keepdim=True)
    return safe_sqrt(square).expand_as(x)


def at_least(value: torch.Tensor, low: Any) -> torch.Tensor:
    """The larger of a norm and a bound; no derivative reaches a norm that is not above it."""
    return torch.where(value > low, value, low)


def limit(norm: torch.Tensor, largest: Any) -> torch.Tensor:
    """What brings a norm down to ``largest``: 1 if it is there, else their ratio."""
    over = ~(norm <= largest)  # a norm that is NaN stays visible
    return torch.where(over, largest / torch.where(over, norm, 1.0), 1.0)


def inverse(norm: torch.Tensor) -> torch.Tensor:
    """``1 / norm``, and 0 at 0."""
    zero = norm == 0
    return torch.where(zero, 0.0, 1 / torch.where(zero, 1.0, norm))


def multiply(who: str, updates: Tree, coefficient: Any) -> Tree:
    """Each leaf times a coefficient: one tensor, or a tree that is a prefix of the updates."""
    return leafwise(who, _product, updates, coefficient=coefficient)[0]


def _product(grad: torch.Tensor, *, coefficient: torch.Tensor) -> torch.Tensor:
    return times(grad, coefficient)


def times(grad: torch.Tensor, coefficient: torch.Tensor) -> torch.Tensor:
    """Product in the dtype of the first factor."""
    return (grad * fit(coefficient, grad)).to(grad.dtype)


def per_prefix(fn: Callable[[Any], Any], hyperparam: Any) -> Any:
    """``fn`` of a hyperparameter, or of each leaf if it is a prefix tree."""
    return tree_map(fn, hyperparam)
