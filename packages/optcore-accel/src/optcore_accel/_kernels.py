# SPDX-License-Identifier: Apache-2.0
"""The kernels as optcore calls them: one function per transformation, and whole steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any

import torch

from optcore_accel._call import Columns, check, overwrite, prepared
from optcore_accel._function import step
from optcore_accel._rules import (
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
_PAIRS = {(RMS.name, TRACE.name): RMS_TRACE, (STDDEV.name, TRACE.name): STDDEV_TRACE}
_SIGN, _DECAY, _RATE = "scale", "add_decayed_weights", "scale_by_learning_rate"


def _transform(
    rule: Rule,
    grads: list[torch.Tensor],
    *columns: list[torch.Tensor],
    inplace: bool,
    **hyperparams: Any,
) -> tuple[list[torch.Tensor], ...]:
    """``kernel(grads, *buffers[, counts], inplace=..., **hyperparams) -> (updates, *buffers)``."""
    buffers, counts = list(columns[: rule.buffers]), columns[rule.buffers :]
    if not grads:
        return ([], *buffers)
    if not counts:
        return _alone(rule, grads, buffers, 1.0, inplace, hyperparams)
    # leaves that moved together share one count
    members: dict[int, list[int]] = {}
    for leaf, count in enumerate(counts[0]):
        members.setdefault(id(count), []).append(leaf)
    results: list[list[Any]] = [[None] * len(grads) for _ in range(1 + rule.buffers)]
    for own in members.values():
        count = _readable(rule.name, counts[0][own[0]], grads[0].device)
        found = _alone(
            rule,
            [grads[leaf] for leaf in own],
            [[buffer[leaf] for leaf in own] for buffer in buffers],
            count,
            inplace,
            hyperparams,
        )
        for result, values in zip(results, found, strict=True):
            for leaf, value in zip(own, values, strict=True):
                result[leaf] = value
    return tuple(results)


def _alone(
    rule: Rule,
    grads: list[torch.Tensor],
    buffers: list[list[torch.Tensor]],
    count: Scalar,
    inplace: bool,
    hyperparams: Mapping[str, Any],
) -> tuple[list[torch.Tensor], ...]:
    own = {name: _scalar(rule.name, name, value) for name, value in hyperparams.items()}
    scalars = [*_ALONE, *rule.scalars(count, **own)]
    columns = Columns(None, grads, buffers)
    if inplace:
        return (overwrite(rule.name, rule, scalars, columns), *buffers)
    updates, fresh = step(rule.name, rule, scalars, columns)
    return (updates, *fresh)


class Step:
    """A chain of transformations as one call, the parameters included.

    Args:
        names: Those of the transformations.
        rule: What they make of a gradient.
        hyperparams: Those of the rule.
        outer: Sign, penalty, decoupled decay and learning rate.
    """

    def __init__(
        self,
        names: Sequence[str],
        rule: Rule,
        hyperparams: Sequence[Mapping[str, Any]],
        outer: Sequence[Scalar],
    ) -> None:
        self._who = ", ".join(names)
        self._rule, self._outer = rule, list(outer)
        if len(hyperparams) == 1:
            self._scalars = partial(rule.scalars, **hyperparams[0])
        else:
            self._scalars = lambda count: rule.scalars(count, *hyperparams)

    def __call__(
        self,
        params: list[torch.Tensor],
        grads: list[torch.Tensor],
        buffers: list[list[torch.Tensor]],
        count: torch.Tensor | None,
        *,
        inplace: bool,
    ) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
        """New parameters and buffers: the given ones overwritten, or differentiable ones."""
        scalars = self._scalars_at(count, grads[0].device)
        columns = Columns(params, grads, buffers)
        if inplace:
            overwrite(self._who, self._rule, scalars, columns, checked=True)
            return params, buffers
        return step(self._who, self._rule, scalars, columns)

    def check(
        self,
        params: list[torch.Tensor],
        grads: list[torch.Tensor],
        buffers: list[list[torch.Tensor]],
    ) -> None:
        """Refuse what a call in place cannot take."""
        check(self._who, Columns(params, grads, buffers))

    def prepared(
        self,
        params: list[torch.Tensor],
        grads: list[torch.Tensor],
        buffers: list[list[torch.Tensor]],
    ) -> Callable[[torch.Tensor | None], None] | None:
        """The call in place, checked and waiting for its count; None if it has to be explained."""
        run = prepared(self._rule, Columns(params, grads, buffers))
        if run is None:
            return None
        device = grads[0].device
        return lambda count: run(self._scalars_at(count, device))

    def _scalars_at(self, count: torch.Tensor | None, device: torch.device) -> list[Scalar]:
        number = 1.0 if count is None else _readable(self._who, count, device)
        return [*self._outer, *self._scalars(number)]


def whole_step(links: Sequence[tuple[str, Mapping[str, Any]]]) -> Step | None:
    """The step of a chain ``[sign] [penalty] rule [decay] learning rate``; None for others.

    Example:
        >>> whole_step([("scale_by_learning_rate", {"lr": 0.1})]) is None
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
    return Step(names, rule, [values[k] for k in places["rule"]], around)


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
    rule = RULES.get(own[0]) if len(own) == 1 else _PAIRS.get(own)
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
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{who}: expected no step count while a CUDA graph is captured, got one, which every "
            "replay would repeat; capture the loss and its gradients, and step outside"
        )
    if count.is_cuda or torch._C._functorch.is_functorch_wrapped_tensor(count):
        return count.to(torch.float64)
    return float(count)


KERNELS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {**{name: partial(_transform, rule) for name, rule in RULES.items()}, "step": whole_step}
)
