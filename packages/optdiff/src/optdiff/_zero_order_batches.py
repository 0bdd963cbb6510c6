# SPDX-License-Identifier: Apache-2.0
"""A function over samples and over the examples of every vmap around it, batched or in loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch

from optdiff._random_states import Draws

Leaves: TypeAlias = tuple[torch.Tensor, ...]


class Level(NamedTuple):
    """One vmap around the function."""

    size: int
    randomness: str


def over_samples(
    who: str, fn: Callable[..., Leaves], vectorize: bool, chunk_size: int | None
) -> Callable[..., Leaves]:
    """``fn`` along samples; by vmap, every one has the same random numbers.

    Raises:
        RuntimeError: When called: vmap cannot evaluate ``fn``.
    """
    if not vectorize:
        return _Loop(fn, same=False)
    batched = torch.vmap(fn, chunk_size=chunk_size, randomness="same")

    def call(*args: torch.Tensor) -> Leaves:
        try:
            return batched(*args)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise RuntimeError(
                f"{who}: expected a function that vmap can evaluate at all samples at once, got "
                f"one that fails ({error}); pass vectorize=False"
            ) from error

    return call


def over_levels(
    fn: Callable[..., Leaves], vectorize: bool, levels: Sequence[Level]
) -> Callable[..., Leaves]:
    """``fn`` along all levels, the outermost first."""
    for level in reversed(levels):
        if vectorize:
            fn = torch.vmap(fn, randomness=level.randomness)
        else:
            fn = _Loop(fn, same=level.randomness == "same")
    return fn


class _Loop:
    """A function along the first dimension of its arguments, one call after the other."""

    def __init__(self, fn: Callable[..., Leaves], same: bool) -> None:
        self._fn = fn
        self._same = same  # random numbers in every call

    def __call__(self, *batched: torch.Tensor) -> Leaves:
        draws, results = Draws(), []
        for one in zip(*batched, strict=True):
            if self._same and results:
                draws.again()
            results.append(self._fn(*one))
            if self._same and len(results) == 1:
                draws.end()
        return tuple(torch.stack(parts) for parts in zip(*results, strict=True))
