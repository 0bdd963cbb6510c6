# SPDX-License-Identifier: Apache-2.0
"""One autograd.Function for everything that is defined by an equation instead of a formula.

A *rule* knows how to solve its equation and the derivative of the solution:

* ``run(inputs) -> (solution, aux)``: numbers only; nothing of it is differentiated;
* ``backward(solution, inputs, cotangents, wanted) -> grads``, one for each wanted input;
* ``jvp(solution, inputs, tangents) -> solution's tangents``; a tangent may be None;
* ``settings``: what the node of the solution tells besides how its solves went.

``backward`` and ``jvp`` are written in differentiable operations of the tensors they are given.
Among these is the solution itself, which autograd knows as this Function's output, so that higher
derivatives follow by recursion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import torch

# torch.func has no public way to step below a level.
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import forward_ad

from optdiff._statistics import Statistics, collected
from optdiff._tracking import innermost_transform, is_tracked, refuse_legacy_batch
from optdiff._uncompiled import uncompiled

Leaves: TypeAlias = tuple[torch.Tensor, ...]


class Rule(Protocol):
    """An equation whose solution has a derivative."""

    @property
    def settings(self) -> Mapping[str, str]:
        """Who solves it, and how."""

    def run(self, inputs: Leaves) -> tuple[Leaves, Leaves]:
        """Solve; gives the solution and tensors that carry no derivative."""

    def backward(
        self, solution: Leaves, inputs: Leaves, cotangents: Leaves, wanted: Sequence[int]
    ) -> Leaves:
        """Pull cotangents of the solution back to the wanted inputs."""

    def jvp(
        self, solution: Leaves, inputs: Leaves, tangents: Sequence[torch.Tensor | None]
    ) -> Leaves:
        """Push tangents of the inputs forward to the solution."""


def solve_by_rule(rule: Rule, inputs: Sequence[torch.Tensor]) -> tuple[Leaves, Leaves]:
    """Solution and aux of a rule; the solution is differentiable in the inputs."""
    if any(value.is_complex() and is_tracked(value) for value in inputs):
        raise TypeError(
            "implicit differentiation: expected real floating tensors to differentiate in, got a "
            "complex one; pass torch.view_as_real of it"
        )
    count = _Count()
    outputs = _Implicit.apply(rule, count, *inputs)
    return outputs[: count.solution], outputs[count.solution :]


class _Count:
    """What is known only once a Function has run: how many outputs are the solution, and how."""

    solution: int
    solves: Statistics


class _Implicit(torch.autograd.Function):
    @staticmethod
    def forward(rule: Rule, count: _Count, *inputs: torch.Tensor) -> Leaves:
        with torch.enable_grad(), collected() as count.solves:
            solution, aux = rule.run(tuple(value.detach() for value in inputs))
        count.solution = len(solution)
        return tuple(value.detach() for value in (*solution, *aux))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Leaves) -> None:
        ctx.rule, count, *tensors = inputs
        ctx.count, ctx.aux = count.solution, len(output) - count.solution
        ctx.statistics = {**ctx.rule.settings, **count.solves}
        ctx.mark_non_differentiable(*output[ctx.count :])
        ctx.save_for_backward(*output[: ctx.count], *tensors)
        ctx.save_for_forward(*output[: ctx.count], *tensors)

    @staticmethod
    @uncompiled
    def backward(ctx: Any, *cotangents: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        refuse_legacy_batch(cotangents)
        # A backward may run after the level that it was recorded at: its tensors are wrapped still.
        saved, cotangents = (
            unwrap_dead_wrappers(ctx.saved_tensors),
            unwrap_dead_wrappers(cotangents),
        )
        solution, inputs = saved[: ctx.count], saved[ctx.count :]
        wanted = [
            index
            for index, needed in enumerate(ctx.needs_input_grad[2:])
            if needed and inputs[index].is_floating_point()
        ]
        grads: list[torch.Tensor | None] = [None] * len(inputs)
        if wanted:
            with collected("backward ") as solves:
                found = ctx.rule.backward(solution, inputs, cotangents[: ctx.count], wanted)
            ctx.statistics.update(solves)
            for index, grad in zip(wanted, found, strict=True):
                grads[index] = grad
        return (None, None, *grads)

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        refuse_legacy_batch(tangents[2:])
        values = (*ctx.saved_tensors, *tangents[2:])

        def derive(values: Sequence[torch.Tensor | None]) -> Leaves:
            solution, rest = values[: ctx.count], values[ctx.count :]
            inputs, moving = rest[: len(rest) // 2], rest[len(rest) // 2 :]
            real = [
                tangent if value.is_floating_point() else None
                for value, tangent in zip(inputs, moving, strict=True)
            ]
            return ctx.rule.jvp(tuple(solution), tuple(inputs), real)

        return (*_below_this_level(derive, values), *[None] * ctx.aux)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], rule: Rule, count: _Count, *inputs: torch.Tensor
    ) -> tuple[Leaves, tuple[int, ...]]:
        batched = _Batched(rule, in_dims[2:], info.randomness)
        outputs = _Implicit.apply(batched, count, *inputs)
        return outputs, (0,) * len(outputs)


class _Batched:
    """A rule for a batch of equations: each of its methods, mapped.

    The equations do not meet, so neither do the derivatives; an input that all of them share
    collects the sum of what each gives.
    """

    def __init__(self, rule: Rule, in_dims: tuple[int | None, ...], randomness: str) -> None:
        self.rule = rule
        self.in_dims = in_dims
        self.randomness = randomness

    @property
    def settings(self) -> Mapping[str, str]:
        return self.rule.settings

    def run(self, inputs: Leaves) -> tuple[Leaves, Leaves]:
        return torch.vmap(self.rule.run, in_dims=(self.in_dims,), randomness=self.randomness)(
            inputs
        )

    def backward(
        self, solution: Leaves, inputs: Leaves, cotangents: Leaves, wanted: Sequence[int]
    ) -> Leaves:
        def one(solution: Leaves, inputs: Leaves, cotangents: Leaves) -> Leaves:
            return self.rule.backward(solution, inputs, cotangents, wanted)

        grads = torch.vmap(one, in_dims=(0, self.in_dims, 0), randomness=self.randomness)(
            solution, inputs, cotangents
        )
        dims = (self.in_dims[index] for index in wanted)
        return tuple(
            grad.sum(0) if dim is None else grad.movedim(0, dim)
            for grad, dim in zip(grads, dims, strict=True)
        )

    def jvp(
        self, solution: Leaves, inputs: Leaves, tangents: Sequence[torch.Tensor | None]
    ) -> Leaves:
        moving = [index for index, tangent in enumerate(tangents) if tangent is not None]

        def one(solution: Leaves, inputs: Leaves, moved: Leaves) -> Leaves:
            each: list[torch.Tensor | None] = [None] * len(inputs)
            for index, tangent in zip(moving, moved, strict=True):
                each[index] = tangent
            return self.rule.jvp(solution, inputs, each)

        dims = (0, self.in_dims, tuple(self.in_dims[index] for index in moving))
        moved = tuple(tangents[index] for index in moving)
        return torch.vmap(one, in_dims=dims, randomness=self.randomness)(solution, inputs, moved)


def _below_this_level(
    derive: Callable[[Sequence[torch.Tensor | None]], Leaves],
    values: Sequence[torch.Tensor | None],
) -> Leaves:
    """Call a rule's jvp where outer transforms see it.

    Inside a Function's jvp torch has forward mode switched off at every level, so an outer
    forward-mode transform would get zero from it. Work below this level, with everything on.
    """
    transform = innermost_transform()
    if transform is None:
        return derive(values)
    level = transform.level()
    inner = [None if v is None else torch._C._functorch._unwrap_for_grad(v, level) for v in values]
    with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True), transform.lower():
        outputs = derive(inner)
    return tuple(torch._C._functorch._wrap_for_grad(out, level) for out in outputs)
