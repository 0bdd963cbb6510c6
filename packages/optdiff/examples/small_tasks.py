# SPDX-License-Identifier: Apache-2.0
"""What `learned_optimizer.py` learns from and is tested on: networks that learn to classify."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from digits import in_order
from learned_rule import Tree
from torch import Tensor
from torch.func import vmap

INPUTS, UNITS, CLASSES, POINTS, BATCH = 5, 12, 3, 128, 32  # of a random task


class Tasks(NamedTuple):
    """Some classifications, each with first weights and the batches of every step."""

    x: Tensor  # (tasks, points, inputs)
    y: Tensor  # (tasks, points)
    weights: Tree
    rows: Tensor  # (tasks, steps, batch)


def first_weights(
    tasks: int, inputs: int, units: int, classes: int, generator: torch.Generator
) -> Tree:
    """Random weights of networks with one hidden layer."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(tasks, *shape, generator=generator)

    return {
        "w1": normal(inputs, units) / math.sqrt(inputs),
        "b1": torch.zeros(tasks, units),
        "w2": normal(units, classes) / math.sqrt(units),
        "b2": torch.zeros(tasks, classes),
    }


def logits(weights: Tree, x: Tensor) -> Tensor:
    """Scores of the classes."""
    return torch.tanh(x @ weights["w1"] + weights["b1"]) @ weights["w2"] + weights["b2"]


def random_tasks(tasks: int, steps: int, generator: torch.Generator) -> Tasks:
    """Points labelled by random networks; tasks have scales, and their inputs, up to 10 apart."""
    scales = 10 ** (torch.rand(tasks, 1, INPUTS, generator=generator) - 0.5)
    scales = scales * 10 ** (torch.rand(tasks, 1, 1, generator=generator) - 0.5)
    z = torch.randn(tasks, POINTS, INPUTS, generator=generator)
    teachers = first_weights(tasks, INPUTS, UNITS, CLASSES, generator)
    y = vmap(logits)({**teachers, "w1": 2 * teachers["w1"]}, z).argmax(2)
    weights = first_weights(tasks, INPUTS, UNITS, CLASSES, generator)
    rows = torch.randint(POINTS, (tasks, steps, BATCH), generator=generator)
    return Tasks(z * scales, y, weights, rows)


def digit_tasks(trainings: int, steps: int, generator: torch.Generator) -> Tasks:
    """Trainings on the first 1000 digits, of another network: other first weights and batches."""
    images = in_order().rows(torch.arange(1000))
    x, y = (part.expand(trainings, *part.shape) for part in images)
    rows = torch.randint(1000, (trainings, steps, BATCH), generator=generator)
    return Tasks(x, y, first_weights(trainings, 64, 32, 10, generator), rows)
