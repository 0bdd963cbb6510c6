# SPDX-License-Identifier: Apache-2.0
"""Trees of trees turned inside out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from treeops._C import PyTreeSpec, flatten_each_up_to, tree_flatten, tree_structure
from treeops._one_level import class_name, difference_of_keys
from treeops.typing import PyTreeKind

__all__ = [
    "tree_partition",
    "tree_transpose",
    "tree_transpose_map",
    "tree_transpose_map_with_accessor",
    "tree_transpose_map_with_path",
]

_MAPPINGS = (PyTreeKind.DICT, PyTreeKind.ORDEREDDICT, PyTreeKind.DEFAULTDICT)


def tree_transpose(
    outer_treespec: PyTreeSpec,
    inner_treespec: PyTreeSpec,
    tree: Any,
    /,
    is_leaf: Callable[[Any], bool] | None = None,
) -> Any:
    """From an outer tree of inner trees to an inner tree of outer trees.

    Args:
        outer_treespec: The outer structure of ``tree``.
        inner_treespec: The structure of every subtree at its leaves.
        tree: The tree to transpose.
        is_leaf: As for :func:`tree_flatten`.

    Raises:
        ValueError: A structure has no leaves, or they disagree about None or the namespace.
        TypeError: The tree has not the number of leaves that the structures tell.

    Example:
        >>> pairs = [(1, 2), (3, 4), (5, 6)]
        >>> tree_transpose(tree_structure([0, 0, 0]), tree_structure((0, 0)), pairs)
        ([1, 3, 5], [2, 4, 6])
    """
    who = "tree_transpose"
    outer, inner = outer_treespec, inner_treespec
    for name, treespec in (("outer_treespec", outer), ("inner_treespec", inner)):
        _check_treespec(who, name, treespec)
        _check_leaves(who, name, treespec)
    if outer.none_is_leaf != inner.none_is_leaf:
        raise ValueError(
            f"{who}: expected treespecs with the same none_is_leaf, "
            f"got {outer.none_is_leaf} and {inner.none_is_leaf}"
        )
    if outer.namespace and inner.namespace and outer.namespace != inner.namespace:
        raise ValueError(
            f"{who}: expected treespecs of one namespace, "
            f"got {outer.namespace!r} and {inner.namespace!r}"
        )
    leaves, treespec = tree_flatten(
        tree,
        is_leaf,
        none_is_leaf=outer.none_is_leaf,
        namespace=outer.namespace or inner.namespace,
    )
    if len(leaves) != outer.num_leaves * inner.num_leaves:
        raise TypeError(
            f"{who}: tree differs from outer_treespec of inner_treespec at "
            f"{_difference_in_size(outer.compose(inner), treespec)}"
        )
    step = inner.num_leaves
    columns = (leaves[first::step] for first in range(step))
    return inner.unflatten(map(outer.unflatten, columns))


def tree_transpose_map(
    func: Callable[..., Any],
    tree: Any,
    /,
    *rests: Any,
    inner_treespec: PyTreeSpec | None = None,
    is_leaf: Callable[[Any], bool] | None = None,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> Any:
    """Like :func:`tree_map`, transposed: the results are trees, their structure comes outside.

    Args:
        func: Called with a leaf of ``tree`` and what stands in its place in each of ``rests``.
        tree: Any tree.
        rests: Trees that have the structure of ``tree``, or have it as a prefix.
        inner_treespec: The structure of the results; without it, that of the first one.
        is_leaf: As for :func:`tree_flatten`.
        none_is_leaf: As for :func:`tree_flatten`.
        namespace: As for :func:`tree_flatten`.

    Raises:
        ValueError: There are no leaves, or a result has another structure.

    Example:
        >>> tree_transpose_map(lambda x: {"half": x / 2, "double": x * 2}, [2, 4])
        {'half': [1.0, 2.0], 'double': [4, 8]}
    """
    options = (is_leaf, none_is_leaf, namespace)
    return _transpose_map("tree_transpose_map", None, func, tree, rests, inner_treespec, *options)


def tree_transpose_map_with_path(
    func: Callable[..., Any],
    tree: Any,
    /,
    *rests: Any,
    inner_treespec: PyTreeSpec | None = None,
    is_leaf: Callable[[Any], bool] | None = None,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> Any:
    """Like :func:`tree_transpose_map`, with ``func(path, leaf, *others)``."""
    options = (is_leaf, none_is_leaf, namespace)
    return _transpose_map(
        "tree_transpose_map_with_path",
        PyTreeSpec.paths,
        func,
        tree,
        rests,
        inner_treespec,
        *options,
    )


def tree_transpose_map_with_accessor(
    func: Callable[..., Any],
    tree: Any,
    /,
    *rests: Any,
    inner_treespec: PyTreeSpec | None = None,
    is_leaf: Callable[[Any], bool] | None = None,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> Any:
    """Like :func:`tree_transpose_map`, with ``func(accessor, leaf, *others)``."""
    options = (is_leaf, none_is_leaf, namespace)
    return _transpose_map(
        "tree_transpose_map_with_accessor",
        PyTreeSpec.accessors,
        func,
        tree,
        rests,
        inner_treespec,
        *options,
    )


def tree_partition(
    predicate: Callable[[Any], bool],
    tree: Any,
    /,
    is_leaf: Callable[[Any], bool] | None = None,
    *,
    fillvalue: Any = None,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> tuple[Any, Any]:
    """Two trees like ``tree``: the leaves for which ``predicate`` is true, and the others.

    Args:
        predicate: Called with every leaf.
        tree: Any tree.
        is_leaf: As for :func:`tree_flatten`.
        fillvalue: Stands where the leaf went to the other tree.
        none_is_leaf: As for :func:`tree_flatten`.
        namespace: As for :func:`tree_flatten`.

    Raises:
        TypeError: ``predicate`` cannot be called.

    Example:
        >>> tree_partition(lambda x: x > 1, {"a": 1, "b": [2, 3]})
        ({'a': None, 'b': [2, 3]}, {'a': 1, 'b': [None, None]})
    """
    if not callable(predicate):
        raise TypeError(
            f"tree_partition: expected predicate to be callable, got {class_name(type(predicate))}"
        )
    leaves, treespec = tree_flatten(tree, is_leaf, none_is_leaf=none_is_leaf, namespace=namespace)
    chosen = [bool(predicate(leaf)) for leaf in leaves]
    pairs = list(zip(chosen, leaves, strict=True))
    return (
        treespec.unflatten([leaf if yes else fillvalue for yes, leaf in pairs]),
        treespec.unflatten([fillvalue if yes else leaf for yes, leaf in pairs]),
    )


def _transpose_map(
    who: str,
    names: Callable[[PyTreeSpec], list[Any]] | None,
    func: Callable[..., Any],
    tree: Any,
    rests: tuple[Any, ...],
    inner: PyTreeSpec | None,
    is_leaf: Callable[[Any], bool] | None,
    none_is_leaf: bool,
    namespace: str,
) -> Any:
    """The tree of structure ``inner`` whose leaves are trees like ``tree``."""
    leaves, outer = tree_flatten(tree, is_leaf, none_is_leaf=none_is_leaf, namespace=namespace)
    if inner is None:
        _check_leaves(who, "tree", outer)
    columns = flatten_each_up_to(who, outer, rests, "argument", 2, "argument 1") if rests else []
    results = list(map(func, *([names(outer)] if names else []), leaves, *columns))
    whole = "inner_treespec"
    if inner is None:
        whole = "the first"
        inner = tree_structure(results[0], is_leaf, none_is_leaf=none_is_leaf, namespace=namespace)
    _check_treespec(who, "inner_treespec", inner)
    _check_leaves(who, "inner_treespec", inner)
    rows = flatten_each_up_to(who, inner, results, "result", 1, whole)
    turned: Iterable[tuple[Any, ...]] = zip(*rows, strict=True) if rows else [()] * inner.num_leaves
    return inner.unflatten(map(outer.unflatten, turned))


def _difference_in_size(expected: PyTreeSpec, got: PyTreeSpec) -> str:
    """Where and how treespecs differ that have not the same number of leaves."""
    steps = []
    problem = None
    while problem is None:
        if got.type is not expected.type or got.num_children != expected.num_children:
            problem = ""
        elif expected.kind in _MAPPINGS:
            problem = difference_of_keys(expected.entries(), got.entries()) or None
        if problem is None:
            pairs = zip(expected.children(), got.children(), strict=True)
            index, expected_child, got_child = next(
                (i, one, two) for i, (one, two) in enumerate(pairs) if len(one) != len(two)
            )
            steps.append(expected.one_level().accessors()[index].codify(""))
            expected, got = expected_child, got_child
    place, wanted, found = "".join(steps) or "the root", _described(expected), _described(got)
    if found == wanted and not problem:
        found = "another type of the same name"
    return f"{place}: expected {wanted}, got {found}{problem}"


def _described(treespec: PyTreeSpec) -> str:
    if treespec.is_leaf():
        return "a leaf"
    if treespec.kind == PyTreeKind.NONE:
        return "None"
    return f"{class_name(treespec.type)} of {treespec.num_children}"


def _check_treespec(who: str, name: str, treespec: object) -> None:
    if not isinstance(treespec, PyTreeSpec):
        raise TypeError(f"{who}: expected {name} to be a PyTreeSpec, got {type(treespec).__name__}")


def _check_leaves(who: str, name: str, treespec: PyTreeSpec) -> None:
    if treespec.num_leaves == 0:
        raise ValueError(f"{who}: expected {name} to have leaves, got {treespec}")
