# SPDX-License-Identifier: Apache-2.0
"""Optimizers that tell which step and which stage made what."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeVar

from optviz.scopes import (
    Derivatives,
    counted,
    derivatives_since,
    entered,
    noted,
    now,
    opened_at,
)

T = TypeVar("T")
_MADE_WITH = {"init", "update", "static", "name"}  # what is read of a transformation's arguments


def instrument(optimizer: T) -> T:
    """An optimizer whose steps are scopes: ``step k``, and in it forward, gradient, each transform.

    ``forward`` is what happened since the step before, ``gradient`` what the derivative of the
    inner loss made, then come the transformations by name and ``apply``, or ``fused step`` where
    one kernel takes it all. Steps are counted in the scope around them (``with scope("task 1")``).

    Args:
        optimizer: A transformation of optcore, a Meta optimizer of optdiff or a ``FuncOptimizer``.
            It stays as it is: the result takes over its present state and gives the same numbers.

    Raises:
        TypeError: It is none of these.

    Note:
        A transformation cannot see the user's ``torch.autograd.grad``: gradient and forward are
        told apart under :func:`optviz.record`. What ``apply_updates`` makes is recognised by what
        it reads.

    Example:
        >>> import torch, optcore, optviz
        >>> w = torch.ones(2, requires_grad=True)
        >>> sgd = optviz.instrument(optcore.sgd(lr=0.1))
        >>> with optviz.record():
        ...     (g,) = torch.autograd.grad(w.exp().sum(), w, create_graph=True)
        ...     new, _ = sgd.step(g, sgd.init(w), w, inplace=False)
        >>> sorted({node.path[1] for node in optviz.draw(new.sum()).nodes if node.path})
        ['apply', 'forward', 'gradient', 'scale_by_learning_rate']
    """
    if _is_transformation(optimizer):
        return _transformation(optimizer, _Steps())
    inner = getattr(optimizer, "transformation", None)
    if callable(getattr(optimizer, "step", None)) and _is_transformation(inner):
        twin = copy.copy(optimizer)
        twin.transformation = instrument(inner)  # type: ignore[attr-defined]
        twin.__class__ = _noting_class(type(optimizer))
        return twin
    raise TypeError(
        "instrument: expected a transformation of optcore or a Meta optimizer, got "
        f"{type(optimizer).__name__}; for other loops use optviz.scope"
    )


def _is_transformation(value: Any) -> bool:
    """Known by what it was made with, so that nothing need be imported."""
    arguments = getattr(value, "arguments", None)
    return isinstance(arguments, Mapping) and arguments.keys() >= _MADE_WITH


@lru_cache(maxsize=256)
def _noting_class(base: type) -> type:
    """A Meta optimizer that watches for the gradient in its step."""

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        with Derivatives():
            return base.step(self, *args, **kwargs)  # type: ignore[attr-defined]

    return type(base.__name__, (base,), {"step": step, "__module__": base.__module__})


class _Steps:
    """Where the step before has ended, and whether a step is being taken."""

    def __init__(self) -> None:
        self.mark = now()
        self.running = False
        self.stages: list[int] = []  # where the stages of this step have ended

    def around(self, name: str, holds: bool, applies: bool, call: Callable[[], Any]) -> Any:
        if self.running:
            return call()
        start = max(self.mark, opened_at())
        number = counted(self)
        with entered(f"step {number}", "step", start):
            here = now()
            taken = derivatives_since(start)
            first = taken[0].start if taken else here
            noted("forward", "forward", start, first)
            noted("gradient", "gradient", first, here)
            self.running, self.stages = True, []
            try:
                result = call()
            finally:
                self.running = False
                end = now()
            if not self.stages:
                noted("fused step" if holds else name, "fused" if holds else "transform", here, end)
            elif applies:
                noted("apply", "apply", self.stages[-1], end)
        self.mark = now()
        return result

    def stage(self, name: str, call: Callable[[], Any]) -> Any:
        with entered(name, "transform"):
            result = call()
        self.stages.append(now())
        return result


def _transformation(original: Any, steps: _Steps, outermost: bool = True) -> Any:
    """One that is made alike, of such twins of what it holds."""
    holds = False

    def replaced(value: Any) -> Any:
        nonlocal holds
        if isinstance(value, type(original)):
            holds = True
            return _transformation(value, steps, outermost=False)
        if isinstance(value, Mapping):
            return {key: replaced(entry) for key, entry in value.items()}
        if type(value) in (tuple, list):
            return type(value)(replaced(entry) for entry in value)
        return value

    arguments = original.arguments
    twin = _staged_class(type(original))(**{**arguments, "static": replaced(arguments["static"])})
    notes = {"_steps": steps, "_outermost": outermost, "_holds": holds, "_told": arguments["name"]}
    for name, value in notes.items():
        object.__setattr__(twin, name, value)
    return twin


@lru_cache(maxsize=16)
def _staged_class(base: type) -> Any:
    def update(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._steps.around(
            self._told, self._holds, False, lambda: base.update(self, *args, **kwargs)
        )

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._steps.around(
            self._told, self._holds, True, lambda: base.step(self, *args, **kwargs)
        )

    def apply(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self._outermost or self._told == "chain":
            return base.apply(self, *args, **kwargs)
        return self._steps.stage(self._told, lambda: base.apply(self, *args, **kwargs))

    def reduce(self: Any) -> Any:
        raise TypeError(
            f"{self._told}: expected an optimizer as it was made, got an instrumented one"
            "; pickle the original"
        )

    methods = {"update": update, "step": step, "apply": apply, "__reduce__": reduce}
    named = {
        "__slots__": ("_holds", "_outermost", "_steps", "_told"),
        "__module__": base.__module__,
    }
    return type(base.__name__, (base,), {**methods, **named})
