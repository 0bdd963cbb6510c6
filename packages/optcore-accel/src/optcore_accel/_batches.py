# SPDX-License-Identifier: Apache-2.0
"""Batches: of ``torch.func.vmap`` over a node, and of autograd's own over its backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from functools import wraps
from typing import Any

import torch


def one_by_one(info: Any, node: Any, plan: Any, tensors: Sequence[Any], dims: Any) -> Any:
    """Scalars differ or are differentiated: each example has a call of its own."""
    size = info.batch_size

    def example(tensor: Any, dim: int | None, b: int) -> Any:
        if dim is None:
            return tensor
        if not size:  # no example to go by, but shapes are wanted
            return tensor.new_zeros(tensor.movedim(dim, 0).shape[1:])
        return tensor.select(dim, b)

    rows = []
    for b in range(max(size, 1)):
        rows.append(node.apply(plan, *(example(*pair, b) for pair in zip(tensors, dims))))
    found = tuple(torch.stack(column)[:size] for column in zip(*rows, strict=True))
    return found, (0,) * len(found)


def folded(info: Any, plan: Any, tensors: Sequence[Any], dims: Any) -> tuple[list[Any], list[bool]]:
    """Batched leaves with their batch in front, as larger leaves; which leaves those are."""
    first, leaves = plan.tensors, plan.leaves
    result = list(tensors)
    members = [range(first + leaf, len(tensors), leaves) for leaf in range(leaves)]
    batched = [any(dims[i] is not None for i in own) for own in members]
    for own in (own for own, b in zip(members, batched, strict=True) if b):
        for i in own:
            if tensors[i] is None:
                continue
            if dims[i] is None:
                result[i] = tensors[i].expand(info.batch_size, *tensors[i].shape)
            else:
                result[i] = tensors[i].movedim(dims[i], 0)
    return result, batched


def by_example(backward: Any) -> Any:
    """A ``backward`` that also takes ``torch.autograd.grad(is_grads_batched=True)``.

    The batches of that are of an older kind, which no ``vmap`` of a Function sees: here they become
    batches of ``torch.func.vmap``.
    """

    @wraps(backward)
    def both(ctx: Any, *cotangents: torch.Tensor | None) -> tuple[Any, ...]:
        level = torch._C._vmapmode_increment_nesting() - 1
        torch._C._vmapmode_decrement_nesting()
        batched = torch._C._functorch.is_legacy_batchedtensor
        if not level or not any(batched(c) for c in cotangents if c is not None):
            return backward(ctx, *cotangents)
        there = [i for i, c in enumerate(cotangents) if c is not None]
        one = next(c for c in cotangents if c is not None and batched(c))
        size = torch._remove_batch_dim(one, level, 1, 0).shape[0]  # its own, as it has one
        given = [torch._remove_batch_dim(cotangents[i], level, size, 0) for i in there]
        results: list[Any] = []

        def example(*given: torch.Tensor) -> tuple[torch.Tensor, ...]:
            full: list[Any] = [None] * len(cotangents)
            for i, cotangent in zip(there, given, strict=True):
                full[i] = cotangent
            results[:] = backward(ctx, *full)
            return tuple(x for x in results if x is not None)

        found = iter(torch.func.vmap(example)(*given))
        return tuple(
            None if x is None else torch._add_batch_dim(next(found), 0, level) for x in results
        )

    return both
