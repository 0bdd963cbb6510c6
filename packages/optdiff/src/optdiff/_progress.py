# SPDX-License-Identifier: Apache-2.0
"""A bar on the terminal with the time that is left."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

Done: TypeAlias = Callable[[int], None]  # called with how many steps were done since the last call


def check_progress(who: str, progress: bool) -> None:
    """Refuse a bar that cannot be drawn, before anything runs.

    Raises:
        TypeError: ``progress`` is no bool.
        ImportError: rich, which draws it, is not installed.
    """
    if not isinstance(progress, bool):
        raise TypeError(f"{who}: expected progress as True or False, got {type(progress).__name__}")
    if progress and importlib.util.find_spec("rich") is None:
        raise ImportError(
            f"{who}(progress=True): rich is not installed; pip install 'optdiff[progress]'"
        )


@contextmanager
def bar(title: str, total: int, shown: bool) -> Iterator[Done]:
    """A bar of ``total`` steps on stderr while the block runs, or nothing.

    Where stderr is a file it has no bar but a line for every tenth of the steps.
    """
    if not shown:
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if not (console.is_terminal or console.is_jupyter):
        yield _lines(title, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as drawn:
        task = drawn.add_task(title, total=total)
        yield lambda count: drawn.advance(task, count)


def _lines(title: str, total: int) -> Done:
    began, reached = time.monotonic(), 0

    def done(count: int) -> None:
        nonlocal reached
        before, reached = reached, reached + count
        if before * 10 // total < reached * 10 // total:
            took = time.monotonic() - began
            left = took / reached * (total - reached)
            print(
                f"{title} {reached}/{total}, {took:.0f} s, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    return done
