# SPDX-License-Identifier: Apache-2.0
r"""A hundred networks trained at once by ``torch.func.vmap``: an ensemble for each learning rate.

    python packages/optdiff/examples/ensembles.py

A step of training is a function of weights, optimizer state and learning rate, as optcore's
optimizers are functions and take tensors for hyperparameters. ``vmap`` makes it a step of all
networks, 16 seeds times 8 learning rates, each with batches of its own. The same networks one after
the other under ``torch.optim.Adam`` end in the same numbers, and take longer. The networks of one
learning rate vote by their mean probabilities

.. math::
    p(y \mid x) = \frac1M \sum_{m=1}^M p_{\theta_m}(y \mid x),

a deep ensemble (Lakshminarayanan, Pritzel, Blundell, 2017, arXiv:1612.01474, section 2.4): with
M its log loss falls, and mostly its errors. The paper's data are MNIST, SVHN and ImageNet;
scikit-learn's 8 x 8 digits stand in, 400 to learn from.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from digits import Images, parts_of, shuffled
from many_networks import (
    TRAIN,
    Params,
    apart,
    batches,
    members,
    network,
    train_one_by_one,
    train_together,
)
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from report import Phases, Score, folder, score
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.func import functional_call, vmap

import optcore
import optdiff

VALIDATION = 400  # images to choose the learning rate by
RATES = [10 ** (k / 2) for k in range(-7, 1)]  # 3e-4 to 1
TIMED, TIMED_STEPS, ROUNDS = (1, 4, 16, 64, 256), 5, 5  # networks of the timing


class Digits(NamedTuple):
    """The images, in three parts."""

    train: Images
    validation: Images
    test: Images


class Quality(NamedTuple):
    """Share of the images read correctly, and mean log loss in nats."""

    accuracy: float
    log_loss: float


def load(seed: int) -> Digits:
    """Split scikit-learn's digits; in double precision, to compare two ways of training."""
    images = shuffled(torch.Generator().manual_seed(seed), torch.float64)
    return Digits(*parts_of(images, TRAIN, VALIDATION))


def votes(params: Params, x: Tensor) -> Tensor:
    """Probabilities ``(networks, images, classes)``."""
    net = network()
    return vmap(lambda params: functional_call(net, params, (x,)).softmax(1))(params)


def quality(probabilities: Tensor, y: Tensor) -> Quality:
    """Judge probabilities ``(images, classes)``."""
    right = (probabilities.argmax(1) == y).double().mean().item()
    return Quality(
        right, -probabilities[torch.arange(len(y)), y].clamp(min=1e-30).log().mean().item()
    )


def by_size(probabilities: Tensor, y: Tensor) -> dict[int, Quality]:
    """Mean quality of ensembles of each size, over disjoint groups of the networks."""
    found = {}
    size = 1
    while size <= len(probabilities):
        groups = [quality(one.mean(0), y) for one in probabilities.split(size) if len(one) == size]
        found[size] = Quality(*map(statistics.fmean, zip(*groups)))
        size *= 2
    return found


def timed(data: Images, seed: int, counts: Sequence[int]) -> dict[str, dict[int, float]]:
    """Median CPU seconds of a step of so many networks, both ways in turns."""
    found: dict[str, dict[int, float]] = {"one by one": {}, "vmap": {}}
    for count in counts:
        nets, rates = members(range(seed, seed + count), [1e-3])
        rows = batches(range(seed, seed + count), 1, TIMED_STEPS)
        ways: dict[str, Callable[[], Params]] = {
            "one by one": lambda n=nets, r=rates, o=rows: train_one_by_one(
                n, r, data, o, torch.optim.Adam
            ),
            "vmap": lambda n=nets, r=rates, o=rows: train_together(n, r, data, o, optcore.adam),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                started = time.process_time()
                way()
                times[name].append((time.process_time() - started) / TIMED_STEPS)
        for name, values in times.items():
            found[name][count] = statistics.median(values)
    return found


def run(seeds: Sequence[int], steps: int, counts: Sequence[int], out: Path) -> None:
    """Train both ways, compare, print and save."""
    console = Console()
    data = load(seeds[0])
    nets, rates = members(seeds, RATES)
    rows = batches(seeds, len(RATES), steps)
    with Phases(console) as phases:
        done = phases.start("all at once", 1)
        started = time.process_time()
        params = train_together(nets, rates, data.train, rows, optcore.adam)
        together = time.process_time() - started
        done(f"{together:.1f} s of CPU")
        done = phases.start("one by one", 1)
        started = time.process_time()
        others = train_one_by_one(nets, rates, data.train, rows, torch.optim.Adam)
        alone = time.process_time() - started
        done(f"{alone:.1f} s of CPU")
        done = phases.start("timing", 1)
        times = timed(data.train, seeds[0], counts)
        done("")
    off = apart(params, others).view(len(seeds), -1).amax(0).tolist()

    (x, y), (held_x, held_y) = data.test, data.validation
    every, held = (votes(params, z).unflatten(0, (len(seeds), -1)) for z in (x, held_x))
    single = [score([quality(one, y).accuracy for one in column]) for column in every.unbind(1)]
    united = [quality(column.mean(0), y) for column in every.unbind(1)]
    chosen = max(range(len(RATES)), key=lambda k: -quality(held[:, k].mean(0), held_y).log_loss)
    sizes = by_size(every[:, chosen], y)
    console.print(table(single, united, off, chosen, len(seeds), len(y)))
    losses = ", ".join(f"{size}: {one.log_loss:.3f}" for size, one in sizes.items())
    console.print(
        f"Log loss (nats) by size of the ensemble, learning rate {RATES[chosen]:.2g}: {losses}\n"
        f"{len(nets)} networks, {steps} steps: {together:.1f} s of CPU at once, {alone:.1f} s one "
        f"by one: {alone / together:.1f} times",
        highlight=False,
    )
    save_figure(out / "ensembles.png", single, united, sizes, times)
    record = {
        "settings": {"seeds": list(seeds), "rates": RATES, "steps": steps},
        "single": [one._asdict() for one in single],
        "ensembles": [one._asdict() for one in united],
        "chosen": RATES[chosen],
        "sizes": {str(size): one._asdict() for size, one in sizes.items()},
        "cpu_seconds": {"vmap": together, "one by one": alone, "of a step": times},
        "largest_difference": off,
    }
    (out / "results.json").write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")


def table(
    single: list[Score],
    united: list[Quality],
    off: list[float],
    chosen: int,
    seeds: int,
    images: int,
) -> Table:
    """A row for each learning rate."""
    shown = Table(
        title=f"Adam on {TRAIN} digits, accuracy on {images} test images",
        caption=f"one: mean ± half of the 95 % interval over {seeds} seeds; * the learning rate "
        "with the least log loss of the ensemble on validation images; apart: largest difference "
        "of a weight from the same training under torch.optim.Adam",
    )
    for column in ("learning rate", "one network", f"ensemble of {seeds}", "its log loss", "apart"):
        shown.add_column(column, justify="right")
    for k, (rate, one, all_of_them) in enumerate(zip(RATES, single, united)):
        shown.add_row(
            f"{'* ' * (k == chosen)}{rate:.2g}",
            f"{100 * one.mean:.2f} ± {100 * one.half_width:.2f} %",
            f"{100 * all_of_them.accuracy:.2f} %",
            f"{all_of_them.log_loss:.3f}",
            f"{off[k]:.0e}",
        )
    return shown


def save_figure(
    path: Path,
    single: list[Score],
    united: list[Quality],
    sizes: dict[int, Quality],
    times: dict[str, dict[int, float]],
) -> None:
    """Plot accuracy by learning rate, log loss by size of the ensemble, time by networks."""
    figure = Figure(figsize=(14, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    means, widths = [100 * one.mean for one in single], [100 * one.half_width for one in single]
    left.errorbar(RATES, means, widths, marker="o", capsize=3, label="one network")
    left.plot(RATES, [100 * one.accuracy for one in united], "s-", label="ensemble")
    left.set(
        xscale="log",
        xlabel="learning rate of Adam",
        ylabel="test accuracy (%)",
        title="an ensemble beside one of its networks",
    )
    middle.plot(list(sizes), [one.log_loss for one in sizes.values()], "s-", color="C1")
    middle.set(
        xlabel="networks in the ensemble",
        ylabel="test log loss (nats)",
        title="log loss falls with the size",
    )
    middle.set_xscale("log", base=2)
    middle.set_xticks(list(sizes), [str(size) for size in sizes])
    for (name, row), style in zip(times.items(), ("o-", "s-")):
        right.loglog(list(row), [1e3 * value for value in row.values()], style, label=name)
        right.set_xticks(list(row), [str(size) for size in row])
    right.minorticks_off()
    right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.yaxis.set_major_formatter("{x:g}")
    right.set(
        xlabel="networks",
        ylabel="CPU time of a step of all networks (ms)",
        title="vmap shares the cost of a step (one thread)",
    )
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
    for axes in (left, right):
        axes.legend()
    figure.savefig(path, dpi=120)


def main(
    trainings: Annotated[int, typer.Option(min=2, help="Seeds, the first of them --seed.")] = 16,
    steps: Annotated[int, typer.Option(min=1, help="Steps of training.")] = 300,
    seed: Annotated[
        int, typer.Option(min=0, max=2**31 - 1, help="Seeds split, weights and batches.")
    ] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of torch.")] = 1,
    smoke: Annotated[bool, typer.Option("--smoke", help="A run of seconds, as a test.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for what is saved.")] = Path("out/ensembles"),
) -> None:
    """Train 128 networks at once, and the same one by one: the numbers, the time, the votes."""
    started = time.perf_counter()
    folder("ensembles", out)
    counts: Sequence[int] = TIMED
    if smoke:
        trainings, steps, counts = 4, 40, TIMED[:3]
    torch.set_num_threads(threads)
    run(range(seed, seed + trainings), steps, counts, out)
    took = time.perf_counter() - started
    typer.echo(f"{took:.0f} s with optdiff {optdiff.__version__}; plot and numbers are in {out}/")


if __name__ == "__main__":
    typer.run(main)
