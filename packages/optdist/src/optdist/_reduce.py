# SPDX-License-Identifier: Apache-2.0
"""Putting the results of chunks together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

Reducer = Callable[..., Any]


def mean_reducer(
    results: Iterable[torch.Tensor], weights: Sequence[float] | None = None
) -> torch.Tensor:
    r"""Average, weighted by how many rows each result is the mean of.

    .. math:: \bar r = \sum_i w_i r_i / \sum_i w_i

    Args:
        results: Tensors of one shape.
        weights: One number each, such as rows; equal if not given.

    Differentiable: in the results.

    Raises:
        ValueError: there are no results, not one weight each, or weights that add up to 0.
        TypeError: a result is not a tensor of floating-point or complex numbers.

    Example:
        >>> mean_reducer([torch.tensor(1.0), torch.tensor(4.0)], weights=[2, 1])
        tensor(2.)
    """
    stacked = _stacked("mean_reducer", results)
    if not (stacked.is_floating_point() or stacked.is_complex()):
        raise TypeError(
            f"mean_reducer: expected floating-point numbers, got {stacked.dtype}; convert them"
        )
    if weights is None:
        return stacked.mean(dim=0)
    if len(weights) != len(stacked):
        raise ValueError(
            f"mean_reducer: expected {len(stacked)} weights, one a result, got {len(weights)}"
        )
    if not sum(weights):
        raise ValueError("mean_reducer: expected weights whose sum is not 0, got a sum of 0")
    shares = torch.tensor(list(weights), dtype=torch.float64, device=stacked.device)
    return weighted_sum(shares / shares.sum(), stacked)


def weighted_sum(weights: torch.Tensor, stacked: torch.Tensor) -> torch.Tensor:
    """Add up along the first dimension; not as a product, which ``torch.autocast`` would round."""
    weights = weights.to(stacked.dtype).view(-1, *[1] * (stacked.dim() - 1))
    return (weights * stacked).sum(0)


def sum_reducer(results: Iterable[torch.Tensor]) -> torch.Tensor:
    r"""Add up: :math:`\sum_i r_i`.

    Differentiable: in the results.

    Raises:
        ValueError: there are no results.

    Example:
        >>> sum_reducer([torch.tensor(1.0), torch.tensor(4.0)])
        tensor(5.)
    """
    return _stacked("sum_reducer", results).sum(dim=0)


def _stacked(who: str, results: Iterable[torch.Tensor]) -> torch.Tensor:
    found = list(results)
    if not found:
        raise ValueError(f"{who}: expected at least one result, got none")
    if wrong := [type(r).__name__ for r in found if not isinstance(r, torch.Tensor)]:
        raise TypeError(f"{who}: expected tensors, got {wrong[0]}")
    return torch.stack(found)


def shares_of(reducer: Reducer, rows: Sequence[float] | None, count: int) -> list[float] | None:
    """Return what each chunk counts in the result, where the reducer is one of ours."""
    if reducer is sum_reducer:
        return [1.0] * count
    if reducer is mean_reducer:
        weights = list(rows) if rows else [1.0] * count
        return [weight / sum(weights) for weight in weights]
    return None
