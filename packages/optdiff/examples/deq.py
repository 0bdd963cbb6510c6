# SPDX-License-Identifier: Apache-2.0
r"""A deep equilibrium model reads digits (Bai, Kolter, Koltun, 2019, arXiv:1909.01377).

    python packages/optdiff/examples/deq.py

The hidden layer is where a cell with weights :math:`W, U, b` stops to move,

.. math::
    z^\star = f(z^\star, x) = \tanh(W z^\star + U x + b), \qquad
    \frac{\partial z^\star}{\partial\theta} =
    \Bigl(I - \frac{\partial f}{\partial z}\Bigr)^{-1} \frac{\partial f}{\partial\theta},

found by Anderson acceleration and differentiated by the implicit function theorem (theorem 1 of the
paper): the memory of a training step does not grow with the iterations. The spectral norm of
:math:`W` is bounded by 0.95, so that there is one fixed point. Beside it stand the same cell
unrolled for a fixed number of steps, and a plain network of as many weights. The paper trains
language models, whose figures cannot be had here; scikit-learn's 8 x 8 digits stand in. What is
checked is that memory stays and that accuracy does not suffer.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from cost import peak_bytes
from digits import Images, parts_of, shuffled
from equilibrium import Hidden, Tied, equilibrium, moved, plain, unrolled
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from report import Phases, Score, folder, score
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import optcore
import optdiff
from optdiff import fixed_point

TRAIN, BATCH, WIDTH = 1200, 100, 48
LR, WEIGHT_DECAY = 3e-3, 1e-2
DEPTHS = (1, 2, 5, 30)  # of the unrolled networks that are trained
MEASURED = (1, 2, 5, 10, 20, 50, 100)  # depths whose memory is measured
ITERATIONS = 25  # in the picture of residuals


class Trained(NamedTuple):
    """One training: accuracy on the test images, CPU seconds of a step, and the network."""

    accuracy: float
    cpu_seconds: float
    net: nn.Module


def load(seed: int) -> list[Images]:
    """Images to learn from, and to test with."""
    return parts_of(shuffled(torch.Generator().manual_seed(seed)), TRAIN)


def train(net: nn.Module, data: Sequence[Images], epochs: int, seed: int) -> Trained:
    """Train by AdamW in batches whose order depends on the seed only."""
    (x, y), (test_x, test_y) = data
    optimizer = optcore.AdamW(net.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    generator = torch.Generator().manual_seed(seed)
    times = []
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(BATCH):
            started = time.process_time()
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
            times.append(time.process_time() - started)
    with torch.no_grad():
        right = (net(test_x).argmax(1) == test_y).float().mean().item()
    return Trained(right, statistics.median(times), net)


def memory(net: nn.Module, images: Images) -> int:
    """Peak memory of the tensors that a forward and a backward pass make, in bytes."""
    x, y = images.x[:BATCH], images.y[:BATCH]
    return peak_bytes(lambda: nn.functional.cross_entropy(net(x), y).backward())


def residuals(net: Tied, x: Tensor, iterations: int) -> dict[str, list[float]]:
    """How far each solver is from the equilibrium after each iteration, relative."""
    weight, given = net.weight().detach(), net.input(x).detach()
    start = torch.zeros_like(given)
    kept: dict[str, Any] = {"tol": 0.0, "on_failure": "ignore"}

    def batch(solver: Callable[..., fixed_point.SolverResult], k: int) -> tuple[Tensor, Tensor]:
        found = solver(moved, start, weight, given, maxiter=k, **kept)
        return found.residual, found.solution

    def each(k: int) -> tuple[Tensor, Tensor]:
        def one(z: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
            found = fixed_point.anderson(moved, z, weight, given, maxiter=k, **kept)
            return found.residual, found.solution

        return torch.vmap(one)(start, given)

    ways: dict[str, Callable[[int], tuple[Tensor, Tensor]]] = {
        "plain iteration": lambda k: batch(fixed_point.fixed_point_iteration, k),
        "Anderson, the batch at once": lambda k: batch(fixed_point.anderson, k),
        "Anderson, each image (vmap)": each,
    }
    return {
        name: [
            (off.norm() / z.norm()).item() for off, z in (way(k) for k in range(1, iterations + 1))
        ]
        for name, way in ways.items()
    }


def steps(depth: int) -> str:
    """A number of steps in words."""
    return f"{depth} step{'s' * (depth != 1)}"


def table(rows: dict[str, dict[str, float | Score]], seeds: int, epochs: int) -> Table:
    """A row for each network."""
    shown = Table(
        title=f"digits, {epochs} epochs, {seeds} seeds",
        caption="accuracy: mean ± half of the 95 % interval over seeds; a step: forward and "
        "backward pass of 100 images, median CPU time, peak memory of the tensors made",
    )
    for column in ("hidden layer", "weights", "test accuracy", "a step", "memory"):
        shown.add_column(column, justify="left" if column == "hidden layer" else "right")
    for name, row in rows.items():
        one = row["accuracy"]
        shown.add_row(
            name,
            f"{row['weights']:.0f}",
            f"{100 * one.mean:.2f} ± {100 * one.half_width:.2f} %",
            f"{1e3 * row['cpu_seconds']:.1f} ms",
            f"{row['peak_bytes'] / 1e6:.2f} MB",
        )
    return shown


def save_figure(
    path: Path,
    falling: dict[str, list[float]],
    bytes_by_depth: dict[str, list[int]],
    rows: dict[str, dict[str, float | Score]],
) -> None:
    """Plot residuals by iteration, memory by depth, accuracy by depth."""
    figure = Figure(figsize=(14, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    for (name, values), style in zip(falling.items(), ("o-", "s-", "^-")):
        left.semilogy(range(1, len(values) + 1), values, style, markersize=4, label=name)
    left.set(
        xlabel="iteration",
        ylabel="relative residual |f(z) - z| / |z|",
        title="Anderson needs fewer iterations",
    )
    left.legend(fontsize=8)
    for (name, values), style in zip(bytes_by_depth.items(), ("s-", "^-", "o-")):
        middle.semilogx(
            MEASURED, [value / 1e6 for value in values], style, markersize=4, label=name
        )
    middle.set(
        xlabel="depth: steps, or iterations of Anderson",
        ylabel="peak memory of a training step (MB)",
        title="the memory of an equilibrium stops growing",
        ylim=(0, None),
    )
    middle.set_xticks(MEASURED, [str(depth) for depth in MEASURED])
    middle.minorticks_off()
    middle.legend(fontsize=8)
    depths = [depth for depth in DEPTHS if f"unrolled, {steps(depth)}" in rows]
    shown = [rows[f"unrolled, {steps(depth)}"]["accuracy"] for depth in depths]
    means = [100 * one.mean for one in shown]
    widths = [100 * one.half_width for one in shown]
    right.errorbar(depths, means, widths, marker="s", capsize=3, label="unrolled, same weights")
    for name, color in (("equilibrium", "C2"), ("plain, two layers", "C3")):
        one = rows[name]["accuracy"]
        right.axhline(100 * one.mean, color=color, linestyle="--", label=name)
        right.axhspan(
            100 * (one.mean - one.half_width),
            100 * (one.mean + one.half_width),
            color=color,
            alpha=0.15,
        )
    right.set_xscale("log")
    right.set_xticks(depths, [str(depth) for depth in depths])
    right.minorticks_off()
    right.set(
        xlabel="depth (steps)",
        ylabel="test accuracy (%)",
        title="accuracy, 95 % intervals over seeds",
    )
    right.legend(fontsize=8, loc="lower left")
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def run(epochs: int, seeds: Sequence[int], out: Path) -> None:
    """Train all networks for all seeds, measure, print and save."""
    console = Console()
    train_images, test_images = load(seeds[0])
    inputs = train_images.x.shape[1]
    kinds: dict[str, Callable[[], nn.Module]] = {
        "equilibrium": lambda: Tied(equilibrium(), inputs, WIDTH),
        **{
            f"unrolled, {steps(depth)}": lambda depth=depth: Tied(unrolled(depth), inputs, WIDTH)
            for depth in DEPTHS
        },
        "plain, two layers": lambda: plain(inputs, WIDTH),
    }
    found: dict[str, list[Trained]] = {name: [] for name in kinds}
    with Phases(console) as phases:
        done = phases.start("training", len(kinds) * len(seeds), lines=6)
        for seed in seeds:
            data = load(seed)
            for name, build in kinds.items():
                torch.manual_seed(seed)  # the same first weights for all that share a shape
                found[name].append(train(build(), data, epochs, seed))
                done(f"{name}: {100 * found[name][-1].accuracy:.1f} %")
    rows: dict[str, dict[str, float | Score]] = {
        name: {
            "weights": sum(p.numel() for p in runs[0].net.parameters()),
            "accuracy": score([one.accuracy for one in runs]),
            "cpu_seconds": statistics.median(one.cpu_seconds for one in runs),
            "peak_bytes": memory(runs[0].net, data[0]),
        }
        for name, runs in found.items()
    }
    falling = residuals(found["equilibrium"][0].net, test_images.x[:BATCH], ITERATIONS)
    ways: dict[str, Callable[[int], Hidden]] = {
        "unrolled": unrolled,
        'unrolled, checkpoint="sqrt"': lambda depth: unrolled(depth, "sqrt"),
        "equilibrium": lambda depth: equilibrium(0.0, depth),
    }
    bytes_by_depth = {
        name: [memory(Tied(way(depth), inputs, WIDTH), data[0]) for depth in MEASURED]
        for name, way in ways.items()
    }
    console.print(table(rows, len(seeds), epochs))
    for name, values in falling.items():
        below = next((k for k, value in enumerate(values, 1) if value < 1e-4), None)
        told = f"{below} iterations" if below else f"not in {ITERATIONS} iterations"
        console.print(f"{name}: relative residual below 1e-4 after {told}", highlight=False)
    save_figure(out / "deq.png", falling, bytes_by_depth, rows)
    record = {
        "settings": {"epochs": epochs, "seeds": list(seeds), "width": WIDTH},
        "networks": {
            name: {**row, "accuracy": row["accuracy"]._asdict()} for name, row in rows.items()
        },
        "residuals": falling,
        "memory": {"depths": MEASURED, **bytes_by_depth},
    }
    (out / "results.json").write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")


def main(
    epochs: Annotated[int, typer.Option(min=1, help="Passes through the images.")] = 40,
    trainings: Annotated[int, typer.Option(min=2, help="Seeds, the first of them --seed.")] = 5,
    seed: Annotated[
        int, typer.Option(min=0, max=2**31 - 1, help="Seeds split, weights and order.")
    ] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of torch.")] = 1,
    smoke: Annotated[bool, typer.Option("--smoke", help="A run of seconds, as a test.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for what is saved.")] = Path("out/deq"),
) -> None:
    """Train a network whose hidden layer is a fixed point, and what it competes with."""
    started = time.perf_counter()
    folder("deq", out)
    if smoke:
        epochs, trainings = 3, 2
    torch.set_num_threads(threads)  # tensors are too small to share out: one is steadiest
    run(epochs, range(seed, seed + trainings), out)
    took = time.perf_counter() - started
    typer.echo(f"{took:.0f} s with optdiff {optdiff.__version__}; plot and numbers are in {out}/")


if __name__ == "__main__":
    typer.run(main)
