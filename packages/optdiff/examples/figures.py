# SPDX-License-Identifier: Apache-2.0
"""The pictures that ``few_shot.py`` saves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor


class Point(NamedTuple):
    """One point of the learning curve; accuracies after adaptation, as shares."""

    iteration: int
    train: float
    validation: float


def save_learning_curve(
    path: Path,
    curve: list[Point],
    lines: Mapping[str, float],
    *,
    title: str,
    steps: tuple[int, int],
) -> None:
    """Plot accuracy on training and validation tasks against outer iterations.

    Args:
        path: Where to save the PNG.
        curve: Points in order of iteration.
        lines: Accuracies of the baselines on the validation tasks, by name.
        title: Title of the plot.
        steps: Inner steps behind the training and the validation accuracies.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    iterations = [point.iteration for point in curve]
    for label, values, style in (
        (f"training alphabets, {steps[0]} inner steps", [point.train for point in curve], "o-"),
        (f"validation alphabets, {steps[1]} inner steps", [one.validation for one in curve], "s-"),
    ):
        axes.plot(iterations, [100 * value for value in values], style, markersize=4, label=label)
    for (name, value), style in zip(lines.items(), ((0, (4, 4)), (4, (4, 4)))):
        label = f"{name}: {100 * value:.0f} %"
        axes.axhline(100 * value, linestyle=style, color=f"C{len(axes.lines)}", label=label)
    axes.set(
        xlabel="outer iteration",
        ylabel="query accuracy after adaptation (%)",
        title=title,
        ylim=(0, 100),
        xlim=(0, max(iterations) + 1),
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def save_sheet(
    path: Path,
    splits: Mapping[str, Mapping[str, Tensor]],
    *,
    characters: int = 24,
    drawings: int = 3,
) -> None:
    """Show some characters of every alphabet, one column a character, one row a drawing.

    Args:
        path: Where to save the PNG.
        splits: ``{split: {alphabet: images}}``.
        characters: Characters of each alphabet, spread evenly over it.
        drawings: Images of each character.
    """
    rows = [
        (f"{split}\n{name}", images)
        for split, alphabets in splits.items()
        for name, images in alphabets.items()
    ]
    figure = Figure(figsize=(10, 1.25 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(rows), squeeze=False)[:, 0]
    for axes, (label, images) in zip(panels, rows):
        shown = min(characters, len(images))
        chosen = torch.linspace(0, len(images) - 1, shown).long()
        tiles = images[chosen, :drawings].cpu()
        height, width = tiles.shape[-2:]
        sheet = torch.zeros(tiles.shape[1] * height, characters * width)
        sheet[:, : shown * width] = tiles.permute(1, 2, 0, 3).reshape(-1, shown * width)
        axes.imshow(sheet.numpy(), cmap="gray_r", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
        axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    figure.savefig(path, dpi=100)
