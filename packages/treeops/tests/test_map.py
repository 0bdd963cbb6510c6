# SPDX-License-Identifier: Apache-2.0
"""Mapping and reducing."""

from __future__ import annotations

import doctest
import pickle
from collections import namedtuple
from typing import Any

import pytest

import treeops

Pair = namedtuple("Pair", ["left", "right"])


@pytest.mark.parametrize(
    ("trees", "expected"),
    [
        ((1, 2), (1, 2)),
        (([1, 2], [3, 4]), [(1, 3), (2, 4)]),
        (({"b": 1, "a": 2}, {"a": [3], "b": None}), {"b": (1, None), "a": (2, [3])}),
        ((None, None), None),
        ((Pair(1, [2]), Pair(3, [4]), Pair(5, [6])), Pair((1, 3, 5), [(2, 4, 6)])),
        (([], []), []),
    ],
)
def test_several_trees(trees: tuple[Any, ...], expected: Any) -> None:
    assert treeops.tree_map(lambda *leaves: leaves, *trees) == expected


def test_many_trees() -> None:
    assert treeops.tree_map(lambda *leaves: sum(leaves), *([1, 2] for _ in range(20))) == [20, 40]


def test_map_in_place_calls_in_order_and_returns_the_tree() -> None:
    tree = {"b": 1, "a": [2, 3]}
    seen: list[Any] = []
    assert treeops.tree_map_(seen.append, tree) is tree
    assert seen == [2, 3, 1]
    pairs: list[Any] = []
    treeops.tree_map_(lambda *leaves: pairs.append(leaves), tree, tree)
    assert pairs == [(2, 2), (3, 3), (1, 1)]


def test_map_with_path() -> None:
    tree = {"b": 1, "a": Pair(2, [3])}
    expected = {"b": (("b",), 1, 1), "a": Pair((("a", 0), 2, 2), [(("a", 1, 0), 3, 3)])}
    assert treeops.tree_map_with_path(lambda *parts: parts, tree, tree) == expected
    seen: list[Any] = []
    assert treeops.tree_map_with_path_(lambda *parts: seen.append(parts), tree) is tree
    assert seen == [(("a", 0), 2), (("a", 1, 0), 3), (("b",), 1)]


def test_results_may_be_containers() -> None:
    assert treeops.tree_map(lambda leaf: [leaf, None], (1, 2)) == ([1, None], [2, None])


def test_functions_may_map_again() -> None:
    def double(leaf: Any) -> Any:
        return treeops.tree_map(lambda inner: 2 * inner, [leaf, {"x": leaf}])

    assert treeops.tree_map(double, {"a": 1}) == {"a": [2, {"x": 2}]}


def test_error_of_the_function_comes_through() -> None:
    def fail(leaf: Any) -> Any:
        raise LookupError(leaf)

    with pytest.raises(LookupError, match=r"^2$"):
        treeops.tree_map(fail, [2, 3])


def test_mismatch_is_found_before_any_call() -> None:
    calls: list[Any] = []
    with pytest.raises(ValueError, match="argument 2"):
        treeops.tree_map(lambda *leaves: calls.append(leaves), [1, [2]], [1, 2])
    assert calls == []


@pytest.mark.parametrize(
    ("tree", "arguments", "expected"),
    [
        ([1, (2, 3)], {}, 6),
        ([1, (2, 3)], {"initial": 10}, 16),
        ([], {"initial": 10}, 10),
        ([None, 4], {}, 4),
        ([[1], [2]], {"is_leaf": lambda node: node == [1] or node == [2]}, [1, 2]),
    ],
)
def test_reduce(tree: Any, arguments: dict[str, Any], expected: Any) -> None:
    assert treeops.tree_reduce(lambda total, leaf: total + leaf, tree, **arguments) == expected


@pytest.mark.parametrize(
    ("tree", "arguments", "every", "some"),
    [
        ([], {}, True, False),
        (None, {}, True, False),
        (None, {"none_is_leaf": True}, False, False),
        ([1, {"a": 2}], {}, True, True),
        ([1, {"a": 0}], {}, False, True),
        ([0, {"a": 0}], {}, False, False),
        ([[0]], {"is_leaf": lambda node: node == [0]}, True, True),
    ],
)
def test_all_and_any(tree: Any, arguments: dict[str, Any], every: bool, some: bool) -> None:
    assert treeops.tree_all(tree, **arguments) is every
    assert treeops.tree_any(tree, **arguments) is some


@pytest.mark.parametrize(
    "name", ["tree_flatten", "tree_map", "tree_unflatten", "tree_structure", "tree_paths"]
)
def test_functions_pickle_and_document_themselves(name: str) -> None:
    function = getattr(treeops, name)
    assert pickle.loads(pickle.dumps(function)) is function
    assert function.__module__ == "treeops"
    assert "Example:" in function.__doc__


def test_examples_in_docstrings() -> None:
    names = {name: getattr(treeops, name) for name in dir(treeops)}
    runner, parser = doctest.DocTestRunner(), doctest.DocTestParser()
    documented = [value for name, value in names.items() if name.startswith("tree_")]
    documented.append(treeops.PyTreeSpec.flatten_up_to)
    for function in documented:
        runner.run(parser.get_doctest(function.__doc__, dict(names), function.__name__, None, 0))
    assert runner.tries > 10
    assert runner.failures == 0
