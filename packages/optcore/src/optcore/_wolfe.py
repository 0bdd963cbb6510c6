# SPDX-License-Identifier: Apache-2.0
"""How far to go along a line: searches on numbers, for a function of one step size.

Nothing here knows tensors. ``evaluate(step)`` gives a :class:`Trial`; a search returns the one to
take and what is wrong with it. A search that finds no step with sufficient decrease returns the
start: it never moves to a point that it cannot defend.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple


class Trial(NamedTuple):
    """A point on the line."""

    step: float
    value: float
    slope: float  # derivative along the line; NaN where a search does without
    point: Any = None  # whatever the caller found there, e.g. the gradient


class Outcome(NamedTuple):
    """What a search found."""

    trial: Trial  # the one to take; the start if the search failed
    evaluations: int
    decrease_error: float  # > 0: the search failed, and this is the last trial's
    curvature_error: float  # > 0: the step decreases the value enough, but is not long enough


def armijo(
    evaluate: Callable[[float], Trial],
    start: Trial,
    guess: float,
    *,
    max_backtracking_steps: int,
    slope_rtol: float = 1e-4,
    decrease_factor: float = 0.8,
    atol: float = 0.0,
    rtol: float = 0.0,
) -> Outcome:
    """Shorten a step until the value decreases enough: Nocedal and Wright, Algorithm 3.1."""
    error = math.inf
    step = guess
    for tried in range(max_backtracking_steps + 1):
        trial = evaluate(step)
        error = _violation(
            trial.value - (1 + rtol) * start.value - slope_rtol * step * start.slope, trial.value
        )
        if error <= atol:
            return Outcome(trial, tried + 1, error, 0.0)
        step *= decrease_factor
    return Outcome(start, max_backtracking_steps + 1, error, 0.0)


class Wolfe(NamedTuple):
    """The strong Wolfe conditions, seen from the start of the line."""

    start: Trial
    slope_rtol: float
    curv_rtol: float
    approx_dec_rtol: float | None

    def decrease_error(self, trial: Trial) -> float:
        """By how much (3.6a) of Nocedal and Wright is violated, or its approximation if less."""
        value, slope = self.start.value, self.start.slope
        error = trial.value - value - self.slope_rtol * trial.step * slope
        if self.approx_dec_rtol is not None:
            # Near a minimum, differences of values drown in rounding errors where slopes do not:
            # Hager and Zhang, (23) and (26).
            steep = trial.slope - (2 * self.slope_rtol - 1) * slope
            error = min(error, max(steep, trial.value - value - self.approx_dec_rtol * abs(value)))
        return _violation(error, trial.value, trial.slope)

    def curvature_error(self, trial: Trial) -> float:
        """By how much (3.7b) of Nocedal and Wright is violated."""
        if self.curv_rtol == math.inf:  # the condition is turned off
            return _violation(0.0, trial.value, trial.slope)
        limit = self.curv_rtol * abs(self.start.slope)
        return _violation(abs(trial.slope) - limit, trial.value, trial.slope)


def strong_wolfe(
    evaluate: Callable[[float], Trial],
    start: Trial,
    guess: float,
    *,
    max_linesearch_steps: int,
    max_step: float = math.inf,
    tol: float = 0.0,
    increase_factor: float = 2.0,
    slope_rtol: float = 1e-4,
    curv_rtol: float = 0.9,
    approx_dec_rtol: float | None = 1e-6,
    stepsize_precision: float = 1e-5,
) -> Outcome:
    """Bracket a step that satisfies the strong Wolfe conditions, then zoom into the bracket.

    Nocedal and Wright, Algorithms 3.5 and 3.6.
    """
    wolfe = Wolfe(start, slope_rtol, curv_rtol, approx_dec_rtol)
    safe: tuple[Trial, float, float] | None = None  # decreases enough, with its errors
    previous, bracket, step, error = start, None, guess, math.inf
    for tried in range(max_linesearch_steps):
        limited = bracket is None and step >= max_step
        trial = evaluate(min(step, max_step) if bracket is None else _middle(*bracket))
        error, curvature = wolfe.decrease_error(trial), wolfe.curvature_error(trial)
        if max(error, curvature) <= tol:
            return Outcome(trial, tried + 1, error, curvature)
        least = start if safe is None else safe[0]
        if error <= tol and (bracket is None or trial.value < least.value):
            safe = (trial, error, curvature)
        if bracket is None:
            if error > 0 or (tried > 0 and trial.value >= previous.value):
                bracket = (previous, trial, previous)
            elif trial.slope >= 0:
                bracket = (trial, previous, trial)
            elif limited:  # a longer step might satisfy the curvature condition: not allowed
                return Outcome(trial, tried + 1, error, curvature)
            previous, step = trial, increase_factor * trial.step
        else:
            narrow = abs(bracket[1].step - bracket[0].step) <= stepsize_precision
            bracket = _narrowed(*bracket, trial, error)
            if narrow and safe is not None:
                break
    if safe is None:
        return Outcome(start, max_linesearch_steps, error, 0.0)
    return Outcome(safe[0], tried + 1, *safe[1:])


def _narrowed(
    low: Trial, high: Trial, reference: Trial, trial: Trial, error: float
) -> tuple[Trial, Trial, Trial]:
    """The bracket after a trial in it, and the point that leaves it as reference of the cubic."""
    if error > 0 or trial.value >= low.value:
        return low, trial, high
    if trial.slope * (high.step - low.step) >= 0:
        return trial, low, high
    return trial, high, low


def _middle(low: Trial, high: Trial, reference: Trial) -> float:
    """A step well inside the bracket: of a cubic, else of a parabola, else the middle."""
    left, right = sorted((low.step, high.step))
    for margin, step in ((0.2, _cubic(low, high, reference)), (0.1, _parabola(low, high))):
        if left + margin * (right - left) < step < right - margin * (right - left):
            return step
    return (low.step + high.step) / 2


def _cubic(a: Trial, b: Trial, c: Trial) -> float:
    """Where the cubic with the values at a, b, c and the slope at a is least; NaN if nowhere."""
    db, dc = b.step - a.step, c.step - a.step
    rise_b, rise_c = b.value - a.value - a.slope * db, c.value - a.value - a.slope * dc
    denominator = db * db * dc * dc * (db - dc)  # a power of a float raises where it overflows
    if not denominator:
        return math.nan
    third = (dc * dc * rise_b - db * db * rise_c) / denominator
    second = (db * db * db * rise_c - dc * dc * dc * rise_b) / denominator
    radical = second * second - 3 * third * a.slope
    if not (radical >= 0 and third):
        return math.nan
    return a.step + (math.sqrt(radical) - second) / (3 * third)


def _parabola(a: Trial, b: Trial) -> float:
    """Where the parabola with the values at a, b and the slope at a is least; NaN if nowhere."""
    db = b.step - a.step
    rise = b.value - a.value - a.slope * db
    return a.step - a.slope * db * db / (2 * rise) if rise else math.nan


def _violation(error: float, *seen: float) -> float:
    """How much of an error counts; one made of values that are not finite is infinite."""
    return max(error, 0.0) if all(map(math.isfinite, (error, *seen))) else math.inf
