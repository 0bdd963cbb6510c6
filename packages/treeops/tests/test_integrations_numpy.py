# SPDX-License-Identifier: Apache-2.0
"""Trees of NumPy arrays in one array, against OpTree."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

np = pytest.importorskip("numpy", reason="needs NumPy: pip install numpy")

import optree.integrations.numpy  # noqa: E402

import treeops  # noqa: E402
from treeops.integrations.numpy import ArrayTree, ravel_pytree, tree_ravel  # noqa: E402

f32, f64, i32, c64 = "float32", "float64", "int32", "complex64"

TREES = [
    {"b": np.arange(6, dtype=f32).reshape(2, 3), "a": np.arange(2, dtype=f32)},
    {"b": np.arange(6, dtype=i32).reshape(3, 2), "a": [np.arange(2, dtype=f32), None]},
    [np.ones((), f64), np.zeros((0, 3), f64), np.ones((1, 1, 2), f64)],
    (np.ones(2, c64), np.ones(2, f32), 3),
    [1, 2.5, True],
    np.arange(3),
    {},
    [None, ()],
]


@pytest.mark.parametrize("tree", TREES, ids=repr)
def test_ravel_as_optree(tree: Any) -> None:
    flat, unravel = tree_ravel(tree)
    their_flat, their_unravel = optree.integrations.numpy.tree_ravel(tree)
    assert flat.dtype == their_flat.dtype
    np.testing.assert_array_equal(flat, their_flat)
    ours, theirs = unravel(flat), their_unravel(their_flat)
    assert treeops.tree_structure(ours) == treeops.tree_structure(theirs)
    for mine, other in zip(treeops.tree_leaves(ours), treeops.tree_leaves(theirs)):
        assert mine.dtype == other.dtype
        assert mine.shape == other.shape
        np.testing.assert_array_equal(mine, other)


def test_one_type_takes_another() -> None:
    flat, unravel = tree_ravel(TREES[0])
    assert unravel(flat.astype(f64))["a"].dtype == f64


def test_options_and_alias() -> None:
    tree = {"a": [np.ones(2), np.zeros(1)]}
    flat, unravel = ravel_pytree({"a": 1.0}, lambda node: isinstance(node, float))
    assert flat.tolist() == [1.0]
    assert unravel(flat)["a"] == 1
    flat, _ = tree_ravel(tree, none_is_leaf=True, namespace="nothing")
    assert flat.tolist() == [1, 1, 0]
    assert "numpy.ndarray" in repr(ArrayTree)


def test_unravel_is_a_value() -> None:
    flat, unravel = tree_ravel(TREES[1])
    _, again = tree_ravel(TREES[1])
    assert unravel == again
    assert hash(unravel) == hash(again)
    assert unravel != tree_ravel(TREES[0])[1]
    assert pickle.loads(pickle.dumps(unravel))(flat)["b"].shape == (3, 2)


@pytest.mark.parametrize(
    ("tree", "flat", "message"),
    [
        (TREES[0], np.zeros(7, f32), r"unravel: expected an array of shape \(8,\), got \(7,\)"),
        (TREES[0], np.zeros((8, 1), f32), r"shape \(8,\), got \(8, 1\)"),
        (TREES[1], np.zeros(8, f32), "expected an array of type float64, got float32"),
        ({}, np.zeros(1), r"shape \(0,\), got \(1,\)"),
    ],
)
def test_unravel_refuses(tree: Any, flat: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tree_ravel(tree)[1](flat)
    with pytest.raises(ValueError, match="expected an array"):
        optree.integrations.numpy.tree_ravel(tree)[1](flat)
