# SPDX-License-Identifier: Apache-2.0
r"""MAML on sinusoids (Finn et al., 2017, section 5.1): regression from a few points of a new curve.

    python packages/optdiff/examples/sinusoid.py

A task is :math:`y = A \sin(x - \varphi)` with :math:`A \in [0.1, 5]`, :math:`\varphi \in [0, \pi]`
and K points :math:`x \in [-5, 5]` to adapt to. A network 1-40-40-1 takes one gradient step of size
0.01 on them, and the loss on K further points of the same curve is what the initial weights are
trained for, by Adam on batches of 25 tasks. The tasks of a batch are one ``vmap``. Tested as it is
trained: mean squared error on K further points, over tasks never seen.
"""

from __future__ import annotations

import enum
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from report import Phases, finite, folder
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import optcore
import optdiff

META_BATCH, INNER_LR, OUTER_LR = 25, 0.01, 1e-3
STEPS_SHOWN = (0, 1, 5, 10)
VALIDATION_TASKS = 600
BANDS = {10: (0.429, 0.035), 5: (0.765, 0.063)}  # of a reference loop, 20 000 iterations
Params = dict[str, Tensor]


class Init(str, enum.Enum):
    """First weights: those of ``torch.nn.Linear``, or small ones as in the code of MAML."""

    torch = "torch"
    paper = "paper"


class Tasks(NamedTuple):
    """Points of some curves, each ``(tasks, points, 1)``: to adapt to, and to be judged by."""

    x: Tensor
    y: Tensor
    query_x: Tensor
    query_y: Tensor


class Score(NamedTuple):
    """Mean squared error over tasks, and half the width of its 95 % interval."""

    mean: float
    half_width: float


class Setting(NamedTuple):
    """What one run of training left: its learning curve, scores by steps, one task with its fits.

    ``fits`` holds the predictions at the query points of ``task`` after each number of steps.
    """

    curve: list[tuple[int, float]]
    scores: dict[int, Score]
    task: Tasks
    fits: dict[int, Tensor]


def sample(count: int, shots: int, queries: int, generator: torch.Generator) -> Tasks:
    """Draw tasks: amplitude, phase and points are uniform, and points have no noise."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    amplitude = uniform(0.1, 5.0, count, 1, 1)
    phase = uniform(0.0, math.pi, count, 1, 1)
    x = uniform(-5.0, 5.0, count, shots + queries, 1)
    y = amplitude * torch.sin(x - phase)
    return Tasks(x[:, :shots], y[:, :shots], x[:, shots:], y[:, shots:])


def a_curve(shots: int, seed: int) -> Tasks:
    """One task of amplitude 4 whose queries are a grid, for the picture."""
    generator = torch.Generator().manual_seed(3 * seed)
    x = 10 * torch.rand(1, shots, 1, generator=generator) - 5
    grid = torch.linspace(-5, 5, 201)[None, :, None]
    return Tasks(x, 4 * torch.sin(x - 1), grid, 4 * torch.sin(grid - 1))


@dataclass(frozen=True)
class Learner:
    """A network and how it adapts to one task; ``vmap`` makes many tasks of it."""

    net: nn.Module
    inner: optcore.GradientTransformation

    def loss(self, params: Params, x: Tensor, y: Tensor) -> Tensor:
        """Mean squared error of the network with these weights."""
        return (functional_call(self.net, params, (x,)) - y).square().mean()

    def step(self, params: Params, i: int, x: Tensor, y: Tensor) -> Params:
        """One inner step."""
        grads = grad(self.loss)(params, x, y)
        # Plain gradient descent remembers nothing, so that its state may begin anew.
        updates, _ = self.inner.update(grads, self.inner.init(params), params)
        return optcore.apply_updates(params, updates)

    def adapted(self, params: Params, x: Tensor, y: Tensor, steps: int) -> Params:
        """The weights after some inner steps, a differentiable function of the first ones."""
        return optdiff.unroll(self.step, params, steps, x, y)

    def losses(self, params: Params, tasks: Tasks, steps: int) -> Tensor:
        """Loss of every task on its query points after adaptation."""

        def after(x: Tensor, y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
            return self.loss(self.adapted(params, x, y, steps), query_x, query_y)

        return vmap(after)(*tasks)

    def fit(self, params: Params, task: Tasks, steps: int) -> Tensor:
        """What the network says at the query points of one task after adaptation."""
        adapted = self.adapted(params, task.x[0], task.y[0], steps)
        return functional_call(self.net, adapted, (task.query_x[0],))


def network(init: Init) -> nn.Sequential:
    """The network of the paper."""
    net = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
    if init is Init.paper:
        for name, param in net.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(param)
            else:
                nn.init.trunc_normal_(param, std=0.01, a=-0.02, b=0.02)
    return net


def score(losses: Tensor) -> Score:
    """Mean and normal 95 % interval of the losses of tasks."""
    return Score(losses.mean().item(), 1.96 * losses.std().item() / math.sqrt(len(losses)))


def train(
    learner: Learner, shots: int, iterations: int, seed: int, done: Callable[[str], None]
) -> list[tuple[int, float]]:
    """Meta-train the network in place; returns validation losses after one step, by iteration."""
    params = dict(learner.net.named_parameters())
    values = {name: p.detach() for name, p in params.items()}  # the same memory, without a graph
    outer = optcore.Adam(params.values(), lr=OUTER_LR)
    generator = torch.Generator().manual_seed(3 * seed + 1)
    validation = sample(VALIDATION_TASKS, shots, shots, generator)
    every = max(1, iterations // 40)
    curve = [(0, learner.losses(values, validation, 1).mean().item())]
    for iteration in range(1, iterations + 1):
        outer.zero_grad()
        tasks = sample(META_BATCH, shots, shots, generator)
        learner.losses(params, tasks, 1).mean().backward()
        outer.step()
        if iteration % every == 0 or iteration == iterations:
            curve.append((iteration, learner.losses(values, validation, 1).mean().item()))
        done(f"validation MSE {curve[-1][1]:.3f}")
    return curve


def run(
    shots: int,
    init: Init,
    iterations: int,
    test_tasks: int,
    seed: int,
    done: Callable[[str], None],
) -> Setting:
    """Train from scratch for tasks of so many points, and test."""
    torch.manual_seed(3 * seed)
    learner = Learner(network(init), optcore.sgd(INNER_LR))
    curve = train(learner, shots, iterations, seed, done)
    params = {name: p.detach() for name, p in learner.net.named_parameters()}
    unseen = sample(test_tasks, shots, shots, torch.Generator().manual_seed(3 * seed + 2))
    scores = {steps: score(learner.losses(params, unseen, steps)) for steps in STEPS_SHOWN}
    task = a_curve(shots, seed)
    return Setting(curve, scores, task, {k: learner.fit(params, task, k) for k in (0, 1, 10)})


def text(one: Score) -> str:
    """A score for the table."""
    if not math.isfinite(one.mean):
        return "diverges"
    digits = ".3f" if one.mean < 100 else ".0e"
    return f"{one.mean:{digits}} ± {one.half_width:{digits}}"


def table(results: Mapping[int, Setting], iterations: int, test_tasks: int) -> Table:
    """Errors: a row for each number of inner steps, a column for each number of points."""
    shown = Table(
        title=f"mean squared error, {test_tasks} unseen tasks, {iterations} iterations",
        caption="mean ± half of the 95 % interval over tasks; queries: as many points as shots",
    )
    shown.add_column("inner steps")
    for shots in results:
        shown.add_column(f"{shots}-shot", justify="right")
    for steps in STEPS_SHOWN:
        shown.add_row(str(steps), *(text(one.scores[steps]) for one in results.values()))
    shown.add_section()
    bands = [BANDS.get(shots) for shots in results]
    cells = ["" if band is None else f"{band[0]:.3f} ± {band[1]:.3f}" for band in bands]
    shown.add_row("1, reference, 20000 iterations", *cells)
    return shown


def save_figure(path: Path, results: Mapping[int, Setting]) -> None:
    """Plot the learning curves, and for each setting one task before and after adaptation."""
    figure = Figure(figsize=(4.5 * (1 + len(results)), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    curves, *panels = figure.subplots(1, 1 + len(results))
    for shots, result in results.items():
        curves.plot(*zip(*result.curve), label=f"{shots}-shot")
    curves.set(
        xlabel="outer iteration",
        ylabel="mean squared error after 1 inner step",
        title=f"learning, judged on {VALIDATION_TASKS} validation tasks",
    )
    curves.set_ylim(bottom=0)
    curves.locator_params(axis="x", nbins=5)
    curves.grid(alpha=0.3)
    curves.legend()
    for axes, (shots, result) in zip(panels, results.items()):
        task, grid = result.task, result.task.query_x.flatten()
        axes.plot(grid, task.query_y.flatten(), color="tab:red", label="the curve")
        axes.plot(task.x.flatten(), task.y.flatten(), "^", color="tab:purple", label="its points")
        for (steps, fit), style in zip(result.fits.items(), (":", "--", "-")):
            label = f"{steps} step{'s' * (steps != 1)}"
            axes.plot(grid, fit.flatten(), style, color="tab:green", label=label)
        axes.set(xlabel="x", ylabel="y", title=f"one task, adapting to {shots} points")
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -12), min(high, 12))  # many steps may diverge
        axes.grid(alpha=0.3)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower right", ncols=len(names))
    figure.savefig(path, dpi=120)


def main(
    shots: Annotated[
        list[int] | None, typer.Option(min=1, help="Points per task; repeat (10 and 5 if left out)")
    ] = None,
    iterations: Annotated[int, typer.Option(min=1, help="Outer steps.")] = 20_000,
    init: Annotated[Init, typer.Option(help="First weights: torch's, or MAML's.")] = Init.torch,
    test_tasks: Annotated[int, typer.Option(min=2, help="Unseen tasks to test on.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seeds weights and tasks.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of torch.")] = 1,
    smoke: Annotated[bool, typer.Option("--smoke", help="A run of seconds, as a test.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for what is saved.")] = Path("out/sinusoid"),
) -> None:
    """Learn initial weights from which one step fits a sine wave: MAML's regression experiment."""
    folder("sinusoid", out)
    if smoke:
        iterations, test_tasks = 300, 500
    torch.set_num_threads(threads)
    started, cpu = time.perf_counter(), time.process_time()
    chosen: Sequence[int] = list(dict.fromkeys(shots or (10, 5)))
    console = Console()
    results: dict[int, Setting] = {}
    with Phases(console) as phases:
        for count in chosen:
            done = phases.start(f"{count}-shot", iterations, lines=10)
            results[count] = run(count, init, iterations, test_tasks, seed, done)
    console.print(table(results, iterations, test_tasks))
    save_figure(out / "sinusoid.png", results)
    record = {
        "settings": {
            "init": init.value,
            "iterations": iterations,
            "test_tasks": test_tasks,
            "seed": seed,
        },
        "mse": {
            str(count): {str(steps): finite(one) for steps, one in result.scores.items()}
            for count, result in results.items()
        },
        "learning_curve": {str(count): result.curve for count, result in results.items()},
    }
    (out / "results.json").write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")
    took, cpu = time.perf_counter() - started, time.process_time() - cpu
    typer.echo(f"{took:.0f} s ({cpu:.0f} s of CPU); plot and numbers are in {out}/")


if __name__ == "__main__":
    typer.run(main)
