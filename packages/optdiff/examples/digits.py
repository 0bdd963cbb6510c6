# SPDX-License-Identifier: Apache-2.0
"""scikit-learn's handwritten digits as tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor


class Images(NamedTuple):
    """Some images ``(count, 64)``, pixels in [0, 1], and their labels ``(count,)``."""

    x: Tensor
    y: Tensor

    def rows(self, index: Tensor) -> Images:
        """The images at some rows."""
        return Images(self.x[index], self.y[index])

    def of(self, digit: int) -> Images:
        """The images of one digit."""
        return self.rows(self.y == digit)


def together(*parts: Images) -> Images:
    """All images of some parts."""
    return Images(*(torch.cat(tensors) for tensors in zip(*parts)))


def in_order(dtype: torch.dtype | None = None) -> Images:
    """All 1797 images as scikit-learn has them, in some precision or torch's default."""
    pixels, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(pixels / 16).to(dtype or torch.get_default_dtype())
    return Images(x, torch.from_numpy(labels).long())


def shuffled(generator: torch.Generator, dtype: torch.dtype | None = None) -> Images:
    """All images in a random order."""
    images = in_order(dtype)
    return images.rows(torch.randperm(len(images.y), generator=generator))


def parts_of(images: Images, *sizes: int) -> list[Images]:
    """The first so many images, the next so many, and so on, and last the others."""
    others = len(images.y) - sum(sizes)
    return [Images(x, y) for x, y in zip(*(t.split([*sizes, others]) for t in images))]
