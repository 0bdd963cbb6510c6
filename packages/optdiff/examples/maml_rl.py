# SPDX-License-Identifier: Apache-2.0
r"""MAML for reinforcement learning on tables: a policy that one policy gradient step adapts.

    python packages/optdiff/examples/maml_rl.py

A task is a Markov decision process of a few states. From the common policy :math:`\theta` an agent
plays some episodes of a new task, takes one policy gradient step on them, and is judged by what it
earns then (Finn et al., 2017, arXiv:1703.03400, section 5.3):

.. math::
    \max_\theta\ \mathbb{E}_{\mathcal{T}}\,
    J_{\mathcal{T}}\bigl(\theta + \alpha\,\nabla_\theta J_{\mathcal{T}}(\theta)\bigr) .

The derivative of the step has the Hessian of :math:`J` in it. Both come from the same episodes by
DiCE (Foerster et al., 2018, arXiv:1802.05098), whose derivatives are right in expectation at every
order; the loss of plain policy gradients has the wrong second derivative (Rothfuss et al., 2019,
arXiv:1810.06784). A step is ``optcore.sgd`` in ``optdiff.unroll``, the tasks of a batch are one
``vmap``. Two kinds of tasks: a goal in one of the outer cells of a 5 x 5 grid, unknown at the
start in the middle; and random processes of 10 states and 5 actions (Duan et al., 2016,
arXiv:1611.02779), which share nothing but their form: a control, where there is nothing to learn.
How long a step should be depends on how a policy was trained: each kind of training has the rate
:math:`\alpha` that it does best with on other tasks, after shorter trainings (their mean). Returns
shown are exact.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, TypeAlias

import torch
import typer
from decision_processes import (
    EPISODES,
    HORIZON,
    SIDE,
    best_return,
    grid_tasks,
    play,
    visits,
)
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from policy_training import (
    LARGEST_SEED,
    RATES,
    Kind,
    Method,
    Run,
    adapted_each,
    chosen_rate,
    train,
    unseen_tasks,
)
from report import Phases, folder
from rich.console import Console
from rich.table import Table
from torch import Tensor

STYLES = {  # color and line of each in plots
    Method.untrained: ("gray", ":"),
    Method.average: ("C0", "--"),
    Method.first_order: ("C1", "-."),
    Method.maml: ("C2", "-"),
}

Results: TypeAlias = Mapping[Kind, Mapping[Method, Sequence[Run]]]


def text(returns: Sequence[float]) -> str:
    """Mean, lowest and highest."""
    return f"{statistics.fmean(returns):.2f} ({min(returns):.2f} to {max(returns):.2f})"


def table(results: Results, best: Mapping[Kind, Sequence[float]], test_tasks: int) -> Table:
    """Returns before and after a step, for each kind of tasks."""
    shown = Table(
        title=f"return of {HORIZON} moves on {test_tasks} tasks never seen",
        caption=f"mean (lowest to highest training); a step on {EPISODES} episodes of the task; "
        "its rate is chosen on other tasks",
    )
    shown.add_column("policy trained as")
    shown.add_column("rate", justify="right")
    shown.add_column("before the step", justify="right")
    shown.add_column("after it", justify="right")
    for kind, trained in results.items():
        shown.add_section()
        shown.add_row(f"[bold]{kind.value} tasks[/bold]")
        for method, runs in trained.items():
            cells = ([run.before for run in runs], [run.after for run in runs])
            shown.add_row(method.value, f"{runs[0].lr:g}", *map(text, cells))
        shown.add_row("best, knowing the task", "", "", text(best[kind]))
    return shown


def draw_curves(panel: Axes, trained: Mapping[Method, Sequence[Run]], title: str) -> None:
    """Plot what a step leads to over training, the mean in the range of all trainings."""
    for method in trained:
        color, style = STYLES[method]
        curves = torch.tensor([[point for _, point in run.curve] for run in trained[method]])
        iterations = [iteration for iteration, _ in trained[method][0].curve]
        if method is Method.untrained:
            panel.axhline(curves.mean(), linestyle=style, color=color, label=method.value)
        else:
            panel.plot(iterations, curves.mean(0), style, color=color, label=method.value)
            low, high = curves.amin(0), curves.amax(0)
            panel.fill_between(iterations, low, high, color=color, alpha=0.2, linewidth=0)
    label = f"exact return of {HORIZON} moves after a step"
    panel.set(xlabel="outer iteration", ylabel=label, title=title)
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)


def draw_visits(panel: Axes, counts: Tensor, goal: int | None) -> AxesImage:
    """Shade the cells of the grid by visits in an episode; the goal is known after a step."""
    if goal is not None:
        panel.plot(goal % SIDE, goal // SIDE, "*", color="tab:red", markersize=14)
    shown = panel.imshow(counts.view(SIDE, SIDE), cmap="Blues", vmin=0, vmax=HORIZON / 2)
    panel.plot(SIDE // 2, SIDE // 2, "o", color="tab:orange")
    name = "before a step (dot: start)" if goal is None else "after a step (star: goal)"
    panel.set(xticks=[], yticks=[])
    panel.set_title(f"MAML {name}", fontsize=10)
    return shown


def save_figure(path: Path, results: Results, seed: int) -> None:
    """Plot learning curves, and where MAML's policy goes before and after a step."""
    figure = Figure(figsize=(16, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 5, width_ratios=(4, 4, 3, 3, 3))
    for panel, (kind, trained) in zip(axes, results.items()):
        draw_curves(panel, trained, f"{kind.value} tasks (band: all trainings)")
    run = results[Kind.grid][Method.maml][0]
    generator = torch.Generator().manual_seed(3 * seed + 1)
    for i, panel in enumerate(axes[2:]):
        task = grid_tasks(1, generator)
        policy, goal = run.logits, None
        if i:
            policy = adapted_each(run.logits, play(run.logits, task, generator), run.lr)[0]
            goal = int(task.rewards[0, :, 0].argmax())  # where it pays to stay
        shown = draw_visits(panel, visits(policy, task), goal)
    figure.colorbar(shown, ax=axes[2:], label=f"visits in {HORIZON} moves", shrink=0.8)
    figure.savefig(path, dpi=120)


def main(
    trainings: Annotated[int, typer.Option(min=1, help="Trainings of each kind.")] = 3,
    iterations: Annotated[int, typer.Option(min=1, help="Outer steps on grid tasks.")] = 400,
    random_iterations: Annotated[int, typer.Option(min=1, help="On random ones.")] = 100,
    test_tasks: Annotated[int, typer.Option(min=2, help="Tasks to test on.")] = 1000,
    seed: Annotated[
        int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of the first training.")
    ] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of torch.")] = 1,
    smoke: Annotated[bool, typer.Option("--smoke", help="A run of seconds, as a test.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for what is saved.")] = Path("out/maml_rl"),
) -> None:
    """Train policies that one policy gradient step adapts to a task never seen."""
    folder("maml_rl", out)
    if smoke:
        trainings, iterations, random_iterations, test_tasks = 1, 20, 5, 50
    torch.set_num_threads(threads)
    started, cpu = time.perf_counter(), time.process_time()
    console = Console()
    results: dict[Kind, dict[Method, list[Run]]] = {}
    best: dict[Kind, list[float]] = {}
    seeds = range(seed, seed + trainings)
    with Phases(console) as phases:
        for kind, count in ((Kind.grid, iterations), (Kind.random, random_iterations)):
            tests = [unseen_tasks(kind, test_tasks, s) for s in seeds]
            best[kind] = [best_return(unseen).mean().item() for unseen in tests]
            results[kind] = {}
            for method in Method:
                short = max(1, count // 2)
                total = len(RATES[kind.value]) * trainings * short
                done = phases.start(f"{kind.value}, {method.value}, rate", total)
                lr = chosen_rate(method, kind, short, test_tasks, seeds, done)
                done = phases.start(f"{kind.value}, {method.value}", trainings * count)
                results[kind][method] = [
                    train(method, kind, count, unseen, s, done, lr)
                    for s, unseen in zip(seeds, tests)
                ]
    console.print(table(results, best, test_tasks))
    save_figure(out / "maml_rl.png", results, seed)
    record = {
        "settings": {
            "trainings": trainings,
            "iterations": {"grid": iterations, "random": random_iterations},
            "test_tasks": test_tasks,
            "seed": seed,
        },
        "best": {kind.value: returns for kind, returns in best.items()},
        "returns": {
            kind.value: {
                method.value: {
                    "inner rate": runs[0].lr,
                    "before": [run.before for run in runs],
                    "after": [run.after for run in runs],
                    "curves": [run.curve for run in runs],
                }
                for method, runs in trained.items()
            }
            for kind, trained in results.items()
        },
    }
    (out / "results.json").write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")
    took, cpu = time.perf_counter() - started, time.process_time() - cpu
    typer.echo(f"{took:.0f} s ({cpu:.0f} s of CPU); plot and numbers are in {out}/")


if __name__ == "__main__":
    typer.run(main)
