# SPDX-License-Identifier: Apache-2.0
"""Options of solvers: what is refused at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

Options = ParamSpec("Options")
Solver = TypeVar("Solver")


def check_number(who: str, what: str, value: Any) -> None:
    """Refuse what is no finite number from 0 on."""
    if not _is_number(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{who}: expected {what} >= 0, got {_got(value)}; give a finite number")


def check_positive(who: str, what: str, value: Any) -> None:
    """Refuse what is no finite number above 0."""
    if not _is_number(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{who}: expected {what} > 0, got {_got(value)}; give a finite number")


def check_count(who: str, what: str, value: Any, least: int = 1) -> None:
    """Refuse what is no integer from ``least`` on."""
    if not _is_number(value, int) or value < least:
        raise ValueError(f"{who}: expected {what} >= {least}, got {_got(value)}; give an integer")


def by_name(make: Callable[Options, Solver]) -> Callable[Options, Solver]:
    """A maker of solvers that refuses what a solver itself is called with."""

    @wraps(make)
    def checked(*args: Options.args, **options: Options.kwargs) -> Solver:
        if args:
            name = make.__name__
            raise TypeError(
                f"{name}: expected options by name, got {len(args)} arguments by position; write "
                f"{name}()(A, b), or solve={name}() where a solver is asked for"
            )
        return make(**options)

    checked.makes_solver = True  # type: ignore[attr-defined]
    return checked


def _is_number(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _got(value: Any) -> str:
    return str(value) if isinstance(value, (int, float)) else type(value).__name__
