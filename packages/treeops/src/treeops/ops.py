# SPDX-License-Identifier: Apache-2.0
"""Every function on trees and treespecs; here, reductions over the leaves of a tree."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

from treeops._broadcasting import (
    broadcast_common,
    tree_broadcast_common,
    tree_broadcast_map,
    tree_broadcast_map_with_accessor,
    tree_broadcast_map_with_path,
)
from treeops._C import (
    all_leaves,
    broadcast_prefix,
    tree_accessors,
    tree_broadcast_prefix,
    tree_flatten,
    tree_flatten_with_accessor,
    tree_flatten_with_path,
    tree_is_leaf,
    tree_iter,
    tree_leaves,
    tree_map,
    tree_map_,
    tree_map_with_accessor,
    tree_map_with_accessor_,
    tree_map_with_path,
    tree_map_with_path_,
    tree_paths,
    tree_structure,
    tree_unflatten,
)
from treeops._one_level import (
    FlattenOneLevelOutput,
    FlattenOneLevelOutputEx,
    prefix_errors,
    tree_flatten_one_level,
)
from treeops._transposing import (
    tree_partition,
    tree_transpose,
    tree_transpose_map,
    tree_transpose_map_with_accessor,
    tree_transpose_map_with_path,
)
from treeops._treespecs import (
    treespec_accessors,
    treespec_child,
    treespec_children,
    treespec_defaultdict,
    treespec_deque,
    treespec_dict,
    treespec_entries,
    treespec_entry,
    treespec_from_collection,
    treespec_frozendict,
    treespec_is_leaf,
    treespec_is_one_level,
    treespec_is_prefix,
    treespec_is_strict_leaf,
    treespec_is_suffix,
    treespec_leaf,
    treespec_list,
    treespec_namedtuple,
    treespec_none,
    treespec_one_level,
    treespec_ordereddict,
    treespec_paths,
    treespec_structseq,
    treespec_transform,
    treespec_tuple,
)

__all__ = [
    "NONE_IS_LEAF",
    "NONE_IS_NODE",
    "FlattenOneLevelOutput",
    "FlattenOneLevelOutputEx",
    "all_leaves",
    "broadcast_common",
    "broadcast_prefix",
    "prefix_errors",
    "tree_accessors",
    "tree_all",
    "tree_any",
    "tree_broadcast_common",
    "tree_broadcast_map",
    "tree_broadcast_map_with_accessor",
    "tree_broadcast_map_with_path",
    "tree_broadcast_prefix",
    "tree_flatten",
    "tree_flatten_one_level",
    "tree_flatten_with_accessor",
    "tree_flatten_with_path",
    "tree_is_leaf",
    "tree_iter",
    "tree_leaves",
    "tree_map",
    "tree_map_",
    "tree_map_with_accessor",
    "tree_map_with_accessor_",
    "tree_map_with_path",
    "tree_map_with_path_",
    "tree_max",
    "tree_min",
    "tree_partition",
    "tree_paths",
    "tree_reduce",
    "tree_replace_nones",
    "tree_structure",
    "tree_sum",
    "tree_transpose",
    "tree_transpose_map",
    "tree_transpose_map_with_accessor",
    "tree_transpose_map_with_path",
    "tree_unflatten",
    "treespec_accessors",
    "treespec_child",
    "treespec_children",
    "treespec_defaultdict",
    "treespec_deque",
    "treespec_dict",
    "treespec_entries",
    "treespec_entry",
    "treespec_from_collection",
    "treespec_frozendict",
    "treespec_is_leaf",
    "treespec_is_one_level",
    "treespec_is_prefix",
    "treespec_is_strict_leaf",
    "treespec_is_suffix",
    "treespec_leaf",
    "treespec_list",
    "treespec_namedtuple",
    "treespec_none",
    "treespec_one_level",
    "treespec_ordereddict",
    "treespec_paths",
    "treespec_structseq",
    "treespec_transform",
    "treespec_tuple",
]

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


def tree_sum(
    tree: Any,
    /,
    start: Any = 0,
    *,
    is_leaf: Callable[[Any], bool] | None = None,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> Any:
    """Add the leaves to ``start``, from left to right; str and bytes are joined.

    Example:
        >>> tree_sum({"a": 1, "b": [2, 3]})
        6
        >>> tree_sum(["x", "y"], "")
        'xy'
    """
    leaves = tree_leaves(tree, is_leaf, none_is_leaf=none_is_leaf, namespace=namespace)
    if isinstance(start, str):
        return "".join([start, *leaves])
    if isinstance(start, bytes):
        return b"".join([start, *leaves])
    if isinstance(start, bytearray):
        return bytearray().join([start, *leaves])
    return sum(leaves, start)


def tree_max(
    tree: Any,
    /,
    *,
    default: Any = _MISSING,
    key: Callable[[Any], Any] | None = None,
    is_leaf: Callable[[Any], bool] | None = None,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> Any:
    """The largest leaf, by ``key`` if given; ``default`` if there are no leaves.

    Raises:
        ValueError: There are no leaves and there is no ``default``.

    Example:
        >>> tree_max({"a": 1, "b": [-3, 2]}, key=abs)
        -3
    """
    leaves = tree_leaves(tree, is_leaf, none_is_leaf=none_is_leaf, namespace=namespace)
    return max(leaves, key=key) if leaves else _default("tree_max", default)


def tree_min(
    tree: Any,
    /,
    *,
    default: Any = _MISSING,
    key: Callable[[Any], Any] | None = None,
    is_leaf: Callable[[Any], bool] | None = None,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> Any:
    """The smallest leaf, by ``key`` if given; ``default`` if there are no leaves.

    Raises:
        ValueError: There are no leaves and there is no ``default``.

    Example:
        >>> tree_min({"a": 1, "b": [-3, 2]})
        -3
    """
    leaves = tree_leaves(tree, is_leaf, none_is_leaf=none_is_leaf, namespace=namespace)
    return min(leaves, key=key) if leaves else _default("tree_min", default)


def _default(who: str, default: Any) -> Any:
    if default is _MISSING:
        raise ValueError(f"{who}: expected a tree with leaves, got one without; pass a default")
    return default


def tree_replace_nones(sentinel: Any, tree: Any, /, namespace: str = "") -> Any:
    """Put ``sentinel`` in the place of every ``None``.

    Example:
        >>> tree_replace_nones(0, {"a": None, "b": [1]})
        {'a': 0, 'b': [1]}
    """
    return tree_map(
        lambda leaf: sentinel if leaf is None else leaf,
        tree,
        none_is_leaf=True,
        namespace=namespace,
    )


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
    return all(tree_iter(tree, is_leaf, none_is_leaf=none_is_leaf, namespace=namespace))


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
    return any(tree_iter(tree, is_leaf, none_is_leaf=none_is_leaf, namespace=namespace))
