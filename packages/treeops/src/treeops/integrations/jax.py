# SPDX-License-Identifier: Apache-2.0
"""Trees of JAX arrays."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any, TypeAlias

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from treeops.integrations._ravel import ArrayLibrary, ravel
from treeops.typing import PyTreeTypeVar

__all__ = ["ArrayLikeTree", "ArrayTree", "tree_ravel"]

ArrayLikeTree: TypeAlias = PyTreeTypeVar("ArrayLikeTree", ArrayLike)
ArrayTree: TypeAlias = PyTreeTypeVar("ArrayTree", Array)


def tree_ravel(
    tree: ArrayLikeTree,
    /,
    is_leaf: Callable[[Any], bool] | None = None,
    *,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> tuple[Array, Callable[[Array], ArrayTree]]:
    """All elements of a tree of arrays in one array, and the function that makes the tree again.

    As :func:`jax.flatten_util.ravel_pytree`; traceable, and ``unravel`` may be a static argument.

    Args:
        tree: A tree of arrays and numbers.
        is_leaf: As for :func:`treeops.tree_flatten`.
        none_is_leaf: As for :func:`treeops.tree_flatten`.
        namespace: As for :func:`treeops.tree_flatten`.

    Returns:
        ``(flat, unravel)``: the elements, of the type that holds all of them; a tree without leaves
        gives an empty array. ``unravel(flat)`` gives every leaf its shape and type; if all leaves
        have one type, ``flat`` may have another, which the leaves then have too.
    """
    return ravel(_JAX, tree, is_leaf, none_is_leaf, namespace)


ravel_pytree = tree_ravel  # the name JAX uses


def _empty() -> Array:
    return jnp.zeros(0)


def _concatenate(leaves: list[Any], dtype: Any) -> Array:
    return jnp.concatenate([jnp.ravel(jnp.asarray(leaf)).astype(dtype) for leaf in leaves])


def _split(flat: Array, sizes: tuple[int, ...]) -> list[Array]:
    return jnp.split(flat, list(accumulate(sizes))[:-1])


def _promote(dtypes: tuple[Any, ...]) -> Any:
    return jnp.result_type(*dtypes)


def _cast(array: Array, dtype: Any) -> Array:
    real = jnp.issubdtype(array.dtype, jnp.complexfloating) and not jnp.issubdtype(
        dtype, jnp.complexfloating
    )
    return (jnp.real(array) if real else array).astype(dtype)


_JAX = ArrayLibrary(_empty, jnp.shape, jnp.result_type, _promote, _concatenate, _split, _cast)
