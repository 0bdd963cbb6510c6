# SPDX-License-Identifier: Apache-2.0
"""Transformations that change nothing and keep measurements of the updates in their state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from optcore._adapters import stateless
from optcore._averaging import EmaState, ema
from optcore._hyperparams import Hyperparam
from optcore._transform import GradientTransformation
from optcore._tree import Tree, describe, map_tensors

Measure = Callable[[Tree], Tree]


class SnapshotState(NamedTuple):
    """State of :func:`snapshot`."""

    measurement: dict[str, Tree]  # under the name given


class MonitorState(NamedTuple):
    """State of :func:`monitor`."""

    measurements: dict[str, Tree]  # of the last update, zeros before the first
    measure_states: dict[str, Tree]  # of the measures that are transformations


@dataclass(frozen=True)
class _OfUpdates:
    """A function of the updates as one of updates and parameters; equal functions are equal."""

    measure: Measure

    def __call__(self, updates: Tree, params: Tree) -> Tree:
        return self.measure(updates)


def snapshot(measure_name: str, measure: Measure) -> GradientTransformation:
    """Keep a measurement of the updates that pass.

    Args:
        measure_name: Under which it stands in the state.
        measure: ``updates -> tree of tensors``, out of place, e.g. :func:`global_norm`.

    State:
        ``measurement``: a dict with one entry, before the first update that of the parameters.

    Differentiable:
        The identity; the measurement keeps its graph.

    Raises:
        TypeError: ``measure_name`` is no string or ``measure`` not callable.

    Example:
        >>> import optcore
        >>> tx = optcore.chain(snapshot("norm", optcore.global_norm), optcore.sgd(lr=0.1))
        >>> _, state = tx.update([torch.tensor([3.0, 4.0])], tx.init([torch.zeros(2)]))
        >>> state[0].measurement
        {'norm': tensor(5.)}

    Reference:
        After ``optax.transforms.snapshot``.
    """
    who = "snapshot"
    if not isinstance(measure_name, str):
        raise TypeError(f"{who}: expected measure_name as a string, got {describe(measure_name)}")
    _check_function(who, "measure", measure)
    static = {"measure_name": measure_name, "measure": measure}
    return GradientTransformation(_snapshot_init, _snapshot_update, static=static, name=who)


def monitor(
    measures: Mapping[str, GradientTransformation | Measure],
) -> GradientTransformation:
    """Keep several measurements of the updates that pass.

    Args:
        measures: Name to a function ``updates -> tree of tensors``, or to a transformation (as
            :func:`measure_with_ema` makes one) that turns the updates into the measurement.

    State:
        ``measurements``: by name, zeros before the first update; ``measure_states``: those of the
        measures.

    Differentiable:
        The identity; measurements keep their graphs.

    Raises:
        TypeError: ``measures`` is no dict of such.

    Differs:
        In optax there are no measurements before the first update.

    Example:
        >>> import optcore
        >>> tx = monitor({"norm": optcore.global_norm})
        >>> _, state = tx.update([torch.tensor([3.0, 4.0])], tx.init([torch.zeros(2)]))
        >>> state.measurements
        {'norm': tensor(5.)}

    Reference:
        After ``optax.monitor``.
    """
    who = "monitor"
    if not isinstance(measures, Mapping):
        raise TypeError(f"{who}: expected measures as a dict, got {describe(measures)}")
    held = {}
    for name, measure in measures.items():
        if not isinstance(measure, GradientTransformation):
            _check_function(who, f"measures[{name!r}]", measure)
            measure = stateless(_OfUpdates(measure))
        held[name] = measure
    return GradientTransformation(
        _monitor_init,
        _monitor_update,
        static={"measures": held},
        name=who,
        needs_params=any(measure.needs_params for measure in held.values()),
    )


def measure_with_ema(
    measure: Measure, decay: Hyperparam, debias: bool = True
) -> GradientTransformation:
    """Turn updates into the moving average of a measurement; for :func:`monitor`.

    Args:
        measure: ``updates -> tree of floating tensors``, out of place.
        decay: Of the average; see :func:`ema`.
        debias: Divide by what is missing of a weight of one.

    State:
        That of :func:`ema`, like the measurement.

    Differentiable:
        As ``measure``, and in ``decay``.

    Raises:
        TypeError: ``measure`` is not callable, ``decay`` no hyperparameter.
        ValueError: ``decay`` outside its range.

    Example:
        >>> import optcore
        >>> tx = monitor({"norm": measure_with_ema(optcore.global_norm, 0.5)})
        >>> state = tx.init([torch.zeros(2)])
        >>> for size in (1.0, 4.0):
        ...     _, state = tx.update([torch.tensor([size, 0.0])], state)
        >>> state.measurements
        {'norm': tensor(3.)}

    Reference:
        The average: Kingma and Ba, 2015, arXiv:1412.6980, section 3. After
        ``optax.measure_with_ema``.
    """
    who = "measure_with_ema"
    _check_function(who, "measure", measure)
    return GradientTransformation(
        _measured_init,
        _measured_update,
        static={"measure": measure, "average": ema(decay, debias)},
        name=who,
    )


def _check_function(who: str, name: str, function: object) -> None:
    if not callable(function):
        raise TypeError(
            f"{who}: expected {name} as a function of the updates, got {describe(function)}"
        )


def _snapshot_init(params: Tree, *, measure_name: str, measure: Measure) -> SnapshotState:
    return SnapshotState({measure_name: measure(params)})


def _snapshot_update(
    updates: Tree,
    state: SnapshotState,
    params: Tree,
    *,
    inplace: bool,
    measure_name: str,
    measure: Measure,
) -> tuple[Tree, SnapshotState]:
    return updates, SnapshotState({measure_name: measure(updates)})


def _monitor_init(params: Tree, *, measures: Mapping[str, GradientTransformation]) -> MonitorState:
    states = {name: measure.init(params) for name, measure in measures.items()}
    like = {
        name: measure.apply(params, states[name], params, False, {})[0]
        for name, measure in measures.items()
    }
    return MonitorState(map_tensors(torch.zeros_like, like), states)


def _monitor_update(
    updates: Tree,
    state: MonitorState,
    params: Tree,
    *,
    inplace: bool,
    measures: Mapping[str, GradientTransformation],
    **extra: Any,
) -> tuple[Tree, MonitorState]:
    found = {
        name: measure.apply(updates, state.measure_states[name], params, inplace, extra)
        for name, measure in measures.items()
    }
    measurements = {name: pair[0] for name, pair in found.items()}
    return updates, MonitorState(measurements, {name: pair[1] for name, pair in found.items()})


def _measured_init(params: Tree, *, measure: Measure, average: GradientTransformation) -> EmaState:
    return average.init(measure(params))


def _measured_update(
    updates: Tree,
    state: EmaState,
    params: Tree,
    *,
    inplace: bool,
    measure: Measure,
    average: GradientTransformation,
) -> tuple[Tree, EmaState]:
    return average.apply(measure(updates), state, None, inplace, {})
