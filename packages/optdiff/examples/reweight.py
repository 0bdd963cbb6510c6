# SPDX-License-Identifier: Apache-2.0
r"""Learning to reweight examples (Ren et al., 2018, arXiv:1803.09050, Algorithm 1), on digits.

    python packages/optdiff/examples/reweight.py

A training set is biased: one class is rare, or labels are wrong. A few images are known to be good.
At every step of training the batch gets new weights: a virtual step of SGD with a weight
:math:`\epsilon_i` for each loss, and the loss on the clean images after it, whose derivative at
:math:`\epsilon = 0` says which examples help now,

.. math::
    \hat\theta(\epsilon) &= \theta - \alpha \nabla_\theta \sum_i \epsilon_i \ell_i(\theta), \qquad
    u_i = -\frac{\partial}{\partial \epsilon_i} \frac1m \sum_j \ell^v_j(\hat\theta(\epsilon))
        = \alpha\, \nabla\ell_i \cdot \nabla\ell^v, \\
    w_i &= \max(u_i, 0) / \textstyle\sum_k \max(u_k, 0).

The step that counts starts at :math:`\theta` again, on :math:`\sum_i w_i \ell_i`.
(`data_weights.py` differentiates a whole training run instead, in weights that stay.) Compared with
the plain loss, with weights by class frequency, and with both given the clean images to train on.

scikit-learn's digits stand in for the paper's MNIST (4 against 9) and CIFAR-10, a small net for its
large ones: its figures are not comparable. 110 of the digits 9 in training allow ratios to 110:1.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from biased_digits import MAJORITY, Problem, imbalanced, mislabelled
from digits import Images, together
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from report import Phases, Score, folder, score
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import optcore
import optdiff

BATCH, WIDTH, LR, MOMENTUM = 100, 64, 0.02, 0.9
LEARNED = "learned weights"
Weighting = Callable[[nn.Module, Images], Tensor]


class Trained(NamedTuple):
    """What a training run gave."""

    accuracy: float
    weights: Tensor  # (train,): mean over the second half of the steps; 1 is as much as the average


def losses(net: nn.Module, images: Images) -> Tensor:
    """Cross-entropy of every image."""
    return nn.functional.cross_entropy(net(images.x), images.y, reduction="none")


def meta_gradient(net: nn.Module, batch: Images, clean: Images, lr: float) -> Tensor:
    """Derivative, at weights of zero, of the clean loss after one step with these weights."""
    here = optdiff.extract_state_dict(net)
    weights = torch.zeros(len(batch.y), requires_grad=True)
    optdiff.MetaSGD(net, lr=lr).step(weights @ losses(net, batch))
    (gradient,) = torch.autograd.grad(losses(net, clean).mean(), weights)
    optdiff.recover_state_dict(net, here)
    return gradient


def normalized(weights: Tensor) -> Tensor:
    """Weights of sum one, or all zero."""
    total = weights.sum()
    return weights / torch.where(total == 0, 1, total)


def uniform(net: nn.Module, batch: Images) -> Tensor:
    """The same weight for every image."""
    return normalized(torch.ones(len(batch.y)))


def by_frequency(images: Images) -> Weighting:
    """Weights such that every class of some images counts the same."""
    counts = images.y.bincount()
    return lambda net, batch: normalized(1.0 / counts[batch.y])


def by_meta_gradient(clean: Images) -> Weighting:
    """Weights that one step has learned from clean images."""
    return lambda net, batch: normalized(-meta_gradient(net, batch, clean, LR).clamp(max=0))


def train(images: Images, weighting: Weighting, test: Images, steps: int, seed: int) -> Trained:
    """Train a net of two layers by SGD with momentum and some weights in every batch."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, int(test.y.max()) + 1))
    optimizer = optcore.SGD(net.parameters(), lr=LR, momentum=MOMENTUM)
    sums, counts = torch.zeros(2, len(images.y))
    for step in range(steps):
        rows = torch.randperm(len(images.y))[:BATCH]
        batch = images.rows(rows)
        weights = weighting(net, batch)
        optimizer.zero_grad()
        (weights @ losses(net, batch)).backward()
        optimizer.step()
        if 2 * step >= steps:
            sums[rows] += len(rows) * weights
            counts[rows] += 1
    with torch.no_grad():
        right = net(test.x).argmax(1) == test.y
    return Trained(right.float().mean().item(), sums / counts.clamp(min=1))


def compare(problem: Problem, steps: int, seed: int) -> dict[str, Trained]:
    """Train in every way."""
    biased, wrong, clean, test = problem
    both, right = together(biased, clean), biased.rows(~wrong)
    ways: dict[str, tuple[Images, Weighting]] = {
        "plain loss": (biased, uniform),
        "class frequency": (biased, by_frequency(biased)),
        "clean only": (clean, uniform),
        "plain + clean": (both, uniform),
        "freq. + clean": (both, by_frequency(both)),
        LEARNED: (biased, by_meta_gradient(clean)),
    }
    if wrong.any():
        ways["true labels only"] = right, uniform
    return {name: train(images, way, test, steps, seed) for name, (images, way) in ways.items()}


class Setting(NamedTuple):
    """One way to bias the training set, more and more: a table and a panel of the plot."""

    title: str
    axis: str
    problems: dict[str, Callable[[int], Problem]]  # by how strong the bias is; from a seed


def settings(ratios: Sequence[int], shares: Sequence[float]) -> dict[str, Setting]:
    """Rare class, uniform and background noise."""
    rare = {MAJORITY // ratio: f"{ratio}" for ratio in ratios}
    found = {
        "imbalance": Setting(
            "digits 9 and 4, the 4 rare",
            "ratio of digits 9 to digits 4",
            {name: partial(imbalanced, count) for count, name in rare.items()},
        )
    }
    for kind, what in (("uniform", "any other digit"), ("background", "the digit 0")):
        makes = {f"{100 * share:.0f}": partial(mislabelled, kind, share) for share in shares}
        found[kind] = Setting(f"labels changed to {what}", "share of changed labels (%)", makes)
    return found


def table(setting: Setting, scores: Mapping[str, Mapping[str, Score]], seeds: int) -> Table:
    """Test accuracies: a row for each way of training, a column for each strength of the bias."""
    shown = Table(
        title=f"test accuracy (%), {setting.title}",
        caption=f"columns: {setting.axis}; ± half of the 95 % interval, {seeds} seeds",
    )
    shown.add_column("training")
    for strength in setting.problems:
        shown.add_column(strength, justify="right")
    for name, row in scores.items():
        cells = (f"{100 * one.mean:.1f}±{100 * one.half_width:.1f}" for one in row.values())
        shown.add_row(name, *cells)
    return shown


def plot_accuracy(axes: Axes, setting: Setting, scores: Mapping[str, Mapping[str, Score]]) -> None:
    """Accuracy against the strength of the bias, with intervals."""
    places = range(len(setting.problems))
    for index, (name, row) in enumerate(scores.items()):
        style = {"color": f"C{index}", "marker": "os^vD*X"[index], "capsize": 2, "label": name}
        if name == LEARNED:
            style |= {"linewidth": 2.5, "markersize": 12, "zorder": 3}
        else:
            style |= {"linestyle": "--", "linewidth": 1, "markersize": 5}
        means = [100 * one.mean for one in row.values()]
        beside = [place + 0.03 * (index - len(scores) / 2) for place in places]
        axes.errorbar(beside, means, [100 * one.half_width for one in row.values()], **style)
    axes.set(xlabel=setting.axis, ylabel="test accuracy (%)", title=setting.title)
    axes.set_xticks(places, list(setting.problems))
    axes.set_xlim(-0.4, len(places) - 0.6)
    axes.set_ylim(max(0, axes.get_ylim()[0]), 101)  # intervals of few seeds go below 0
    axes.grid(alpha=0.3)


def plot_weights(axes: Axes, weights: Tensor, wrong: Tensor, title: str) -> None:
    """Mean weights of images with right and with wrong labels."""
    bins = torch.linspace(0, 4, 33).tolist()
    for group, name, color in ((~wrong, "right", "C0"), (wrong, "wrong", "C3")):
        values = weights[group].clamp(max=4).numpy()
        axes.hist(values, bins, alpha=0.6, color=color, label=f"{name} label", density=True)
    axes.set(
        xlabel="mean weight in the second half of training (last bar: 4 and more)",
        ylabel="density of images",
        title=title,
    )
    axes.legend()


def run(chosen: dict[str, Setting], shown: str, steps: int, seeds: range, out: Path) -> None:
    """Train everything, print the tables, and save the plot and the numbers."""
    console = Console()
    scores: dict[str, dict[str, dict[str, Score]]] = {}
    figure = Figure(figsize=(11, 9), layout="constrained")
    FigureCanvasAgg(figure)
    *panels, last = figure.subplots(2, 2).flat
    record: dict[str, object] = {}
    with Phases(console) as phases:
        for (key, setting), axes in zip(chosen.items(), panels):
            done = phases.start(key, len(setting.problems) * len(seeds))
            rows: dict[str, dict[str, Score]] = {}
            for strength, make in setting.problems.items():
                problems, runs = [], []
                for seed in seeds:
                    problems.append(make(seed))
                    runs.append(compare(problems[-1], steps, seed))
                    done(f"{strength}, seed {seed}")
                for name in runs[0]:
                    accuracies = [trained[name].accuracy for trained in runs]
                    rows.setdefault(name, {})[strength] = score(accuracies)
                if (key, strength) == ("uniform", shown):
                    weights = torch.cat([trained[LEARNED].weights for trained in runs])
                    wrong = torch.cat([problem.wrong for problem in problems])
                    plot_weights(
                        last,
                        weights,
                        wrong,
                        f"learned weights, {shown} % of labels changed to any other",
                    )
                    means = weights[~wrong].mean().item(), weights[wrong].mean().item()
                    record["mean weight"] = dict(zip(("right labels", "wrong labels"), means))
            scores[key] = rows
            plot_accuracy(axes, setting, rows)
    for key, setting in chosen.items():
        console.print(table(setting, scores[key], len(seeds)))
    console.print(
        f"With {shown} % of labels changed to any other: mean weight {means[0]:.2f} of right "
        f"labels, {means[1]:.2f} of wrong ones.",
        highlight=False,
    )
    handles, names = panels[1].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4)
    figure.savefig(out / "reweight.png", dpi=120)
    record["accuracy"] = {
        key: {
            name: {strength: one._asdict() for strength, one in row.items()}
            for name, row in rows.items()
        }
        for key, rows in scores.items()
    }
    (out / "results.json").write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")


def main(
    steps: Annotated[int, typer.Option(min=2, help="Steps of every training.")] = 1000,
    seeds: Annotated[int, typer.Option(min=2, help="Trainings of each kind.")] = 5,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="The first seed.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of torch.")] = 1,
    smoke: Annotated[bool, typer.Option("--smoke", help="A run of seconds, as a test.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for what is saved.")] = Path("out/reweight"),
) -> None:
    """Give the images of every batch weights that help a few clean images most."""
    folder("reweight", out)
    torch.set_num_threads(threads)  # tensors are too small to share out: one is steadiest
    started, cpu = time.perf_counter(), time.process_time()
    ratios: Sequence[int] = (1, 5, 22, 55, 110)
    shares: Sequence[float] = (0.2, 0.4, 0.6, 0.8)
    if smoke:
        steps, seeds, ratios, shares = 100, 2, (1, 110), (0.4,)
    run(settings(ratios, shares), "40", steps, range(seed, seed + seeds), out)
    took, cpu = time.perf_counter() - started, time.process_time() - cpu
    typer.echo(f"{took:.0f} s ({cpu:.0f} s of CPU); plot and numbers are in {out}/")


if __name__ == "__main__":
    typer.run(main)
