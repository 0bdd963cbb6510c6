# SPDX-License-Identifier: Apache-2.0
"""Few-shot classification of characters from alphabets the model has never seen, by MAML.

    python packages/optdiff/examples/few_shot.py

Renders glyphs from the fonts in the matplotlib wheel (`glyphs`), draws tasks from them
(`episodes`), meta-trains with a differentiable inner loop (`maml`), evaluates on held-out
alphabets beside two baselines (`baselines`), prints a table (`report`), saves pictures (`figures`).
"""

from __future__ import annotations

import enum
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import glyphs
import omniglot
import torch
import typer
from baselines import from_scratch, nearest_neighbour
from episodes import DataError, Episodes, Task
from figures import Point, save_learning_curve, save_sheet
from maml import adaptation, conv_net, inner_optimizer, meta_step
from report import Phases, Score, failure, score, table
from rich.console import Console
from torch import Tensor, nn

import optdiff

WAYS, SHOTS, QUERIES, TEST_QUERIES = 5, 5, 10, 15
META_BATCH, OUTER_LR = 4, 1e-2
INNER_LR = {"sgd": 0.4, "adam": 0.03}
VALIDATION_TASKS, VALIDATION_STEPS = 32, 5
STEPS_SHOWN = (0, 1, 3, 5, 10)
TEST_SHOTS = (5, 1)
SCRATCH, NEAREST = "same network from scratch", "nearest neighbour on pixels"


class Data(str, enum.Enum):
    """Where the characters come from."""

    glyphs = "glyphs"
    omniglot = "omniglot"


class Algo(str, enum.Enum):
    """MAML, or MAML that takes its inner gradients as constants."""

    maml = "maml"
    fomaml = "fomaml"


class Inner(str, enum.Enum):
    """The inner optimizer."""

    sgd = "sgd"
    adam = "adam"


@dataclass(frozen=True)
class Settings:
    """What a run depends on."""

    data: str
    algo: str
    inner: str
    inner_lr: float
    inner_steps: int
    iterations: int
    test_tasks: int
    width: int
    seed: int
    device: str


def load(data: Data, root: Path | None, seed: int) -> dict[str, dict[str, Tensor]]:
    """Load the chosen data set as ``{split: {alphabet: images}}``.

    Raises:
        DataError: There is no such data, or it is malformed.
    """
    if data is Data.glyphs:
        return glyphs.render(seed)
    if root is None:
        raise DataError(
            "few_shot: expected the folder of Omniglot, got none, at --root; "
            "give --root DIR, or leave --data out to use glyphs"
        )
    return omniglot.read(root)


def train(
    model: nn.Module,
    settings: Settings,
    episodes: Episodes,
    validation: Sequence[Task],
    done: Callable[[str], None],
) -> list[Point]:
    """Meta-train ``model`` in place; returns its learning curve."""
    first_order = settings.algo == "fomaml"
    inner = inner_optimizer(model, settings.inner, settings.inner_lr, first_order=first_order)
    probe = inner_optimizer(model, settings.inner, settings.inner_lr, first_order=True)
    outer = torch.optim.Adam(model.parameters(), lr=OUTER_LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(outer, settings.iterations)
    generator = torch.Generator().manual_seed(settings.seed)
    every = max(1, settings.iterations // 20)
    curve: list[Point] = []
    recent: list[float] = []
    for iteration in range(1, settings.iterations + 1):
        tasks = [episodes.sample(generator) for _ in range(META_BATCH)]
        loss, accuracy = meta_step(model, inner, outer, tasks, settings.inner_steps)
        schedule.step()
        recent.append(accuracy)
        if iteration % every == 0 or iteration in (1, settings.iterations):
            seen = [adaptation(model, probe, task, (VALIDATION_STEPS,))[0] for task in validation]
            curve.append(Point(iteration, statistics.fmean(recent), statistics.fmean(seen)))
            recent.clear()
        done(f"loss {loss:.2f}, validation accuracy {100 * curve[-1].validation:.0f} %")
    return curve


def evaluate(
    model: nn.Module,
    settings: Settings,
    tasks: Sequence[Task],
    steps: Sequence[int],
    done: Callable[[str], None],
) -> dict[str, Score]:
    """Score adaptation after each number of ``steps``, and the baselines, on the same tasks."""
    inner = inner_optimizer(model, settings.inner, settings.inner_lr, first_order=True)
    found: dict[str, list[float]] = {}
    for task in tasks:
        for step, right in zip(steps, adaptation(model, inner, task, steps)):
            name = f"after {step} inner step{'s' if step > 1 else ''}"
            found.setdefault(name if step else "before adaptation", []).append(right)
        found.setdefault(SCRATCH, []).append(from_scratch(task, ways=WAYS, width=settings.width))
        found.setdefault(NEAREST, []).append(nearest_neighbour(task))
        done("")
    return {name: score(accuracies) for name, accuracies in found.items()}


def run(settings: Settings, splits: Mapping[str, Mapping[str, Tensor]], out: Path) -> None:
    """Train, evaluate, print the table and save everything to ``out``.

    Raises:
        DataError: The splits have too few images.
    """
    console = Console()
    splits = {
        split: {name: images.to(settings.device) for name, images in alphabets.items()}
        for split, alphabets in splits.items()
    }
    training = Episodes(splits["train"], ways=WAYS, shots=SHOTS, queries=QUERIES)
    held_out = Episodes(splits["validation"], ways=WAYS, shots=SHOTS, queries=TEST_QUERIES)
    testing = {
        shots: Episodes(splits["test"], ways=WAYS, shots=shots, queries=TEST_QUERIES)
        for shots in TEST_SHOTS
    }
    save_sheet(out / "glyphs.png", splits)
    for split, alphabets in splits.items():
        listed = ", ".join(f"{name} ({len(images)})" for name, images in alphabets.items())
        console.print(f"{split}: characters of {listed}", highlight=False)

    model = conv_net(WAYS, settings.width).to(settings.device)
    validation = held_out.fixed(VALIDATION_TASKS, settings.seed)
    with Phases(console) as phases:
        done = phases.start("meta-training", settings.iterations, lines=20)
        curve = train(model, settings, training, validation, done)
        done = phases.start("baselines", len(validation))
        lines = evaluate(model, settings, validation, (VALIDATION_STEPS,), done)
        results = {}
        for shots, episodes in testing.items():
            done = phases.start(f"testing {shots}-shot", settings.test_tasks)
            tasks = episodes.fixed(settings.test_tasks, settings.seed)
            setting = f"{WAYS}-way {shots}-shot"
            results[setting] = evaluate(model, settings, tasks, STEPS_SHOWN, done)

    title = f"{settings.test_tasks} test tasks of unseen alphabets: {', '.join(splits['test'])}"
    console.print(table(results, title=title, ways=WAYS, sections=(SCRATCH,)))
    save_learning_curve(
        out / "learning_curve.png",
        curve,
        {name: lines[name].mean for name in (SCRATCH, NEAREST)},
        title=f"{settings.algo.upper()} on {settings.data}, {WAYS}-way {SHOTS}-shot",
        steps=(settings.inner_steps, VALIDATION_STEPS),
    )
    written = {
        "settings": vars(settings),
        "accuracy": {
            setting: {name: one._asdict() for name, one in rows.items()}
            for setting, rows in results.items()
        },
        "learning_curve": [point._asdict() for point in curve],
    }
    (out / "results.json").write_text(json.dumps(written, indent=2) + "\n")


def main(
    data: Annotated[Data, typer.Option(help="Characters to learn from.")] = Data.glyphs,
    root: Annotated[
        Path | None, typer.Option(help="Folder with images_background and images_evaluation.")
    ] = None,
    algo: Annotated[Algo, typer.Option(help="MAML, or its first-order form.")] = Algo.maml,
    inner: Annotated[Inner, typer.Option(help="Inner optimizer.")] = Inner.sgd,
    inner_lr: Annotated[
        float | None, typer.Option(help="Inner learning rate (sgd 0.4, adam 0.03 if left out).")
    ] = None,
    inner_steps: Annotated[int, typer.Option(min=1, help="Inner steps in training.")] = 2,
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Outer steps (1000 if left out, --full 8000).")
    ] = None,
    test_tasks: Annotated[int, typer.Option(min=2, help="Test tasks per setting.")] = 200,
    width: Annotated[int, typer.Option(min=1, help="Filters of each convolution.")] = 16,
    full: Annotated[bool, typer.Option("--full", help="Train longer.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seeds images, tasks and weights.")] = 0,
    device: Annotated[str, typer.Option(help="Torch device, as cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of torch.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder for what is saved.")] = Path("out/few_shot"),
) -> None:
    """Learn to learn new characters from five examples: MAML on alphabets never seen before."""
    started = time.perf_counter()
    if inner_lr is None:
        inner_lr = INNER_LR[inner.value]
    if not 0 < inner_lr < math.inf:
        raise failure(
            f"few_shot: expected a positive number, got {inner_lr}, at --inner-lr; try 0.1"
        )
    try:
        torch.zeros((), device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise failure(
            f"few_shot: expected a device that torch can use, got {device!r}, at --device; use cpu"
        ) from error
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise failure(
            f"few_shot: expected a folder to write to, got {error.strerror!r}, at {out}; "
            "change --out"
        ) from error
    torch.set_num_threads(threads)  # tensors are too small to share out: one is steadiest
    torch.manual_seed(seed)
    settings = Settings(
        data=data.value,
        algo=algo.value,
        inner=inner.value,
        inner_lr=inner_lr,
        inner_steps=inner_steps,
        iterations=iterations or (8000 if full else 1000),
        test_tasks=test_tasks,
        width=width,
        seed=seed,
        device=device,
    )
    try:
        run(settings, load(data, root, seed), out)
    except DataError as error:
        raise failure(str(error)) from error
    took = time.perf_counter() - started
    typer.echo(f"{took:.0f} s with optdiff {optdiff.__version__}; plots and numbers are in {out}/")


if __name__ == "__main__":
    typer.run(main)
