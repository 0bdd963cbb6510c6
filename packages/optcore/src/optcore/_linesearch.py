# SPDX-License-Identifier: Apache-2.0
"""Line searches as transformations: how far to go in the direction of the updates."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import torch

from optcore._control import check_int
from optcore._leafwise import zeros_like
from optcore._line import Line, check_number
from optcore._transform import GradientTransformation, new_count
from optcore._tree import Tree, tree_map
from optcore._wolfe import Outcome, Trial, armijo, strong_wolfe

_BACKTRACKING, _ZOOM = "scale_by_backtracking_linesearch", "scale_by_zoom_linesearch"


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


class ZoomLinesearchInfo(NamedTuple):
    """How a zoom line search went."""

    num_linesearch_steps: torch.Tensor  # i64[]: evaluations of the function and its gradient
    decrease_error: torch.Tensor  # f64[]: above tol, no step was found and none was taken
    curvature_error: torch.Tensor  # f64[]: above tol, the step decreases enough but is too short


class ScaleByZoomLinesearchState(NamedTuple):
    """State of :func:`scale_by_zoom_linesearch`."""

    learning_rate: torch.Tensor  # f64[]: the step taken, 0 if the search failed
    value: torch.Tensor  # f64[]: of the function after the step, infinite before the first
    grad: Tree  # of the function after the step, like params
    info: ZoomLinesearchInfo


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
        In the updates; :math:`\eta` is a constant, what the state holds has no graph. The search
        branches on values, which wait for the device, and is refused under torch.compile, vmap and
        the other transforms of torch.func.

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
    who = _BACKTRACKING
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


def scale_by_zoom_linesearch(
    max_linesearch_steps: int,
    max_learning_rate: float | None = None,
    tol: float = 0.0,
    increase_factor: float = 2.0,
    slope_rtol: float = 1e-4,
    curv_rtol: float = 0.9,
    approx_dec_rtol: float | None = 1e-6,
    stepsize_precision: float = 1e-5,
    initial_guess_strategy: str = "keep",
    verbose: bool = False,
) -> GradientTransformation:
    r"""Scale the updates so that the function decreases enough and flattens (strong Wolfe).

    The update becomes :math:`\eta u` with

    .. math::
        f(\theta + \eta u) &\le f(\theta)
            + \eta\, c_1 \langle u, \nabla f(\theta) \rangle + \epsilon \\
        |\langle u, \nabla f(\theta + \eta u) \rangle|
            &\le c_2 |\langle u, \nabla f(\theta) \rangle| + \epsilon

    Where values differ by rounding errors only, :math:`f(\theta + \eta u) \le f(\theta) + c_3
    |f(\theta)|`, the first may be replaced by :math:`\langle u, \nabla f(\theta + \eta u) \rangle
    \le (2 c_1 - 1) \langle u, \nabla f(\theta) \rangle`.

    ``update`` wants three extra arguments: ``value`` and ``grad``, :math:`f` and its gradient at
    the parameters, and ``value_fn``, which computes :math:`f` from parameters. Others are handed to
    ``value_fn`` by name (a batch).

    Args:
        max_linesearch_steps: Most evaluations of the function and its gradient, >= 1.
        max_learning_rate: Longest step, > 0, or None for no limit. A limit may rule out every step
            that satisfies the second condition.
        tol: :math:`\epsilon \ge 0`.
        increase_factor: How fast steps grow until they bracket a good one, > 1.
        slope_rtol: :math:`c_1`, in ``[0, 1)``.
        curv_rtol: :math:`c_2 \ge 0`; infinite turns the second condition off.
        approx_dec_rtol: :math:`c_3 \ge 0`, or None for the first condition as it stands.
        stepsize_precision: Stop in a bracket narrower than this with a step that satisfies the
            first condition, >= 0.
        initial_guess_strategy: Try first ``"one"``, for directions with a length of their own
            (L-BFGS), or the step taken the last time, ``"keep"``.
        verbose: Warn when a condition is not satisfied.

    State:
        ``learning_rate``, ``value`` and ``grad`` after the step, and ``info``.

    Differentiable:
        In the updates; :math:`\eta` is a constant, what the state holds has no graph. The search
        branches on values, which wait for the device, and is refused under torch.compile, vmap and
        the other transforms of torch.func.

    Raises:
        TypeError: An argument of the wrong type, or (in ``update``) a missing extra argument, one
            that ``value_fn`` does not take, or a ``value_fn`` that gives no real number.
        ValueError: An argument out of range, or (in ``update``) no ``params``, a ``grad`` unlike
            the updates, or a value without a graph.
        RuntimeError: In ``update``, under a transform.

    Warns:
        UserWarning: ``verbose=True`` and a condition is violated.

    Differs:
        A search that finds no decrease takes no step, and the next one starts afresh; optax takes
        its last trial. An ascent direction is not searched. ``info`` tells the errors of the step
        that was taken, not of the last trial.

    Example:
        >>> import torch
        >>> import optcore
        >>> tx = optcore.chain(optcore.sgd(lr=1.0), scale_by_zoom_linesearch(15))
        >>> f = lambda params: (params["x"] ** 2).sum()
        >>> params = {"x": torch.tensor([1.0, 2.0, 3.0])}
        >>> grad = {"x": 2 * params["x"]}
        >>> u, state = tx.update(
        ...     grad, tx.init(params), params, value=f(params), grad=grad, value_fn=f
        ... )
        >>> f(optcore.apply_updates(params, u))
        tensor(0.)

    Reference:
        Nocedal and Wright, Numerical Optimization, 2nd edition, Algorithms 3.5 and 3.6; Hager and
        Zhang, 2006, doi:10.1145/1132973.1132979, equations (23) to (27).
    """
    who = _ZOOM
    check_int(who, "max_linesearch_steps", max_linesearch_steps, 1)
    if max_learning_rate is not None:
        check_number(who, "max_learning_rate", max_learning_rate, 0, open_low=True)
    check_number(who, "tol", tol, 0)
    check_number(who, "increase_factor", increase_factor, 1, open_low=True, finite=True)
    check_number(who, "slope_rtol", slope_rtol, 0, 1)
    check_number(who, "curv_rtol", curv_rtol, 0)
    if approx_dec_rtol is not None:
        check_number(who, "approx_dec_rtol", approx_dec_rtol, 0)
    check_number(who, "stepsize_precision", stepsize_precision, 0)
    if initial_guess_strategy not in ("one", "keep"):
        raise ValueError(
            f'{who}: expected initial_guess_strategy "one" or "keep", '
            f"got {initial_guess_strategy!r}"
        )
    return GradientTransformation(
        _zoom_init,
        _zoom_update,
        static={
            "max_linesearch_steps": max_linesearch_steps,
            "max_learning_rate": max_learning_rate,
            "tol": tol,
            "increase_factor": increase_factor,
            "slope_rtol": slope_rtol,
            "curv_rtol": curv_rtol,
            "approx_dec_rtol": approx_dec_rtol,
            "stepsize_precision": stepsize_precision,
            "initial_guess_strategy": initial_guess_strategy,
            "verbose": verbose,
        },
        name=who,
        needs_params=True,
    )


def _backtracking_init(params: Tree, *, store_grad: bool, **_: Any) -> Tree:
    return ScaleByBacktrackingLinesearchState(
        _number(1.0),
        _number(math.inf),
        zeros_like(_BACKTRACKING, params) if store_grad else None,
        BacktrackingLinesearchInfo(new_count(), _number(math.inf)),
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
    who = _BACKTRACKING
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
        _warn(who, line.start, outcome)
    info = BacktrackingLinesearchInfo(
        torch.tensor(outcome.evaluations), _number(outcome.decrease_error)
    )
    kept = _own(trial.point, line) if store_grad else None
    return line.scaled(trial.step), ScaleByBacktrackingLinesearchState(
        _number(trial.step), _number(trial.value), kept, info
    )


def _zoom_init(params: Tree, **_: Any) -> ScaleByZoomLinesearchState:
    return ScaleByZoomLinesearchState(
        _number(1.0),
        _number(math.inf),
        zeros_like(_ZOOM, params),
        ZoomLinesearchInfo(new_count(), _number(math.inf), _number(math.inf)),
    )


def _zoom_update(
    updates: Tree,
    state: ScaleByZoomLinesearchState,
    params: Tree,
    *,
    inplace: bool,
    max_learning_rate: float | None,
    initial_guess_strategy: str,
    verbose: bool,
    value: Any = None,
    grad: Tree = None,
    value_fn: Any = None,
    max_linesearch_steps: int,
    tol: float,
    increase_factor: float,
    slope_rtol: float,
    curv_rtol: float,
    approx_dec_rtol: float | None,
    stepsize_precision: float,
    **extra: Any,
) -> tuple[Tree, ScaleByZoomLinesearchState]:
    who = _ZOOM
    line = Line(who, updates, params, value, grad, value_fn, extra)
    kept = state.learning_rate.item() if initial_guess_strategy == "keep" else 1.0
    guess = kept or 1.0
    outcome = line.outcome_without_search(guess) or strong_wolfe(
        line.gradient_at,
        line.start,
        guess,
        max_linesearch_steps=max_linesearch_steps,
        max_step=math.inf if max_learning_rate is None else max_learning_rate,
        tol=tol,
        increase_factor=increase_factor,
        slope_rtol=slope_rtol,
        curv_rtol=curv_rtol,
        approx_dec_rtol=approx_dec_rtol,
        stepsize_precision=stepsize_precision,
    )
    trial = outcome.trial
    if verbose and not max(outcome.decrease_error, outcome.curvature_error) <= tol:
        _warn(who, line.start, outcome)
    info = ZoomLinesearchInfo(
        torch.tensor(outcome.evaluations),
        _number(outcome.decrease_error),
        _number(outcome.curvature_error),
    )
    return line.scaled(trial.step), ScaleByZoomLinesearchState(
        _number(trial.step), _number(trial.value), _own(trial.point, line), info
    )


def _number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _own(grad: Tree, line: Line) -> Tree:
    """A gradient for the state: a copy if it is the caller's."""
    if grad is not line.grad:
        return grad
    return tree_map(lambda g: None if g is None else g.detach().clone(), grad)


def _warn(who: str, start: Trial, outcome: Outcome) -> None:
    trial, _, decrease, curvature = outcome
    result = f"a step of {trial.step:g}" if trial.step else "no step"
    warnings.warn(
        f"{who}: expected a step that satisfies the conditions, took {result} after "
        f"{outcome.evaluations} evaluations; value {start.value:g} and slope {start.slope:g} at "
        f"the start, decrease error {decrease:g}, curvature error {curvature:g}",
        UserWarning,
        stacklevel=2,
    )
