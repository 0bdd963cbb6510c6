# SPDX-License-Identifier: Apache-2.0
"""The kernels as optcore calls them: one function per transformation, and whole steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import torch

from optcore_accel._call import Call, Columns, Where, refuse_frozen_count
from optcore_accel._function import step
from optcore_accel._rules import (
    DESCENT,
    RMS,
    RMS_TRACE,
    RULES,
    STDDEV,
    STDDEV_TRACE,
    TRACE,
    Rule,
    Scalar,
)

_ALONE = [1.0, 0.0, 0.0, 0.0]  # scalars around a rule without parameters
_SEVERAL = {(): DESCENT, (RMS.name, TRACE.name): RMS_TRACE, (STDDEV.name, TRACE.name): STDDEV_TRACE}
_SIGN, _DECAY, _RATE = "scale", "add_decayed_weights", "scale_by_learning_rate"


class Transform:
    """The kernel of a transformation.

    Args:
        rule: What it does to a gradient.
    """

    def __init__(self, rule: Rule) -> None:
        self._rule = rule

    def __call__(
        self,
        grads: list[torch.Tensor],
        *columns: list[torch.Tensor],
        inplace: bool,
        **hyperparams: Any,
    ) -> tuple[list[torch.Tensor], ...]:
        """``kernel(grads, *buffers[, counts]) -> (updates, *buffers)``."""
        buffers, count = self._split(columns)
        if not grads:
            return ([], *buffers)
        if inplace:
            call = self.prepared(grads, *columns, **hyperparams)
            call.check_apart([call])
            return (call(), *buffers)
        name = self._rule.name
        number = 1.0 if count is None else _readable(name, count, grads[0].device)
        scalars = [*_ALONE, *self._rule.scalars_at(number, [self._own(hyperparams)])]
        updates, fresh = step(name, self._rule, scalars, Columns(None, grads, buffers))
        return (updates, *fresh)

    def prepared(
        self,
        grads: list[torch.Tensor],
        *columns: list[torch.Tensor],
        where: Where | None = None,
        **hyperparams: Any,
    ) -> Call:
        """A call in place, checked, that gives the updates."""
        buffers, count = self._split(columns)
        scalars = [*_ALONE, *self._rule.ordered([self._own(hyperparams)])]
        columns_ = Columns(None, grads, buffers)
        return Call(self._rule.name, self._rule, scalars, columns_, count, where)

    def _split(
        self, columns: Sequence[list[torch.Tensor]]
    ) -> tuple[list[list[torch.Tensor]], torch.Tensor | None]:
        """Buffers, and the count that all leaves share."""
        buffers, counts = list(columns[: self._rule.buffers]), columns[self._rule.buffers :]
        return buffers, counts[0][0] if counts and counts[0] else None

    def _own(self, hyperparams: Mapping[str, Any]) -> dict[str, Any]:
        return {name: _scalar(self._rule.name, name, v) for name, v in hyperparams.items()}


class Step:
    """A chain of transformations as one call, the parameters included.

    Args:
        rule: What they make of a gradient.
        hyperparams: Those of each transformation in the rule.
        outer: Sign, penalty, decoupled decay and learning rate.
    """

    def __init__(
        self, rule: Rule, hyperparams: Sequence[Mapping[str, Any]], outer: Sequence[Scalar]
    ) -> None:
        self._rule, self._hyperparams, self._outer = rule, hyperparams, list(outer)
        self._ordered: list[Scalar] | None = None  # a step that is repeated asks again and again

    def __call__(
        self,
        params: list[torch.Tensor],
        grads: list[torch.Tensor],
        buffers: list[list[torch.Tensor]],
        count: torch.Tensor | None,
        *,
        who: str,
        where: Where,
    ) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
        """New parameters and buffers, differentiable."""
        number = 1.0 if count is None else _readable(who, count, grads[0].device)
        scalars = [*self._outer, *self._rule.scalars_at(number, self._hyperparams)]
        return step(who, self._rule, scalars, Columns(params, grads, buffers), where)

    def prepared(
        self,
        params: list[torch.Tensor],
        grads: list[torch.Tensor],
        buffers: list[list[torch.Tensor]],
        count: torch.Tensor | None,
        *,
        who: str,
        where: Where,
        last: Call | None = None,
    ) -> Call:
        """The call in place, checked: ``last``, the one before on the same lists, if it can be."""
        if self._ordered is None:
            self._ordered = [*self._outer, *self._rule.ordered(self._hyperparams)]
        if last is not None and last.again(self._ordered, grads):
            return last
        return Call(who, self._rule, self._ordered, Columns(params, grads, buffers), count, where)


def whole_step(links: Sequence[tuple[str, Mapping[str, Any]]]) -> Step | None:
    """The step of a chain ``[sign] [penalty] [rule] [decay] learning rate``; None for others.

    Example:
        >>> whole_step([("trace", {"decay": 0.9, "dampening": 0.0, "nesterov": False})]) is None
        True
    """
    names = tuple(name for name, _ in links)
    rule, places = _parsed(names)
    if rule is None:
        return None
    values = [{key: _scalar(name, key, value) for key, value in own.items()} for name, own in links]

    def outer(place: str, key: str, default: float) -> Scalar:
        return values[places[place]][key] if place in places else default

    around = (
        outer("sign", "step_size", 1.0),
        outer("l2", "weight_decay", 0.0),
        outer("decay", "weight_decay", 0.0),
        outer("lr", "lr", 1.0),
    )
    return Step(rule, [values[k] for k in places["rule"]], around)


@lru_cache(maxsize=256)
def _parsed(names: tuple[str, ...]) -> tuple[Rule | None, dict[str, Any]]:
    """The rule in a chain, and where everything stands in it."""
    rest = list(enumerate(names))
    places: dict[str, Any] = {"rule": []}

    def take(place: str, name: str) -> None:
        if rest and rest[0][1] == name:
            places[place] = rest.pop(0)[0]

    take("sign", _SIGN)
    take("l2", _DECAY)
    while rest and rest[0][1] in RULES:
        places["rule"].append(rest.pop(0)[0])
    own = tuple(names[k] for k in places["rule"])
    take("decay", _DECAY)
    take("lr", _RATE)
    rule = RULES.get(own[0]) if len(own) == 1 else _SEVERAL.get(own)
    return (None if rest or "lr" not in places else rule), places


def _scalar(who: str, name: str, value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        if value.ndim:
            shape = list(value.shape)
            raise NotImplementedError(
                f"{who}(use_accelerated_op=True): expected {name} as a number or a tensor without "
                f"axes, got one of shape {shape}; leave use_accelerated_op out"
            )
        return value.to(torch.float64)
    return value if isinstance(value, bool) else float(value)


def _readable(who: str, count: torch.Tensor, device: torch.device) -> Scalar:
    """The count as a number where it can be read, else as a float64 tensor."""
    refuse_frozen_count(who, count, device)
    if count.is_cuda or torch._C._functorch.is_functorch_wrapped_tensor(count):
        return count.to(torch.float64)
    return float(count)


KERNELS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {**{name: Transform(rule) for name, rule in RULES.items()}, "step": whole_step}
)
