# SPDX-License-Identifier: Apache-2.0
"""The line from the parameters along the updates, as the line searches see it."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch

from optcore._apply import apply_updates
from optcore._leafwise import check_gradient
from optcore._masking import MaskedNode
from optcore._modes import under_transform
from optcore._tree import (
    Tree,
    describe,
    flatten_like,
    tree_flatten,
    tree_leaves,
    tree_map,
    tree_unflatten,
)
from optcore._two_loop import inner
from optcore._wolfe import Outcome, Trial
from optcore.func import check_loss


class Line:
    """A function along some updates: how it starts, and trials further on.

    Args:
        who: Name for errors.
        updates: The direction.
        params: Where the line starts.
        value: Of the function at the start.
        grad: Of the function at the start.
        value_fn: The function of the parameters.
        extra: What else it is to be called with, by name.
    """

    def __init__(
        self,
        who: str,
        updates: Tree,
        params: Tree,
        value: Any,
        grad: Tree,
        value_fn: Any,
        extra: Mapping[str, Any],
    ) -> None:
        refuse_transforms(who)
        for name, argument in (("value", value), ("grad", grad), ("value_fn", value_fn)):
            if argument is None:
                raise TypeError(
                    f"{who}: expected {name}=, got None; call update(updates, state, params, "
                    "value=value, grad=grad, value_fn=value_fn)"
                )
        check_function(who, value_fn)
        _check_names(who, value_fn, extra)
        if any(map(_is_masked, tree_leaves(params, is_leaf=_is_masked))):
            raise ValueError(
                f"{who}: expected all parameters, which value_fn wants, got some hidden by a mask; "
                "mask what comes before the line search, not the line search"
            )
        self.who, self.value_fn, self.extra = who, value_fn, extra
        self.updates, self.params, self.grad = updates, params, grad
        directions, spec = tree_flatten(updates)
        grads = flatten_like(who, "grad differs from updates", spec, grad)
        for leaf in (*directions, *grads):
            if leaf is not None:
                check_gradient(who, leaf)
        with torch.no_grad():
            slope = inner(directions, grads).item()
            self.rests = slope == 0 and not any(u.any() for u in directions if u is not None)
        self.start = Trial(0.0, as_number(f"{who}, value", value), slope, grad)

    def outcome_without_search(self, guess: float) -> Outcome | None:
        """What there is to say before any trial: no direction at all, or one that leads up."""
        if self.rests:
            return Outcome(self.start._replace(step=guess), 0, 0.0, 0.0)
        if not (self.start.slope < 0 and math.isfinite(self.start.slope + self.start.value)):
            return Outcome(self.start, 0, math.inf, 0.0)
        return None

    def scaled(self, step: float) -> Tree:
        """The updates times a step."""
        return tree_map(lambda u: None if u is None else u * step, self.updates)

    def value_at(self, step: float) -> Trial:
        """A trial without a gradient."""
        with torch.no_grad():
            value = self.value_fn(self._params_at(step), **self.extra)
        return Trial(step, as_number(f"{self.who}, value_fn", value), math.nan)

    def graph_at(self, step: float) -> Trial:
        """A trial with what :meth:`backward` needs as its point."""
        directions = tree_leaves(self.updates)
        point = self._params_at(step)
        wanted = [i for i, u in enumerate(directions) if u is not None]
        evaluation = Evaluation(self.who, self.value_fn, point, wanted, self.extra)
        return Trial(step, evaluation.value.item(), math.nan, evaluation)

    def backward(self, trial: Trial) -> Trial:
        """The trial with the gradient as its point."""
        grad = trial.point.gradient()
        with torch.no_grad():
            slope = inner(tree_leaves(self.updates), tree_leaves(grad)).item()
        return trial._replace(slope=slope, point=grad)

    def gradient_at(self, step: float) -> Trial:
        """A trial with the gradient as its point."""
        return self.backward(self.graph_at(step))

    @torch.no_grad()
    def _params_at(self, step: float) -> Tree:
        return apply_updates(self.params, self.scaled(step), inplace=False)


class Evaluation:
    """A function at a point, and what its gradient there takes.

    Args:
        who: Name for errors.
        value_fn: The function.
        point: Its argument.
        wanted: Which leaves to differentiate in.
        extra: What else it is to be called with, by name.
    """

    def __init__(
        self,
        who: str,
        value_fn: Callable[..., Any],
        point: Tree,
        wanted: Sequence[int],
        extra: Mapping[str, Any],
    ) -> None:
        leaves, self.spec = tree_flatten(point)
        for i in wanted:
            leaves[i] = leaves[i].detach().requires_grad_()
        with torch.enable_grad():
            loss = value_fn(tree_unflatten(self.spec, leaves), **extra)
        check_loss(f"{who}, value_fn", loss)
        self.loss, self.wanted, self.leaves = loss, wanted, leaves

    @property
    def value(self) -> torch.Tensor:
        """The value, without a graph."""
        return self.loss.detach().reshape(())

    def gradient(self) -> Tree:
        """The gradient, without a graph; None for leaves that were not wanted."""
        wanted = [self.leaves[i] for i in self.wanted]
        found = torch.autograd.grad(self.loss, wanted, allow_unused=True, materialize_grads=True)
        grads: list[torch.Tensor | None] = [None] * len(self.leaves)
        for i, grad in zip(self.wanted, found, strict=True):
            grads[i] = grad
        return tree_unflatten(self.spec, grads)


def refuse_transforms(who: str) -> None:
    """Refuse to search where values are not known.

    Raises:
        RuntimeError: Under torch.compile, a torch.func transform or forward-mode AD.
    """
    if under_transform():
        raise RuntimeError(
            f"{who}: expected a call outside torch.compile, vmap, torch.func.grad and jvp, got one "
            "inside; the search branches on values: search outside, or go without "
            "(optcore.lbfgs(linesearch=None))"
        )


def check_function(who: str, value_fn: object) -> None:
    """Refuse what cannot be called.

    Raises:
        TypeError: Not callable.
    """
    if not callable(value_fn):
        raise TypeError(
            f"{who}: expected value_fn as a function params -> value, got {describe(value_fn)}"
        )


def _is_masked(node: object) -> bool:
    return isinstance(node, MaskedNode)


def _check_names(who: str, value_fn: Callable[..., Any], extra: Mapping[str, Any]) -> None:
    if not extra:
        return
    known = inspect.signature(value_fn).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values()):
        return
    unknown = sorted(set(extra) - set(known))
    if unknown:
        raise TypeError(
            f"{who}: expected extra arguments that value_fn takes, among {list(known)[1:]}, got "
            f"{unknown}"
        )


def as_number(who: str, value: Any) -> float:
    """A value that a search can compare.

    Raises:
        TypeError: Neither a real number nor a real tensor of one element.
    """
    if isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_complex():
        return value.item()
    if isinstance(value, Real):
        return float(value)
    raise TypeError(f"{who}: expected a real number or a scalar tensor, got {describe(value)}")


def check_number(
    who: str,
    name: str,
    value: object,
    low: float,
    high: float = math.inf,
    *,
    open_low: bool = False,
    finite: bool = False,
) -> None:
    """Refuse what is no number in ``[low, high)``; an infinite ``high`` is allowed itself.

    Raises:
        TypeError: No real number (a tensor: searches branch on numbers).
        ValueError: Out of range.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{who}: expected {name} as a number, got {describe(value)}")
    number = float(value)
    above = number > low if open_low else number >= low
    below = number < high or (number == high == math.inf and not finite)
    if not (above and below):
        least = f"> {low:g}" if open_low else f">= {low:g}"
        most = f" and < {high:g}" if high < math.inf else " and finite" if finite else ""
        raise ValueError(f"{who}: expected {name} {least}{most}, got {value}")


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def owned(grad: Tree, line: Line) -> Tree:
    """A gradient for the state: a copy if it is the caller's."""
    if grad is not line.grad:
        return grad
    return tree_map(lambda g: None if g is None else g.detach().clone(), grad)


def warn_of(who: str, start: Trial, outcome: Outcome) -> None:
    trial, _, decrease, curvature = outcome
    result = f"a step of {trial.step:g}" if trial.step else "no step"
    warnings.warn(
        f"{who}: expected a step that satisfies the conditions, took {result} after "
        f"{outcome.evaluations} evaluations; value {start.value:g} and slope {start.slope:g} at "
        f"the start, decrease error {decrease:g}, curvature error {curvature:g}",
        UserWarning,
        stacklevel=2,
    )
