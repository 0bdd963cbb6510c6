# SPDX-License-Identifier: Apache-2.0
"""An autograd.Function whose derivative is an estimate from values of the function alone.

The estimate is an output of its own. So it is made where the value is, once, and whoever
differentiates the first derivative arrives in ``backward`` with a cotangent for it and is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.autograd import forward_ad

from optdiff._tracking import innermost_transform
from optdiff._zero_order_batches import Leaves, Level
from optdiff._zero_order_estimate import Problem
from optdiff._zero_order_settings import Settings


def value_by_estimate(problem: Problem, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The function's value; its derivative in the moving tensors is an estimate."""
    return _ZeroOrder.apply(problem, *tensors, *_examples(problem.settings))[0]


def _examples(settings: Settings) -> Leaves:
    """A tensor batched by every vmap whose examples have noise of their own.

    A vmap passes over a Function none of whose tensors it has batched, which would then draw once.

    Raises:
        RuntimeError: A vmap has randomness="error".
    """
    if innermost_transform() is None or settings.method == "finite_difference":
        return ()
    if forward_ad._current_level >= 0:  # to be refused
        return ()
    try:
        return (torch.rand((), generator=torch.Generator()),)
    except RuntimeError as error:
        raise RuntimeError(
            f"{settings.who}: expected vmap(randomness='same') or 'different', got 'error': say "
            "whether the examples share their noise"
        ) from error


class _ZeroOrder(torch.autograd.Function):
    @staticmethod
    def forward(problem: Problem, *tensors: torch.Tensor) -> Leaves:
        with torch.enable_grad():  # the function may differentiate something inside
            value, estimates = problem.estimate([tensor.detach() for tensor in tensors])
        return (value.detach().clone(), *(estimate.detach() for estimate in estimates))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Leaves) -> None:
        problem, ctx.count = inputs[0], len(inputs)
        # Not the problem: its function may hold what holds the result, a cycle past Python's reach.
        settings, ctx.moving = problem.settings, problem.moving
        ctx.who = settings.who
        ctx.statistics = problem.statistics(output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output[1:])

    @staticmethod
    def backward(
        ctx: Any, cotangent: torch.Tensor | None, *second: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        if any(part is not None for part in second):
            raise NotImplementedError(
                f"{ctx.who}: expected a first derivative, got a second one, which the estimate "
                "does not have; detach the first (first_order=True in Meta optimizers)"
            )
        grads: list[torch.Tensor | None] = [None] * ctx.count
        if cotangent is not None:
            for index, estimate in zip(ctx.moving, ctx.saved_tensors, strict=True):
                ones = [1] * (estimate.ndim - cotangent.ndim)
                scale = cotangent.reshape((*cotangent.shape, *ones))
                grads[1 + index] = scale.to(estimate) * estimate
        return tuple(grads)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> None:
        raise NotImplementedError(
            f"{ctx.who}: expected reverse mode, got forward mode; use "
            "torch.func.grad, vjp or jacrev"
        )

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], problem: Problem, *tensors: torch.Tensor
    ) -> tuple[Leaves, tuple[int, ...]]:
        size = info.batch_size
        moved = [
            tensor.expand((size, *tensor.shape)) if dim is None else tensor.movedim(dim, 0)
            for tensor, dim in zip(tensors, in_dims[1:], strict=True)
        ]
        level = Level(size, info.randomness)
        outputs = _ZeroOrder.apply(replace(problem, levels=(level, *problem.levels)), *moved)
        return outputs, (0,) * len(outputs)
