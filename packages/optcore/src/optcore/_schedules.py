# SPDX-License-Identifier: Apache-2.0
"""Schedules: what one is, and the decays from which the others are made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, TypeAlias

import torch

from optcore._hyperparams import Schedule
from optcore._modes import differentiates
from optcore._tokens import show, token
from optcore._tree import describe

Value: TypeAlias = "float | torch.Tensor"


@dataclass(frozen=True, eq=False, repr=False)
class ScheduleFunction:
    """A formula of the step count with its parameters bound, as a value.

    Calling it with a tensor (int64, ``()`` or batched by vmap) gives a float64 tensor on the device
    of its tensor parameters, and nothing waits for a device. Calling it with a number gives a
    Python float, or a tensor where a graph or a transform hangs on the value.

    Equal formulas and parameters compare and hash equal (tensors by identity); it pickles.

    Args:
        name: The public function that made it, for ``repr`` and errors.
        formula: Module-level function ``formula(count, **values, **settings)``.
        values: Numbers, tensors, None, or tuples of such; the formula gets float64 tensors.
        settings: Everything else: step counts, flags, other schedules.
    """

    name: str
    formula: Callable[..., torch.Tensor]
    values: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, count: int | float | torch.Tensor) -> Value:
        if not isinstance(count, torch.Tensor):
            if not isinstance(count, Real) or isinstance(count, bool):
                raise TypeError(
                    f"{self.name}: expected count as a number or tensor, got {describe(count)}"
                )
            value = self(torch.tensor(count))
            return value if differentiates([value]) else value.item()
        device = count.device
        for value in self.values.values():
            for part in value if isinstance(value, tuple) else (value,):
                device = part.device if isinstance(part, torch.Tensor) else device
        values = {name: real(value, device) for name, value in self.values.items()}
        return self.formula(count.to(device), **values, **self.settings)

    def _key(self) -> tuple[Any, ...]:
        return self.formula, token(dict(self.values)), token(dict(self.settings))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ScheduleFunction):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        fields = {**self.values, **self.settings}
        return f"{self.name}({', '.join(f'{k}={show(v)}' for k, v in fields.items())})"


def real(value: Any, device: torch.device | None = None) -> Any:
    """A number or tensor as a float64 tensor; in a tuple each, and None stays."""
    if value is None:
        return None
    if isinstance(value, tuple):
        return tuple(real(part, device) for part in value)
    if isinstance(value, torch.Tensor):
        return value.to(device, torch.float64)
    return torch.full((), value, dtype=torch.float64, device=device)


def check_value(who: str, name: str, value: Value, *, positive: bool = False) -> None:
    """Refuse what is neither a finite (positive) number nor a floating tensor.

    Tensors are checked for their type only: reading their value would wait for the device.
    """
    if isinstance(value, torch.Tensor):
        if not value.dtype.is_floating_point:
            raise TypeError(f"{who}: expected {name} as a floating tensor, got {describe(value)}")
    elif not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{who}: expected {name} as a number or tensor, got {describe(value)}")
    elif not math.isfinite(value) or (positive and value <= 0):
        kind = "> 0" if positive else "finite"
        raise ValueError(f"{who}: expected {name} {kind}, got {value}")


def check_steps(who: str, name: str, value: int, low: int = 0) -> int:
    """A number of steps as an int.

    Raises:
        TypeError: Not a whole number.
        ValueError: Below ``low``.
    """
    if not isinstance(value, Real) or isinstance(value, bool) or value != value // 1:
        shown = value if isinstance(value, Real) else describe(value)
        raise TypeError(f"{who}: expected {name} as an integer, got {shown}")
    if value < low:
        raise ValueError(f"{who}: expected {name} >= {low}, got {value}")
    return int(value)


def constant_schedule(value: Value) -> Schedule:
    r"""Always the same: :math:`s(t) = v`.

    Args:
        value: :math:`v`.

    Differentiable:
        In a tensor ``value``.

    Raises:
        TypeError: ``value`` is neither a number nor a floating tensor.
        ValueError: ``value`` is not finite.

    Example:
        >>> constant_schedule(0.1)(1000)
        0.1
    """
    check_value("constant_schedule", "value", value)
    return ScheduleFunction("constant_schedule", _constant, {"value": value})


def _constant(count: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return value


def polynomial_schedule(
    init_value: Value,
    end_value: Value,
    power: Value,
    transition_steps: int,
    transition_begin: int = 0,
) -> Schedule:
    r"""Go from one value to another along a polynomial.

    .. math::
        s(t) = e + (i - e) \left(1 - \frac{t'}{T}\right)^p,
        \qquad t' = \min(\max(t - b, 0), T)

    Args:
        init_value: :math:`i`, kept until the transition begins.
        end_value: :math:`e`, kept after it.
        power: :math:`p > 0`.
        transition_steps: :math:`T \ge 0`; 0 keeps ``init_value`` for ever.
        transition_begin: :math:`b \ge 0`.

    Differentiable:
        In tensor values, twice; from the end on only in ``end_value``.

    Differs:
        optax and TorchOpt (same arguments) take negative step counts for 0, and any ``power``.

    Raises:
        TypeError: A value that is neither a number nor a floating tensor, or steps that are no
            whole number.
        ValueError: A value that is not finite, ``power`` not positive, negative steps.

    Example:
        >>> schedule = polynomial_schedule(1.0, 0.0, power=2, transition_steps=10)
        >>> [schedule(count) for count in (0, 5, 10, 99)]
        [1.0, 0.25, 0.0, 0.0]
    """
    who = "polynomial_schedule"
    check_value(who, "power", power, positive=True)
    return _transition(who, init_value, end_value, power, transition_steps, transition_begin)


def linear_schedule(
    init_value: Value, end_value: Value, transition_steps: int, transition_begin: int = 0
) -> Schedule:
    r"""Go from one value to another in a straight line: :func:`polynomial_schedule`, power 1.

    Args:
        init_value: Kept until the transition begins.
        end_value: Kept after it.
        transition_steps: Length of the transition, >= 0; 0 keeps ``init_value`` for ever.
        transition_begin: Steps before it, >= 0.

    Differentiable:
        In tensor values.

    Differs:
        optax and TorchOpt (same arguments) take negative step counts for 0.

    Raises:
        TypeError: A value that is neither a number nor a floating tensor, or steps that are no
            whole number.
        ValueError: A value that is not finite, negative steps.

    Example:
        >>> schedule = linear_schedule(1.0, 0.0, transition_steps=4, transition_begin=2)
        >>> [schedule(count) for count in (0, 2, 3, 6, 99)]
        [1.0, 1.0, 0.75, 0.0, 0.0]
    """
    return _transition(
        "linear_schedule", init_value, end_value, 1.0, transition_steps, transition_begin
    )


def _transition(
    who: str, init_value: Value, end_value: Value, power: Value, steps: int, begin: int
) -> Schedule:
    check_value(who, "init_value", init_value)
    check_value(who, "end_value", end_value)
    values = {"init_value": init_value, "end_value": end_value, "power": power}
    settings = {
        "transition_steps": check_steps(who, "transition_steps", steps),
        "transition_begin": check_steps(who, "transition_begin", begin),
    }
    return ScheduleFunction(who, polynomial, values, settings)


def polynomial(
    count: torch.Tensor,
    init_value: torch.Tensor,
    end_value: torch.Tensor,
    power: Value,
    transition_steps: int,
    transition_begin: int = 0,
) -> torch.Tensor:
    """Formula of :func:`polynomial_schedule`."""
    if transition_steps == 0:
        return init_value
    elapsed = (real(count) - transition_begin).clamp(0, transition_steps)
    left = 1 - elapsed / transition_steps
    return end_value + (init_value - end_value) * _power(left, power)


def _power(base: torch.Tensor, exponent: Value) -> torch.Tensor:
    """A power of a number in [0, 1] whose derivatives in the exponent exist at 0 too."""
    zero = base == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, base) ** exponent)


def exponential_decay(
    init_value: Value,
    transition_steps: int,
    decay_rate: Value,
    transition_begin: int = 0,
    staircase: bool = False,
    end_value: Value | None = None,
) -> Schedule:
    r"""Decay (or grow) by a factor every so many steps.

    .. math::
        s(t) = i\,r^{\max(t - b, 0) / T}

    Args:
        init_value: :math:`i`, kept until the decay begins.
        transition_steps: :math:`T \ge 1`, the steps in which the value is multiplied by the rate.
        decay_rate: :math:`r > 0`.
        transition_begin: :math:`b \ge 0`.
        staircase: Round the exponent down, so that the value changes every :math:`T` steps.
        end_value: Where to stop: a lower bound if the rate is below 1, else an upper bound.

    Differentiable:
        In tensor values, twice; beyond the bound only in ``end_value``.

    Differs:
        TorchOpt's second argument is ``decay_rate``; the keywords are the same, but
        ``transition_steps`` has no default here. optax and TorchOpt take steps and a rate that
        mean no decay, and a negative begin for 0.

    Raises:
        TypeError: A value that is neither a number nor a floating tensor, or steps that are no
            whole number.
        ValueError: A value that is not finite, ``decay_rate`` not positive, steps out of range.

    Example:
        >>> schedule = exponential_decay(1.0, transition_steps=2, decay_rate=0.25)
        >>> [schedule(count) for count in range(4)]
        [1.0, 0.5, 0.25, 0.125]
    """
    who = "exponential_decay"
    settings = {
        "transition_steps": check_steps(who, "transition_steps", transition_steps, 1),
        "transition_begin": check_steps(who, "transition_begin", transition_begin),
        "staircase": staircase,
    }
    check_value(who, "init_value", init_value)
    check_value(who, "decay_rate", decay_rate, positive=True)
    if end_value is not None:
        check_value(who, "end_value", end_value)
    values = {"init_value": init_value, "decay_rate": decay_rate, "end_value": end_value}
    return ScheduleFunction(who, exponential, values, settings)


def exponential(
    count: torch.Tensor,
    init_value: torch.Tensor,
    decay_rate: torch.Tensor,
    end_value: torch.Tensor | None,
    transition_steps: int,
    transition_begin: int,
    staircase: bool,
) -> torch.Tensor:
    """Formula of :func:`exponential_decay`."""
    exponent = ((real(count) - transition_begin) / transition_steps).clamp_min(0)
    if staircase:
        exponent = exponent.floor()
    value = init_value * torch.pow(decay_rate, exponent)
    if end_value is None:
        return value
    beyond = torch.where(decay_rate < 1, value < end_value, value > end_value)
    return torch.where(beyond, end_value, value)


def cosine_decay_schedule(
    init_value: Value, decay_steps: int, alpha: Value = 0.0, exponent: Value = 1.0
) -> Schedule:
    r"""Decay along half a cosine.

    .. math::
        s(t) = i \left((1 - \alpha)\,c^p + \alpha\right), \qquad
        c = \tfrac12 \left(1 + \cos \frac{\pi \min(t, T)}{T}\right)

    Args:
        init_value: :math:`i`.
        decay_steps: :math:`T \ge 1`.
        alpha: :math:`\alpha`, the fraction of ``init_value`` that is left at the end.
        exponent: :math:`p > 0`.

    Differentiable:
        In tensor values, twice.

    Raises:
        TypeError: A value that is neither a number nor a floating tensor, or steps that are no
            whole number.
        ValueError: A value that is not finite, ``exponent`` not positive, ``decay_steps`` < 1.

    Example:
        >>> schedule = cosine_decay_schedule(1.0, decay_steps=4, alpha=0.5)
        >>> [round(schedule(count), 4) for count in (0, 2, 4, 99)]
        [1.0, 0.75, 0.5, 0.5]

    Reference:
        Loshchilov and Hutter, 2017, arXiv:1608.03983, equation 5.
    """
    who = "cosine_decay_schedule"
    check_value(who, "init_value", init_value)
    check_value(who, "alpha", alpha)
    check_value(who, "exponent", exponent, positive=True)
    values = {"init_value": init_value, "alpha": alpha, "exponent": exponent}
    settings = {"decay_steps": check_steps(who, "decay_steps", decay_steps, 1)}
    return ScheduleFunction(who, _cosine_decay, values, settings)


def _cosine_decay(
    count: torch.Tensor,
    init_value: torch.Tensor,
    alpha: torch.Tensor,
    exponent: torch.Tensor,
    decay_steps: int,
) -> torch.Tensor:
    return init_value * ((1 - alpha) * cosine(count, decay_steps, exponent) + alpha)


def cosine(count: torch.Tensor, decay_steps: int, exponent: torch.Tensor) -> torch.Tensor:
    """Half a cosine from 1 at count 0 down to 0 at ``decay_steps``, to a power."""
    angle = torch.pi * (real(count).clamp_max(decay_steps) / decay_steps)
    return _power((1 + torch.cos(angle)) / 2, exponent)
