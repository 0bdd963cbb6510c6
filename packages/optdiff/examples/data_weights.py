# SPDX-License-Identifier: Apache-2.0
"""Which training images to believe: metagradients through whole training runs.

    python packages/optdiff/examples/data_weights.py

Of 1000 handwritten digits, 30 % get a wrong label. Every image has a weight; the gradient of the
final validation loss in all weights, through all steps of AdamW, says which images helped and
which did harm (`optdiff.Replay`). Ten steps against the sign of these metagradients, each a whole
training run and its way back, and the wrong labels stand out. Needs scikit-learn.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from report import Phases, failure, folder
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn

import optcore
import optdiff

TRAIN, VALIDATION = 1000, 400  # images; the others are for the test
BATCH, WIDTH = 125, 64
RATE, LARGEST = 0.15, 2.0  # of a metagradient step; of a weight
CARRIES = 200  # kept by the way back: 2,000 steps run three times in all
cross_entropy = nn.functional.cross_entropy


class Digits(NamedTuple):
    """Images ``(count, 64)`` and labels ``(count,)`` of each part."""

    train: tuple[Tensor, Tensor]  # with labels as they are believed
    wrong: Tensor  # (TRAIN,): whose label was changed
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


class Point(NamedTuple):
    """What a training run with the weights so far gives."""

    validation: float  # loss
    accuracy: float  # on test images
    auc: float  # how well the weights tell right labels from wrong ones


def load(corrupted: float, seed: int) -> Digits:
    """Split scikit-learn's digits and change some labels."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.from_numpy(images / 16).float(), torch.from_numpy(labels).long()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator)
    train, validation, test = order.split([TRAIN, VALIDATION, len(x) - TRAIN - VALIDATION])
    wrong = torch.zeros(TRAIN, dtype=torch.bool)
    wrong[torch.randperm(TRAIN, generator=generator)[: round(corrupted * TRAIN)]] = True
    others = (y[train] + torch.randint(1, 10, (TRAIN,), generator=generator)) % 10
    believed = torch.where(wrong, others, y[train])
    return Digits((x[train], believed), wrong, (x[validation], y[validation]), (x[test], y[test]))


def loss_fn(net: nn.Module, batch: tuple[Tensor, Tensor], rows: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy with the weights of the images."""
    images, labels = batch
    losses = cross_entropy(net(images), labels, reduction="none")
    return (weights[rows] * losses).mean()


def training(data: tuple[Tensor, Tensor], weights: Tensor, steps: int, seed: int) -> optdiff.Replay:
    """A training run on some images, the same for the same seed but for the weights."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 10))
    return optdiff.Replay(
        net,
        optcore.flatten(optcore.adamw(lr=1e-3, eps=1e-3, weight_decay=1e-2)),
        data,
        loss_fn,
        weights,
        num_steps=steps,
        sampler=optdiff.ShuffledBatches(len(weights), BATCH, seed=seed),
        checkpoint=CARRIES,
    )


def accuracy(net: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Share of the images that are read correctly."""
    return (net(data[0]).argmax(1) == data[1]).float().mean().item()


def area(scores: Tensor, wrong: Tensor) -> float:
    """Area under the curve: how often a right label has a larger score than a wrong one."""
    right, other = scores[~wrong, None], scores[wrong]
    return ((right > other).float() + 0.5 * (right == other).float()).mean().item()


def save_plot(
    path: Path, weights: Tensor, wrong: Tensor, curve: list[Point], lines: dict[str, float]
) -> None:
    """Plot the weights of both groups, and accuracy and area over metagradient steps."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    bins = torch.linspace(0, LARGEST, 21).numpy()
    for group, name, color in ((~wrong, "right", "C0"), (wrong, "wrong", "C3")):
        values = weights[group].numpy()
        left.hist(values, bins, alpha=0.6, color=color, label=f"{name} label ({len(values)})")
    left.set(xlabel="weight", ylabel="training images", title="learned weights")
    left.legend(loc="lower center", bbox_to_anchor=(0.5, 1.07), ncols=2)  # off the bars
    steps = range(len(curve))
    right.plot(steps, [100 * point.accuracy for point in curve], "o-", color="C0", label="accuracy")
    right.plot(
        steps, [100 * point.auc for point in curve], "s-", color="C2", label="AUC of the weights"
    )
    for (name, value), color in zip(lines.items(), ("C3", "C4", "C1")):
        label = f"{name}: {100 * value:.1f} %"
        right.axhline(100 * value, linestyle="--", color=color, label=label)
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.set(xlabel="metagradient steps", ylabel="%", title="test accuracy and AUC")
    right.grid(alpha=0.3)
    right.legend(loc="lower right", fontsize="small")
    figure.savefig(path, dpi=120)


def run(data: Digits, steps: int, meta_steps: int, seed: int, out: Path) -> None:
    """Learn the weights, compare, print and save."""
    console = Console()
    ones = torch.ones(TRAIN)
    with Phases(console) as phases:
        done = phases.start("baselines", 2)
        cleaned = training(data.train, (~data.wrong).float(), steps, seed).run()
        done("")
        few = training(data.validation, torch.ones(VALIDATION), steps, seed).run()
        done("")
        weights = ones.clone().requires_grad_()
        curve: list[Point] = []
        done = phases.start("metagradients", meta_steps + 1, lines=meta_steps + 1)
        for meta_step in range(meta_steps + 1):
            loop = training(data.train, weights, steps, seed)
            net = loop.run()
            loss = cross_entropy(net(data.validation[0]), data.validation[1])
            shown = weights.detach()
            curve.append(Point(loss.item(), accuracy(net, data.test), area(shown, data.wrong)))
            if meta_step < meta_steps:
                metagradient = loop.backward(loss)
                moved = shown - RATE * metagradient.sign()
                weights = moved.clamp(0, LARGEST).requires_grad_()
            done(f"validation loss {loss.item():.3f}, AUC {curve[-1].auc:.3f}")

    lines = {
        "all labels believed": curve[0].accuracy,
        "validation images alone": accuracy(few, data.test),
        "wrong labels left out": accuracy(cleaned, data.test),
    }
    learned = curve[-1].accuracy
    before, after = (lines["wrong labels left out"] - one.accuracy for one in (curve[0], curve[-1]))
    table = Table(title=f"{data.wrong.sum()} of {TRAIN} labels wrong")
    table.add_column("training")
    table.add_column("test accuracy", justify="right")
    for name, value in (*lines.items(), ("learned weights", learned)):
        table.add_row(name, f"{100 * value:.1f} %")
    console.print(table)
    right, wrong = weights.detach()[~data.wrong].mean(), weights.detach()[data.wrong].mean()
    console.print(
        f"Weight of right labels {right:.2f}, of wrong ones {wrong:.2f}; AUC {curve[-1].auc:.3f}.\n"
        f"Points behind the run without wrong labels: {100 * before:.1f} before, "
        f"{100 * after:.1f} after.",
        highlight=False,
    )
    save_plot(out / "data_weights.png", weights.detach(), data.wrong, curve, lines)
    written = {
        "accuracy": lines | {"learned weights": learned},
        "auc": curve[-1].auc,
        "behind": {"before": before, "after": after},
        "curve": [point._asdict() for point in curve],
    }
    (out / "results.json").write_text(json.dumps(written, indent=2, allow_nan=False) + "\n")


def main(
    steps: Annotated[int, typer.Option(min=1, help="Steps of AdamW in a training run.")] = 2000,
    meta_steps: Annotated[int, typer.Option(min=1, help="Metagradient steps.")] = 10,
    corrupted: Annotated[float, typer.Option(help="Share of wrong labels, in (0, 1).")] = 0.3,
    seed: Annotated[
        int, typer.Option(min=0, max=2**31 - 1, help="Seeds labels, order and weights.")
    ] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of torch.")] = 1,
    smoke: Annotated[bool, typer.Option("--smoke", help="A run of seconds, as a test.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for what is saved.")] = Path("out/data_weights"),
) -> None:
    """Learn from metagradients which training labels are wrong."""
    started = time.perf_counter()
    if not 0.001 <= corrupted <= 0.999:
        raise failure(
            f"data_weights: expected a share in (0, 1), got {corrupted}, at --corrupted; try 0.3"
        )
    folder("data_weights", out)
    if smoke:
        steps, meta_steps = 100, 3
    torch.set_num_threads(threads)  # tensors are too small to share out: one is steadiest
    run(load(corrupted, seed), steps, meta_steps, seed, out)
    took = time.perf_counter() - started
    typer.echo(f"{took:.0f} s with optdiff {optdiff.__version__}; plot and numbers are in {out}/")


if __name__ == "__main__":
    typer.run(main)
