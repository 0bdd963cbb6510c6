# SPDX-License-Identifier: Apache-2.0
"""Partial functions as nodes, against OpTree."""

from __future__ import annotations

import functools
import operator
import pickle
import sys
from typing import Any

import optree
import pytest

import treeops
import treeops.functools as tree_functools


def call(*args: Any, **keywords: Any) -> Any:
    return args, keywords


def make(library: Any, case: str) -> Any:
    partial = library.functools.partial
    return {
        "plain": lambda: partial(call, 1, [2, 3], b=4, a=(5,)),
        "empty": lambda: partial(call),
        "nested": lambda: partial(partial(call, 1, x=2), 3, y=4),
        "of functools": lambda: partial(functools.partial(call, 1), 3),
        "of tree": lambda: partial(call, partial(operator.add, 1)),
    }[case]()


CASES = ["plain", "empty", "nested", "of functools", "of tree"]


@pytest.mark.parametrize("case", CASES)
def test_partial_as_in_optree(case: str) -> None:
    views = []
    for library in (treeops, optree):
        func = make(library, case)
        leaves, spec = library.tree_flatten(func)
        again = library.tree_unflatten(spec, leaves)
        views.append(
            (
                leaves,
                library.tree_paths(func),
                [a.codify("f") for a in library.tree_accessors(func)],
                repr(func).replace("optree.", "treeops."),
                repr(spec).replace("optree.", "treeops."),
                repr(again).replace("optree.", "treeops."),
                len(again.args),
                sorted(again.keywords),
                library.tree_structure(again) == spec,
            )
        )
    assert views[0] == views[1]


@pytest.mark.parametrize("case", CASES[:-1])
def test_partial_calls(case: str) -> None:
    assert make(treeops, case)(7, z=8) == make(optree, case)(7, z=8)
    mapped = treeops.tree_map(lambda leaf: leaf, make(treeops, case))
    assert mapped(7, z=8) == make(treeops, case)(7, z=8)


def test_partial_pickles() -> None:
    func = pickle.loads(pickle.dumps(make(treeops, "nested")))
    assert func(5) == make(treeops, "nested")(5)
    assert isinstance(func, functools.partial)
    assert isinstance(func, treeops.CustomTreeNode)


def test_a_partial_function_given_to_partial_stays_whole() -> None:
    inner = functools.partial(call, 1, k=2)
    outer = tree_functools.partial(inner, 3)
    assert (outer.func.func, outer.func.args, outer.func.keywords) == (call, (1,), {"k": 2})
    assert outer.func == inner
    assert outer.func == tree_functools.partial(inner, 4).func
    assert hash(outer.func) == hash(inner)
    assert repr(outer.func) == repr(inner)


def test_other_names() -> None:
    assert tree_functools.Partial is tree_functools.partial is treeops.Partial
    assert tree_functools.reduce is treeops.tree_reduce
    assert set(optree.functools.__all__) <= set(tree_functools.__all__)
    has_placeholder = sys.version_info >= (3, 14)
    assert hasattr(tree_functools, "Placeholder") is has_placeholder
