# SPDX-License-Identifier: Apache-2.0
"""Which training images to believe: metagradients through whole training runs.

    python packages/optdiff/examples/data_weights.py

Of 1000 handwritten digits, 30 % get a wrong label. Every image has a weight; the gradient of the
final validation loss in all weights, through all steps of AdamW, says which images helped and
which did harm (`optdiff.Replay`). Ten steps against the sign of these metagradients, each a whole
training run and its way back, and the wrong labels stand out. Beside it stand trainings without
weights: on all images, on the validation images, on both together, which is all that the weights
are learned from, and on the images with right labels, which nobody knows. Needs scikit-learn.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from digits import Images, parts_of, shuffled, together
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from report import Phases, Score, failure, folder, score
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import optcore
import optdiff

TRAIN, VALIDATION = 1000, 400  # images; the others are for the test
BATCH, WIDTH = 125, 64
RATE, LARGEST = 0.15, 2.0  # of a metagradient step; of a weight
CARRIES = 200  # kept by the way back: 2,000 steps run three times in all
BELIEVED, CLEANED, LEARNED = "all labels believed", "wrong labels left out", "learned weights"
cross_entropy = nn.functional.cross_entropy


class Digits(NamedTuple):
    """Images in three parts."""

    train: Images  # with labels as they are believed
    wrong: Tensor  # (TRAIN,): whose label was changed
    validation: Images
    test: Images


class Point(NamedTuple):
    """What a training run with the weights so far gives."""

    validation: float  # loss
    accuracy: float  # on test images
    auc: float  # how well the weights tell right labels from wrong ones


class Found(NamedTuple):
    """What one seed gave."""

    weights: Tensor  # learned, (TRAIN,)
    wrong: Tensor
    curve: list[Point]  # by metagradient steps
    accuracy: dict[str, float]  # of each training, on test images


def load(corrupted: float, seed: int) -> Digits:
    """Split scikit-learn's digits and change some labels."""
    generator = torch.Generator().manual_seed(seed)
    train, validation, test = parts_of(shuffled(generator), TRAIN, VALIDATION)
    wrong = torch.zeros(TRAIN, dtype=torch.bool)
    wrong[torch.randperm(TRAIN, generator=generator)[: round(corrupted * TRAIN)]] = True
    others = (train.y + torch.randint(1, 10, (TRAIN,), generator=generator)) % 10
    believed = torch.where(wrong, others, train.y)
    return Digits(Images(train.x, believed), wrong, validation, test)


def loss_fn(net: nn.Module, batch: Images, rows: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy with the weights of the images."""
    losses = cross_entropy(net(batch.x), batch.y, reduction="none")
    return (weights[rows] * losses).mean()


def training(data: Images, weights: Tensor, steps: int, seed: int) -> optdiff.Replay:
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


def accuracy(net: nn.Module, images: Images) -> float:
    """Share of the images that are read correctly."""
    return (net(images.x).argmax(1) == images.y).float().mean().item()


def area(scores: Tensor, wrong: Tensor) -> float:
    """Area under the curve: how often a right label has a larger score than a wrong one."""
    right, other = scores[~wrong, None], scores[wrong]
    return ((right > other).float() + 0.5 * (right == other).float()).mean().item()


def learn(data: Digits, steps: int, meta_steps: int, seed: int, phases: Phases) -> Found:
    """Train without weights, then learn weights by the metagradient, and judge on test images."""
    plain = {
        "validation images alone": (data.validation, torch.ones(VALIDATION)),
        "both together": (together(data.train, data.validation), torch.ones(TRAIN + VALIDATION)),
        CLEANED: (data.train, (~data.wrong).to(data.train.x)),
    }
    done = phases.start(f"seed {seed}, baselines", len(plain))
    found = {}
    for name, (images, weights) in plain.items():
        found[name] = accuracy(training(images, weights, steps, seed).run(), data.test)
        done("")
    weights = torch.ones(TRAIN, requires_grad=True)
    curve: list[Point] = []
    done = phases.start(f"seed {seed}, metagradients", meta_steps + 1, lines=meta_steps + 1)
    for meta_step in range(meta_steps + 1):
        loop = training(data.train, weights, steps, seed)
        net = loop.run()
        loss = cross_entropy(net(data.validation.x), data.validation.y)
        shown = weights.detach()
        curve.append(Point(loss.item(), accuracy(net, data.test), area(shown, data.wrong)))
        if meta_step < meta_steps:
            moved = shown - RATE * loop.backward(loss).sign()
            weights = moved.clamp(0, LARGEST).requires_grad_()
        done(f"validation loss {loss.item():.3f}, AUC {curve[-1].auc:.3f}")
    cleaned = {CLEANED: found.pop(CLEANED)}
    learned = {LEARNED: curve[-1].accuracy}
    every = {BELIEVED: curve[0].accuracy} | found | learned | cleaned
    return Found(weights.detach(), data.wrong, curve, every)


def text(one: Score, scale: float = 100, digits: int = 1) -> str:
    """A mean and half of its interval, in % unless scaled otherwise."""
    return f"{scale * one.mean:.{digits}f} ± {scale * one.half_width:.{digits}f}"


def table(scores: Mapping[str, Score], ahead: Mapping[str, Score], wrong: int, seeds: int) -> Table:
    """Test accuracies, and what the learned weights gain on them: a row for each training."""
    shown = Table(
        title=f"{wrong} of {TRAIN} labels wrong",
        caption=f"± half of the 95 % interval over {seeds} seeds; ahead: mean of the differences "
        "between trainings of the same seed",
    )
    shown.add_column("training")
    shown.add_column("test accuracy (%)", justify="right")
    shown.add_column("learned weights ahead by (points)", justify="right")
    for name, one in scores.items():
        shown.add_row(name, text(one), text(ahead[name]) if name in ahead else "")
    return shown


def save_plot(path: Path, found: Sequence[Found], scores: Mapping[str, Score]) -> None:
    """Plot the weights of both groups, of all seeds, and means over metagradient steps."""
    figure = Figure(figsize=(15, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    weights, wrong = (torch.cat(parts) for parts in zip(*(one[:2] for one in found)))
    bins = torch.linspace(0, LARGEST, 21).tolist()
    for group, name, color in ((~wrong, "right", "C0"), (wrong, "wrong", "C3")):
        values = weights[group].numpy()
        left.hist(values, bins, alpha=0.6, color=color, label=f"{name} label ({len(values)})")
    left.set(
        xlabel="learned weight",
        ylabel="training images",
        title=f"wrong labels lose their weight ({len(found)} seeds together)",
    )
    points = list(zip(*(one.curve for one in found)))  # of all seeds, by step
    for axes, part, style in ((middle, "accuracy", "C0o-"), (right, "auc", "C2s-")):
        means = [score([getattr(point, part) for point in after]) for after in points]
        heights, widths = ([100 * number for number in column] for column in zip(*means))
        axes.errorbar(range(len(means)), heights, widths, fmt=style, capsize=3, label=LEARNED)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    others = (name for name in scores if name != LEARNED)
    for name, style in zip(others, ("C3--", "C4:", "C5-.", "C1--")):
        mean = 100 * scores[name].mean
        middle.plot([0, len(points) - 1], [mean, mean], style, label=f"{name}: {mean:.1f} %")
    middle.set(
        xlabel="metagradient steps",
        ylabel="test accuracy (%)",
        title="accuracy (mean, 95 % interval over seeds)",
    )
    right.set(
        xlabel="metagradient steps",
        ylabel="right label has the larger weight (%)",
        title="area under the curve of the weights",
    )
    for axes in (middle, right):  # intervals of few seeds leave the scale
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 0), min(high, 101))
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.13), "fontsize": "small"}
    left.legend(ncols=2, **below)
    middle.legend(ncols=2, **below)
    figure.savefig(path, dpi=120)


def run(corrupted: float, steps: int, meta_steps: int, seeds: Sequence[int], out: Path) -> None:
    """Learn the weights for every seed, compare, print and save."""
    console = Console()
    with Phases(console) as phases:
        found = [learn(load(corrupted, seed), steps, meta_steps, seed, phases) for seed in seeds]
    scores = {name: score([one.accuracy[name] for one in found]) for name in found[0].accuracy}
    ahead = {
        name: score([one.accuracy[LEARNED] - one.accuracy[name] for one in found])
        for name in scores
        if name != LEARNED
    }
    auc = score([one.curve[-1].auc for one in found])
    weight = {
        name: score([one.weights[one.wrong == wrong].mean().item() for one in found])
        for name, wrong in (("right", False), ("wrong", True))
    }
    console.print(table(scores, ahead, int(found[0].wrong.sum()), len(seeds)))
    console.print(
        f"Weight of right labels {text(weight['right'], 1, 2)}, of wrong ones "
        f"{text(weight['wrong'], 1, 2)}; AUC {text(auc, 1, 3)}.",
        highlight=False,
    )
    save_plot(out / "data_weights.png", found, scores)
    record = {
        "settings": {"steps": steps, "corrupted": corrupted, "seeds": list(seeds)},
        "accuracy": {name: one._asdict() for name, one in scores.items()},
        "learned weights ahead": {name: one._asdict() for name, one in ahead.items()},
        "auc": auc._asdict(),
        "weight": {name: one._asdict() for name, one in weight.items()},
        "curves": [[point._asdict() for point in one.curve] for one in found],
    }
    (out / "results.json").write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")


def main(
    steps: Annotated[int, typer.Option(min=1, help="Steps of AdamW in a training run.")] = 2000,
    meta_steps: Annotated[int, typer.Option(min=1, help="Metagradient steps.")] = 10,
    corrupted: Annotated[float, typer.Option(help="Share of wrong labels, in (0, 1).")] = 0.3,
    seeds: Annotated[int, typer.Option(min=2, help="Trainings of each kind.")] = 3,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="The first seed.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of torch.")] = 1,
    smoke: Annotated[bool, typer.Option("--smoke", help="A run of seconds, as a test.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for what is saved.")] = Path("out/data_weights"),
) -> None:
    """Learn from metagradients which training labels are wrong."""
    if not 0.001 <= corrupted <= 0.999:
        raise failure(
            f"data_weights: expected a share in (0, 1), got {corrupted}, at --corrupted; try 0.3"
        )
    folder("data_weights", out)
    if smoke:
        steps, meta_steps, seeds = 100, 3, 2
    torch.set_num_threads(threads)  # tensors are too small to share out: one is steadiest
    started, cpu = time.perf_counter(), time.process_time()
    run(corrupted, steps, meta_steps, range(seed, seed + seeds), out)
    took, cpu = time.perf_counter() - started, time.process_time() - cpu
    typer.echo(f"{took:.0f} s ({cpu:.0f} s of CPU); plot and numbers are in {out}/")


if __name__ == "__main__":
    typer.run(main)
