# SPDX-License-Identifier: Apache-2.0
"""An autograd.Function whose derivative is an estimate from values of the function alone.

The estimate is an output of its own. So it is made where the value is, once, and whoever
differentiates the first derivative arrives in ``backward`` with a cotangent for it and is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, NamedTuple, TypeAlias

import torch
from torch.autograd import forward_ad

from optcore import describe
from optdiff._directions import centered_ranks, draw, orthogonal_blocks
from optdiff._reads import Reads
from optdiff._tracking import innermost_transform, is_tracked
from optdiff._zero_order_settings import Settings

Leaves: TypeAlias = tuple[torch.Tensor, ...]


class Level(NamedTuple):
    """One vmap around the function."""

    size: int
    randomness: str


@dataclass(frozen=True)
class Problem:
    """A function of tensors, which of them move and how far; the outermost level comes first."""

    settings: Settings
    fn: Callable[[Sequence[torch.Tensor]], Any]
    moving: tuple[int, ...]
    sigmas: tuple[float | torch.Tensor, ...]  # one for each moving tensor
    levels: tuple[Level, ...] = ()

    def value(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """The function itself, ``()``.

        Raises:
            TypeError: It returned no floating tensor and no number.
            ValueError: It returned no scalar.
        """
        who, result = self.settings.who, self.fn(tensors)
        if isinstance(result, Real) and not isinstance(result, bool):
            like = tensors[self.moving[0]]
            return torch.as_tensor(float(result), dtype=like.dtype, device=like.device)
        if not isinstance(result, torch.Tensor) or not result.is_floating_point():
            raise TypeError(
                f"{who}: expected a function that returns a floating tensor, got {describe(result)}"
            )
        if result.ndim:
            raise ValueError(
                f"{who}: expected a function that returns a scalar, got {describe(result)}; reduce "
                "it, e.g. by .mean()"
            )
        return result

    def plain_value(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """The same where nothing that moves is to get a gradient.

        Raises:
            ValueError: Something else would get one.
        """
        if not torch.is_grad_enabled():
            return self.value(tensors)
        with Reads() as reads:
            value = self.value(tensors)
        self._refuse_closed_over(reads, value)
        return value

    def _refuse_closed_over(self, reads: Reads, value: torch.Tensor) -> None:
        found = reads.first()
        if found is None and is_tracked(value):
            found = value  # by an operation that torch does not show, of torch.compile for one
        if found is not None:
            raise ValueError(
                f"{self.settings.who}: expected a function that gets every tensor that requires "
                f"grad as an argument, got one that reads {describe(found)} past them, which would "
                "get no gradient; pass that tensor in args and list its position in argnums, or "
                "detach it (a constant module: module.requires_grad_(False), or torch.no_grad() "
                "in the function)"
            )

    def estimate(self, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, Leaves]:
        """Value and gradient; everything has the sizes of the levels in front."""
        with Reads() as reads:
            center = self._mapped(lambda *one: self.value(one))(*tensors)
        self._refuse_closed_over(reads, center)
        shapes = [tensors[index].shape[len(self.levels) :] for index in self.moving]
        if self.settings.method == "finite_difference":
            return center, self._by_coordinates(tensors, shapes)
        return center, self._by_directions(tensors, shapes, center)

    def _by_directions(
        self, tensors: Sequence[torch.Tensor], shapes: list[torch.Size], center: torch.Tensor
    ) -> Leaves:
        noise = self._noise(tensors, shapes)
        sizes = [level.size for level in self.levels]
        count = len(tensors)

        def along(*both: torch.Tensor) -> torch.Tensor:
            one, directions = both[:count], both[count:]
            return self._sampled(lambda *part: self._around(one, part))(*directions)

        batched = [part.expand((*sizes, *part.shape[len(sizes) :])) for part in noise]
        weights = self._weights(self._mapped(along)(*tensors, *batched), center)
        weights = weights / self.settings.num_samples
        estimates = []
        for part, shape, sigma in zip(noise, shapes, self.sigmas, strict=True):
            rows = part.reshape((*part.shape[: len(sizes) + 1], math.prod(shape)))
            mean = (weights.to(rows).unsqueeze(-2) @ rows).squeeze(-2)
            estimates.append(mean.reshape((*sizes, *shape)) / _like(sigma, mean))
        return tuple(estimates)

    def _by_coordinates(self, tensors: Sequence[torch.Tensor], shapes: list[torch.Size]) -> Leaves:
        sizes = [level.size for level in self.levels]
        counts = [math.prod(shape) for shape in shapes]
        device = tensors[self.moving[0]].device
        coordinates = torch.arange(sum(counts), device=device)

        def along(*both: torch.Tensor) -> torch.Tensor:
            *one, every = both

            def at(coordinate: torch.Tensor) -> torch.Tensor:
                unit = (coordinates == coordinate).split(counts)
                parts = [
                    part.reshape(shape).to(one[index])
                    for part, shape, index in zip(unit, shapes, self.moving, strict=True)
                ]
                return self._around(one, parts)

            return self._sampled(at)(every)

        pairs = self._mapped(along)(*tensors, coordinates.expand((*sizes, -1)))
        slopes = (pairs[..., 0] - pairs[..., 1]) / 2
        estimates = []
        for part, shape, index, sigma in zip(
            slopes.split(counts, dim=-1), shapes, self.moving, self.sigmas, strict=True
        ):
            part = part.to(tensors[index]).reshape((*sizes, *shape))
            estimates.append(part / _like(sigma, part))
        return tuple(estimates)

    def _around(
        self, tensors: Sequence[torch.Tensor], direction: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """The value one step along a direction, and one step back where the method needs it."""
        steps = [part * _like(sigma, part) for part, sigma in zip(direction, self.sigmas)]
        forth = list(tensors)
        for index, step in zip(self.moving, steps):
            forth[index] = tensors[index] + step
        if self.settings.method in ("naive", "forward"):
            return self.value(forth)
        back = list(tensors)
        for index, step in zip(self.moving, steps):
            back[index] = tensors[index] - step
        return torch.stack((self.value(forth), self.value(back)))

    def _noise(self, tensors: Sequence[torch.Tensor], shapes: list[torch.Size]) -> Leaves:
        """Directions ``(..., num_samples, *shape)``; a level that shares them has size 1."""
        settings = self.settings
        sizes = [level.size if level.randomness == "different" else 1 for level in self.levels]
        rows, counts = math.prod(sizes) * settings.num_samples, [math.prod(s) for s in shapes]
        devices = {tensors[index].device for index in self.moving}
        noise = draw(
            settings.who, settings.sample, (rows, sum(counts)), settings.generator, devices
        ).reshape((*sizes, settings.num_samples, sum(counts)))
        if settings.orthogonal:
            noise = orthogonal_blocks(noise)
        return tuple(
            part.reshape((*sizes, settings.num_samples, *shape)).to(tensors[index])
            for part, shape, index in zip(
                noise.split(counts, dim=-1), shapes, self.moving, strict=True
            )
        )

    def _weights(self, values: torch.Tensor, center: torch.Tensor) -> torch.Tensor:
        """What each direction counts, ``(..., num_samples)``."""
        settings = self.settings
        if settings.method == "antithetic":
            if settings.rank_shaping:
                values = centered_ranks(values.flatten(-2)).view_as(values)
            return (values[..., 0] - values[..., 1]) / 2
        if settings.rank_shaping:
            return centered_ranks(values)
        if settings.method == "forward":
            return values - center.unsqueeze(-1)
        if settings.baseline is None:
            return values
        if settings.baseline == "mean":
            others = settings.num_samples / (settings.num_samples - 1)
            return (values - values.mean(-1, keepdim=True)) * others
        return values - settings.baseline

    def _mapped(self, fn: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """``fn`` over all levels."""
        for level in reversed(self.levels):
            fn = self._each(fn, None, level.randomness)
        return fn

    def _sampled(self, fn: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """``fn`` over directions."""
        batched = self._each(fn, self.settings.chunk_size, "different")

        def call(*args: torch.Tensor) -> torch.Tensor:
            try:
                return batched(*args)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                if not self.settings.vectorize:
                    raise
                raise RuntimeError(
                    f"{self.settings.who}: expected a function that vmap can evaluate at all "
                    f"samples at once, got one that fails ({error}); pass vectorize=False"
                ) from error

        return call

    def _each(
        self, fn: Callable[..., torch.Tensor], chunk_size: int | None, randomness: str
    ) -> Callable[..., torch.Tensor]:
        """``fn`` along the first dimension of its arguments."""
        if self.settings.vectorize:
            return torch.vmap(fn, chunk_size=chunk_size, randomness=randomness)
        return lambda *batched: torch.stack([fn(*one) for one in zip(*batched, strict=True)])


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
        ctx.problem, ctx.count = inputs[0], len(inputs)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output[1:])

    @staticmethod
    def backward(
        ctx: Any, cotangent: torch.Tensor | None, *second: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        who = ctx.problem.settings.who
        if any(part is not None for part in second):
            raise NotImplementedError(
                f"{who}: expected a first derivative, got a second one, which the estimate does "
                "not have; detach the first (first_order=True in Meta optimizers)"
            )
        grads: list[torch.Tensor | None] = [None] * ctx.count
        if cotangent is not None:
            for index, estimate in zip(ctx.problem.moving, ctx.saved_tensors, strict=True):
                ones = [1] * (estimate.ndim - cotangent.ndim)
                scale = cotangent.reshape((*cotangent.shape, *ones))
                grads[1 + index] = scale.to(estimate) * estimate
        return tuple(grads)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> None:
        raise NotImplementedError(
            f"{ctx.problem.settings.who}: expected reverse mode, got forward mode; use "
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


def _like(sigma: float | torch.Tensor, tensor: torch.Tensor) -> float | torch.Tensor:
    return sigma.to(tensor) if isinstance(sigma, torch.Tensor) else sigma
