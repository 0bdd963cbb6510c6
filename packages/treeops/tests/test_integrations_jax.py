# SPDX-License-Identifier: Apache-2.0
"""Trees of JAX arrays in one array, against OpTree and JAX."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

jax = pytest.importorskip("jax", reason="needs JAX: pip install jax")

import jax.numpy as jnp  # noqa: E402
from jax.flatten_util import ravel_pytree as jax_ravel  # noqa: E402

import treeops  # noqa: E402
from treeops.integrations.jax import ravel_pytree, tree_ravel  # noqa: E402

TREES = [
    {"b": jnp.arange(6.0).reshape(2, 3), "a": jnp.arange(2.0)},
    {"b": jnp.arange(6).reshape(3, 2), "a": [jnp.arange(2.0), None]},
    (jnp.ones(2, "complex64"), jnp.ones(2), 3),
    [1, 2.5, True],
    {},
]


@pytest.mark.parametrize("tree", TREES, ids=repr)
def test_ravel_as_jax(tree: Any) -> None:
    flat, unravel = tree_ravel(tree)
    their_flat, their_unravel = jax_ravel(tree)
    assert flat.dtype == their_flat.dtype
    assert flat.tolist() == their_flat.tolist()
    ours = unravel(flat)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX casts complex to real
        theirs = their_unravel(their_flat)
    assert treeops.tree_structure(ours) == treeops.tree_structure(theirs)
    for mine, other in zip(treeops.tree_leaves(ours), treeops.tree_leaves(theirs)):
        assert (mine.dtype, mine.shape) == (other.dtype, other.shape)
        assert mine.tolist() == other.tolist()


def test_ravel_under_transformations() -> None:
    tree = TREES[0]
    flat, unravel = ravel_pytree(tree)
    total = jax.jit(lambda v, back: back(v)["a"].sum(), static_argnums=1)
    assert total(flat, unravel) == 1
    gradient = jax.grad(lambda t: (tree_ravel(t)[0] ** 2).sum())(tree)
    assert gradient["a"].tolist() == [0, 2]


def test_unravel_refuses() -> None:
    _, unravel = tree_ravel(TREES[1])
    with pytest.raises(ValueError, match=r"expected an array of shape \(8,\), got \(7,\)"):
        unravel(jnp.zeros(7))
    with pytest.raises(ValueError, match="expected an array of type float32, got int32"):
        unravel(jnp.zeros(8, int))
