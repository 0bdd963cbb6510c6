# SPDX-License-Identifier: Apache-2.0
"""Checks of what leaves may be: dtypes, shapes, layouts, trees, ties."""

from __future__ import annotations

import copy
from typing import Any

import torch

from optcore._tree import describe
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
def check_dtypes(case: Case) -> None:
    """Updates have the dtype of the gradients, float32 follows float64, float16 stays finite."""
    who, params = "check_dtypes", start(case)
    wide = case.build([hyperparameter(case, v) for v in case.values()])
    exact = _at_rest(case, params, inplace=False)
    for inplace in (True, False):
        for tx in (case.build(), wide):
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                if dtype is torch.float16 and not case.half:
                    continue
                own = {name: p.to(dtype) for name, p in params.items()}
                if case.any_tree and not case.matrices:
                    own["b"] = own["b"][0]  # nothing may promote a scalar either
                seen, _ = unroll(tx, own, 2, inplace=inplace)
                for path, leaf in leaves_at(seen):
                    if leaf.dtype != dtype:
                        raise case.fail(who, f"updates in {dtype}", describe(leaf), path)
                    if not leaf.isfinite().all():
                        raise case.fail(who, f"finite updates in {dtype}", "others", path)
        single = {name: p.float() for name, p in params.items()}
        found = _at_rest(case, single, inplace)
        compare(case, who, found, exact, "6 updates in float32 and float64", 1e-5, 1e-5)


def _at_rest(case: Case, params: Any, inplace: bool) -> list[Any]:
    """Updates at parameters that stay where they are: rounding does not accumulate in them."""
    tx, seen = case.build(), []
    state = tx.init(params)
    for step in range(6):
        updates, state = tx.update(gradients(params, step), state, params, inplace=inplace)
        seen.append(updates)
    return seen


@reports_errors
def check_edge_trees(case: Case) -> None:
    """Empty trees, scalars, empty tensors, nesting, ties, strides; others are refused by name."""
    _check_layouts(case)
    _check_refusals(case)
    if case.any_tree:
        _check_shapes(case)
        _check_ties(case)


def _check_layouts(case: Case) -> None:
    who = "check_edge_trees"
    dense = start(case)
    strided = {name: p.repeat_interleave(2, dim=-1)[..., ::2] for name, p in dense.items()}
    strided["w"] = dense["w"].mT.contiguous().mT
    for inplace in (True, False):
        tx = case.build()
        found = unroll(tx, strided, inplace=inplace)
        compare(case, who, found, unroll(tx, dense), "strided and contiguous parameters", 1e-12)
        grads = {name: g.flip(0).flip(0) for name, g in gradients(dense, 0).items()}
        grads["w"] = grads["w"].mT.contiguous().mT
        found, _ = tx.update(grads, tx.init(dense), dense, inplace=inplace)
        plain, _ = tx.update(gradients(dense, 0), tx.init(dense), dense, inplace=inplace)
        compare(case, who, found, plain, "strided and contiguous gradients", 1e-12)


def _check_refusals(case: Case) -> None:
    """Sparse and complex gradients are taken, or refused before the state changes."""
    who, tx, params = "check_edge_trees", case.build(), start(case)
    unusual = {"a complex": lambda g: g * 1j, "a sparse": torch.Tensor.to_sparse}
    for what, change in unusual.items():
        state = tx.init(params)
        kept, grads = snapshot(state), gradients(params, 0)
        given = {**grads, "b": change(grads["b"])}
        try:
            updates, _ = tx.update(copy.copy(given), state, params, inplace=True)
        except ERRORS as error:
            if not isinstance(error, (TypeError, ValueError)) or "expected" not in str(error):
                got = f"{type(error).__name__}: {error}"
                raise case.fail(who, f"{what} gradient refused by name", got, "['b']") from error
            if path := changed(state, kept):
                got = "a change of the state"
                raise case.fail(who, f"{what} gradient refused first", got, path) from error
        else:
            ours = updates["b"]
            if (ours.dtype, ours.layout) != (given["b"].dtype, given["b"].layout):
                raise case.fail(who, f"{what} gradient kept or refused", describe(ours), "['b']")


def _check_shapes(case: Case) -> None:
    who = "check_edge_trees"
    shapes = [(1, 1), (0, 3), (3, 0), (2, 3)] if case.matrices else [(), (0,), (0, 3), (3, 0), (2,)]
    leaves = draw(case, shapes)
    trees: dict[str, Any] = {
        "a list": leaves,
        "a nested tree": {"a": (leaves[0], [leaves[1]]), "b": {"c": leaves[2:], "d": ()}},
        "a single tensor": leaves[-1],
    }
    for inplace in (True, False):
        for empty in ({}, [], ()):
            tx = case.build()
            updates, _ = tx.update(empty, tx.init(empty), empty, inplace=inplace)
            if updates != empty:
                raise case.fail(who, f"an empty {describe(empty)} back", describe(updates))
        for what, params in trees.items():
            tx, state = case.build(), case.build().init(params)
            for _ in range(2):
                updates, state = tx.update(params, state, params, inplace=inplace)
            for (path, ours), (_, like) in zip(leaves_at(updates), leaves_at(params), strict=True):
                if ours.shape != like.shape or not ours.isfinite().all():
                    expected = f"a finite update like {describe(like)} in {what}"
                    raise case.fail(who, expected, describe(ours), path)


def _check_ties(case: Case) -> None:
    """One tensor that stands in two places: both move alike, in every mode."""
    who, (tied, other) = "check_edge_trees", draw(case, [(2, 3), (1, 2)])
    params = {"a": tied, "b": tied, "c": other}
    for inplace in (True, False):
        tx = case.build()
        state = tx.init(params)
        for step in range(3):
            grad = field(tied, step)
            grads = {"a": grad, "b": grad, "c": field(other, step)}
            updates, state = tx.update(grads, state, params, inplace=inplace)
            if case.per_leaf:
                first, second = updates["a"], updates["b"]
                compare(case, who, first, second, "the updates of tied leaves", 1e-12)
                apart, _ = case.build().update(
                    grads, case.build().init(params), params, inplace=False
                )
                if step == 0:
                    compare(case, who, updates, apart, "tied leaves in both modes", 1e-12)
