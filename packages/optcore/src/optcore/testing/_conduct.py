# SPDX-License-Identifier: Apache-2.0
"""Checks of how a transformation behaves: structure, purity, modes, values, None leaves."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from optcore._apply import apply_updates
from optcore._transform import EmptyState, GradientTransformation
from optcore._tree import describe, tree_leaves, tree_structure
from optcore.testing._case import ERRORS, Case, reports_errors
from optcore.testing._trajectory import (
    changed,
    compare,
    draw,
    field,
    gradients,
    hyperparameter,
    leaves_at,
    snapshot,
    start,
    unroll,
)


@reports_errors
def check_structure(case: Case) -> None:
    """Updates are like the gradients, states keep their shape, params are asked for by name."""
    who, tx, params = "check_structure", case.build(), start(case)
    if not isinstance(tx, GradientTransformation):
        raise case.fail(who, "a GradientTransformation", describe(tx))
    state = first = tx.init(params)
    for step in range(3):
        grads = gradients(params, step)
        updates, state = tx.update(grads, state, params, unknown_extra_argument=1.0)
        for path, leaf in leaves_at(state):
            if not isinstance(leaf, Tensor) and leaf is not None:
                raise case.fail(who, "states of tensors", describe(leaf), path)
        if tree_structure(state) != tree_structure(first):
            raise case.fail(who, "a state of constant structure", f"another after step {step + 1}")
        for (path, new), old in zip(leaves_at(state), tree_leaves(first), strict=True):
            if new is not None and describe(new) != describe(old):
                got = f"{describe(new)} for {describe(old)}"
                raise case.fail(who, "state leaves of constant shape and dtype", got, path)
        if tree_structure(updates) != tree_structure(grads):
            raise case.fail(who, "updates of the gradients' structure", "another")
        for (path, ours), like in zip(leaves_at(updates), tree_leaves(grads), strict=True):
            if describe(ours) != describe(like):
                raise case.fail(who, describe(like), describe(ours), path)
    _check_need_of_params(case, tx, params)
    chained = EmptyState(), state
    inside = GradientTransformation.chain(_IDENTITY, tx)
    updates, _ = inside.update(gradients(params, 3), chained, params, inplace=False)
    alone, _ = tx.update(gradients(params, 3), state, params, inplace=False)
    compare(case, who, updates, alone, "updates in a chain and alone", 1e-12)


def _identity_init(params: Any) -> EmptyState:
    return EmptyState()


def _identity_update(updates: Any, state: Any, params: Any, *, inplace: bool) -> Any:
    return updates, state


_IDENTITY = GradientTransformation(_identity_init, _identity_update)


def _check_need_of_params(case: Case, tx: GradientTransformation, params: Any) -> None:
    if tx.needs_params:
        return  # then update itself asks for them
    try:
        tx.update(gradients(params, 0), tx.init(params), inplace=False)
    except ERRORS as error:
        got = "an error without params"
        raise case.fail("check_structure", "needs_params=True", got) from error


@reports_errors
def check_purity(case: Case) -> None:
    """Nothing is remembered or overwritten but, in place, the state that was given."""
    who, tx, params = "check_purity", case.build(), start(case)
    for inplace in (True, None, False):
        state = tx.init(params)
        kept_params = snapshot(params)
        history = []
        for step in range(4):
            grads = gradients(params, step)
            kept_grads, kept_state = snapshot(grads), snapshot(state)
            updates, new = tx.update(grads, state, params, inplace=inplace)
            mode = f"with inplace={inplace}"
            if path := changed(grads, kept_grads):
                raise case.fail(who, f"gradients untouched {mode}", "a change", path)
            if inplace is False and (path := changed(state, kept_state)):
                raise case.fail(who, f"the state untouched {mode}", "a change", path)
            for what, earlier, before in history:
                if path := changed(earlier, before):
                    raise case.fail(who, f"earlier {what} untouched {mode}", "a change", path)
            history.append(("gradients", grads, kept_grads))
            history.append(("updates", updates, snapshot(updates)))
            state = new
        if path := changed(params, kept_params):
            raise case.fail(who, f"parameters untouched by update {mode}", "a change", path)
    again, _ = unroll(tx, params)
    fresh, _ = unroll(case.build(), params)
    compare(case, who, again, fresh, "updates after a new init and of a new transformation", 0, 0)
    _check_first_order_steps_of_non_leaves(case, tx, params)


def _check_first_order_steps_of_non_leaves(case: Case, tx: Any, params: Any) -> None:
    """By default, nothing is overwritten that an outer graph may hold."""
    who = "check_purity"
    params = {name: p.requires_grad_() * 1 for name, p in params.items()}
    state, kept = tx.init(params), snapshot(params)
    kept_state = snapshot(state)
    grads = {name: g.detach() for name, g in gradients(params, 0).items()}
    updates, _ = tx.update(grads, state, params)
    moved = apply_updates(params, updates)
    if path := changed(params, kept) or changed(state, kept_state):
        raise case.fail(
            who, "parameters that are not leaves, and the state, kept", "a change", path
        )
    for path, leaf in leaves_at(moved):
        if leaf.grad_fn is None:
            raise case.fail(who, "new parameters that keep their graph", "none", path)


@reports_errors
def check_inplace_equals_pure(case: Case) -> None:
    """The three update modes give the same numbers; in place no graph is recorded.

    Also where the parameters are overwritten between steps, as training loops do.
    """
    who, tx = "check_inplace_equals_pure", case.build()
    expected = unroll(tx, start(case), 6)
    for inplace, overwrite in ((True, False), (True, True), (None, True)):
        found = unroll(tx, start(case), 6, inplace=inplace, overwrite=overwrite)
        mode = f"inplace={inplace}" + " (parameters too)" * overwrite
        compare(case, who, found, expected, f"{mode} and inplace=False", 1e-12)
    learned = case.build([hyperparameter(case, v) for v in case.values()])
    params = {name: p.requires_grad_() for name, p in start(case).items()}
    grads = gradients(params, 0)
    updates, state = learned.update(grads, learned.init(params), params, inplace=True)
    given = {id(grad) for grad in grads.values()}
    for path, leaf in leaves_at((updates, state)):
        if leaf is not None and leaf.grad_fn is not None and id(leaf) not in given:
            raise case.fail(who, "no graph with inplace=True", "a graph", path)


@reports_errors
def check_none_leaves(case: Case) -> None:
    """A gradient that is None means no update, and that leaf's state stays as it is."""
    who, tx = "check_none_leaves", case.build()
    params = dict(zip("wb", draw(case, [(3, 2), (1, 7) if case.matrices else (7,)]), strict=True))
    for inplace in (True, False):
        state = tx.init(params)
        untouched = [t.clone() for t in _shaped(params["b"], state)]
        for step in range(4):
            grads = {**gradients(params, step), "b": None}
            updates, state = tx.update(grads, state, params, inplace=inplace)
            if updates["b"] is not None:
                raise case.fail(who, "None where the gradient is None", "an update", "['b']")
        left = _shaped(params["b"], state)
        if len(left) != len(untouched) or not all(map(torch.equal, left, untouched)):
            raise case.fail(who, "the state of a leaf without gradient kept", "a change")
        if apply_updates(params, updates, inplace=False)["b"] is not params["b"]:
            raise case.fail(who, "its parameter kept", "another tensor", "['b']")
        if case.per_leaf:
            late, on_time = ([], [])
            for history, present in ((late, (0, 2)), (on_time, None)):
                state = tx.init(params)
                for step in range(3) if present else (0, 2):
                    grads = gradients(params, step)
                    grads["b"] = grads["b"] if not present or step in present else None
                    updates, state = tx.update(grads, state, params, inplace=inplace)
                    history.append(updates["b"])
            compare(case, who, late[-1], on_time[-1], "a late update and one on time", 1e-12)


def _shaped(param: Tensor, state: Any) -> list[Tensor]:
    return [t for t in tree_leaves(state) if isinstance(t, Tensor) and t.shape == param.shape]


@reports_errors
def check_pickle(case: Case) -> None:
    """Transformations and states are values: compare, hash, copy, pickle, resume."""
    who, tx = "check_pickle", case.build()
    copies: dict[str, Callable[[], Any]] = {
        "a second construction": case.build,
        "a pickle": lambda: pickle.loads(pickle.dumps(tx)),
        "a deep copy": lambda: copy.deepcopy(tx),
    }
    for what, make in copies.items():
        again = make()
        if again != tx or hash(again) != hash(tx) or repr(again) != repr(tx):
            raise case.fail(who, f"{what} to compare, hash and print equal", "a difference")
        if again.needs_params != tx.needs_params:
            raise case.fail(who, f"{what} to need params alike", "a difference")
    if tx == _IDENTITY or tx == 3:
        raise case.fail(who, "it to differ from others", "equality")
    params = start(case)
    _, state = tx.update(gradients(params, 0), tx.init(params), params, inplace=False)
    saved = pickle.loads(pickle.dumps(state))
    grads = gradients(params, 1)
    found = tx.update(grads, saved, params, inplace=False)
    expected = tx.update(grads, state, params, inplace=False)
    compare(case, who, found, expected, "steps from a pickled state and from itself", 0, 0)


class _Constant:
    """A schedule that is the same at every step; a class, because schedules must pickle."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self, count: Any) -> float:
        return self.value


@reports_errors
def check_hyperparameters(case: Case) -> None:
    """As number, 0-d tensor, schedule or tree, a hyperparameter means the same."""
    who, values, params = "check_hyperparameters", case.values(), start(case)
    expected = unroll(case.build(), params)
    forms: dict[str, Callable[[float], Any]] = {
        "tensor": lambda v: hyperparameter(case, v),
    }
    if case.schedules:
        forms["schedule"] = _Constant
    if case.per_leaf:
        forms["tree"] = lambda v: dict.fromkeys(params, v)
        forms["tree of tensors"] = lambda v: {k: hyperparameter(case, v) for k in params}
    for form, make in forms.items():
        for inplace in (True, False):
            given = unroll(case.build([make(v) for v in values]), params, inplace=inplace)
            compare(case, who, given, expected, f"each hyperparameter as {form} and number", 1e-12)


def check_reference(case: Case, steps: int = 10) -> None:
    """Each leaf moves as the plain formula says."""
    if case.reference is None:
        raise TypeError("check_reference: expected a case with a reference, got none; give one")
    _check_reference(case, case.reference, steps)


@reports_errors
def _check_reference(case: Case, reference: Callable[..., Tensor], steps: int) -> None:
    params = start(case)
    for inplace in (True, False):
        _, last = unroll(case.build(), params, steps, inplace=inplace)
        formula = {
            name: reference(param, field, steps, **case.options) for name, param in params.items()
        }
        compare(case, "check_reference", last, formula, f"{steps} steps and the formula", 1e-12)
