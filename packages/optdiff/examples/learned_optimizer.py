# SPDX-License-Identifier: Apache-2.0
r"""A learned optimizer, trained without differentiating through training.

    python packages/optdiff/examples/learned_optimizer.py

The rule is a network of 82 numbers :math:`\theta`, the same for every parameter :math:`w`. It sees
the gradient and three momenta over the root of the second moment, :math:`w`, and the time, and
corrects a step of Adam (cf. Metz et al., 2019, arXiv:1810.10180, section 3):

.. math::
    w_{t+1} = w_t - e^{\alpha + m_\theta}
        \Bigl(\frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon} + d_\theta\Bigr)

What it shall make small is the mean loss of short training runs on random tasks. Such a function of
:math:`\theta` is too rough to differentiate (section 2 of the paper), so its smoothed self is
descended by antithetic evolution strategies, `optdiff.zero_order`: all directions and tasks are one
``vmap``. Then it is tested on new tasks, on runs longer than any it has learned from, and on
scikit-learn's digits with another network, against Adam and SGD with tuned learning rates. The
tasks of the paper (convolutional networks on ImageNet) and its weeks of computing are not here;
random small classifications stand in (``small_tasks.py``).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from learned_rule import Rule, Tree, first_theta, learned
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from report import Phases, Score, folder, score
from rich.console import Console
from rich.table import Table
from small_tasks import Tasks, digit_tasks, logits, random_tasks
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.nn.functional import cross_entropy

import optcore
import optdiff

LENGTHS = (20, 50, 100)  # of the training runs that are learned from, in turns
STEPS, LONGER = 50, 250  # of those that are tested
DIRECTIONS, SIGMA, TASKS, META_LR = 16, 0.1, 16, 0.02
WORST = 5.0  # a loss counts as this at most, so that one diverging run does not decide
RATES = [10 ** (k / 4) for k in range(-14, 3)]  # of the tuned optimizers: 3e-4 to 3


def training(rule: Rule, task: Tasks) -> Tensor:
    """The losses ``(steps,)`` of a training run on one task."""

    def loss(weights: Tree, rows: Tensor) -> Tensor:
        return cross_entropy(logits(weights, task.x[rows]), task.y[rows])

    weights, state = task.weights, rule.init(task.weights)
    losses = []
    for rows in task.rows:
        grads, value = grad_and_value(loss)(weights, rows)
        updates, state = rule.update(grads, state, weights, inplace=False)
        weights = optcore.apply_updates(weights, updates, inplace=False)
        losses.append(value)
    return torch.nan_to_num(torch.stack(losses), nan=WORST).clamp(max=WORST)


def trainings(
    rule: Callable[[Tree | Tensor], Rule], numbers: Tree | Tensor, tasks: Tasks
) -> Tensor:
    """The losses ``(tasks, steps)`` of training runs on all tasks by one rule."""
    return vmap(lambda task: training(rule(numbers), task))(tasks)


def smoothed(objective: Callable[..., Tensor], generator: torch.Generator) -> Callable[..., Tensor]:
    """Give an objective the gradient of its smoothed self in its first argument, by estimate."""
    normal = torch.distributions.Normal(0.0, 1.0)
    return optdiff.zero_order(
        normal, "antithetic", num_samples=DIRECTIONS, sigma=SIGMA, generator=generator
    )(objective)


def meta_train(
    iterations: int, generator: torch.Generator, done: Callable[[str], None]
) -> tuple[Tree, list[tuple[int, float]]]:
    """Learn theta; returns it, and the mean losses on validation tasks by iteration."""
    theta = {name: value.requires_grad_() for name, value in first_theta(generator).items()}
    objective = smoothed(lambda theta, tasks: trainings(learned, theta, tasks).mean(), generator)
    rate = optcore.cosine_decay_schedule(META_LR, iterations)
    outer = optcore.Adam(theta.values(), lr=rate)
    validation = random_tasks(64, STEPS, generator)
    every = max(1, iterations // 25)

    def judged() -> float:
        with torch.no_grad():
            return trainings(learned, theta, validation).mean().item()

    curve = [(0, judged())]
    for iteration in range(1, iterations + 1):
        outer.zero_grad()
        steps = LENGTHS[iteration % len(LENGTHS)]
        objective(theta, random_tasks(TASKS, steps, generator)).backward()
        outer.step()
        if iteration % every == 0 or iteration == iterations:
            curve.append((iteration, judged()))
        done(f"validation loss {curve[-1][1]:.3f}")
    return {name: value.detach() for name, value in theta.items()}, curve


def tuned(rule: Callable[[Tensor], Rule], tasks: Tasks) -> float:
    """The learning rate with the least mean loss on some tasks."""
    means = vmap(lambda lr: trainings(rule, lr, tasks).mean())(torch.tensor(RATES))
    return RATES[int(means.argmin())]


CLASSIC: dict[str, Callable[[Tensor], Rule]] = {
    "SGD with momentum": lambda lr: optcore.sgd(lr, momentum=0.9),
    "Adam": optcore.adam,
}


def run(iterations: int, count: int, seed: int, out: Path) -> None:
    """Learn the rule, tune the others, compare, print and save."""
    console = Console()
    generator = torch.Generator().manual_seed(seed)
    settings = {
        f"new tasks, {STEPS} steps": lambda g: random_tasks(count, STEPS, g),
        f"new tasks, {LONGER} steps": lambda g: random_tasks(count, LONGER, g),
        f"digits, {LONGER} steps": lambda g: digit_tasks(max(2, count // 8), LONGER, g),
    }
    with Phases(console) as phases:
        done = phases.start("learning", iterations, lines=10)
        theta, curve = meta_train(iterations, generator, done)
        done = phases.start("tuning", len(CLASSIC) * (1 + len(settings)), lines=1)
        tests, tuning = {name: draw(generator) for name, draw in settings.items()}, {}
        reference = random_tasks(count, STEPS, generator)
        for name, rule in CLASSIC.items():
            tuning[name] = {"": tuned(rule, reference)}
            done("")
            for setting, draw in settings.items():
                tuning[name][setting] = tuned(rule, draw(generator))
                done("")
    losses: dict[str, dict[str, Tensor]] = {}
    for setting, tasks in tests.items():
        losses[setting] = {"learned": trainings(learned, theta, tasks)}
        start = first_theta(torch.Generator().manual_seed(seed))
        losses[setting]["learned, before"] = trainings(learned, start, tasks)
        for name, rule in CLASSIC.items():
            for how, where in (("", ""), (", tuned there", setting)):
                rate = torch.tensor(tuning[name][where])
                losses[setting][name + how] = trainings(rule, rate, tasks)
    scores = {
        setting: {name: ended(values) for name, values in rows.items()}
        for setting, rows in losses.items()
    }
    size = sum(value.numel() for value in theta.values())
    console.print(table(scores, tuning, size, iterations))
    save_figure(out / "learned_optimizer.png", curve, losses)
    record = {
        "settings": {"iterations": iterations, "tasks": count, "seed": seed},
        "loss": {
            setting: {name: one._asdict() for name, one in rows.items()}
            for setting, rows in scores.items()
        },
        "tuned": tuning,
        "learning_curve": curve,
        "theta": {name: value.tolist() for name, value in theta.items()},
    }
    (out / "results.json").write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")


def ended(losses: Tensor) -> Score:
    """Mean over the last tenth of the steps, with the interval over tasks."""
    return score(losses[:, -losses.shape[1] // 10 :].mean(1).tolist())


def table(
    scores: dict[str, dict[str, Score]],
    tuning: dict[str, dict[str, float]],
    size: int,
    iterations: int,
) -> Table:
    """A row for each optimizer, a column for each setting."""
    rates = ", ".join(f"{name} {rows['']:.1g}" for name, rows in tuning.items())
    shown = Table(
        title=f"training loss, last tenth of the steps: {size} learned numbers, "
        f"{iterations} outer steps",
        caption=f"mean ± half of the 95 % interval over tasks; learning rates tuned on tasks as in "
        f"learning: {rates}; tuned there: for that column",
    )
    shown.add_column("optimizer")
    for setting in scores:
        shown.add_column(setting, justify="right")
    for name in next(iter(scores.values())):
        cells = (rows[name] for rows in scores.values())
        shown.add_row(name, *(f"{one.mean:.3f} ± {one.half_width:.3f}" for one in cells))
    return shown


def save_figure(
    path: Path, curve: list[tuple[int, float]], losses: dict[str, dict[str, Tensor]]
) -> None:
    """Plot how the rule was learned, and mean losses by step in each setting."""
    figure = Figure(figsize=(15, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    first, *panels = figure.subplots(1, 1 + len(losses))
    first.plot(*zip(*curve), "o-", markersize=3)
    first.set(
        xlabel="outer step",
        ylabel=f"mean training loss over runs of {STEPS} steps (nats)",
        title="learning the rule, validation tasks",
    )
    first.xaxis.get_major_locator().set_params(integer=True)
    first.grid(alpha=0.3)
    for axes, (setting, rows) in zip(panels, losses.items()):
        for name, style, width in (
            ("learned", "C3-", 3),
            ("Adam", "C0-", 1.5),
            ("Adam, tuned there", "C0:^", 1),
            ("SGD with momentum", "C1-", 1.5),
            ("SGD with momentum, tuned there", "C1:s", 1),
        ):
            values = rows[name].mean(0)
            joined = max(1, len(values) // 25)  # batches are noisy
            means = values.unfold(0, joined, joined).mean(1)
            steps = torch.arange(1, 1 + len(means)) * joined
            axes.plot(
                steps, means, style, label=name, linewidth=width, markersize=5, markevery=(3, 4)
            )
        axes.set(xlabel="step", ylabel="mean training loss (nats)", title=setting, yscale="log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        if len(rows["learned"][0]) > max(LENGTHS):
            axes.axvline(
                max(LENGTHS), color="gray", linestyle="--", label="longest run learned from"
            )
        axes.grid(alpha=0.3)
    handles, labels = panels[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9)
    figure.savefig(path, dpi=120)


def main(
    iterations: Annotated[int, typer.Option(min=1, help="Outer steps.")] = 120,
    tasks: Annotated[int, typer.Option(min=2, help="Tasks to test on, and to tune on.")] = 64,
    seed: Annotated[
        int, typer.Option(min=0, max=2**31 - 1, help="Seeds tasks, directions, weights.")
    ] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of torch.")] = 1,
    smoke: Annotated[bool, typer.Option("--smoke", help="A run of seconds, as a test.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for what is saved.")] = Path(
        "out/learned_optimizer"
    ),
) -> None:
    """Learn an optimizer by evolution strategies, and test it where it was not trained."""
    started = time.perf_counter()
    folder("learned_optimizer", out)
    if smoke:
        iterations, tasks = 3, 8
    torch.set_num_threads(threads)
    run(iterations, tasks, seed, out)
    took = time.perf_counter() - started
    typer.echo(f"{took:.0f} s with optdiff {optdiff.__version__}; plot and numbers are in {out}/")


if __name__ == "__main__":
    typer.run(main)
