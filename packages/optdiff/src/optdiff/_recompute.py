# SPDX-License-Identifier: Apache-2.0
"""Functions of tensors that keep their inputs only, and are run again for every derivative."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch.autograd import forward_ad

from optdiff._tracking import transform_depth
from optdiff._uncompiled import uncompiled

Tensors = Sequence[torch.Tensor]
Results = tuple[torch.Tensor, ...]


class Repeatable(Protocol):
    """A function that gives the same results however often it is called."""

    differentiable: tuple[bool, ...]  # which results have a derivative; known after the first call
    outside: int  # levels of torch.func transforms that may not be taken for those inside

    def __call__(self, tensors: Tensors, graph: bool) -> Results:
        """The results: without history, or with ``graph`` connected to inputs that require grad."""


@uncompiled
def recomputed(function: Repeatable, *tensors: torch.Tensor) -> Results:
    r"""``function(tensors)``, whose derivatives are computed by running it again.

    Only the inputs are kept. The pullback :math:`(x, \bar y) \mapsto \bar y\,\partial f(x)` is a
    repeatable function too and goes the same way, so derivatives of every order keep nothing but
    inputs, in torch.autograd, torch.func and forward mode alike.
    """
    return _Recomputed.apply(function, *tensors)


def is_continuous(tensor: torch.Tensor) -> bool:
    """Whether its type can be differentiated in."""
    return tensor.is_floating_point() or tensor.is_complex()


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(function: Repeatable, *tensors: torch.Tensor) -> Results:
        given = {id(tensor) for tensor in tensors}
        results = function(tensors, False)
        # autograd cannot save an input that is a result too, such as a cotangent handed through
        return tuple(r.view_as(r) if id(r) in given else r for r in results)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Results) -> None:
        ctx.function, *tensors = inputs
        fixed = [not smooth for smooth in ctx.function.differentiable]
        ctx.mark_non_differentiable(*_chosen(output, fixed))
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        tensors = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[1:])
        moving = _chosen(cotangents, ctx.function.differentiable)
        found = iter(recomputed(_Pullback(ctx.function, wanted), *tensors, *moving))
        return (None, *(next(found) if need else None for need in wanted))

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        tensors = ctx.saved_tensors
        moves = [
            tangent is not None and is_continuous(tensor)
            for tangent, tensor in zip(tangents, tensors, strict=True)
        ]
        pushforward = _Pushforward(ctx.function, moves)
        found = iter(recomputed(pushforward, *tensors, *_chosen(tangents, moves)))
        return tuple(next(found) if smooth else None for smooth in ctx.function.differentiable)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], function: Repeatable, *tensors: torch.Tensor
    ) -> tuple[Results, tuple[int, ...]]:
        results = recomputed(_Batched(function, in_dims[1:], info), *tensors)
        return results, (0,) * len(results)


class _Pullback:
    """``(inputs, cotangents) -> gradients`` of a function, for the inputs that are wanted."""

    def __init__(self, function: Repeatable, wanted: Sequence[bool]) -> None:
        self._function = function
        self._wanted = wanted
        self.differentiable = (True,) * sum(wanted)
        self.outside = 0

    def __call__(self, tensors: Tensors, graph: bool) -> Results:
        inputs, cotangents = tensors[: len(self._wanted)], tensors[len(self._wanted) :]
        if transform_depth():  # tensors of a transform have no graph of their own
            smooth = _smooth(self._function, inputs, self._wanted)
            return torch.func.vjp(smooth, *_chosen(inputs, self._wanted))[1](cotangents)
        own = [
            _connected(tensor, graph) if wanted else (tensor if graph else tensor.detach())
            for tensor, wanted in zip(inputs, self._wanted, strict=True)
        ]
        with torch.enable_grad():
            results = _smooth(self._function, own, self._wanted)(*_chosen(own, self._wanted))
        pairs = [(r, c) for r, c in zip(results, cotangents, strict=True) if r.requires_grad]
        if not pairs:
            return tuple(map(torch.zeros_like, _chosen(own, self._wanted)))
        return torch.autograd.grad(
            [result for result, _ in pairs],
            _chosen(own, self._wanted),
            [cotangent for _, cotangent in pairs],
            create_graph=graph,
            materialize_grads=True,
        )


class _Pushforward:
    """``(inputs, tangents) -> tangents of the results``, for the inputs that move."""

    def __init__(self, function: Repeatable, moves: Sequence[bool]) -> None:
        self._function = function
        self._moves = moves
        self.differentiable = (True,) * sum(function.differentiable)
        self.outside = 0

    def __call__(self, tensors: Tensors, graph: bool) -> Results:
        inputs, tangents = tensors[: len(self._moves)], tensors[len(self._moves) :]
        if not self.differentiable:
            return ()
        if transform_depth():
            smooth = _smooth(self._function, inputs, self._moves)
            chosen = tuple(_chosen(inputs, self._moves))
            return torch.func.jvp(smooth, chosen, tuple(tangents))[1]
        own = inputs if graph else [tensor.detach() for tensor in inputs]
        # torch.func.jvp refuses to run inside the dual level that this may be called from
        inside = forward_ad._current_level >= 0
        with (
            nullcontext() if inside else forward_ad.dual_level(),
            forward_ad._set_fwd_grad_enabled(True),
            torch.enable_grad(),
        ):
            duals = [
                forward_ad.make_dual(_connected(tensor, graph), tangent)
                for tensor, tangent in zip(_chosen(own, self._moves), tangents, strict=True)
            ]
            results = _smooth(self._function, own, self._moves)(*duals)
            pairs = [forward_ad.unpack_dual(result) for result in results]
        found = [torch.zeros_like(p) if t is None else t for p, t in pairs]
        return tuple(found if graph else [tangent.detach() for tangent in found])


class _Batched:
    """A function under vmap, as a function of the batched tensors."""

    def __init__(self, function: Repeatable, in_dims: Sequence[int | None], info: Any) -> None:
        self._function = function
        self._in_dims = tuple(in_dims)
        self._randomness = info.randomness
        self.outside = function.outside

    @property
    def differentiable(self) -> tuple[bool, ...]:
        return self._function.differentiable

    def __call__(self, tensors: Tensors, graph: bool) -> Results:
        def one(*single: torch.Tensor) -> Results:
            return self._function(single, graph)

        if not graph:
            tensors = [tensor.detach() for tensor in tensors]
        call: Callable[..., Results] = torch.vmap(one, self._in_dims, randomness=self._randomness)
        for _ in range(self.outside - transform_depth()):
            call = _one_level_up(call)
        return call(*tensors)


def _one_level_up(function: Callable[..., Results]) -> Callable[..., Results]:
    """The function inside a vmap over nothing, so that its own transforms have higher levels."""

    def call(*tensors: torch.Tensor) -> Results:
        return torch.vmap(lambda _: function(*tensors), randomness="same", out_dims=None)(
            torch.zeros(1)
        )

    return call


def _smooth(
    function: Repeatable, inputs: Tensors, choice: Sequence[bool]
) -> Callable[..., Results]:
    """What the function makes of the chosen inputs and can be differentiated."""

    def smooth(*new: torch.Tensor) -> Results:
        results = function(_merged(inputs, choice, new), True)
        return tuple(_chosen(results, function.differentiable))

    return smooth


def _connected(tensor: torch.Tensor, graph: bool) -> torch.Tensor:
    """The tensor as an input of its own that requires grad."""
    if graph and tensor.requires_grad:
        return tensor.view_as(tensor)
    return tensor.detach().requires_grad_()


def _chosen(values: Sequence[Any], choice: Sequence[bool]) -> list[Any]:
    return [value for value, chosen in zip(values, choice, strict=True) if chosen]


def _merged(values: Tensors, choice: Sequence[bool], new: Tensors) -> list[torch.Tensor]:
    fresh = iter(new)
    return [next(fresh) if chosen else value for value, chosen in zip(values, choice, strict=True)]
