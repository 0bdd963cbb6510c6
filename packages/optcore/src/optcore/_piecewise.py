# SPDX-License-Identifier: Apache-2.0
"""Schedules in pieces, and the one-cycle schedules made of them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from numbers import Real
from typing import Any

import torch

from optcore._hyperparams import Schedule
from optcore._schedules import ScheduleFunction, Value, check_steps, check_value, real
from optcore._tree import describe


def piecewise_constant_schedule(
    init_value: Value, boundaries_and_scales: Mapping[int, Value] | None = None
) -> Schedule:
    r"""Multiply the value at each boundary: :math:`s(t) = i \prod_{b \le t} f_b`.

    Args:
        init_value: :math:`i`.
        boundaries_and_scales: The factor :math:`f_b \ge 0` that holds from each count
            :math:`b \ge 0` on.

    Differentiable:
        In tensor values; in a factor from its boundary on.

    Raises:
        TypeError: A value that is neither a number nor a floating tensor, a boundary that is no
            whole number.
        ValueError: A value that is not finite, a negative factor or boundary.

    Example:
        >>> schedule = piecewise_constant_schedule(1.0, {2: 0.5, 4: 0.1})
        >>> [schedule(count) for count in range(5)]
        [1.0, 1.0, 0.5, 0.5, 0.05]
    """
    who = "piecewise_constant_schedule"
    check_value(who, "init_value", init_value)
    boundaries, scales = _check_pieces(who, boundaries_and_scales)
    return ScheduleFunction(
        who,
        _piecewise_constant,
        {"init_value": init_value, "scales": scales},
        {"boundaries": boundaries},
    )


def _check_pieces(
    who: str, boundaries_and_scales: Mapping[int, Value] | None
) -> tuple[tuple[int, ...], tuple[Value, ...]]:
    """Boundaries in order, and the factor of each."""
    pieces = {}
    for boundary, scale in (boundaries_and_scales or {}).items():
        start = check_steps(who, "boundaries", boundary)
        check_value(who, f"the scale at {start}", scale)
        if isinstance(scale, Real) and scale < 0:
            raise ValueError(f"{who}: expected the scale at {start} >= 0, got {scale}")
        pieces[start] = scale
    return tuple(sorted(pieces)), tuple(pieces[start] for start in sorted(pieces))


def _piecewise_constant(
    count: torch.Tensor,
    init_value: torch.Tensor,
    scales: tuple[torch.Tensor, ...],
    boundaries: tuple[int, ...],
) -> torch.Tensor:
    value = init_value
    for boundary, scale in zip(boundaries, scales, strict=True):
        value = torch.where(count < boundary, value, value * scale)
    return value


def piecewise_interpolate_schedule(
    interpolate_type: str,
    init_value: Value,
    boundaries_and_scales: Mapping[int, Value] | None = None,
) -> Schedule:
    r"""Go from boundary to boundary in straight lines or half cosines.

    At count :math:`b` the value is :math:`i \prod_{b' \le b} f_{b'}`; after the last boundary it
    stays.

    Args:
        interpolate_type: ``"linear"`` or ``"cosine"``.
        init_value: :math:`i`, the value at count 0.
        boundaries_and_scales: The factor :math:`f_b \ge 0` reached at each count :math:`b \ge 0`.

    Differentiable:
        In tensor values.

    Differs:
        At negative counts, which no optimizer makes, the value is ``init_value``; in optax it is 0.

    Raises:
        TypeError: A value that is neither a number nor a floating tensor, a boundary that is no
            whole number.
        ValueError: Another ``interpolate_type``, a value that is not finite, a negative factor or
            boundary.

    Example:
        >>> schedule = piecewise_interpolate_schedule("linear", 1.0, {2: 0.5, 4: 0.0})
        >>> [schedule(count) for count in range(6)]
        [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """
    who = "piecewise_interpolate_schedule"
    if interpolate_type not in _INTERPOLATE:
        raise ValueError(
            f"{who}: expected interpolate_type 'linear' or 'cosine', got {interpolate_type!r}"
        )
    check_value(who, "init_value", init_value)
    boundaries, scales = _check_pieces(who, boundaries_and_scales)
    return ScheduleFunction(
        who,
        _piecewise_interpolate,
        {"init_value": init_value, "scales": scales},
        {"interpolate_type": interpolate_type, "boundaries": boundaries},
    )


def _linear(start: torch.Tensor, end: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    return start + (end - start) * part


def _cosine(start: torch.Tensor, end: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    return end + (start - end) * (1 + torch.cos(torch.pi * part)) / 2


_INTERPOLATE = {"linear": _linear, "cosine": _cosine}


def _piecewise_interpolate(
    count: torch.Tensor,
    init_value: torch.Tensor,
    scales: tuple[torch.Tensor, ...],
    interpolate_type: str,
    boundaries: tuple[int, ...],
) -> torch.Tensor:
    interpolate = _INTERPOLATE[interpolate_type]
    reached = value = init_value
    for (start, end), scale in zip(pairwise((0, *boundaries)), scales, strict=True):
        goal = reached * scale
        part = ((real(count) - start) / max(end - start, 1)).clamp(0, 1)
        value = torch.where(count < start, value, interpolate(reached, goal, part))
        value = torch.where(count < end, value, goal)
        reached = goal
    return value


def linear_onecycle_schedule(
    transition_steps: int,
    peak_value: Value,
    pct_start: float = 0.3,
    pct_final: float = 0.85,
    div_factor: Value = 25.0,
    final_div_factor: Value = 1e4,
) -> Schedule:
    r"""One cycle in three straight lines: up to the peak, down to the start, down to the end.

    Args:
        transition_steps: Length of the cycle, >= 1.
        peak_value: The peak :math:`p`.
        pct_start: Part of the cycle that goes up, in ``[0, 1]``.
        pct_final: Part of the cycle after which the start value is reached again, in
            ``[pct_start, 1]``.
        div_factor: :math:`d > 0`: the cycle starts at :math:`p / d`.
        final_div_factor: :math:`f > 0`: it ends at :math:`p / (d f)`.

    Differentiable:
        In tensor values.

    Raises:
        TypeError: A value that is neither a number nor a floating tensor, steps that are no whole
            number.
        ValueError: A value that is not finite or not positive, parts that are not in order.

    Example:
        >>> schedule = linear_onecycle_schedule(10, 1.0, 0.3, 0.8, 10.0, 10.0)
        >>> [round(schedule(count), 4) for count in (0, 3, 8, 10)]
        [0.1, 1.0, 0.1, 0.01]

    Reference:
        Smith and Topin, 2018, arXiv:1708.07120.
    """
    who = "linear_onecycle_schedule"
    steps = _check_onecycle(who, transition_steps, peak_value, div_factor, final_div_factor)
    _check_number(who, "pct_start", pct_start)
    _check_number(who, "pct_final", pct_final)
    if not 0 <= pct_start <= pct_final <= 1:
        raise ValueError(
            f"{who}: expected 0 <= pct_start <= pct_final <= 1, got {pct_start} and {pct_final}"
        )
    return ScheduleFunction(
        who,
        _linear_onecycle,
        {"peak_value": peak_value, "div_factor": div_factor, "final_div_factor": final_div_factor},
        {"boundaries": (int(pct_start * steps), int(pct_final * steps), steps)},
    )


def _check_onecycle(
    who: str, transition_steps: int, peak_value: Value, div_factor: Value, final_div_factor: Value
) -> int:
    check_value(who, "peak_value", peak_value)
    check_value(who, "div_factor", div_factor, positive=True)
    check_value(who, "final_div_factor", final_div_factor, positive=True)
    return check_steps(who, "transition_steps", transition_steps, 1)


def _linear_onecycle(
    count: torch.Tensor,
    peak_value: torch.Tensor,
    div_factor: torch.Tensor,
    final_div_factor: torch.Tensor,
    boundaries: tuple[int, ...],
) -> torch.Tensor:
    scales = (div_factor, 1 / div_factor, 1 / final_div_factor)
    return _piecewise_interpolate(count, peak_value / div_factor, scales, "linear", boundaries)


def cosine_onecycle_schedule(
    transition_steps: int,
    peak_value: Value,
    pct_start: float = 0.3,
    div_factor: Value = 25.0,
    final_div_factor: Value = 1e4,
) -> Schedule:
    r"""One cycle in two half cosines: up to the peak, down to the end.

    Args:
        transition_steps: Length of the cycle, >= 1.
        peak_value: The peak :math:`p`.
        pct_start: Part of the cycle that goes up, in ``[0, 1]``.
        div_factor: :math:`d > 0`: the cycle starts at :math:`p / d`.
        final_div_factor: :math:`f > 0`: it ends at :math:`p / (d f)`.

    Differentiable:
        In tensor values.

    Raises:
        TypeError: A value that is neither a number nor a floating tensor, steps that are no whole
            number.
        ValueError: A value that is not finite or not positive, ``pct_start`` outside ``[0, 1]``.

    Example:
        >>> schedule = cosine_onecycle_schedule(10, 1.0, 0.3, 10.0, 10.0)
        >>> [round(schedule(count), 4) for count in (0, 3, 10)]
        [0.1, 1.0, 0.01]

    Reference:
        Smith and Topin, 2018, arXiv:1708.07120.
    """
    who = "cosine_onecycle_schedule"
    steps = _check_onecycle(who, transition_steps, peak_value, div_factor, final_div_factor)
    _check_number(who, "pct_start", pct_start)
    if not 0 <= pct_start <= 1:
        raise ValueError(f"{who}: expected pct_start in [0, 1], got {pct_start}")
    return ScheduleFunction(
        who,
        _cosine_onecycle,
        {"peak_value": peak_value, "div_factor": div_factor, "final_div_factor": final_div_factor},
        {"boundaries": (int(pct_start * steps), steps)},
    )


def _cosine_onecycle(
    count: torch.Tensor,
    peak_value: torch.Tensor,
    div_factor: torch.Tensor,
    final_div_factor: torch.Tensor,
    boundaries: tuple[int, ...],
) -> torch.Tensor:
    scales = (div_factor, 1 / (div_factor * final_div_factor))
    return _piecewise_interpolate(count, peak_value / div_factor, scales, "cosine", boundaries)


def _check_number(who: str, name: str, value: Any) -> None:
    # it becomes a whole number of steps: a tensor would lose its derivative without a word
    if not isinstance(value, Real):
        raise TypeError(f"{who}: expected {name} as a number, got {describe(value)}")
