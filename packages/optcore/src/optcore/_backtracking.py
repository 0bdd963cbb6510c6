# SPDX-License-Identifier: Apache-2.0
"""The backtracking line search: shorten the step until the function decreases enough."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from optcore._choice import check_int
from optcore._leafwise import zeros_like
from optcore._line import Line, check_number, owned, scalar, warn_of
from optcore._transform import GradientTransformation, new_count
from optcore._tree import Tree
from optcore._wolfe import armijo

_WHO = "scale_by_backtracking_linesearch"


class BacktrackingLinesearchInfo(NamedTuple):
    """How a backtracking line search went."""

    num_linesearch_steps: torch.Tensor  # i64[]: evaluations of the function
    decrease_error: torch.Tensor  # f64[]: above atol, no step was found and none was taken


class ScaleByBacktrackingLinesearchState(NamedTuple):
    """State of :func:`scale_by_backtracking_linesearch`."""

    learning_rate: torch.Tensor  # f64[]: the step taken, 0 if the search failed
    value: torch.Tensor  # f64[]: of the function after the step, infinite before the first
    grad: Tree  # of the function after the step, like params; None unless store_grad
    info: BacktrackingLinesearchInfo


def scale_by_backtracking_linesearch(
    max_backtracking_steps: int,
    slope_rtol: float = 1e-4,
    decrease_factor: float = 0.8,
    increase_factor: float = 1.5,
    max_learning_rate: float = 1.0,
    atol: float = 0.0,
    rtol: float = 0.0,
    store_grad: bool = False,
    verbose: bool = False,
) -> GradientTransformation:
    r"""Shorten the updates until the function decreases enough (Armijo).

    The update becomes :math:`\eta u` for the first :math:`\eta` of a falling sequence with

    .. math::
        f(\theta + \eta u) \le (1 + \delta) f(\theta)
            + \eta\, c\, \langle u, \nabla f(\theta) \rangle + \epsilon

    ``update`` wants three extra arguments: ``value`` and ``grad``, :math:`f` and its gradient at
    the parameters, and ``value_fn``, which computes :math:`f` from parameters. Others are handed to
    ``value_fn`` by name (a batch).

    Args:
        max_backtracking_steps: How often to shorten, >= 0; one evaluation more than that.
        slope_rtol: :math:`c`, in ``[0, 1)``.
        decrease_factor: What a step is multiplied by to shorten it, in ``(0, 1)``.
        increase_factor: The first step tried is this times the last one taken, >= 1; infinite
            means to start at ``max_learning_rate`` each time.
        max_learning_rate: Longest step, > 0.
        atol: :math:`\epsilon \ge 0`.
        rtol: :math:`\delta \ge 0`.
        store_grad: Compute the gradient at the new parameters too, for
            :func:`value_and_grad_from_state`.
        verbose: Warn when no step is found.

    State:
        ``learning_rate``, ``value`` and ``grad`` after the step, and ``info``.

    Differentiable:
        As :func:`scale_by_zoom_linesearch`: in the updates alone, and not under a transform.

    Raises:
        TypeError: An argument of the wrong type, or (in ``update``) a missing extra argument, one
            that ``value_fn`` does not take, or a ``value_fn`` that gives no real number.
        ValueError: An argument out of range, or (in ``update``) no ``params``, or a ``grad``
            unlike the updates.
        RuntimeError: In ``update``, under a transform.

    Warns:
        UserWarning: ``verbose=True`` and the search failed.

    Differs:
        A search that fails takes no step, and the next one starts afresh; optax takes its last
        trial, unless that is not finite, and a learning rate of 0 stays 0.

    Example:
        >>> import torch
        >>> import optcore
        >>> tx = optcore.chain(optcore.sgd(lr=1.0), scale_by_backtracking_linesearch(15))
        >>> f = lambda params: (params["x"] ** 2).sum()
        >>> params = {"x": torch.tensor([1.0, 2.0, 3.0])}
        >>> grad = {"x": 2 * params["x"]}
        >>> u, state = tx.update(
        ...     grad, tx.init(params), params, value=f(params), grad=grad, value_fn=f
        ... )
        >>> round(f(optcore.apply_updates(params, u)).item(), 2)
        5.04

    Reference:
        Nocedal and Wright, Numerical Optimization, 2nd edition, Algorithm 3.1.
    """
    who = _WHO
    check_int(who, "max_backtracking_steps", max_backtracking_steps, 0)
    check_number(who, "slope_rtol", slope_rtol, 0, 1)
    check_number(who, "decrease_factor", decrease_factor, 0, 1, open_low=True)
    check_number(who, "increase_factor", increase_factor, 1)
    check_number(who, "max_learning_rate", max_learning_rate, 0, open_low=True, finite=True)
    check_number(who, "atol", atol, 0)
    check_number(who, "rtol", rtol, 0)
    return GradientTransformation(
        _backtracking_init,
        _backtracking_update,
        static={
            "max_backtracking_steps": max_backtracking_steps,
            "slope_rtol": slope_rtol,
            "decrease_factor": decrease_factor,
            "increase_factor": increase_factor,
            "max_learning_rate": max_learning_rate,
            "atol": atol,
            "rtol": rtol,
            "store_grad": store_grad,
            "verbose": verbose,
        },
        name=who,
        needs_params=True,
    )


def _backtracking_init(params: Tree, *, store_grad: bool, **_: Any) -> Tree:
    return ScaleByBacktrackingLinesearchState(
        scalar(1.0),
        scalar(math.inf),
        zeros_like(_WHO, params) if store_grad else None,
        BacktrackingLinesearchInfo(new_count(), scalar(math.inf)),
    )


def _backtracking_update(
    updates: Tree,
    state: ScaleByBacktrackingLinesearchState,
    params: Tree,
    *,
    inplace: bool,
    increase_factor: float,
    max_learning_rate: float,
    store_grad: bool,
    verbose: bool,
    value: Any = None,
    grad: Tree = None,
    value_fn: Any = None,
    max_backtracking_steps: int,
    slope_rtol: float,
    decrease_factor: float,
    atol: float,
    rtol: float,
    **extra: Any,
) -> tuple[Tree, ScaleByBacktrackingLinesearchState]:
    who = _WHO
    line = Line(who, updates, params, value, grad, value_fn, extra)
    guess = min(increase_factor * (state.learning_rate.item() or 1.0), max_learning_rate)
    outcome = line.outcome_without_search(guess) or armijo(
        line.graph_at if store_grad else line.value_at,
        line.start,
        guess,
        max_backtracking_steps=max_backtracking_steps,
        slope_rtol=slope_rtol,
        decrease_factor=decrease_factor,
        atol=atol,
        rtol=rtol,
    )
    trial = outcome.trial
    if trial is not line.start and store_grad and outcome.evaluations:
        trial = line.backward(trial)  # only where the step was accepted
    if verbose and not outcome.decrease_error <= atol:
        warn_of(who, line.start, outcome)
    info = BacktrackingLinesearchInfo(
        torch.tensor(outcome.evaluations), scalar(outcome.decrease_error)
    )
    kept = owned(trial.point, line) if store_grad else None
    return line.scaled(trial.step), ScaleByBacktrackingLinesearchState(
        scalar(trial.step), scalar(trial.value), kept, info
    )
