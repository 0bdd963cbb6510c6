# SPDX-License-Identifier: Apache-2.0
"""What the examples share: means and intervals, progress, tables, errors, where to write."""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import typer
from cost import Cost
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from scipy.special import stdtrit


class Score(NamedTuple):
    """A mean and half the width of its 95 % interval."""

    mean: float
    half_width: float


def score(values: Sequence[float]) -> Score:
    """Mean of two or more values, and half of Student's 95 % interval."""
    spread = statistics.stdev(values) / math.sqrt(len(values))
    return Score(statistics.fmean(values), float(stdtrit(len(values) - 1, 0.975)) * spread)


def finite(numbers: NamedTuple) -> dict[str, float | None]:
    """A tuple of numbers for JSON, which knows no NaN: training may diverge."""
    return {name: x if math.isfinite(x) else None for name, x in numbers._asdict().items()}


class Phases:
    """Progress bars with the time left on a terminal; elsewhere a line now and then."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars = Progress(
            TextColumn("{task.description:<16}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Phases:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def start(self, name: str, total: int, *, lines: int = 1) -> Callable[[str], None]:
        """Start a phase of ``total`` steps; call the result after each, with a note to show.

        Without a terminal, ``lines`` lines are printed over the phase.
        """
        bar = self._bars.add_task(name, total=total, note="")
        every = max(1, total // lines)
        count = 0

        def done(note: str) -> None:
            nonlocal count
            count += 1
            self._bars.update(bar, advance=1, note=note)
            if not self.console.is_terminal and (count % every == 0 or count == total):
                self.console.print(f"{name} {count}/{total}  {note}".rstrip(), highlight=False)

        return done


def accuracy_table(
    accuracy: Mapping[str, Mapping[str, Mapping[int, Score]]], *, title: str
) -> Table:
    """Show a row for each algorithm in each setting, a column for each number of inner steps.

    Args:
        accuracy: ``{setting: {algorithm: {steps: score}}}``.
        title: Title of the table.
    """
    shown = Table(title=title)
    shown.add_column("steps")
    for steps in next(iter(next(iter(accuracy.values())).values())):
        shown.add_column(str(steps) if steps else "none", justify="right")
    for setting, rows in accuracy.items():
        shown.add_section()
        shown.add_row(f"[bold]{setting}[/bold]")
        for algorithm, scores in rows.items():
            shown.add_row(algorithm, *map(_percent, scores.values()))
    return shown


def baseline_table(baselines: Mapping[str, Mapping[str, Score]]) -> Table:
    """Show accuracies without meta-learning, from ``{setting: {method: score}}``."""
    shown = Table(title="the same tasks without meta-learning (%)")
    shown.add_column("method")
    for setting in baselines:
        shown.add_column(setting, justify="right")
    for method in next(iter(baselines.values())):
        shown.add_row(method, *(_percent(rows[method]) for rows in baselines.values()))
    return shown


def cost_table(costs: Mapping[str, Cost]) -> Table:
    """Show CPU time and memory of an outer step, from ``{algorithm: cost}``."""
    shown = Table(title="cost of one outer step")
    shown.add_column("algorithm")
    shown.add_column("CPU time", justify="right")
    shown.add_column("peak memory", justify="right")
    for algorithm, cost in costs.items():
        seconds, megabytes = cost.cpu_seconds, cost.peak_bytes / 1e6
        shown.add_row(algorithm, f"{seconds:.3f} s", f"{megabytes:.1f} MB")
    return shown


def _percent(one: Score) -> str:
    return f"{100 * one.mean:.1f} ± {100 * one.half_width:.1f}"


def failure(message: str) -> typer.Exit:
    """Show the user an error, without a traceback; raise the result to leave with status 2."""
    typer.secho(message, fg=typer.colors.RED, err=True)
    return typer.Exit(2)


def folder(name: str, out: Path) -> None:
    """Make the folder that an example writes to, and try a file there, before all work."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise failure(
            f"{name}: expected a folder to write to, got {error.strerror!r}, at {out}; change --out"
        ) from error
