# SPDX-License-Identifier: Apache-2.0
"""Inner products over lists of tensors, and the inverse Hessian of L-BFGS made of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch

from optcore._leafwise import fit

Vector = Sequence["torch.Tensor | None"]  # the leaves of a tree; None where there is no gradient


class Pair(NamedTuple):
    """What one step told about the curvature."""

    step: Vector  # s, the change of the parameters
    change: Vector  # y, the change of the gradient
    weight: Any  # 1 / (s . y), or 0 for a pair that does not count


def inner(xs: Vector, ys: Vector) -> torch.Tensor:
    """Sum of products over all leaves that both have, at least in float32."""
    parts = [_dot(x, y) for x, y in zip(xs, ys, strict=True) if x is not None and y is not None]
    if not parts:
        return torch.zeros(())
    dtype = reduce(torch.promote_types, (part.dtype for part in parts))
    return reduce(torch.add, (part.to(parts[0].device, dtype) for part in parts))


def _dot(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    return torch.dot(x.to(dtype).reshape(-1), y.to(dtype).reshape(-1))


def two_loop(
    vector: Vector, pairs: Sequence[Pair], scale: Any, inplace: bool = False
) -> list[torch.Tensor | None]:
    r"""The inverse Hessian of L-BFGS times a vector: Nocedal and Wright, Algorithm 7.4.

    Args:
        vector: A gradient; it is not overwritten.
        pairs: The oldest first.
        scale: :math:`\gamma`, the inverse Hessian before the first pair.
        inplace: Whether the result is built in one buffer, without a graph.
    """
    result = [None if v is None else v.clone() for v in vector] if inplace else list(vector)
    alphas = []
    for step, change, weight in reversed(pairs):
        alphas.append(weight * inner(step, result))
        result = _plus(result, change, -alphas[-1], inplace)
    for i, r in enumerate(result):
        if r is not None:
            result[i] = r.mul_(fit(scale, r)) if inplace else r * fit(scale, r)
    for step, change, weight in pairs:
        result = _plus(result, step, alphas.pop() - weight * inner(change, result), inplace)
    return result


def _plus(xs: Vector, ys: Vector, scale: torch.Tensor, inplace: bool) -> list[torch.Tensor | None]:
    return [
        None
        if x is None
        else torch.addcmul(x, y.to(x.dtype), fit(scale, x).to(x.dtype), out=x if inplace else None)
        for x, y in zip(xs, ys, strict=True)
    ]
