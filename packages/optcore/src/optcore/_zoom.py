# SPDX-License-Identifier: Apache-2.0
"""The zoom line search: a step that satisfies the strong Wolfe conditions."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from optcore._choice import check_int
from optcore._leafwise import zeros_like
from optcore._line import Line, check_number, owned, scalar, warn_of
from optcore._transform import GradientTransformation, new_count
from optcore._tree import Tree
from optcore._wolfe import strong_wolfe

_WHO = "scale_by_zoom_linesearch"


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
    who = _WHO
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


def _zoom_init(params: Tree, **_: Any) -> ScaleByZoomLinesearchState:
    return ScaleByZoomLinesearchState(
        scalar(1.0),
        scalar(math.inf),
        zeros_like(_WHO, params),
        ZoomLinesearchInfo(new_count(), scalar(math.inf), scalar(math.inf)),
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
    who = _WHO
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
        warn_of(who, line.start, outcome)
    info = ZoomLinesearchInfo(
        torch.tensor(outcome.evaluations),
        scalar(outcome.decrease_error),
        scalar(outcome.curvature_error),
    )
    return line.scaled(trial.step), ScaleByZoomLinesearchState(
        scalar(trial.step), scalar(trial.value), owned(trial.point, line), info
    )
