# SPDX-License-Identifier: Apache-2.0
"""The few-shot task of optdiff's example, its outer steps shared out over workers.

    python -m optdist.launch --nproc 2 packages/optdist/examples/distributed_maml.py
    torchrun --nproc_per_node=2 packages/optdist/examples/distributed_maml.py
    python packages/optdist/examples/distributed_maml.py     # one process

A worker gets the network and some tasks, adapts to each and differentiates through that; the
caller adds up and takes the outer step. Tasks are characters of alphabets held out, as Omniglot has
them; glyphs rendered from the fonts in the matplotlib wheel stand in for its drawings. Glyphs,
tasks, network and algorithms are optdiff's.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from pickle import UnpicklingError
from typing import Annotated, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "optdiff" / "examples"))

import glyphs
import torch
import training
import typer
from episodes import Episodes, Task, stack
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from network import conv_net
from report import Phases, Score, failure, folder
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from training import FIXED, TITLES, Algo, Settings

import optdist

WAYS, SHOTS, QUERIES = 5, 5, 10
STEPS_SHOWN = (0, 1, 5, 10)
# What torch raises, depending on where the file is damaged or whose it is.
DAMAGED = (EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError, UnpicklingError)


def meta_loss(model: nn.Module, tasks: Task, settings: Settings) -> Tensor:
    """Mean query loss after adapting to each task of a chunk."""
    # Noise, where the algorithm has some, is the chunk's own: the same whoever computes it.
    own = Settings(**{**vars(settings), "seed": torch.initial_seed()})
    listed = [Task(*parts) for parts in zip(*tasks, strict=True)]
    return training.meta_loss(settings.algo[0], model, own)(listed)


class Run(NamedTuple):
    """What the outer steps of this run left: losses, and what the workers did."""

    first: int  # outer steps before this run, from a checkpoint
    losses: list[float]
    busy: Counter[str]  # seconds in the function, by worker
    seconds: float
    retries: int


Scores = dict[str, dict[int, Score]]  # by what was learned, after inner steps


@optdist.auto_init_rpc()
def run(settings: Settings, meta_batch: int, checkpoint: Path | None, out: Path) -> None:
    """Train and test on rank 0; the other processes serve it."""
    train_and_test(settings, meta_batch, checkpoint, out)


@optdist.rank_zero_only
def train_and_test(settings: Settings, meta_batch: int, checkpoint: Path | None, out: Path) -> None:
    """Show progress, then a table of accuracies and one of what the workers did; save both."""
    console = Console()
    splits = glyphs.render(settings.seed)
    learning = Episodes(splits["train"], ways=WAYS, shots=SHOTS, queries=QUERIES)
    tests = Episodes(splits["test"], ways=WAYS, shots=SHOTS, queries=QUERIES).fixed(
        settings.test_tasks, settings.seed
    )
    algo = settings.algo[0]
    torch.manual_seed(settings.seed)
    model = conv_net(WAYS, settings.width)
    outer = torch.optim.Adam(model.parameters(), **FIXED[algo]["outer"])
    with Phases(console) as phases:
        done = phases.start("is tested", 3 * len(tests))
        scores: Scores = {"random weights": tested(model, settings, tests, done)}
        left = settings.iterations - (first := restore(checkpoint, model, outer))
        step_done = phases.start(f"{TITLES[algo]} learns", left, lines=10)
        work = train(settings, meta_batch, checkpoint, model, outer, learning, first, step_done)
        title = f"{TITLES[algo]}, {settings.iterations} outer steps"
        scores[title] = tested(model, settings, tests, done)
        baselines = training.evaluate_baselines(settings, tests, done)
    show(console, scores, baselines, work)
    save_figure(out / "distributed_maml.png", scores, baselines, work)
    record = {
        "settings": vars(settings) | {"meta_batch": meta_batch},
        "workers": optdist.get_world_size(),
        "accuracy": {
            name: {str(steps): one._asdict() for steps, one in row.items()}
            for name, row in scores.items()
        },
        "baselines": {name: one._asdict() for name, one in baselines.items()},
        "run": work._asdict(),
    }
    (out / "results.json").write_text(json.dumps(record, indent=2) + "\n")


def train(
    settings: Settings,
    meta_batch: int,
    checkpoint: Path | None,
    model: nn.Module,
    outer: torch.optim.Optimizer,
    learning: Episodes,
    first: int,
    done: training.Done,
) -> Run:
    """Take the outer steps that are left; the tasks of each depend on its number alone."""
    loss_of = optdist.parallelize(replicate=["settings"])(meta_loss)
    losses: list[float] = []
    busy: Counter[str] = Counter()
    seconds, retries = 0.0, 0
    for step in range(first, settings.iterations):
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        tasks = stack([learning.sample(generator) for _ in range(meta_batch)])
        outer.zero_grad()
        loss = loss_of(model, tasks, settings)
        loss.backward()
        outer.step()
        losses.append(loss.item())
        report = loss_of.last_report
        busy.update(report.busy)
        seconds, retries = seconds + report.seconds, retries + report.retries
        save(checkpoint, model, outer, step + 1)
        done(f"loss {loss.item():.3f}  {report.rows_per_second:.1f} tasks/s")
    return Run(first, losses, busy, seconds, retries)


def restore(checkpoint: Path | None, model: nn.Module, outer: torch.optim.Optimizer) -> int:
    """Load a checkpoint if there is one; return the first step to take."""
    if checkpoint is None or not checkpoint.exists():
        return 0
    try:
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        outer.load_state_dict(saved["outer"])
        return saved["step"]
    except DAMAGED as error:
        raise failure(
            f"distributed_maml: expected a checkpoint of a run with the same options, got "
            f"{type(error).__name__}, at {checkpoint}; change --checkpoint or remove the file"
        ) from error


def save(
    checkpoint: Path | None, model: nn.Module, outer: torch.optim.Optimizer, step: int
) -> None:
    """Write a checkpoint, whole or not at all."""
    if checkpoint is not None:
        new = checkpoint.with_suffix(".new")
        torch.save({"model": model.state_dict(), "outer": outer.state_dict(), "step": step}, new)
        new.replace(checkpoint)


def tested(
    model: nn.Module, settings: Settings, tests: list[Task], done: training.Done
) -> dict[int, Score]:
    """Score adaptation to alphabets that training does not see."""
    return training.evaluate(settings.algo[0], model, settings, tests, STEPS_SHOWN, done)


def show(console: Console, scores: Scores, baselines: dict[str, Score], work: Run) -> None:
    """Print the tables."""
    learned = Table(title=f"{WAYS}-way {SHOTS}-shot accuracy (%) after inner steps")
    learned.add_column("first weights")
    for steps in STEPS_SHOWN:
        learned.add_column(str(steps), justify="right")
    for name, row in scores.items():
        learned.add_row(name, *map(percent, row.values()))
    learned.add_section()
    for name, one in baselines.items():
        learned.add_row(name, *[""] * (len(STEPS_SHOWN) - 1), percent(one))
    busy = Table(title="who worked")
    for column in ("worker", "busy s", "share of the time"):
        busy.add_column(column, justify="left" if column == "worker" else "right")
    for name in sorted(work.busy):
        share = work.busy[name] / work.seconds
        busy.add_row(name, f"{work.busy[name]:.1f}", f"{100 * share:.0f} %")
    console.print(learned, busy)
    console.print(
        f"{work.seconds:.1f} s of outer steps, {work.retries} chunks run again", highlight=False
    )


def percent(one: Score) -> str:
    """A mean with its 95 % interval over tasks."""
    return f"{100 * one.mean:.1f} ± {100 * one.half_width:.1f}"


def save_figure(path: Path, scores: Scores, baselines: dict[str, Score], work: Run) -> None:
    """Plot the loss by outer step, and accuracy by inner step before and after learning."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.plot(range(work.first + 1, work.first + 1 + len(work.losses)), work.losses)
    left.set(xlabel="outer step", ylabel="mean query loss (nats)", title="training tasks")
    left.set_ylim(bottom=0)
    for (name, row), marker in zip(scores.items(), "so"):
        means, widths = ([100 * x for x in column] for column in zip(*row.values()))
        right.errorbar(list(row), means, widths, marker=marker, capsize=3, label=name)
    for (name, one), style in zip(baselines.items(), ("--", ":")):
        label = f"{name}: {100 * one.mean:.0f} %"
        right.axhline(100 * one.mean, linestyle=style, color=f"C{len(right.lines)}", label=label)
    right.set(
        xlabel="inner steps",
        ylabel="accuracy (%)",
        ylim=(0, 100),
        title="alphabets never seen, 95 % intervals over tasks",
    )
    for axes in (left, right):
        axes.grid(alpha=0.3)
    right.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=120)


def main(
    algo: Annotated[Algo, typer.Option(help="How to differentiate.")] = Algo.maml,
    iterations: Annotated[int, typer.Option(min=1, help="Outer steps.")] = 200,
    meta_batch: Annotated[int, typer.Option(min=1, help="Tasks of an outer step.")] = 8,
    inner_steps: Annotated[int, typer.Option(min=1, help="Inner steps in training.")] = 2,
    test_tasks: Annotated[int, typer.Option(min=2, help="Test tasks.")] = 100,
    width: Annotated[int, typer.Option(min=1, help="Filters of each convolution.")] = 16,
    seed: Annotated[
        int, typer.Option(min=0, max=2**31 - 1, help="Seeds images, tasks and weights.")
    ] = 0,
    checkpoint: Annotated[
        Path | None, typer.Option(help="File to save to each step, and to go on from.")
    ] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="A run of seconds, as a test.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for what is saved.")] = Path(
        "out/distributed_maml"
    ),
) -> None:
    """Meta-learn to read new characters, the tasks of each outer step shared out over workers."""
    started = time.perf_counter()
    if checkpoint is not None and not checkpoint.parent.is_dir():
        raise failure(
            f"distributed_maml: expected an existing folder for the checkpoint, got "
            f"{checkpoint.parent}, at --checkpoint; make it first"
        )
    folder("distributed_maml", out)
    if smoke:
        iterations, test_tasks, width = 10, 10, 8
    settings = Settings(
        data="glyphs", algo=[algo.value], inner="sgd", inner_lr=0.4, inner_steps=inner_steps,
        iterations=iterations, test_tasks=test_tasks, width=width, seed=seed, device="cpu",
    )  # fmt: skip
    run(settings, meta_batch, checkpoint, out)
    if os.environ.get("RANK", "0") == "0":
        took, size = time.perf_counter() - started, optdist.get_world_size()
        typer.echo(f"{took:.0f} s with {size} workers; plot and numbers are in {out}/")


if __name__ == "__main__":
    typer.run(main)
