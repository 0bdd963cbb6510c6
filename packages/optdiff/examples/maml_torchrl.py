# SPDX-License-Identifier: Apache-2.0
r"""MAML for reinforcement learning with torchrl: its environments and actors, our inner step.

    pip install torchrl
    python packages/optdiff/examples/maml_torchrl.py

The objective is that of ``maml_rl.py``: what a policy earns on a new task after one step of policy
gradients on some episodes of it (Finn et al., 2017, arXiv:1703.03400, section 5.3),

.. math::
    \max_\theta\ \mathbb{E}_{\mathcal{T}}\,
    J_{\mathcal{T}}\bigl(\theta + \alpha\,\nabla_\theta J_{\mathcal{T}}(\theta)\bigr) .

Here the tasks are a torchrl environment with a batch of tasks and episodes (``torchrl_tasks.py``),
and ``rollout`` plays them with a ``ProbabilisticActor``. The module inside the actor takes the step
of ``optdiff.MetaSGD`` in place, so that the same actor plays on as the adapted one, and the loss of
what it plays then has a derivative in the common logits :math:`\theta`. Losses by DiCE (Foerster et
al., 2018, arXiv:1802.05098). A task: a goal in one of the outer cells of a 5 x 5 grid, unknown at
the start in the middle. The rate of the step is 20 throughout, which suits MAML; ``maml_rl.py``
chooses one for each kind of training. Returns in the table are exact.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer
from decision_processes import (
    EPISODES,
    HORIZON,
    SIDE,
    Episodes,
    Tasks,
    best_return,
    exact_return,
    grid_tasks,
)
from maml_rl import draw_curves, draw_visits, table
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from policy_training import INNER_LR, META_BATCH, OUTER_LR, Kind, Method, Run, objective
from report import Phases, failure, folder
from rich.console import Console
from torch import Tensor
from torch.func import vmap

import optcore
import optdiff

if TYPE_CHECKING:
    from torchrl_tasks import Policies

METHODS = (Method.untrained, Method.average, Method.maml)


def adapt(policies: Policies, played: Episodes) -> None:
    """Let every policy take a policy gradient step on the episodes of its task, in place."""
    inner = optdiff.MetaSGD(policies.change, lr=INNER_LR["grid"])
    returns = vmap(objective)(policies.table(), played)  # (tasks, episodes)
    inner.step(-returns.mean(-1).sum())  # a sum: each task has a gradient of its own


def after_a_step(logits: Tensor, tasks: Tasks, seed: int) -> tuple[Policies, Episodes]:
    """The policies that a step from common logits leads to, and what they play then."""
    from torchrl_tasks import Policies, collect

    policies = Policies(logits, len(tasks.rewards))
    adapt(policies, collect(policies, tasks, seed))
    return policies, collect(policies, tasks, seed + 1)


def train(
    method: Method, iterations: int, unseen: Tasks, seed: int, done: Callable[[str], None]
) -> tuple[Run, float]:
    """Train common logits; test them on tasks never seen, exactly and by what torchrl plays."""
    from torchrl_tasks import Policies, collect

    generator = torch.Generator().manual_seed(3 * seed)
    seeds = torch.Generator().manual_seed(seed)
    logits = torch.zeros(unseen.rewards.shape[1:], requires_grad=True)
    outer = optcore.Adam([logits], lr=OUTER_LR)

    def tested() -> tuple[float, float, float]:
        start = logits.detach()
        policies, played = after_a_step(start, unseen, seed)
        exact = exact_return(start, unseen), exact_return(policies.table().detach(), unseen)
        return exact[0].mean().item(), exact[1].mean().item(), mean_return(played)

    curve = [(0, tested()[1])]
    if method is Method.untrained:
        for _ in range(iterations):
            done("nothing to learn")
        iterations = 0
    for iteration in range(1, iterations + 1):
        tasks = grid_tasks(META_BATCH, generator)
        drawn = int(torch.randint(2**40, (), generator=seeds))
        if method is Method.maml:
            policies, played = after_a_step(logits, tasks, drawn)
        else:
            policies = Policies(logits, META_BATCH)
            played = collect(policies, tasks, drawn)
        loss = -vmap(objective)(policies.table(), played).mean()
        outer.zero_grad()
        loss.backward()
        outer.step()
        if iteration % max(1, iterations // 20) == 0:
            curve.append((iteration, tested()[1]))
        done(f"return after a step {curve[-1][1]:.2f}")
    before, after, played_after = tested()
    return Run(logits.detach(), curve, before, after, INNER_LR["grid"]), played_after


def mean_return(played: Episodes) -> float:
    """What an episode earned, mean over all."""
    return played.rewards.sum(-1).mean().item()


def visits(played: Episodes) -> Tensor:
    """Visits of each cell by all moves but the last, mean over episodes of the only task."""
    moved_to = played.states[..., 1:].flatten()
    return torch.bincount(moved_to, minlength=SIDE * SIDE) / played.states.shape[1]


def save_figure(path: Path, trained: dict[Method, list[Run]], seed: int) -> None:
    """Plot learning curves, and where MAML's policy goes in torchrl before and after a step."""
    from torchrl_tasks import Policies, collect

    figure = Figure(figsize=(13, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 4, width_ratios=(5, 3, 3, 3))
    draw_curves(axes[0], trained, "grid tasks by torchrl (band: all trainings)")
    logits = trained[Method.maml][0].logits
    generator = torch.Generator().manual_seed(3 * seed + 1)
    first = grid_tasks(1, generator)
    draw_visits(axes[1], visits(collect(Policies(logits, 1), first, seed)), None)
    for panel in axes[2:]:
        task = grid_tasks(1, generator)
        _, played = after_a_step(logits, task, seed)
        goal = int(task.rewards[0, :, 0].argmax())  # where it pays to stay
        shown = draw_visits(panel, visits(played), goal)
    label = f"visits in {HORIZON - 1} moves, mean of {EPISODES}"
    figure.colorbar(shown, ax=axes[1:], label=label, shrink=0.8)
    figure.savefig(path, dpi=120)


def main(
    trainings: Annotated[int, typer.Option(min=1, help="Trainings of each kind.")] = 3,
    iterations: Annotated[int, typer.Option(min=1, help="Outer steps.")] = 400,
    test_tasks: Annotated[int, typer.Option(min=2, help="Tasks to test on.")] = 1000,
    seed: Annotated[
        int, typer.Option(min=0, max=2**31 - 1, help="Seed of the first training.")
    ] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of torch.")] = 1,
    smoke: Annotated[bool, typer.Option("--smoke", help="A run of seconds, as a test.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for what is saved.")] = Path("out/maml_torchrl"),
) -> None:
    """Train policies of torchrl that one policy gradient step adapts to a task never seen."""
    if importlib.util.find_spec("torchrl") is None:
        raise failure(
            "maml_torchrl: expected torchrl, found no package of this name; "
            "run `pip install torchrl`"
        )
    folder("maml_torchrl", out)
    if smoke:
        trainings, iterations, test_tasks = 1, 20, 50
    torch.set_num_threads(threads)
    started, cpu = time.perf_counter(), time.process_time()
    console = Console()
    seeds = range(seed, seed + trainings)
    tests = [grid_tasks(test_tasks, torch.Generator().manual_seed(3 * s + 1)) for s in seeds]
    best = [best_return(unseen).mean().item() for unseen in tests]
    trained: dict[Method, list[Run]] = {}
    played: dict[Method, list[float]] = {}
    with Phases(console) as phases:
        for method in METHODS:
            done = phases.start(method.value, trainings * iterations)
            runs = [train(method, iterations, unseen, s, done) for s, unseen in zip(seeds, tests)]
            trained[method] = [run for run, _ in runs]
            played[method] = [mean for _, mean in runs]
    shown = table({Kind.grid: trained}, {Kind.grid: best}, test_tasks)
    shown.caption = (
        f"mean (lowest to highest training); a step on {EPISODES} episodes of the task; "
        "the same rate for all"
    )
    console.print(shown)
    save_figure(out / "maml_torchrl.png", trained, seed)
    record = {
        "settings": {
            "trainings": trainings,
            "iterations": iterations,
            "test_tasks": test_tasks,
            "seed": seed,
        },
        "best": best,
        "returns": {
            method.value: {
                "before": [run.before for run in runs],
                "after": [run.after for run in runs],
                "played_after": played[method],
                "curves": [run.curve for run in runs],
            }
            for method, runs in trained.items()
        },
    }
    (out / "results.json").write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")
    episodes, maml = EPISODES * test_tasks * trainings, sum(played[Method.maml]) / trainings
    typer.echo(f"{episodes} episodes of {HORIZON} moves that torchrl played after MAML: {maml:.2f}")
    took, cpu = time.perf_counter() - started, time.process_time() - cpu
    typer.echo(f"{took:.0f} s ({cpu:.0f} s of CPU); plot and numbers are in {out}/")


if __name__ == "__main__":
    typer.run(main)
