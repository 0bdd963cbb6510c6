# SPDX-License-Identifier: Apache-2.0
"""What ``few_shot.py`` shows on the terminal: progress, the table of accuracies, errors."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import typer
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


class Score(NamedTuple):
    """Mean accuracy over tasks and half the width of its 95 % interval, as shares."""

    mean: float
    half_width: float


def score(accuracies: Sequence[float]) -> Score:
    """Mean and normal 95 % interval of accuracies, one a task."""
    spread = statistics.stdev(accuracies)
    return Score(statistics.fmean(accuracies), 1.96 * spread / math.sqrt(len(accuracies)))


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


def table(
    results: Mapping[str, Mapping[str, Score]], *, title: str, ways: int, sections: Sequence[str]
) -> Table:
    """Accuracies: a row for each method, a column for each setting.

    Args:
        results: ``{setting: {method: score}}``.
        title: Title of the table.
        ways: Classes in a task.
        sections: Methods before which a line is drawn.
    """
    caption = (
        f"mean ± half of the 95 % interval over tasks; chance is {100 / ways:.0f} %\n"
        "the queries of a task are classified together (batch norm of the batch at hand)"
    )
    shown = Table(title=title, caption=caption)
    shown.add_column("method")
    for setting in results:
        shown.add_column(setting, justify="right")
    for method in next(iter(results.values())):
        if method in sections:
            shown.add_section()
        scores = [rows[method] for rows in results.values()]
        cells = [f"{100 * one.mean:.1f} ± {100 * one.half_width:.1f} %" for one in scores]
        shown.add_row(method, *cells)
    return shown


def failure(message: str) -> typer.Exit:
    """Show the user an error, without a traceback; raise the result to leave with status 2."""
    typer.secho(message, fg=typer.colors.RED, err=True)
    return typer.Exit(2)
