# SPDX-License-Identifier: Apache-2.0
"""The pictures that ``few_shot.py`` saves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor


class Point(NamedTuple):
    """One point of a learning curve."""

    iteration: int
    loss: float  # mean query loss on training tasks since the last point
    validation: float  # accuracy on validation tasks after adaptation, a share


def save_learning_curves(
    path: Path,
    curves: Mapping[str, Sequence[Point]],
    lines: Mapping[str, float],
    *,
    title: str,
    steps: int,
) -> None:
    """Plot accuracy on validation tasks against outer steps.

    Args:
        path: Where to save the PNG.
        curves: Points in order of iteration, by algorithm.
        lines: Accuracies of the baselines on the validation tasks, by name.
        title: Title of the plot.
        steps: Inner steps behind the accuracies.
    """
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for (name, curve), marker in zip(curves.items(), "osD^"):
        iterations = [point.iteration for point in curve]
        accuracies = [100 * point.validation for point in curve]
        axes.plot(iterations, accuracies, f"{marker}-", markersize=4, label=name)
    for (name, value), style in zip(lines.items(), ((0, (4, 4)), (4, (4, 4)))):
        label = f"{name}: {100 * value:.0f} %"
        axes.axhline(100 * value, linestyle=style, color=f"C{len(axes.lines)}", label=label)
    axes.set(
        xlabel="outer steps",
        ylabel=f"accuracy on unseen validation alphabets after {steps} inner steps (%)",
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
