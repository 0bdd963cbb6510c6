# SPDX-License-Identifier: Apache-2.0
"""One level of a tree as plain data, and what keeps a tree from being a prefix of another."""

from __future__ import annotations

import builtins
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from treeops._C import MAX_RECURSION_DEPTH, tree_is_leaf
from treeops.accessors import PyTreeAccessor, PyTreeEntry
from treeops.registry import register_pytree_node
from treeops.typing import PyTreeKind

__all__ = [
    "FlattenOneLevelOutput",
    "FlattenOneLevelOutputEx",
    "class_name",
    "difference_of_keys",
    "prefix_errors",
    "tree_flatten_one_level",
]

_DICTS = (dict, OrderedDict, defaultdict)


class FlattenOneLevelOutput(NamedTuple):
    """A node taken apart."""

    children: list[Any]
    metadata: Any  # what unflattening needs besides the children
    entries: tuple[Any, ...]  # a key or position per child
    unflatten_func: Callable[[Any, Any], Any]  # from metadata and children to the node


class FlattenOneLevelOutputEx(FlattenOneLevelOutput):
    """A node taken apart, with what is known of its class."""

    type: builtins.type
    path_entry_type: builtins.type[PyTreeEntry]
    kind: PyTreeKind


def tree_flatten_one_level(
    tree: Any,
    /,
    is_leaf: Callable[[Any], bool] | None = None,
    *,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> FlattenOneLevelOutputEx:
    """Take the root of a tree apart.

    Returns:
        ``(children, metadata, entries, unflatten_func)``, with attributes ``type``, ``kind`` and
        ``path_entry_type``.

    Raises:
        ValueError: The tree is a leaf.

    Example:
        >>> children, metadata, entries, unflatten = tree_flatten_one_level({"b": 1, "a": [2]})
        >>> children, entries
        ([[2], 1], ('a', 'b'))
        >>> unflatten(metadata, children)
        {'b': 1, 'a': [2]}
    """
    who = "tree_flatten_one_level"
    cls = type(tree)
    entry = None
    if not ((none_is_leaf and tree is None) or (is_leaf is not None and is_leaf(tree))):
        entry = register_pytree_node.get(cls, namespace=namespace)  # type: ignore[attr-defined]
    if entry is None:
        raise ValueError(f"{who}: expected a node with children, got a leaf of {class_name(cls)}")
    parts = tuple(entry.flatten_func(tree))
    if len(parts) not in (2, 3):
        raise RuntimeError(
            f"{who}: expected the flatten function of {class_name(cls)} to return "
            f"(children, metadata) or (children, metadata, entries), got {len(parts)} items"
        )
    children = list(parts[0])
    entries = parts[2] if len(parts) == 3 else None
    entries = tuple(range(len(children)) if entries is None else entries)
    if len(children) != len(entries):
        raise RuntimeError(
            f"{who}: expected the flatten function of {class_name(cls)} to return one entry per "
            f"child, got {len(children)} children and {len(entries)} entries"
        )
    output = FlattenOneLevelOutputEx(children, parts[1], entries, entry.unflatten_func)
    output.type = cls
    output.path_entry_type = entry.path_entry_type
    output.kind = entry.kind
    return output


def prefix_errors(
    prefix_tree: Any,
    full_tree: Any,
    /,
    is_leaf: Callable[[Any], bool] | None = None,
    *,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> list[Callable[[str], ValueError]]:
    """Every reason why a tree is no prefix of another; empty if it is one.

    Returns:
        Functions from a name of ``prefix_tree`` to an error that tells a difference and its place.

    Example:
        >>> errors = prefix_errors({"a": [1], "b": 2}, {"a": (1,), "b": [2, 3]})
        >>> [str(error("axes")) for error in errors]
        ["axes['a']: expected list, as in the prefix, got tuple in the full tree"]
    """

    def expand(tree: Any) -> FlattenOneLevelOutputEx:
        return tree_flatten_one_level(tree, none_is_leaf=none_is_leaf, namespace=namespace)

    def is_end(tree: Any) -> bool:
        return tree_is_leaf(tree, is_leaf, none_is_leaf=none_is_leaf, namespace=namespace)

    # Iterative, so that no tree is too deep for Python's stack; the next pair last.
    found: list[Callable[[str], ValueError]] = []
    pending: list[tuple[PyTreeAccessor, Any, Any]] = [(PyTreeAccessor(), prefix_tree, full_tree)]
    while pending:
        accessor, prefix, full = pending.pop()
        if is_end(prefix):
            continue
        if len(accessor) > MAX_RECURSION_DEPTH:
            raise RecursionError(
                f"prefix_errors: expected a tree at most {MAX_RECURSION_DEPTH} deep, "
                "got a deeper one; it may contain itself"
            )
        both_dicts = type(prefix) in _DICTS and type(full) in _DICTS
        if type(prefix) is not type(full) and not both_dicts:
            problem = _difference(class_name(type(prefix)), class_name(type(full)))
            found.append(_error_at(accessor, problem))
            continue
        node, other = expand(prefix), expand(full)
        if problem := _level_problem(node, other, both_dicts):
            found.append(_error_at(accessor, problem))
            continue
        others = [full[key] for key in node.entries] if both_dicts else other.children
        steps = [node.path_entry_type(entry, node.type, node.kind) for entry in node.entries]
        triples = zip(steps, node.children, others, strict=True)
        pending.extend(reversed([(accessor + step, one, two) for step, one, two in triples]))
    return found


def _level_problem(
    node: FlattenOneLevelOutputEx, other: FlattenOneLevelOutputEx, both_dicts: bool
) -> str | None:
    """How two nodes of one type differ, if they do."""
    if both_dicts:
        keys = difference_of_keys(node.entries, other.entries)
        return f"{_difference(_described(node), _described(other))}{keys}" if keys else None
    if len(node.children) != len(other.children):
        return _difference(_described(node), _described(other))
    if node.type is not deque and node.metadata != other.metadata:
        return _difference(_described(node), f"{class_name(other.type)} with other metadata")
    return None


def _difference(expected: str, got: str) -> str:
    return f"expected {expected}, as in the prefix, got {got} in the full tree"


def _error_at(accessor: PyTreeAccessor, problem: str) -> Callable[[str], ValueError]:
    def error(name: str) -> ValueError:
        return ValueError(f"{accessor.codify(name)}: {problem}")

    return error


def difference_of_keys(expected: Iterable[Any], got: Iterable[Any]) -> str:
    """What to add to the description of a mapping; empty if the keys are the same."""
    missing, extra = list(_absent(expected, got)), list(_absent(got, expected))
    if not missing and not extra:
        return ""
    return f" (missing keys {_shown(missing)}, extra keys {_shown(extra)})"


def _absent(keys: Iterable[Any], others: Iterable[Any]) -> Iterator[Any]:
    known = set(others)
    return (key for key in keys if key not in known)


def _shown(keys: list[Any], limit: int = 8) -> str:
    return repr(keys) if len(keys) <= limit else f"{keys[:limit]!r} and more"


def _described(node: FlattenOneLevelOutputEx) -> str:
    return f"{class_name(node.type)} of {len(node.children)}"


def class_name(cls: type) -> str:
    module = cls.__module__
    return cls.__qualname__ if module == "builtins" else f"{module}.{cls.__qualname__}"
