# SPDX-License-Identifier: Apache-2.0
"""Reductions over the leaves of a tree, on top of the compiled walks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

from treeops._C import tree_leaves

__all__ = ["NONE_IS_LEAF", "NONE_IS_NODE", "tree_all", "tree_any", "tree_reduce"]

NONE_IS_LEAF: Final[bool] = True  # value of `none_is_leaf`: None is a leaf
NONE_IS_NODE: Final[bool] = False  # value of `none_is_leaf`: None is a node without children

_MISSING: Final[Any] = object()


def tree_reduce(
    func: Callable[[Any, Any], Any],
    tree: Any,
    /,
    initial: Any = _MISSING,
    *,
    is_leaf: Callable[[Any], bool] | None = None,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> Any:
    """Combine the leaves of a tree from left to right, two at a time.

    Args:
        func: Takes the value so far and the next leaf.
        tree: Any tree.
        initial: The first value; without it the first leaf is.
        is_leaf: As for :func:`tree_flatten`.
        none_is_leaf: As for :func:`tree_flatten`.
        namespace: As for :func:`tree_flatten`.

    Raises:
        TypeError: The tree has no leaves and there is no ``initial``.

    Example:
        >>> tree_reduce(lambda total, leaf: total + leaf, {"a": 1, "b": [2, 3]})
        6
    """
    leaves = tree_leaves(tree, is_leaf, none_is_leaf=none_is_leaf, namespace=namespace)
    if initial is not _MISSING:
        return functools.reduce(func, leaves, initial)
    if not leaves:
        raise TypeError(
            "tree_reduce: expected a tree with leaves, got one without; pass an initial value"
        )
    return functools.reduce(func, leaves)


def tree_all(
    tree: Any,
    /,
    *,
    is_leaf: Callable[[Any], bool] | None = None,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> bool:
    """Whether every leaf is true; ``True`` for a tree without leaves.

    Example:
        >>> tree_all({"a": 1, "b": [True, 0]})
        False
    """
    return all(tree_leaves(tree, is_leaf, none_is_leaf=none_is_leaf, namespace=namespace))


def tree_any(
    tree: Any,
    /,
    *,
    is_leaf: Callable[[Any], bool] | None = None,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> bool:
    """Whether some leaf is true; ``False`` for a tree without leaves.

    Example:
        >>> tree_any({"a": 0, "b": [True, 0]})
        True
    """
    return any(tree_leaves(tree, is_leaf, none_is_leaf=none_is_leaf, namespace=namespace))
