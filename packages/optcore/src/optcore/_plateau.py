# SPDX-License-Identifier: Apache-2.0
"""Smaller steps once the loss stops falling."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch

from optcore._chain import chain
from optcore._choice import check_int
from optcore._declared import declares
from optcore._fused import Ready
from optcore._hyperparams import check_number
from optcore._masking import check_transformation
from optcore._norms import multiply
from optcore._optimizer import Optimizer
from optcore._polyak import checked_value
from optcore._transform import GradientTransformation, new_count
from optcore._tree import ParamDict, Tree


class ReduceLROnPlateauState(NamedTuple):
    """State of :func:`reduce_on_plateau`."""

    scale: torch.Tensor  # f64[]: what updates are multiplied by
    best_value: torch.Tensor  # f64[]: smallest average so far
    plateau_count: torch.Tensor  # i64[]: averages since then
    cooldown_count: torch.Tensor  # i64[]: averages still to be ignored
    count: torch.Tensor  # i64[]: values in the average
    avg_value: torch.Tensor  # f64[]: of these values


def reduce_on_plateau(
    factor: float = 0.1,
    patience: int = 10,
    rtol: float = 1e-4,
    atol: float = 0.0,
    cooldown: int = 0,
    accumulation_size: int = 1,
    min_scale: float = 0.0,
) -> GradientTransformation:
    r"""Multiply updates by a scale that shrinks when the loss has stopped falling.

    ``update`` wants the extra argument ``value``, the loss. An average :math:`v` of
    ``accumulation_size`` values counts as progress if
    :math:`v < (1 - r)\,v_{\text{best}} - a`; after ``patience`` averages without, the scale is
    multiplied by ``factor``.

    Args:
        factor: In ``(0, 1)``.
        patience: Averages without progress, >= 1.
        rtol: :math:`r` in ``[0, 1]``.
        atol: :math:`a \ge 0`; one of the two must be positive.
        cooldown: Averages to ignore after each reduction, >= 0.
        accumulation_size: Values in an average, >= 1.
        min_scale: Smallest scale, in ``[0, 1]``.

    State:
        ``scale`` and what the decision needs. No value is read back from an accelerator.

    Differentiable:
        In the updates; the scale is a constant, what the state holds has no graph.

    Raises:
        TypeError: An argument of the wrong type; in ``update``, no ``value``.
        ValueError: An argument outside its range.

    Example:
        >>> tx = reduce_on_plateau(factor=0.5, patience=2)
        >>> state = tx.init([torch.zeros(1)])
        >>> for _ in range(3):
        ...     updates, state = tx.update([torch.ones(1)], state, value=7.0)
        >>> updates
        [tensor([0.5000])]

    Reference:
        Equals ``optax.contrib.reduce_on_plateau``.
    """
    who = "reduce_on_plateau"
    numbers = {"factor": factor, "rtol": rtol, "atol": atol, "min_scale": min_scale}
    for name, value in numbers.items():
        check_number(who, name, value, 0.0)
    if not 0 < factor < 1:
        raise ValueError(f"{who}: expected factor in (0, 1), got {factor}")
    if rtol > 1 or rtol == atol == 0:
        raise ValueError(
            f"{who}: expected rtol in [0, 1], and rtol or atol positive, got rtol={rtol}, "
            f"atol={atol}"
        )
    if min_scale > 1:
        raise ValueError(f"{who}: expected min_scale in [0, 1], got {min_scale}")
    check_int(who, "patience", patience, 1)
    check_int(who, "cooldown", cooldown, 0)
    check_int(who, "accumulation_size", accumulation_size, 1)
    counts = {"patience": patience, "cooldown": cooldown, "accumulation_size": accumulation_size}
    return GradientTransformation(
        _plateau_init, _plateau_update, static={**numbers, **counts}, name=who
    )


class ReduceOnPlateau(Optimizer):
    """Any optimizer behind which :func:`reduce_on_plateau` stands, as a ``torch.optim.Optimizer``.

    ``step(closure)`` or ``step(value=loss)`` tells it the loss of every step; nothing is called at
    the end of an epoch, and no value is read back from an accelerator.

    Args:
        params: Parameters, named parameters, or dicts of parameter groups.
        base: The optimizer in its functional form.
        factor, patience, rtol, atol, cooldown, accumulation_size, min_scale: As in
            :func:`reduce_on_plateau`.

    State:
        That of both, so a checkpoint goes on with the scale it had. Every group has the scale of
        all losses, also those of steps in which none of its parameters had a gradient; a group
        added later starts at 1.

    Raises:
        TypeError: ``base`` is no transformation; as :func:`reduce_on_plateau`.
        ValueError: As :func:`reduce_on_plateau`.

    Differs:
        ``torch.optim.lr_scheduler.ReduceLROnPlateau`` sets the ``lr`` of a group, and works with
        every class that has one there. This one has none: it scales what ``base`` gives.
        ``torch.distributed.checkpoint.state_dict.set_optimizer_state_dict`` takes a step without a
        loss in an optimizer that has no state, which is refused: take a step with one first.

    Example:
        >>> import optcore
        >>> w = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = ReduceOnPlateau([w], optcore.sgd(lr=0.1), factor=0.5, patience=1)
        >>> for _ in range(3):  # steps of 0.1, 0.05, 0.025
        ...     w.grad = torch.ones(1)
        ...     optimizer.step(value=3.0)
        >>> w.detach()
        tensor([0.8250])

    Reference:
        As :func:`reduce_on_plateau`.
    """

    def __init__(
        self,
        params: Any,
        base: GradientTransformation,
        factor: float = 0.1,
        patience: int = 10,
        rtol: float = 1e-4,
        atol: float = 0.0,
        cooldown: int = 0,
        accumulation_size: int = 1,
        min_scale: float = 0.0,
    ) -> None:
        check_transformation(type(self).__name__, base)
        plateau = reduce_on_plateau(
            factor, patience, rtol, atol, cooldown, accumulation_size, min_scale
        )
        super().__init__(params, chain(base, plateau))

    def _prepared(self, index: int, group: dict[str, Any], extra: dict[str, Any]) -> Ready | None:
        ready = super()._prepared(index, group, extra)
        return ready or Ready(partial(self._tell, group, extra))

    def _tell(self, group: dict[str, Any], extra: dict[str, Any]) -> None:
        """Let the plateau of a group that is not stepped hear of the loss too."""
        none = ParamDict()
        base, plateau = self._read_state(self._transformation, group, none)
        rule = self._transformation._static["transformations"][1]
        _, plateau = rule.apply(none, plateau, None, True, extra)
        self._write_state(group, none, (base, plateau))


def _plateau_init(params: Tree, **_: Any) -> ReduceLROnPlateauState:
    def number(value: float) -> torch.Tensor:
        return torch.tensor(value, dtype=torch.float64)

    counts = new_count(), new_count(), new_count()
    return ReduceLROnPlateauState(number(1.0), number(torch.inf), *counts, number(0.0))


def _check_extra(extra: Mapping[str, Any]) -> None:
    checked_value("reduce_on_plateau", extra.get("value"))


@declares(_check_extra)
def _plateau_update(
    updates: Tree,
    state: ReduceLROnPlateauState,
    params: Tree,
    *,
    inplace: bool,
    factor: float,
    patience: int,
    rtol: float,
    atol: float,
    cooldown: int,
    accumulation_size: int,
    min_scale: float,
    value: Any = None,
    **extra: Any,
) -> tuple[Tree, ReduceLROnPlateauState]:
    who = "reduce_on_plateau"
    value = checked_value(who, value).detach().to(torch.float64)
    count = state.count + 1
    average = (state.count * state.avg_value + value) / count
    full = count == accumulation_size
    improved = average < (1 - rtol) * state.best_value - atol
    waited = torch.where(improved, 0, state.plateau_count + 1)
    cooling = state.cooldown_count > 0
    reduced = full & ~cooling & (waited == patience)
    smaller = (state.scale * factor).clamp_min(min_scale)
    left = torch.where(cooling, state.cooldown_count - 1, torch.where(reduced, cooldown, 0))
    new = ReduceLROnPlateauState(
        scale=torch.where(reduced, smaller, state.scale),
        best_value=torch.where(full & improved, average, state.best_value),
        plateau_count=torch.where(
            full, torch.where(cooling | reduced, 0, waited), state.plateau_count
        ),
        cooldown_count=torch.where(full, left, state.cooldown_count),
        count=torch.where(full, 0, count),
        avg_value=torch.where(full, 0.0, average),
    )
    return multiply(who, updates, new.scale), new
