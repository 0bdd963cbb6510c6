# SPDX-License-Identifier: Apache-2.0
"""A bar on the terminal with the time that is left."""

from __future__ import annotations

import importlib.util
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
    """A bar of ``total`` steps on stderr while the block runs, or nothing."""
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

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as drawn:
        task = drawn.add_task(title, total=total)
        yield lambda count: drawn.advance(task, count)
