# SPDX-License-Identifier: Apache-2.0
"""Few-shot tasks, drawn from images that are sorted by alphabet and character."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class DataError(Exception):
    """The images are missing, malformed or too few for the tasks that were asked for."""


class Task(NamedTuple):
    """One classification task: learn from the support images, answer for the query images."""

    support: Tensor  # (ways * shots, 1, height, width)
    support_labels: Tensor  # (ways * shots,), 0 .. ways - 1
    query: Tensor  # (ways * queries, 1, height, width)
    query_labels: Tensor  # (ways * queries,)


class Episodes:
    """Draws tasks of ``ways`` characters of one alphabet.

    Alphabets are drawn in proportion to their characters, characters and images without
    replacement: no image is in both the support and the query set.

    Args:
        alphabets: ``{name: images}`` with images ``(characters, drawings, height, width)``.
        ways: Characters in a task.
        shots: Support images of each character.
        queries: Query images of each character.

    Raises:
        DataError: An alphabet has too few characters or drawings for such tasks.
    """

    def __init__(
        self, alphabets: Mapping[str, Tensor], *, ways: int, shots: int, queries: int
    ) -> None:
        if not alphabets:
            raise DataError("few_shot: expected at least one alphabet, got none; add a folder")
        for name, images in alphabets.items():
            characters, drawings = images.shape[:2]
            if characters < ways or drawings < shots + queries:
                raise DataError(
                    f"few_shot: expected at least {ways} characters of {shots + queries} drawings, "
                    f"got {characters} of {drawings}, at alphabet {name!r}; "
                    "lower --ways or leave that alphabet out"
                )
        self.ways, self.shots, self.queries = ways, shots, queries
        self._images = list(alphabets.values())
        self._weights = torch.tensor([float(len(images)) for images in self._images])

    def sample(self, generator: torch.Generator) -> Task:
        """Draw one task; the same generator state gives the same task."""
        images = self._images[int(torch.multinomial(self._weights, 1, generator=generator))]
        characters = torch.randperm(len(images), generator=generator)[: self.ways]
        drawn = self.shots + self.queries
        drawings = torch.stack(
            [torch.randperm(images.shape[1], generator=generator)[:drawn] for _ in range(self.ways)]
        )
        chosen = images[characters.to(images.device)[:, None], drawings.to(images.device)]
        labels = torch.arange(self.ways, device=images.device)
        height, width = images.shape[-2:]
        return Task(
            chosen[:, : self.shots].reshape(-1, 1, height, width),
            labels.repeat_interleave(self.shots),
            chosen[:, self.shots :].reshape(-1, 1, height, width),
            labels.repeat_interleave(self.queries),
        )

    def fixed(self, count: int, seed: int) -> list[Task]:
        """Draw ``count`` tasks that depend on ``seed`` only."""
        generator = torch.Generator().manual_seed(seed)
        return [self.sample(generator) for _ in range(count)]


def stack(tasks: Sequence[Task]) -> Task:
    """Put tasks of the same sizes into one, with a dimension of tasks in front."""
    return Task(*(torch.stack(parts) for parts in zip(*tasks)))
