# SPDX-License-Identifier: Apache-2.0
"""The few-shot task of optdiff's example, its outer steps shared out over workers.

    python -m optdist.launch --nproc 2 packages/optdist/examples/distributed_maml.py
    torchrun --nproc_per_node=2 packages/optdist/examples/distributed_maml.py
    python packages/optdist/examples/distributed_maml.py     # one process

A worker gets the network and some tasks, adapts to each and differentiates through that; the
caller adds up and takes the outer step. Glyphs, tasks, network and algorithms are optdiff's.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "optdiff" / "examples"))

import glyphs
import torch
import training
import typer
from episodes import Episodes, Task, stack
from network import conv_net
from report import Phases, Score, failure, score
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from training import FIXED, TITLES, Algo, Settings

import optdist

WAYS, SHOTS, QUERIES = 5, 5, 10
TEST_STEPS = 5


def meta_loss(model: nn.Module, tasks: Task, settings: Settings) -> Tensor:
    """Mean query loss after adapting to each task of a chunk."""
    # Noise, where the algorithm has some, is the chunk's own: the same whoever computes it.
    own = Settings(**{**vars(settings), "seed": torch.initial_seed()})
    listed = [Task(*parts) for parts in zip(*tasks, strict=True)]
    return training.meta_loss(settings.algo[0], model, own)(listed)


@optdist.auto_init_rpc()
def run(settings: Settings, meta_batch: int, checkpoint: Path | None) -> None:
    """Train and test on rank 0; the other processes serve it."""
    train_and_test(settings, meta_batch, checkpoint)


@optdist.rank_zero_only
def train_and_test(settings: Settings, meta_batch: int, checkpoint: Path | None) -> None:
    """Show progress, then a table of accuracies and one of what the workers did."""
    console = Console()
    splits = glyphs.render(settings.seed)
    learning = Episodes(splits["train"], ways=WAYS, shots=SHOTS, queries=QUERIES)
    tests = Episodes(splits["test"], ways=WAYS, shots=SHOTS, queries=QUERIES).fixed(
        settings.test_tasks, settings.seed
    )
    algo = settings.algo[0]
    loss_of = optdist.parallelize(replicate=["settings"])(meta_loss)
    torch.manual_seed(settings.seed)
    model = conv_net(WAYS, settings.width)
    outer = torch.optim.Adam(model.parameters(), **FIXED[algo]["outer"])
    first = restore(checkpoint, model, outer)
    before = tested(model, settings, tests)
    busy: Counter[str] = Counter()
    seconds, retries = 0.0, 0
    with Phases(console) as phases:
        done = phases.start(f"{TITLES[algo]} learns", settings.iterations - first, lines=10)
        for step in range(first, settings.iterations):
            generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
            tasks = stack([learning.sample(generator) for _ in range(meta_batch)])
            outer.zero_grad()
            loss = loss_of(model, tasks, settings)
            loss.backward()
            outer.step()
            report = loss_of.last_report
            busy.update(report.busy)
            seconds, retries = seconds + report.seconds, retries + report.retries
            save(checkpoint, model, outer, step + 1)
            done(f"loss {loss.item():.3f}  {report.rows_per_second:.1f} tasks/s")
    after = tested(model, settings, tests)
    show(console, settings, before, after, busy, seconds, retries)


def restore(checkpoint: Path | None, model: nn.Module, outer: torch.optim.Optimizer) -> int:
    """Load a checkpoint if there is one; return the first step to take."""
    if checkpoint is None or not checkpoint.exists():
        return 0
    saved = torch.load(checkpoint, weights_only=True)
    model.load_state_dict(saved["model"])
    outer.load_state_dict(saved["outer"])
    return saved["step"]


def save(
    checkpoint: Path | None, model: nn.Module, outer: torch.optim.Optimizer, step: int
) -> None:
    """Write a checkpoint, whole or not at all."""
    if checkpoint is not None:
        new = checkpoint.with_suffix(".new")
        torch.save({"model": model.state_dict(), "outer": outer.state_dict(), "step": step}, new)
        new.replace(checkpoint)


def tested(model: nn.Module, settings: Settings, tests: list[Task]) -> Score:
    """Score adaptation to alphabets that training does not see."""
    found = training.accuracies(settings.algo[0], model, settings, tests, (TEST_STEPS,))
    return score([right for (right,) in found])


def show(
    console: Console,
    settings: Settings,
    before: Score,
    after: Score,
    busy: Counter[str],
    seconds: float,
    retries: int,
) -> None:
    """Print the tables."""
    learned = Table(title=f"{WAYS}-way {SHOTS}-shot accuracy after {TEST_STEPS} steps (%)")
    learned.add_column("outer steps")
    learned.add_column(TITLES[settings.algo[0]], justify="right")
    for steps, one in ((0, before), (settings.iterations, after)):
        learned.add_row(str(steps), f"{100 * one.mean:.1f} ± {100 * one.half_width:.1f}")
    work = Table(title="who worked")
    for column in ("worker", "busy s", "share of the time"):
        work.add_column(column, justify="left" if column == "worker" else "right")
    for name in sorted(busy):
        work.add_row(name, f"{busy[name]:.1f}", f"{100 * busy[name] / seconds:.0f} %")
    console.print(learned, work)
    console.print(f"{seconds:.1f} s of outer steps, {retries} chunks run again", highlight=False)


def main(
    algo: Annotated[Algo, typer.Option(help="How to differentiate.")] = Algo.maml,
    iterations: Annotated[int, typer.Option(min=1, help="Outer steps.")] = 200,
    meta_batch: Annotated[int, typer.Option(min=1, help="Tasks of an outer step.")] = 8,
    inner_steps: Annotated[int, typer.Option(min=1, help="Inner steps in training.")] = 2,
    test_tasks: Annotated[int, typer.Option(min=2, help="Test tasks.")] = 100,
    width: Annotated[int, typer.Option(min=1, help="Filters of each convolution.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Seeds images, tasks and weights.")] = 0,
    checkpoint: Annotated[
        Path | None, typer.Option(help="File to save to each step, and to go on from.")
    ] = None,
) -> None:
    """Meta-learn to read new characters, the tasks of each outer step shared out over workers."""
    started = time.perf_counter()
    if checkpoint is not None and not checkpoint.parent.is_dir():
        raise failure(
            f"distributed_maml: expected an existing folder for the checkpoint, got "
            f"{checkpoint.parent}, at --checkpoint; make it first"
        )
    settings = Settings(
        data="glyphs", algo=[algo.value], inner="sgd", inner_lr=0.4, inner_steps=inner_steps,
        iterations=iterations, test_tasks=test_tasks, width=width, seed=seed, device="cpu",
    )  # fmt: skip
    run(settings, meta_batch, checkpoint)
    if os.environ.get("RANK", "0") == "0":
        typer.echo(f"{time.perf_counter() - started:.0f} s with {optdist.get_world_size()} workers")


if __name__ == "__main__":
    typer.run(main)
