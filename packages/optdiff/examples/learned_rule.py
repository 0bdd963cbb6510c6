# SPDX-License-Identifier: Apache-2.0
"""The rule of `learned_optimizer.py`, as a gradient transformation."""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

import optcore

FEATURES, HIDDEN = 6, 9
DECAYS = (0.5, 0.9, 0.99)  # of the momenta; the middle one is Adam's
SECOND, EPS = 0.999, 1e-8
Tree: TypeAlias = dict[str, Tensor]
Rule: TypeAlias = optcore.GradientTransformation


class LearnedState(NamedTuple):
    """What the rule remembers of a vector of parameters."""

    count: Tensor  # i64[]
    momenta: Tensor  # (3, parameters)
    second: Tensor  # (parameters,)


def learned_init(params: Tensor, *, theta: Tree) -> LearnedState:
    """Nothing seen yet."""
    return LearnedState(
        torch.zeros((), dtype=torch.int64), params.new_zeros(3, len(params)), params * 0
    )


def learned_update(
    grads: Tensor, state: LearnedState, params: Tensor, *, inplace: bool, theta: Tree
) -> tuple[Tensor, LearnedState]:
    """Step by the rule with the numbers ``theta``."""
    count = state.count + 1
    decays = params.new_tensor(DECAYS)[:, None]
    momenta = decays * state.momenta + (1 - decays) * grads
    second = SECOND * state.second + (1 - SECOND) * grads.square()
    scale = (second / (1 - SECOND**count)).sqrt() + EPS
    unbiased = momenta / (1 - decays**count) / scale
    age = torch.log1p(count.to(params)).expand_as(params) / 5
    features = torch.stack([grads / scale, *unbiased, params, age], dim=1)
    hidden = torch.tanh(features @ theta["in"] + theta["bias"])
    direction, magnitude = (hidden @ theta["out"]).unbind(1)
    step = (theta["log_lr"] + magnitude).exp() * (unbiased[1] + direction)
    return -step, LearnedState(count, momenta, second)


def learned(theta: Tree) -> Rule:
    """Make the rule a gradient transformation, which sees all parameters as one vector."""
    return optcore.flatten(
        Rule(
            learned_init, learned_update, static={"theta": theta}, name="learned", needs_params=True
        )
    )


def first_theta(generator: torch.Generator) -> Tree:
    """Numbers that make the rule Adam with a learning rate of 0.01."""
    return {
        "in": torch.randn(FEATURES, HIDDEN, generator=generator) / math.sqrt(FEATURES),
        "bias": torch.zeros(HIDDEN),
        "out": torch.zeros(HIDDEN, 2),
        "log_lr": torch.tensor(math.log(0.01)),
    }
