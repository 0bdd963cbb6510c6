# SPDX-License-Identifier: Apache-2.0
"""Trees of unlike depth made alike: leaves are repeated where another tree goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from treeops._C import (
    PyTreeSpec,
    common_suffix,
    tree_flatten,
    tree_map,
    tree_map_with_accessor,
    tree_map_with_path,
    tree_structure,
)

__all__ = [
    "broadcast_common",
    "tree_broadcast_common",
    "tree_broadcast_map",
    "tree_broadcast_map_with_accessor",
    "tree_broadcast_map_with_path",
]


def tree_broadcast_common(
    tree: Any,
    other_tree: Any,
    /,
    is_leaf: Callable[[Any], bool] | None = None,
    *,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> tuple[Any, Any]:
    """Both trees, each with its leaves repeated where the other goes on.

    Raises:
        ValueError: The trees differ where neither has a leaf.

    Example:
        >>> tree_broadcast_common([1, (2, 3)], [(4, 5), 6])
        ([(1, 1), (2, 3)], [(4, 5), (6, 6)])
    """
    who = "tree_broadcast_common"
    first, second = _broadcast(who, (tree, other_tree), is_leaf, none_is_leaf, namespace)[0]
    return first, second


def broadcast_common(
    tree: Any,
    other_tree: Any,
    /,
    is_leaf: Callable[[Any], bool] | None = None,
    *,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> tuple[list[Any], list[Any]]:
    """The leaves of both trees after :func:`tree_broadcast_common`.

    Example:
        >>> broadcast_common([1, (2, 3)], [(4, 5), 6])
        ([1, 1, 2, 3], [4, 5, 6, 6])
    """
    who = "broadcast_common"
    trees, treespec = _broadcast(who, (tree, other_tree), is_leaf, none_is_leaf, namespace)
    first, second = map(treespec.flatten_up_to, trees)
    return first, second


def tree_broadcast_map(
    func: Callable[..., Any],
    tree: Any,
    /,
    *rests: Any,
    is_leaf: Callable[[Any], bool] | None = None,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> Any:
    """Like :func:`tree_map`, but any of the trees may be a prefix of the others.

    Example:
        >>> tree_broadcast_map(lambda x, y: x * y, [2, (3, 4)], [(1, 2), 10])
        [(2, 4), (30, 40)]
    """
    if not rests:
        return tree_map(func, tree, is_leaf=is_leaf, none_is_leaf=none_is_leaf, namespace=namespace)
    who = "tree_broadcast_map"
    trees, treespec = _broadcast(who, (tree, *rests), is_leaf, none_is_leaf, namespace)
    return treespec.unflatten(map(func, *map(treespec.flatten_up_to, trees)))


def tree_broadcast_map_with_path(
    func: Callable[..., Any],
    tree: Any,
    /,
    *rests: Any,
    is_leaf: Callable[[Any], bool] | None = None,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> Any:
    """Like :func:`tree_broadcast_map`, with ``func(path, *leaves)``."""
    if not rests:
        return tree_map_with_path(
            func, tree, is_leaf=is_leaf, none_is_leaf=none_is_leaf, namespace=namespace
        )
    who = "tree_broadcast_map_with_path"
    trees, treespec = _broadcast(who, (tree, *rests), is_leaf, none_is_leaf, namespace)
    return treespec.unflatten(map(func, treespec.paths(), *map(treespec.flatten_up_to, trees)))


def tree_broadcast_map_with_accessor(
    func: Callable[..., Any],
    tree: Any,
    /,
    *rests: Any,
    is_leaf: Callable[[Any], bool] | None = None,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> Any:
    """Like :func:`tree_broadcast_map`, with ``func(accessor, *leaves)``."""
    if not rests:
        return tree_map_with_accessor(
            func, tree, is_leaf=is_leaf, none_is_leaf=none_is_leaf, namespace=namespace
        )
    who = "tree_broadcast_map_with_accessor"
    trees, treespec = _broadcast(who, (tree, *rests), is_leaf, none_is_leaf, namespace)
    return treespec.unflatten(map(func, treespec.accessors(), *map(treespec.flatten_up_to, trees)))


def _broadcast(
    who: str,
    trees: tuple[Any, ...],
    is_leaf: Callable[[Any], bool] | None,
    none_is_leaf: bool,
    namespace: str,
) -> tuple[list[Any], PyTreeSpec]:
    """The trees, broadcast to the structure they have in common, and that structure."""
    flattened = [
        tree_flatten(tree, is_leaf, none_is_leaf=none_is_leaf, namespace=namespace)
        for tree in trees
    ]
    common = common_suffix(who, [treespec for _, treespec in flattened])
    mark = object()
    marks = common.unflatten([mark] * common.num_leaves)

    def repeat(leaf: Any, subtree: Any) -> Any:
        if subtree is mark:
            return leaf
        treespec = tree_structure(subtree, none_is_leaf=none_is_leaf, namespace=namespace)
        return treespec.unflatten([leaf] * treespec.num_leaves)

    def broadcast(leaves: Iterable[Any], treespec: PyTreeSpec) -> Any:
        return treespec.unflatten(map(repeat, leaves, treespec.flatten_up_to(marks)))

    return [broadcast(leaves, treespec) for leaves, treespec in flattened], common
