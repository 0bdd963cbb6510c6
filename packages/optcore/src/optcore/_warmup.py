# SPDX-License-Identifier: Apache-2.0
"""Schedules one after the other: joining, warm-up, restarts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from optcore._hyperparams import Schedule
from optcore._schedules import (
    ScheduleFunction,
    Value,
    check_steps,
    check_value,
    cosine,
    exponential,
    polynomial,
    real,
)
from optcore._tree import describe


def join_schedules(schedules: Sequence[Schedule], boundaries: Sequence[int]) -> Schedule:
    r"""Follow one schedule after the other, each counting from its own beginning.

    Args:
        schedules: Functions ``count -> value``, one or more.
        boundaries: The counts at which the second and each later schedule begins, increasing.

    Differentiable:
        In the schedule that is being followed, as that schedule is.

    Differs:
        optax passes negative counts to schedules that have not begun; here they see 0.

    Raises:
        TypeError: A schedule that is not callable, a boundary that is no whole number.
        ValueError: No schedules, boundaries that do not increase, or not one fewer than schedules.

    Example:
        >>> schedule = join_schedules([lambda t: t / 2, lambda t: 1 - t / 4], [2])
        >>> [schedule(count) for count in range(5)]
        [0.0, 0.5, 1.0, 0.75, 0.5]
    """
    who = "join_schedules"
    for index, schedule in enumerate(schedules):
        if not callable(schedule):
            raise TypeError(
                f"{who}: expected schedules count -> value, got {describe(schedule)}, "
                f"at schedules[{index}]"
            )
    if not schedules or len(boundaries) != len(schedules) - 1:
        raise ValueError(
            f"{who}: expected one boundary fewer than schedules, got {len(schedules)} schedules "
            f"and {len(boundaries)} boundaries"
        )
    starts = [check_steps(who, f"boundaries[{i}]", start) for i, start in enumerate(boundaries)]
    if any(later <= earlier for earlier, later in pairwise(starts)):
        raise ValueError(f"{who}: expected increasing boundaries, got {starts}")
    settings = {"schedules": tuple(schedules), "boundaries": tuple(starts)}
    return ScheduleFunction(who, _joined, {}, settings)


def _joined(
    count: torch.Tensor, schedules: tuple[Schedule, ...], boundaries: tuple[int, ...]
) -> torch.Tensor:
    parts = [schedules[0](count)]
    for schedule, boundary in zip(schedules[1:], boundaries, strict=True):
        parts.append(schedule((count - boundary).clamp_min(0)))
    devices = [part.device for part in parts if isinstance(part, torch.Tensor)]
    device = next((device for device in devices if device.type != "cpu"), count.device)
    count = count.to(device)
    value = real(parts[0], device)
    for part, boundary in zip(parts[1:], boundaries, strict=True):
        value = torch.where(count < boundary, value, real(part, device))
    return value


def warmup_constant_schedule(init_value: Value, peak_value: Value, warmup_steps: int) -> Schedule:
    r"""Rise in a straight line, then stay: :func:`linear_schedule` by another name.

    Args:
        init_value: Where the rise begins.
        peak_value: Where it ends.
        warmup_steps: Its length, >= 0.

    Differentiable:
        In tensor values.

    Differs:
        Without warm-up steps the value is ``peak_value``; in optax it is ``init_value``.

    Raises:
        TypeError: A value that is neither a number nor a floating tensor, or steps that are no
            whole number.
        ValueError: A value that is not finite, negative steps.

    Example:
        >>> schedule = warmup_constant_schedule(0.0, 1.0, 4)
        >>> [schedule(count) for count in (0, 1, 4, 99)]
        [0.0, 0.25, 1.0, 1.0]
    """
    who = "warmup_constant_schedule"
    values, settings = _check_warmup(who, init_value, peak_value, warmup_steps)
    return ScheduleFunction(who, _warmup_constant, values, settings)


def _check_warmup(
    who: str, init_value: Value, peak_value: Value, warmup_steps: int
) -> tuple[dict[str, Value], dict[str, int]]:
    check_value(who, "init_value", init_value)
    check_value(who, "peak_value", peak_value)
    steps = check_steps(who, "warmup_steps", warmup_steps)
    return {"init_value": init_value, "peak_value": peak_value}, {"warmup_steps": steps}


def _warmup_constant(
    count: torch.Tensor, init_value: torch.Tensor, peak_value: torch.Tensor, warmup_steps: int
) -> torch.Tensor:
    return _warmed(count, init_value, peak_value, warmup_steps, peak_value)


def _warmed(
    count: torch.Tensor,
    init_value: torch.Tensor,
    peak_value: torch.Tensor,
    warmup_steps: int,
    after: torch.Tensor,
) -> torch.Tensor:
    """A straight line to the peak, then ``after``."""
    rise = polynomial(count, init_value, peak_value, 1, warmup_steps)
    return torch.where(count < warmup_steps, rise, after)


def warmup_cosine_decay_schedule(
    init_value: Value,
    peak_value: Value,
    warmup_steps: int,
    decay_steps: int,
    end_value: Value = 0.0,
    exponent: Value = 1.0,
) -> Schedule:
    r"""Rise in a straight line, then decay along half a cosine.

    Args:
        init_value: Where the rise begins.
        peak_value: Where it ends.
        warmup_steps: Its length, >= 0.
        decay_steps: Length of the whole schedule, warm-up included: more than ``warmup_steps``.
        end_value: Where the decay ends.
        exponent: Power of the cosine, > 0.

    Differentiable:
        In tensor values, twice.

    Differs:
        A ``peak_value`` of 0 decays (or rises) to ``end_value``; in optax it stays 0.

    Raises:
        TypeError: A value that is neither a number nor a floating tensor, or steps that are no
            whole number.
        ValueError: A value that is not finite, ``exponent`` not positive, steps out of range.

    Example:
        >>> schedule = warmup_cosine_decay_schedule(0.0, 1.0, warmup_steps=2, decay_steps=6)
        >>> [round(schedule(count), 4) for count in (0, 1, 2, 4, 6)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    who = "warmup_cosine_decay_schedule"
    values, settings = _check_warmup(who, init_value, peak_value, warmup_steps)
    check_value(who, "end_value", end_value)
    check_value(who, "exponent", exponent, positive=True)
    total = check_steps(who, "decay_steps", decay_steps, settings["warmup_steps"] + 1)
    return ScheduleFunction(
        who,
        _warmup_cosine,
        {**values, "end_value": end_value, "exponent": exponent},
        {**settings, "decay_steps": total},
    )


def _warmup_cosine(
    count: torch.Tensor,
    init_value: torch.Tensor,
    peak_value: torch.Tensor,
    end_value: torch.Tensor,
    exponent: torch.Tensor,
    warmup_steps: int,
    decay_steps: int,
) -> torch.Tensor:
    left = cosine(count - warmup_steps, decay_steps - warmup_steps, exponent)
    decay = end_value + (peak_value - end_value) * left
    return _warmed(count, init_value, peak_value, warmup_steps, decay)


def warmup_exponential_decay_schedule(
    init_value: Value,
    peak_value: Value,
    warmup_steps: int,
    transition_steps: int,
    decay_rate: Value,
    transition_begin: int = 0,
    staircase: bool = False,
    end_value: Value | None = None,
) -> Schedule:
    r"""Rise in a straight line, then decay as :func:`exponential_decay` does.

    Args:
        init_value: Where the rise begins.
        peak_value: Where it ends.
        warmup_steps: Its length, >= 0.
        transition_steps: Steps in which the value is multiplied by the rate, >= 1.
        decay_rate: The rate, > 0.
        transition_begin: Steps to stay at the peak, >= 0.
        staircase: Decay in jumps.
        end_value: Where to stop: a lower bound if the rate is below 1, else an upper bound.

    Differentiable:
        In tensor values, twice.

    Raises:
        TypeError: A value that is neither a number nor a floating tensor, or steps that are no
            whole number.
        ValueError: A value that is not finite, ``decay_rate`` not positive, steps out of range.

    Example:
        >>> schedule = warmup_exponential_decay_schedule(0.0, 1.0, 2, 1, decay_rate=0.5)
        >>> [schedule(count) for count in range(5)]
        [0.0, 0.5, 1.0, 0.5, 0.25]
    """
    who = "warmup_exponential_decay_schedule"
    values, settings = _check_warmup(who, init_value, peak_value, warmup_steps)
    check_value(who, "decay_rate", decay_rate, positive=True)
    if end_value is not None:
        check_value(who, "end_value", end_value)
    return ScheduleFunction(
        who,
        _warmup_exponential,
        {**values, "decay_rate": decay_rate, "end_value": end_value},
        {
            **settings,
            "transition_steps": check_steps(who, "transition_steps", transition_steps, 1),
            "transition_begin": check_steps(who, "transition_begin", transition_begin),
            "staircase": staircase,
        },
    )


def _warmup_exponential(
    count: torch.Tensor,
    init_value: torch.Tensor,
    peak_value: torch.Tensor,
    warmup_steps: int,
    **decay: Any,
) -> torch.Tensor:
    after = exponential(count - warmup_steps, peak_value, **decay)
    return _warmed(count, init_value, peak_value, warmup_steps, after)


def inverse_sqrt_schedule(
    init_value: Value, peak_value: Value, warmup_steps: int, timescale: Value | None = None
) -> Schedule:
    r"""Rise in a straight line, then decay as the inverse square root of the step.

    .. math::
        s(t) = p \sqrt{\frac{\tau}{t - W + \tau}} \qquad (t \ge W)

    Args:
        init_value: Where the rise begins.
        peak_value: :math:`p`, where it ends.
        warmup_steps: :math:`W \ge 0`.
        timescale: :math:`\tau > 0`: the larger, the slower the decay. None means :math:`W`, which
            makes it :math:`p \sqrt{W / t}`.

    Differentiable:
        In tensor values, twice.

    Raises:
        TypeError: A value that is neither a number nor a floating tensor, or steps that are no
            whole number.
        ValueError: A value that is not finite, ``timescale`` not positive, or neither warm-up steps
            nor a timescale.

    Example:
        >>> schedule = inverse_sqrt_schedule(0.0, 1.0, warmup_steps=4)
        >>> [schedule(count) for count in (0, 2, 4, 16)]
        [0.0, 0.5, 1.0, 0.5]

    Reference:
        Vaswani et al., 2017, arXiv:1706.03762, equation 3.
    """
    who = "inverse_sqrt_schedule"
    values, settings = _check_warmup(who, init_value, peak_value, warmup_steps)
    if timescale is not None:
        check_value(who, "timescale", timescale, positive=True)
    elif not settings["warmup_steps"]:
        raise ValueError(f"{who}: expected a timescale or warmup_steps >= 1, got neither")
    values["timescale"] = settings["warmup_steps"] if timescale is None else timescale
    return ScheduleFunction(who, _inverse_sqrt, values, settings)


def _inverse_sqrt(
    count: torch.Tensor,
    init_value: torch.Tensor,
    peak_value: torch.Tensor,
    timescale: torch.Tensor,
    warmup_steps: int,
) -> torch.Tensor:
    since = real(count - warmup_steps).clamp_min(0)
    decay = peak_value * (timescale / (since + timescale)).sqrt()
    return _warmed(count, init_value, peak_value, warmup_steps, decay)


def sgdr_schedule(cosine_kwargs: Iterable[Mapping[str, Any]]) -> Schedule:
    r"""Warm restarts: :func:`warmup_cosine_decay_schedule` over and over.

    Args:
        cosine_kwargs: The arguments of each :func:`warmup_cosine_decay_schedule`; the next one
            begins after its ``decay_steps``.

    Differentiable:
        In tensor values, twice.

    Raises:
        TypeError: Arguments that :func:`warmup_cosine_decay_schedule` does not take or misses.
        ValueError: None at all, or one that it refuses.

    Example:
        >>> cycle = dict(init_value=0.0, peak_value=1.0, warmup_steps=1, decay_steps=3)
        >>> schedule = sgdr_schedule([cycle, {**cycle, "peak_value": 0.5}])
        >>> [round(schedule(count), 4) for count in range(6)]
        [0.0, 1.0, 0.5, 0.0, 0.5, 0.25]

    Reference:
        Loshchilov and Hutter, 2017, arXiv:1608.03983.
    """
    cycles = [warmup_cosine_decay_schedule(**kwargs) for kwargs in cosine_kwargs]
    if not cycles:
        raise ValueError("sgdr_schedule: expected the arguments of at least one cycle, got none")
    starts, boundaries = 0, []
    for cycle in cycles[:-1]:
        starts += cycle.settings["decay_steps"]
        boundaries.append(starts)
    return join_schedules(cycles, boundaries)
