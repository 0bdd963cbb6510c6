# SPDX-License-Identifier: Apache-2.0
"""Random trees come back as they were; damaged pickles raise a clean error or give a good treespec.

`make fuzz` searches longer, and again under the sanitizers.
"""

from __future__ import annotations

import copyreg
import io
import os
import pickle
import pickletools
import time
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import treeops

SPACE = "fuzz"
Point = namedtuple("Point", ["x", "y"])


class Leaf:
    """Equal to nothing but itself."""


class Box:
    def __init__(self, name: Any, children: tuple[Any, ...]) -> None:
        self.name = name
        self.children = children


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    treeops.register_pytree_node(
        Box,
        lambda box: (box.children, box.name, [f"c{i}" for i in range(len(box.children))]),
        Box,
        namespace=SPACE,
    )
    yield
    treeops.unregister_pytree_node(Box, namespace=SPACE)


KEYS = st.one_of(
    st.text("abcé\0", max_size=3),
    st.integers(-3, 3),
    st.booleans(),
    st.none(),
    st.tuples(st.integers(0, 2), st.text("ab", max_size=1)),
    st.floats(0, 2, allow_nan=False),
)


def containers(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    few = st.lists(children, max_size=4)
    items = st.dictionaries(KEYS, children, max_size=4)
    return st.one_of(
        few,
        few.map(tuple),
        items,
        items.map(OrderedDict),
        items.map(lambda mapping: defaultdict(list, mapping)),
        st.builds(deque, few, st.sampled_from([None, 4, 9])),
        st.builds(Point, children, children),
        st.lists(children, min_size=9, max_size=9).map(time.struct_time),
        st.builds(Box, KEYS, few.map(tuple)),
    )


TREES = st.recursive(st.one_of(st.builds(Leaf), st.none()), containers, max_leaves=24)
OPTIONS = st.fixed_dictionaries({"none_is_leaf": st.booleans(), "namespace": st.just(SPACE)})


def same(left: Any, right: Any, space: str) -> bool:
    """Whether two trees have the same structure and the very same leaves."""
    leaves, treespec = treeops.tree_flatten(left, none_is_leaf=True, namespace=space)
    others, other_spec = treeops.tree_flatten(right, none_is_leaf=True, namespace=space)
    return treespec == other_spec and all(a is b for a, b in zip(leaves, others, strict=True))


@given(TREES, OPTIONS)
def test_round_trip(tree: Any, options: Any) -> None:
    leaves, treespec = treeops.tree_flatten(tree, **options)
    assert same(treespec.unflatten(leaves), tree, SPACE)
    assert same(treeops.tree_map(lambda leaf: leaf, tree, **options), tree, SPACE)
    assert treespec.flatten_up_to(tree) == leaves
    assert list(treeops.tree_iter(tree, **options)) == leaves
    paths, again, _ = treeops.tree_flatten_with_path(tree, **options)
    assert again == leaves
    assert paths == treespec.paths()
    accessors = treespec.accessors()
    assert [accessor.path for accessor in accessors] == paths
    assert treespec.num_leaves == len(leaves) == len(paths)


@given(TREES, OPTIONS)
def test_treespecs(tree: Any, options: Any) -> None:
    treespec = treeops.tree_structure(tree, **options)
    assert treespec == pickle.loads(pickle.dumps(treespec))
    assert hash(treespec) == hash(treeops.tree_structure(tree, **options))
    assert treespec <= treespec
    assert treespec.broadcast_to_common_suffix(treespec) == treespec
    leaf = treeops.tree_structure(0, **options)
    assert leaf <= treespec
    assert treespec.compose(leaf) == treespec
    assert leaf.compose(treespec) == treespec
    assert treespec.transform(lambda node: node, lambda leaf: leaf) == treespec


@given(TREES, TREES, OPTIONS)
def test_unlike_trees(first: Any, second: Any, options: Any) -> None:
    """A mismatch is a ValueError; where there is none, what comes out fits."""
    treespec = treeops.tree_structure(first, **options)
    other = treeops.tree_structure(second, **options)
    try:
        subtrees = treespec.flatten_up_to(second)
    except ValueError:
        subtrees = None
    assert (subtrees is not None) or not treespec.is_prefix(other)
    try:
        common = treespec.broadcast_to_common_suffix(other)
    except ValueError:
        assert not treespec.is_prefix(other)
    else:
        assert treespec.is_prefix(common)
        assert other.is_prefix(common)


# ---- damaged pickles ---------------------------------------------------------------------------

BENIGN = (
    pickle.UnpicklingError,
    ValueError,  # UnicodeDecodeError, too
    TypeError,
    EOFError,
    LookupError,
    AttributeError,
    ImportError,
    ArithmeticError,
    MemoryError,
    RecursionError,
    NotImplementedError,
)


class Careful(pickle.Unpickler):
    """Damaged bytes may name any function of any module: finds those that pickles need."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("treeops._C", "_rebuild_treespec"): treeops._C._rebuild_treespec,
            (__name__, "Point"): Point,
            (__name__, "Box"): Box,
            ("time", "struct_time"): time.struct_time,
            ("builtins", "list"): list,
            ("copyreg", "_reconstructor"): copyreg._reconstructor,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(name)
        return allowed[module, name]


def check(treespec: Any) -> None:
    """What came out of a damaged pickle either is no treespec or works as one."""
    if not isinstance(treespec, treeops.PyTreeSpec):
        return
    leaves = list(range(treespec.num_leaves))
    assert len(treespec.paths()) == len(leaves)
    repr(treespec)
    try:
        tree = treespec.unflatten(leaves)
        hash(treespec)
        treespec.flatten_up_to(tree)
        treespec.accessors()
    except BENIGN:  # a class may refuse children, and damaged metadata anything
        pass
    assert treespec == treespec
    make, payload = treespec.__reduce__()
    assert make(*payload) == treespec


def asks_for_memory(data: bytes) -> bool:
    """Whether the unpickler would reserve gigabytes: for its memo, or before it looks for bytes."""
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in ("PUT", "LONG_BINPUT") and argument > 1 << 20:
                return True
    except (ValueError, LookupError):  # damaged here, so the unpickler stops here
        pass
    return b"\x96" in data  # BYTEARRAY8, which no treespec writes


def load(data: bytes) -> None:
    if asks_for_memory(data):
        return
    try:
        loaded = Careful(io.BytesIO(data)).load()
    except BENIGN:
        return
    check(loaded)


EDITS = {
    "flip": lambda data, at, value: data[:at] + bytes([value]) + data[at + 1 :],
    "cut": lambda data, at, value: data[:at],
    "insert": lambda data, at, value: data[:at] + bytes([value]) + data[at:],
    "drop": lambda data, at, value: data[:at] + data[at + value % 9 :],
    "copy": lambda data, at, value: data[:at] + data[max(at - value % 9, 0) :],
}


DAMAGE = st.lists(
    st.tuples(
        st.sampled_from(sorted(EDITS)),
        st.integers(0, 1 << 16),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=4,
)


def damage(data: bytes, changes: list[tuple[str, int, int]]) -> bytes:
    for what, where, value in changes:
        data = EDITS[what](data, where % (len(data) + 1), value)
    return data


@given(TREES, OPTIONS, DAMAGE, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_damaged_pickles(tree: Any, options: Any, changes: Any, protocol: int) -> None:
    data = pickle.dumps(treeops.tree_structure(tree, **options), protocol)
    load(damage(data, changes))


GARBAGE = st.recursive(
    st.one_of(
        st.integers(-1, 12),
        st.sampled_from([1 << 31, 1 << 32, 1 << 63, -(1 << 70), 1 << 70]),
        st.none(),
        st.booleans(),
        st.text(max_size=2),
        st.sampled_from([list, tuple, Point, Box, time.struct_time, os.stat_result, int]),
        st.builds(Leaf),
    ),
    lambda inner: st.lists(inner, max_size=5).map(tuple) | st.lists(inner, max_size=3),
    max_leaves=12,
)


@given(
    GARBAGE.map(lambda garbage: garbage if isinstance(garbage, tuple) else (garbage,)),
    st.booleans(),
    st.booleans(),
)
def test_payloads_of_garbage(garbage: Any, none_is_leaf: bool, whole: bool) -> None:
    """What a pickle calls, with anything for nodes or in the place of everything."""
    rebuild = treeops._C._rebuild_treespec
    payload = garbage if whole else (1, none_is_leaf, SPACE, garbage)
    try:
        treespec = rebuild(*payload)
    except (TypeError, ValueError, RecursionError, OverflowError, MemoryError):
        return
    check(treespec)


@given(TREES, OPTIONS, st.data())
def test_payloads_with_one_part_replaced(tree: Any, options: Any, data: Any) -> None:
    rebuild, (version, none_is_leaf, space, nodes) = treeops.tree_structure(
        tree, **options
    ).__reduce__()
    at = data.draw(st.integers(0, len(nodes) - 1))
    node = nodes[at]
    if isinstance(node, tuple) and data.draw(st.booleans()):
        part = data.draw(st.integers(0, len(node) - 1))
        node = (*node[:part], data.draw(GARBAGE), *node[part + 1 :])
    else:
        node = data.draw(GARBAGE)
    try:
        treespec = rebuild(version, none_is_leaf, space, (*nodes[:at], node, *nodes[at + 1 :]))
    except (TypeError, ValueError, RecursionError, OverflowError, MemoryError):
        return
    check(treespec)
