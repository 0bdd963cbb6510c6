# SPDX-License-Identifier: Apache-2.0
"""A function's value and an estimate of its gradient, from values alone."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeAlias

import torch

from optcore import describe
from optdiff._directions import centered_ranks, draw, orthogonal_blocks
from optdiff._random_states import Draws
from optdiff._reads import Reads
from optdiff._repeats import foreign_leaves
from optdiff._statistics import Statistics
from optdiff._tracking import is_differentiated_by_transform
from optdiff._zero_order_batches import Leaves, Level, over_levels, over_samples
from optdiff._zero_order_settings import Settings

Sigma: TypeAlias = float | torch.Tensor
_BOTH_WAYS = ("antithetic", "finite_difference")  # methods with a step back for each step forth


@dataclass(frozen=True)
class Problem:
    """A function of tensors, which of them move and how far; the outermost level comes first."""

    settings: Settings
    fn: Callable[[Sequence[torch.Tensor]], Any]
    moving: tuple[int, ...]
    sigmas: tuple[Sigma, ...]  # one for each moving tensor
    transformed: bool  # whether it is called under a torch.func transform
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
            return self.value(self._copied(tensors))
        with Reads(self.settings.who, transformed=False) as reads:
            value = self.value(self._copied(tensors))
        if is_differentiated_by_transform(value):  # nothing that moves is
            self._refuse_past_arguments(value)
        behind = foreign_leaves([value], ())
        value = value.detach()  # what the function made for itself goes with its graph
        self._refuse_closed_over(reads, behind)
        return value

    def estimate(self, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, Leaves]:
        """Value and gradient; everything has the sizes of the levels in front."""
        for index, sigma in zip(self.moving, self.sigmas, strict=True):
            _check_step(self.settings.who, tensors[index], sigma)
        shapes = [tensors[index].shape[len(self.levels) :] for index in self.moving]
        if self.settings.method == "finite_difference":
            return self._by_coordinates(tensors, shapes)
        return self._by_directions(tensors, shapes)

    def statistics(self, estimates: Leaves) -> Statistics:
        """What the node of the value tells: how it was estimated, and at what cost."""
        settings, each = self.settings, 1 + (self.settings.method in _BOTH_WAYS)
        directions = {"samples": settings.num_samples}
        if settings.method == "finite_difference":
            shapes = [estimate.shape[len(self.levels) :] for estimate in estimates]
            directions = {"coordinates": sum(shape.numel() for shape in shapes)}
        (count,) = directions.values()
        cost = {"evaluations": 1 + each * count}
        return {"by": settings.who, "method": settings.method, **directions, **cost}

    def _by_directions(
        self, tensors: Sequence[torch.Tensor], shapes: list[torch.Size]
    ) -> tuple[torch.Tensor, Leaves]:
        noise = self._noise(tensors, shapes)
        sizes = [level.size for level in self.levels]
        rows = [part.expand((*sizes, *part.shape[len(sizes) :])) for part in noise]
        center, *values = self._evaluated(tensors, rows, lambda own, *direction: direction)
        weights = self._weights(center, *values) / (self.settings.num_samples * len(values))
        estimates = []
        for part, shape, sigma in zip(noise, shapes, self.sigmas, strict=True):
            flat = part.reshape((*part.shape[: len(sizes) + 1], math.prod(shape)))
            mean = (weights.to(flat).unsqueeze(-2) @ flat).squeeze(-2)
            estimates.append(mean.reshape((*sizes, *shape)) / _like(sigma, mean))
        return center, tuple(estimates)

    def _by_coordinates(
        self, tensors: Sequence[torch.Tensor], shapes: list[torch.Size]
    ) -> tuple[torch.Tensor, Leaves]:
        sizes = [level.size for level in self.levels]
        counts = [math.prod(shape) for shape in shapes]
        coordinates = torch.arange(sum(counts), device=tensors[self.moving[0]].device)

        def unit(own: Sequence[torch.Tensor], coordinate: torch.Tensor) -> list[torch.Tensor]:
            parts = (coordinates == coordinate).split(counts)
            return [
                part.reshape(shape).to(own[index])
                for part, shape, index in zip(parts, shapes, self.moving, strict=True)
            ]

        rows = [coordinates.expand((*sizes, -1))]
        center, forth, back = self._evaluated(tensors, rows, unit)
        differences = (forth - back).split(counts, dim=-1)
        estimates = []
        for part, shape, index, sigma in zip(
            differences, shapes, self.moving, self.sigmas, strict=True
        ):
            at, step = tensors[index], _like(sigma, tensors[index])
            width = (at + step) - (at - step)  # 2 sigma, but for the rounding of both points
            estimates.append(part.to(at).reshape((*sizes, *shape)) / width)
        return center, tuple(estimates)

    def _evaluated(
        self,
        tensors: Sequence[torch.Tensor],
        rows: Sequence[torch.Tensor],
        direction: Callable[..., Sequence[torch.Tensor]],
    ) -> Leaves:
        """The value at the center, and those around it, a tensor of all rows forth and one back.

        ``direction(own, *row)`` says where a row goes.
        """
        count = len(tensors)
        moving = {*self.moving}
        fixed = [t for i, t in enumerate(tensors) if i not in moving and not t.is_inference()]
        versions = [tensor._version for tensor in fixed]

        def one(*both: torch.Tensor) -> Leaves:
            own, rows = both[:count], both[count:]
            draws = Draws()
            center = self._center(own)
            draws.end()
            self._refuse_written(fixed, versions)

            def around(*row: torch.Tensor) -> Leaves:
                return self._around(own, direction(own, *row), draws)

            values = self._sampled(around)(*rows)
            draws.go_on()
            return center, *values

        return over_levels(one, self.settings.vectorize, self.levels)(*tensors, *rows)

    def _center(self, own: Sequence[torch.Tensor]) -> torch.Tensor:
        own = self._copied(own)
        with Reads(self.settings.who, self.transformed) as reads:
            if self.settings.method == "forward" and self.settings.vectorize:
                # Compared with values under vmap, which may draw otherwise from the same state,
                # as dropout does on CUDA.
                moving = [own[index].unsqueeze(0) for index in self.moving]
                one = self._sampled(lambda *each: (self.value(self._placed(own, each)),))
                center = one(*moving)[0].squeeze(0)
            else:
                center = self.value(own)
        behind = foreign_leaves([center], ())
        center = center.detach()  # what the function made for itself goes with its graph
        self._refuse_closed_over(reads, behind)
        return center

    def _around(
        self, tensors: Sequence[torch.Tensor], direction: Sequence[torch.Tensor], draws: Draws
    ) -> Leaves:
        """The value one step along a direction, and one step back where the method needs it."""
        steps = [part * _like(sigma, part) for part, sigma in zip(direction, self.sigmas)]
        at = [tensors[index] for index in self.moving]
        draws.again()
        forth = self._number(tensors, [a + step for a, step in zip(at, steps)])
        if self.settings.method not in _BOTH_WAYS:
            return (forth,)
        draws.again()
        back = self._number(tensors, [a - step for a, step in zip(at, steps)])
        return forth, back

    def _number(
        self, tensors: Sequence[torch.Tensor], moving: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """A value without the graph that the function made for itself, to free it at once."""
        return self.value(self._placed(tensors, moving)).detach()

    def _placed(
        self, tensors: Sequence[torch.Tensor], moving: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        placed = list(tensors)
        for index, tensor in zip(self.moving, moving):
            placed[index] = tensor
        return placed

    def _copied(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """What moves as copies: the function may write to them."""
        return self._placed(tensors, [tensors[index].clone() for index in self.moving])

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

    def _weights(
        self, center: torch.Tensor, values: torch.Tensor, back: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What each direction counts, ``(..., num_samples)``."""
        settings = self.settings
        if back is not None:
            if settings.rank_shaping:
                values, back = centered_ranks(torch.cat((values, back), dim=-1)).chunk(2, dim=-1)
            return values - back
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

    def _sampled(self, fn: Callable[..., Leaves]) -> Callable[..., Leaves]:
        settings = self.settings
        return over_samples(settings.who, fn, settings.vectorize, settings.chunk_size)

    def _refuse_closed_over(
        self, reads: Reads, behind: Sequence[weakref.ref[torch.Tensor]]
    ) -> None:
        found = reads.first()
        if found is None:  # by an operation that torch does not show, of torch.compile for one
            found = next((leaf for leaf in (ref() for ref in behind) if leaf is not None), None)
        if found is not None:
            self._refuse_past_arguments(found)

    def _refuse_past_arguments(self, found: torch.Tensor) -> None:
        raise ValueError(
            f"{self.settings.who}: expected a function that gets every tensor that requires grad "
            f"as an argument, got one in which an operation reads {describe(found)} past them, "
            "which would get no gradient; pass that tensor in args and list its position in "
            "argnums, or make it a constant before the operation: torch.no_grad() in the "
            "function, module.requires_grad_(False) or tensor.detach()"
        )

    def _refuse_written(self, fixed: Sequence[torch.Tensor], versions: Sequence[int]) -> None:
        for tensor, version in zip(fixed, versions, strict=True):
            if tensor._version != version:
                raise ValueError(
                    f"{self.settings.who}: expected a function that writes to no argument but "
                    "those in argnums, which it gets as copies, got one that writes to "
                    f"{describe(tensor)}, which would drift with every sample; clone it in the "
                    "function"
                )


def _check_step(who: str, at: torch.Tensor, sigma: Sigma) -> None:
    """Refuse steps that the rounding of ``at + sigma * noise`` would change beyond recognition."""
    if not at.numel():
        return
    if isinstance(sigma, torch.Tensor):
        steps = at.double() / sigma.to(at.device).double()
        reach = torch.linalg.vector_norm(steps, math.inf).item()
    else:
        reach = torch.linalg.vector_norm(at, math.inf).item() / sigma
    if 1 < 4 * torch.finfo(at.dtype).eps * reach < math.inf:
        raise ValueError(
            f"{who}: expected sigma of at least 4 units in the last place of what moves, got less "
            f"for {describe(at)}; take a larger sigma or a wider dtype"
        )


def _like(sigma: Sigma, tensor: torch.Tensor) -> Sigma:
    return sigma.to(tensor) if isinstance(sigma, torch.Tensor) else sigma
