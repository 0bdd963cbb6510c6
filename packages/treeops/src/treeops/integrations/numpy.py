# SPDX-License-Identifier: Apache-2.0
"""Trees of NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from treeops.integrations._ravel import ArrayLibrary, ravel
from treeops.typing import PyTreeTypeVar

__all__ = ["ArrayLikeTree", "ArrayTree", "tree_ravel"]

ArrayLikeTree: TypeAlias = PyTreeTypeVar("ArrayLikeTree", ArrayLike)
ArrayTree: TypeAlias = PyTreeTypeVar("ArrayTree", np.ndarray)


def tree_ravel(
    tree: ArrayLikeTree,
    /,
    is_leaf: Callable[[Any], bool] | None = None,
    *,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> tuple[np.ndarray, Callable[[np.ndarray], ArrayTree]]:
    """All elements of a tree of arrays in one array, and the function that makes the tree again.

    Args:
        tree: A tree of arrays and numbers.
        is_leaf: As for :func:`treeops.tree_flatten`.
        none_is_leaf: As for :func:`treeops.tree_flatten`.
        namespace: As for :func:`treeops.tree_flatten`.

    Returns:
        ``(flat, unravel)``: the elements, of the type that holds all of them; a tree without leaves
        gives an empty array. ``unravel(flat)`` gives every leaf its shape and type; if all leaves
        have one type, ``flat`` may have another, which the leaves then have too.

    Example:
        >>> flat, unravel = tree_ravel({"a": np.array([[1, 2]]), "b": np.array(3)})
        >>> flat.tolist(), unravel(10 * flat)["a"].tolist()
        ([1, 2, 3], [[10, 20]])
    """
    return ravel(_NUMPY, tree, is_leaf, none_is_leaf, namespace)


ravel_pytree = tree_ravel  # the name JAX uses


def _empty() -> np.ndarray:
    return np.zeros(0)


def _concatenate(leaves: list[Any], dtype: Any) -> np.ndarray:
    return np.concatenate([np.ravel(leaf).astype(dtype, copy=False) for leaf in leaves])


def _split(flat: np.ndarray, sizes: tuple[int, ...]) -> list[np.ndarray]:
    return np.split(flat, list(accumulate(sizes))[:-1])


def _promote(dtypes: tuple[Any, ...]) -> Any:
    return np.result_type(*dtypes)


def _cast(array: np.ndarray, dtype: Any) -> np.ndarray:
    real = array.dtype.kind == "c" and np.dtype(dtype).kind != "c"
    return (array.real if real else array).astype(dtype)


_NUMPY = ArrayLibrary(_empty, np.shape, np.result_type, _promote, _concatenate, _split, _cast)
