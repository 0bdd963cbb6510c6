# SPDX-License-Identifier: Apache-2.0
"""Decision processes small enough for tables: tasks, exact returns, sampled episodes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

HORIZON, SIDE = 10, 5  # moves of an episode; cells along the grid
EPISODES = 20  # of a task


class Tasks(NamedTuple):
    """Decision processes that start in some state, all in the same."""

    transitions: Tensor  # (tasks, states, actions, states)
    rewards: Tensor  # (tasks, states, actions): what is earned on average
    start: int
    noise: float  # standard deviation of a reward


class Episodes(NamedTuple):
    """What was played, each ``(tasks, episodes, moves)``."""

    states: Tensor
    actions: Tensor
    rewards: Tensor
    baseline: Tensor


def grid_tasks(count: int, generator: torch.Generator) -> Tasks:
    """Walks from the middle of a grid: every move that ends at the goal, an outer cell, earns 1."""
    cells = torch.arange(SIDE * SIDE)
    row, column = cells // SIDE, cells % SIDE
    moves = torch.tensor([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]])
    rows = (row[:, None] + moves[:, 0]).clamp(0, SIDE - 1)
    columns = (column[:, None] + moves[:, 1]).clamp(0, SIDE - 1)
    ends = SIDE * rows + columns  # (states, actions)
    outer = cells[(row % (SIDE - 1) == 0) | (column % (SIDE - 1) == 0)]
    goals = outer[torch.randint(len(outer), (count,), generator=generator)]
    transitions = torch.eye(SIDE * SIDE)[ends].expand(count, -1, -1, -1)
    rewards = (ends == goals[:, None, None]).to(transitions)
    return Tasks(transitions, rewards, SIDE * SIDE // 2, 0.0)


def random_tasks(count: int, generator: torch.Generator) -> Tasks:
    """Transitions from the uniform Dirichlet distribution, mean rewards from N(1, 1), noise 1."""
    exponential = -torch.rand(count, 10, 5, 10, generator=generator).log()
    transitions = exponential / exponential.sum(-1, keepdim=True)
    return Tasks(transitions, 1 + torch.randn(count, 10, 5, generator=generator), 0, 1.0)


def exact_return(logits: Tensor, tasks: Tasks) -> Tensor:
    """Expected sum of rewards of an episode ``(tasks,)``, for policies ``([tasks,] S, A)``."""
    policy = logits.softmax(-1)
    values = torch.zeros_like(tasks.rewards[..., 0])
    for _ in range(HORIZON):
        values = (policy * (tasks.rewards + following(tasks, values))).sum(-1)
    return values[:, tasks.start]


def best_return(tasks: Tasks) -> Tensor:
    """What somebody earns who knows the task ``(tasks,)``."""
    values = torch.zeros_like(tasks.rewards[..., 0])
    for _ in range(HORIZON):
        values = (tasks.rewards + following(tasks, values)).amax(-1)
    return values[:, tasks.start]


def following(tasks: Tasks, values: Tensor) -> Tensor:
    """Expected value of the next state, by state and action."""
    return (tasks.transitions @ values[:, None, :, None]).squeeze(-1)


def draw(chances: Tensor, generator: torch.Generator) -> Tensor:
    """Sample from ``(tasks, episodes, choices)``."""
    drawn = torch.multinomial(chances.flatten(0, 1), 1, generator=generator)
    return drawn.view(chances.shape[:-1])


def play(logits: Tensor, tasks: Tasks, generator: torch.Generator) -> Episodes:
    """Play every task with its policy."""
    count = len(tasks.rewards)
    policy = logits.detach().softmax(-1).expand(count, -1, -1)
    each = torch.arange(count)[:, None]
    state = torch.full((count, EPISODES), tasks.start)
    steps = []
    for _ in range(HORIZON):
        action = draw(policy[each, state], generator)
        steps.append((state, action))
        state = draw(tasks.transitions[each, state, action], generator)
    states, actions = (torch.stack(parts, -1) for parts in zip(*steps))
    rewards = tasks.rewards[each[..., None], states, actions]
    rewards = rewards + tasks.noise * torch.randn(
        rewards.shape, generator=generator, dtype=rewards.dtype
    )
    return with_baseline(states, actions, rewards)


def with_baseline(states: Tensor, actions: Tensor, rewards: Tensor) -> Episodes:
    """Episodes ``(tasks, episodes, moves)``; their baseline: what the others have to come, mean."""
    to_go = rewards.flip(-1).cumsum(-1).flip(-1)
    others = (to_go.sum(1, keepdim=True) - to_go) / (rewards.shape[1] - 1)
    return Episodes(states, actions, rewards, others)


def visits(logits: Tensor, tasks: Tasks) -> Tensor:
    """Expected visits of each state in an episode of one task."""
    policy = logits.softmax(-1)
    moved = torch.einsum("sa,sat->st", policy, tasks.transitions[0])
    at = torch.zeros(len(logits))
    at[tasks.start] = 1.0
    total = torch.zeros_like(at)
    for _ in range(HORIZON):
        at = at @ moved
        total = total + at
    return total
