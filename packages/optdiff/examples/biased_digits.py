# SPDX-License-Identifier: Apache-2.0
"""The training sets of `reweight.py`: digits of which one is rare, or whose labels are wrong."""

from __future__ import annotations

from typing import NamedTuple

import torch
from digits import Images, parts_of, shuffled, together
from torch import Tensor

MAJORITY = 110  # of the digit 9; as many 4 at ratio 1:1
CLEAN_OF_TWO, CLEAN_OF_TEN = 5, 10  # clean images of each class
TRAIN = 1000  # images with labels to be doubted


class Problem(NamedTuple):
    """Images to train on, with what is believed of them; clean ones; others for the test."""

    train: Images
    wrong: Tensor  # (train,): whose label is not true
    clean: Images
    test: Images


def imbalanced(rare: int, seed: int) -> Problem:
    """110 nines and so many fours, which are the classes 0 and 1; clean and test are balanced."""
    images = shuffled(torch.Generator().manual_seed(seed))
    parts = []
    for label, (digit, count) in enumerate(((9, MAJORITY), (4, rare))):
        x, y = images.of(digit)
        clean, pool, test = parts_of(Images(x, torch.full_like(y, label)), CLEAN_OF_TWO, MAJORITY)
        parts.append((pool.rows(torch.arange(count)), clean, test))
    train, clean, test = (together(*pair) for pair in zip(*parts))
    return Problem(train, torch.zeros(len(train.y), dtype=torch.bool), clean, test)


def mislabelled(kind: str, share: float, seed: int) -> Problem:
    """Ten digits; some labels are changed, to any other (``uniform``) or to 0 (``background``)."""
    generator = torch.Generator().manual_seed(seed)
    images = shuffled(generator)
    rank = torch.stack([images.y == digit for digit in range(10)]).cumsum(1)
    first = rank[images.y, torch.arange(len(images.y))] <= CLEAN_OF_TEN
    train, test = parts_of(images.rows(~first), TRAIN)
    chosen = torch.rand(TRAIN, generator=generator) < share
    others = (train.y + torch.randint(1, 10, (TRAIN,), generator=generator)) % 10
    flipped = others if kind == "uniform" else torch.zeros_like(train.y)
    believed = torch.where(chosen, flipped, train.y)
    return Problem(Images(train.x, believed), believed != train.y, images.rows(first), test)
