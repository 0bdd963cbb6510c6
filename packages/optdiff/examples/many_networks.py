# SPDX-License-Identifier: Apache-2.0
"""The networks of `ensembles.py`: all trained at once, or one after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from digits import Images
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.functional import cross_entropy

import optcore

TRAIN, BATCH, WIDTH = 400, 50, 32  # images to learn from; in a batch; units of the hidden layer
Params: TypeAlias = dict[str, Tensor]
Rule: TypeAlias = Callable[[Tensor], optcore.GradientTransformation]


def network() -> nn.Sequential:
    """One member."""
    return nn.Sequential(nn.Linear(64, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 10)).double()


def members(seeds: Sequence[int], rates: Sequence[float]) -> tuple[list[nn.Module], Tensor]:
    """Networks for all pairs, and their learning rates; those of a seed start alike."""
    nets: list[nn.Module] = []
    for seed in seeds:
        for _ in rates:
            torch.manual_seed(seed)
            nets.append(network())
    return nets, torch.tensor(rates, dtype=torch.float64).repeat(len(seeds))


def batches(seeds: Sequence[int], rates: int, steps: int) -> Tensor:
    """Rows ``(networks, steps, batch)`` to learn from; the networks of a seed see the same."""
    drawn = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        epochs = math.ceil(steps * BATCH / TRAIN)
        order = torch.cat([torch.randperm(TRAIN, generator=generator) for _ in range(epochs)])
        drawn.append(order[: steps * BATCH].view(steps, BATCH))
    return torch.stack(drawn).repeat_interleave(rates, 0)


def train_together(
    nets: Sequence[nn.Module], rates: Tensor, data: Images, rows: Tensor, rule: Rule
) -> Params:
    """Train all networks at once; returns their weights, stacked."""
    x, y = data
    stacked, _ = stack_module_state(list(nets))
    params = {name: value.detach() for name, value in stacked.items()}

    def loss(params: Params, rows: Tensor) -> Tensor:
        return cross_entropy(functional_call(nets[0], params, (x[rows],)), y[rows])

    def step(params: Params, state: Any, rate: Tensor, rows: Tensor) -> tuple[Params, Any]:
        updates, state = rule(rate).update(grad(loss)(params, rows), state, params)
        return optcore.apply_updates(params, updates), state

    state = vmap(lambda params, rate: rule(rate).init(params))(params, rates)
    for at_once in rows.unbind(1):
        params, state = vmap(step)(params, state, rates, at_once)
    return params


def train_one_by_one(
    nets: Sequence[nn.Module],
    rates: Tensor,
    data: Images,
    rows: Tensor,
    optimizer: Callable[..., torch.optim.Optimizer],
) -> Params:
    """Train the same networks in place, one after the other, by an optimizer of torch."""
    x, y = data
    for net, rate, order in zip(nets, rates.tolist(), rows):
        steps = optimizer(net.parameters(), lr=rate)
        for at_once in order:
            steps.zero_grad()
            cross_entropy(net(x[at_once]), y[at_once]).backward()
            steps.step()
    stacked, _ = stack_module_state(list(nets))
    return {name: value.detach() for name, value in stacked.items()}


def apart(one: Params, other: Params) -> Tensor:
    """The largest difference ``(networks,)`` between two sets of weights."""
    differences = [(one[name] - other[name]).abs().flatten(1).amax(1) for name in one]
    return torch.stack(differences).amax(0)
