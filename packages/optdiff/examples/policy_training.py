# SPDX-License-Identifier: Apache-2.0
"""How `maml_rl.py` trains a policy: one step for each task, a function of the common policy."""

from __future__ import annotations

import enum
import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from decision_processes import Episodes, Tasks, exact_return, grid_tasks, play, random_tasks
from dice import dice
from torch import Tensor
from torch.func import grad, vmap

import optcore
import optdiff

META_BATCH = 40
INNER_LR, OUTER_LR = {"grid": 20.0, "random": 8.0}, 0.05  # inner: where none is chosen
RATES = {
    "grid": (10.0, 20.0, 40.0, 80.0, 160.0, 320.0),
    "random": (4.0, 8.0, 16.0, 32.0, 64.0, 128.0),
}
# Added to the seed: tasks and episodes to choose the inner rate by. Of 3 * seed + 2, the largest
# that a generator is given, torch takes 32 bits: seeds below LARGEST_SEED never meet these.
VALIDATION, LARGEST_SEED = 2**30, 2**28


class Kind(str, enum.Enum):
    """What tasks are drawn from."""

    grid = "grid"
    random = "random"


class Method(str, enum.Enum):
    """How the common policy is trained."""

    untrained = "untrained"
    average = "average task"  # for what it earns without adaptation
    first_order = "FOMAML"
    maml = "MAML"


class Run(NamedTuple):
    """What one training left; returns are exact, of tasks never seen."""

    logits: Tensor
    curve: list[tuple[int, float]]  # returns after a step, by iteration
    before: float
    after: float
    lr: float  # of the step


DRAW: Mapping[Kind, Callable[[int, torch.Generator], Tasks]] = {
    Kind.grid: grid_tasks,
    Kind.random: random_tasks,
}


def objective(logits: Tensor, episodes: Episodes) -> Tensor:
    """Sum of rewards of every episode ``(episodes,)`` of one task, with all its derivatives."""
    log_probs = logits.log_softmax(-1)[episodes.states, episodes.actions]
    return dice(log_probs, episodes.rewards, episodes.baseline)


def adapted(logits: Tensor, episodes: Episodes, lr: float, *, first_order: bool = False) -> Tensor:
    """The policy for one task after a policy gradient step, a function of the common one."""
    inner = optcore.sgd(lr)

    def step(logits: Tensor, i: int, episodes: Episodes) -> Tensor:
        gradient = grad(lambda logits: -objective(logits, episodes).mean())(logits)
        updates, _ = inner.update(gradient, inner.init(logits), logits)
        return optcore.apply_updates(logits, updates)

    return optdiff.unroll(step, logits, 1, episodes, first_order=first_order)


def adapted_each(
    logits: Tensor, episodes: Episodes, lr: float, *, first_order: bool = False
) -> Tensor:
    """The policies for many tasks ``(tasks, states, actions)``."""
    one = functools.partial(adapted, lr=lr, first_order=first_order)
    return vmap(one, in_dims=(None, 0))(logits, episodes)


def train(
    method: Method,
    kind: Kind,
    iterations: int,
    unseen: Tasks,
    seed: int,
    done: Callable[[str], None],
    lr: float | None = None,
) -> Run:
    """Train a common policy for steps of some rate, and test it on tasks never seen."""
    generator = torch.Generator().manual_seed(3 * seed)
    lr, draw_tasks = INNER_LR[kind.value] if lr is None else lr, DRAW[kind]
    logits = torch.zeros(unseen.rewards.shape[1:], requires_grad=True)
    outer = optcore.Adam([logits], lr=OUTER_LR)

    def tested() -> tuple[Tensor, Tensor]:
        played = play(logits, unseen, torch.Generator().manual_seed(3 * seed + 2))
        after = adapted_each(logits.detach(), played, lr)
        return exact_return(logits.detach(), unseen), exact_return(after, unseen)

    curve = [(0, tested()[1].mean().item())]
    if method is Method.untrained:
        for _ in range(iterations):
            done("nothing to learn")
        iterations = 0
    for iteration in range(1, iterations + 1):
        tasks = draw_tasks(META_BATCH, generator)
        policies = logits.expand(META_BATCH, -1, -1)
        if method is not Method.average:
            played = play(logits, tasks, generator)
            policies = adapted_each(logits, played, lr, first_order=method is Method.first_order)
        loss = -vmap(objective)(policies, play(policies, tasks, generator)).mean()
        outer.zero_grad()
        loss.backward()
        outer.step()
        if iteration % max(1, iterations // 20) == 0:
            curve.append((iteration, tested()[1].mean().item()))
        done(f"return after a step {curve[-1][1]:.2f}")
    before, after = tested()
    return Run(logits.detach(), curve, before.mean().item(), after.mean().item(), lr)


def unseen_tasks(kind: Kind, count: int, seed: int) -> Tasks:
    """Tasks that the training of this seed, and of every other one, is not given."""
    return DRAW[kind](count, torch.Generator().manual_seed(3 * seed + 1))


def chosen_rate(
    method: Method,
    kind: Kind,
    iterations: int,
    tests: int,
    seeds: Sequence[int],
    done: Callable[[str], None],
) -> float:
    """The inner rate with the highest return after a step, a mean over trainings of their own.

    No task, first or last, is one of those that ``seeds`` train with or are tested on.
    """
    others = [VALIDATION + seed for seed in seeds]
    tasks = [unseen_tasks(kind, tests, seed) for seed in others]

    def worth(lr: float) -> float:
        runs = (train(method, kind, iterations, t, s, done, lr) for s, t in zip(others, tasks))
        return statistics.fmean(run.after for run in runs)

    return max(RATES[kind.value], key=worth)
