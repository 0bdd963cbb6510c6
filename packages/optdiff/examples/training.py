# SPDX-License-Identifier: Apache-2.0
"""The outer loop and the test: the same for every algorithm."""

from __future__ import annotations

import enum
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from baselines import from_scratch, nearest_neighbour
from cost import Cost, peak_bytes
from episodes import Episodes, Task, stack
from es_maml import ZeroOrderMAML
from figures import Point
from imaml import ImplicitMAML
from maml import MAML
from network import adaptation, inner_rule
from report import Score, score
from torch import Tensor, nn

META_BATCH, VALIDATION_STEPS = 4, 5
POINTS = 20  # of a learning curve
AT_A_TIME = 20  # test tasks
SCRATCH, NEAREST = "same network from scratch", "nearest neighbour on pixels"

# What each algorithm has of its own; the rest is the same for all.
FIXED: dict[str, dict[str, Any]] = {
    "maml": {"outer": {"lr": 1e-2, "betas": (0.9, 0.999)}},
    "fomaml": {"outer": {"lr": 1e-2, "betas": (0.9, 0.999)}},
    # More inner steps, to come nearer the solution; damping, as the problem is not convex: without
    # it training stalls on this network. It draws the derivative towards the first-order one.
    "imaml": {
        "outer": {"lr": 1e-2, "betas": (0.9, 0.999)},
        "steps": 4,
        "pull": 0.2,
        "cg_iterations": 2,
        "damping": 5.0,
    },
    # An estimate from few directions is mostly noise: a long memory averages it over outer steps.
    "es-maml": {"outer": {"lr": 3e-3, "betas": (0.98, 0.999)}, "samples": 4, "sigma": 0.05},
}

Done: TypeAlias = Callable[[str], None]
MetaLoss: TypeAlias = Callable[[Sequence[Task]], Tensor]


class Algo(str, enum.Enum):
    """How the derivative through the inner loop is found."""

    maml = "maml"
    fomaml = "fomaml"
    imaml = "imaml"
    es_maml = "es-maml"


TITLES = {"maml": "MAML", "fomaml": "FOMAML", "imaml": "iMAML", "es-maml": "ES-MAML"}


@dataclass(frozen=True)
class Settings:
    """What a run depends on, apart from the constants above."""

    data: str
    algo: list[str]
    inner: str
    inner_lr: float
    inner_steps: int
    iterations: int
    test_tasks: int
    width: int
    seed: int
    device: str


def meta_loss(algo: str, model: nn.Module, settings: Settings) -> MetaLoss:
    """The mean query loss of some tasks, differentiable in the parameters of ``model``."""
    inner, steps = inner_rule(settings.inner, settings.inner_lr), settings.inner_steps
    options = {name: value for name, value in FIXED[algo].items() if name != "outer"}
    if algo == "imaml":
        return ImplicitMAML(model, inner, **options)
    if algo == "es-maml":
        return ZeroOrderMAML(model, inner, steps, seed=settings.seed, **options)
    return MAML(model, inner, steps, first_order=algo == "fomaml")


def accuracies(
    algo: str, model: nn.Module, settings: Settings, tasks: Sequence[Task], after: Sequence[int]
) -> list[list[float]]:
    """Query accuracies after each number of steps of the algorithm's own inner loop, by task."""
    inner = inner_rule(settings.inner, settings.inner_lr)
    pull = FIXED[algo].get("pull", 0.0)
    return adaptation(model, inner, stack(tasks), after, pull).tolist()


def train(
    algo: str,
    model: nn.Module,
    settings: Settings,
    episodes: Episodes,
    validation: Sequence[Task],
    done: Done,
) -> tuple[list[Point], Cost]:
    """Meta-train ``model`` in place; returns its learning curve and what a step took.

    The tasks depend on the seed only: every algorithm sees the same, in the same order.
    """
    loss_of = meta_loss(algo, model, settings)
    outer = torch.optim.Adam(model.parameters(), **FIXED[algo]["outer"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(outer, settings.iterations)
    generator = torch.Generator().manual_seed(settings.seed)
    every = max(1, settings.iterations // POINTS)
    curve: list[Point] = []
    recent: list[float] = []
    times: list[float] = []
    tasks: list[Task] = []

    def outer_step() -> None:
        outer.zero_grad()
        loss = loss_of(tasks)
        loss.backward()
        outer.step()
        recent.append(loss.item())

    for iteration in range(1, settings.iterations + 1):
        tasks = [episodes.sample(generator) for _ in range(META_BATCH)]
        started = time.process_time()
        outer_step()
        times.append(time.process_time() - started)
        schedule.step()
        if iteration % every == 0 or iteration in (1, settings.iterations):
            seen = accuracies(algo, model, settings, validation, (VALIDATION_STEPS,))
            mean = statistics.fmean(right for (right,) in seen)
            curve.append(Point(iteration, statistics.fmean(recent), mean))
            recent.clear()
        done(f"validation {100 * curve[-1].validation:.0f} %")
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    peak = peak_bytes(outer_step)  # apart from the times: the meter is slow
    model.load_state_dict(trained)
    return curve, Cost(statistics.median(times), peak)


def evaluate(
    algo: str,
    model: nn.Module,
    settings: Settings,
    tasks: Sequence[Task],
    after: Sequence[int],
    done: Done,
) -> dict[int, Score]:
    """Score adaptation to each task after each number of inner steps."""
    found: list[list[float]] = []
    for first in range(0, len(tasks), AT_A_TIME):
        part = tasks[first : first + AT_A_TIME]
        found += accuracies(algo, model, settings, part, after)
        for _ in part:
            done("")
    return {steps: score(column) for steps, column in zip(after, zip(*found))}


def evaluate_baselines(settings: Settings, tasks: Sequence[Task], done: Done) -> dict[str, Score]:
    """Score what does not meta-learn on the same tasks."""
    found: dict[str, list[float]] = {SCRATCH: [], NEAREST: []}
    for task in tasks:
        ways = len(task.support_labels.unique())
        found[SCRATCH].append(from_scratch(task, ways=ways, width=settings.width))
        found[NEAREST].append(nearest_neighbour(task))
        done("")
    return {name: score(rights) for name, rights in found.items()}
