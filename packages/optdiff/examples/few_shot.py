# SPDX-License-Identifier: Apache-2.0
"""Few-shot classification of characters from alphabets the model has never seen, in four ways.

    python packages/optdiff/examples/few_shot.py

Renders glyphs from the fonts in the matplotlib wheel (`glyphs`), draws tasks from them
(`episodes`), meta-trains a small network (`network`, `training`) by explicit differentiation with
and without derivatives of the inner steps (`maml`), by implicit (`imaml`) and by zero-order
differentiation (`es_maml`), tests it on held-out alphabets beside two baselines (`baselines`),
prints tables (`report`) with the cost of an outer step (`cost`), and saves pictures (`figures`).
"""

from __future__ import annotations

import enum
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import glyphs
import omniglot
import torch
import training
import typer
from episodes import DataError, Episodes
from figures import save_learning_curves, save_sheet
from network import conv_net
from report import (
    Phases,
    Score,
    accuracy_table,
    baseline_table,
    cost_table,
    failure,
    finite,
    folder,
)
from rich.console import Console
from torch import Tensor
from training import TITLES, VALIDATION_STEPS, Algo, Settings

import optdiff

WAYS, SHOTS, QUERIES, TEST_QUERIES = 5, 5, 10, 15
INNER_LR = {"sgd": 0.4, "adam": 0.03}
VALIDATION_TASKS = 32
STEPS_SHOWN = (0, 1, 3, 5, 10)
TEST_SHOTS = (5, 1)
COMPARED = [Algo.maml, Algo.fomaml, Algo.imaml, Algo.es_maml]


class Data(str, enum.Enum):
    """Where the characters come from."""

    glyphs = "glyphs"
    omniglot = "omniglot"


class Inner(str, enum.Enum):
    """The inner optimizer."""

    sgd = "sgd"
    adam = "adam"


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


def run(settings: Settings, splits: Mapping[str, Mapping[str, Tensor]], out: Path) -> None:
    """Train, test, print the tables and save everything to ``out``.

    Raises:
        DataError: The splits have too few images.
    """
    console = Console()
    splits = {
        split: {name: images.to(settings.device) for name, images in alphabets.items()}
        for split, alphabets in splits.items()
    }
    learning = Episodes(splits["train"], ways=WAYS, shots=SHOTS, queries=QUERIES)
    held_out = Episodes(splits["validation"], ways=WAYS, shots=SHOTS, queries=TEST_QUERIES)
    testing = {
        f"{shots}-shot": Episodes(splits["test"], ways=WAYS, shots=shots, queries=TEST_QUERIES)
        for shots in TEST_SHOTS
    }
    save_sheet(out / "glyphs.png", splits)
    for split, alphabets in splits.items():
        listed = ", ".join(f"{name} ({len(images)})" for name, images in alphabets.items())
        console.print(f"{split}: characters of {listed}", highlight=False)

    validation = held_out.fixed(VALIDATION_TASKS, settings.seed)
    tests = {name: one.fixed(settings.test_tasks, settings.seed) for name, one in testing.items()}
    curves, costs = {}, {}
    accuracy: dict[str, dict[str, dict[int, Score]]] = {name: {} for name in tests}
    with Phases(console) as phases:
        for algo in settings.algo:
            title = TITLES[algo]
            torch.manual_seed(settings.seed)  # the same first weights for all
            model = conv_net(WAYS, settings.width).to(settings.device)
            done = phases.start(f"{title} learns", settings.iterations, lines=10)
            curves[title], costs[title] = training.train(
                algo, model, settings, learning, validation, done
            )
            done = phases.start(f"{title} is tested", len(tests) * settings.test_tasks)
            for name, tasks in tests.items():
                accuracy[name][title] = training.evaluate(
                    algo, model, settings, tasks, STEPS_SHOWN, done
                )
        count = len(validation) + len(tests) * settings.test_tasks
        done = phases.start("baselines", count)
        lines = training.evaluate_baselines(settings, validation, done)
        baselines = {
            name: training.evaluate_baselines(settings, tasks, done)
            for name, tasks in tests.items()
        }

    alphabets = ", ".join(splits["test"])
    title = f"{WAYS}-way accuracy (%) after inner steps, {settings.test_tasks} test tasks"
    budget = (
        f"Alphabets never seen: {alphabets}. ± half of the 95 % interval over tasks; chance is "
        f"{100 / WAYS:.0f} %.\nEvery algorithm had the same {settings.iterations} outer steps of "
        f"{training.META_BATCH} tasks.\nThe queries of a task are classified together (batch norm "
        "of the batch at hand)."
    )
    note = "Median CPU time; peak memory of the tensors made, all tasks of the step together."
    console.print(accuracy_table(accuracy, title=title), budget, "", highlight=False, sep="\n")
    console.print(baseline_table(baselines), "", highlight=False, sep="\n")
    console.print(cost_table(costs), note, "", highlight=False, sep="\n")
    save_learning_curves(
        out / "learning_curve.png",
        curves,
        {name: one.mean for name, one in lines.items()},
        title=f"{settings.data}, {WAYS}-way {SHOTS}-shot",
        steps=VALIDATION_STEPS,
    )
    written = {
        "settings": vars(settings) | {"fixed": training.FIXED},
        "accuracy": {
            name: {
                algo: {str(steps): one._asdict() for steps, one in scores.items()}
                for algo, scores in rows.items()
            }
            for name, rows in accuracy.items()
        },
        "baselines": {
            name: {method: one._asdict() for method, one in rows.items()}
            for name, rows in baselines.items()
        },
        "cost": {algo: cost._asdict() for algo, cost in costs.items()},
        "learning_curve": {
            algo: [finite(point) for point in curve] for algo, curve in curves.items()
        },
    }
    (out / "results.json").write_text(json.dumps(written, indent=2, allow_nan=False) + "\n")


def main(
    data: Annotated[Data, typer.Option(help="Characters to learn from.")] = Data.glyphs,
    root: Annotated[
        Path | None, typer.Option(help="Folder with images_background and images_evaluation.")
    ] = None,
    algo: Annotated[
        list[Algo], typer.Option(help="What to train; give it again to compare several.")
    ] = COMPARED,
    inner: Annotated[Inner, typer.Option(help="Inner optimizer.")] = Inner.sgd,
    inner_lr: Annotated[
        float | None, typer.Option(help="Inner learning rate (sgd 0.4, adam 0.03 if left out).")
    ] = None,
    inner_steps: Annotated[
        int, typer.Option(min=1, help="Inner steps in training (iMAML, which solves: always 4).")
    ] = 2,
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Outer steps (500 if left out, --full 8000).")
    ] = None,
    test_tasks: Annotated[int, typer.Option(min=2, help="Test tasks per setting.")] = 200,
    width: Annotated[int, typer.Option(min=1, help="Filters of each convolution.")] = 16,
    full: Annotated[bool, typer.Option("--full", help="Train longer.")] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="A run of seconds, as a test.")] = False,
    seed: Annotated[
        int, typer.Option(min=0, max=2**31 - 1, help="Seeds images, tasks and weights.")
    ] = 0,
    device: Annotated[str, typer.Option(help="Torch device, as cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of torch.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder for what is saved.")] = Path("out/few_shot"),
) -> None:
    """Learn to learn new characters from five examples, tested on alphabets never seen before.

    Compares explicit (MAML), first-order (FOMAML), implicit (iMAML) and zero-order differentiation
    (ES-MAML): accuracy, CPU time and memory.
    """
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
    folder("few_shot", out)
    if smoke:
        iterations, test_tasks, width = 10, 10, 8
    torch.set_num_threads(threads)  # tensors are too small to share out: one is steadiest
    torch.manual_seed(seed)
    settings = Settings(
        data=data.value,
        algo=list(dict.fromkeys(one.value for one in algo)),
        inner=inner.value,
        inner_lr=inner_lr,
        inner_steps=inner_steps,
        iterations=iterations or (8000 if full else 500),
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
