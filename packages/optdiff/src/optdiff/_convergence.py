# SPDX-License-Identifier: Apache-2.0
"""What iterative solvers share: the stopping test, and what happens when it is not met."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Literal, TypeAlias

import torch

from optdiff._tracking import peel, refuse_tracing

OnFailure: TypeAlias = Literal["warn", "raise", "ignore"]


class ConvergenceWarning(UserWarning):
    """A solver stopped before it met its tolerance; its result is where it stopped."""


class ConvergenceError(RuntimeError):
    """The same as an error, for ``on_failure="raise"``."""


def any_true(mask: torch.Tensor) -> bool:
    """Whether any element is true, in any system of a batch: the one host sync of an iteration."""
    return bool(peel(mask).any())


def report_failure(
    who: str, converged: torch.Tensor, reached: torch.Tensor, hint: str, on_failure: OnFailure
) -> None:
    """Warn or raise unless every system of a batch has converged.

    Args:
        who: Name of the solver.
        converged: Whether it met its tolerance.
        reached: What it reached instead, a norm.
        hint: What was expected, after how long, and what to do.
        on_failure: ``"warn"``, ``"raise"`` or ``"ignore"``.
    """
    if on_failure == "ignore":
        return
    refuse_tracing(who)
    met = peel(converged)
    if bool(met.all()):
        return
    worst = float(peel(reached).max())
    batch = f" in {int((~met).sum())} of {met.numel()} systems" if met.ndim else ""
    expected, advice = hint.split("; ", 1)
    message = f"{who}: expected {expected}, got {worst:.3g}{batch}; {advice}"
    if on_failure == "raise":
        raise ConvergenceError(message)
    warnings.warn(message, ConvergenceWarning, stacklevel=_callers_level())


_INSIDE = tuple(os.path.dirname(file) + os.sep for file in (__file__, torch.__file__))


def _callers_level() -> int:
    """How far up from :func:`report_failure` the user's line stands."""
    level, frame = 1, sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_INSIDE):
        level, frame = level + 1, frame.f_back
    return level


def check_on_failure(who: str, on_failure: str) -> None:
    """Refuse an unknown choice."""
    if on_failure not in ("warn", "raise", "ignore"):
        raise ValueError(
            f"{who}: expected on_failure='warn', 'raise' or 'ignore', got {on_failure!r}"
        )


def default_tolerance(dtype: torch.dtype) -> float:
    """``eps ** (2/3)``: 2e-5 in float32, 4e-11 in float64; rounding leaves room for it."""
    return torch.finfo(dtype).eps ** (2 / 3)
