# SPDX-License-Identifier: Apache-2.0
"""Entries and accessors, against those of OpTree."""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
import time
from collections import OrderedDict, UserDict, UserList, defaultdict, deque, namedtuple
from typing import Any

import optree
import pytest

import treeops

Point = namedtuple("Point", "x y")


@dataclasses.dataclass
class Pair:
    left: Any
    right: Any = 0
    total: Any = dataclasses.field(init=False, default=None)


ENTRY_NAMES = (
    "PyTreeEntry",
    "GetItemEntry",
    "GetAttrEntry",
    "FlattenedEntry",
    "SequenceEntry",
    "MappingEntry",
    "NamedTupleEntry",
    "StructSequenceEntry",
    "DataclassEntry",
)

# class of entries, entry, class of the node, kind, node
STEPS = [
    ("GetItemEntry", "a", dict, "DICT", {"a": 1}),
    ("GetAttrEntry", "left", Pair, "CUSTOM", Pair(1)),
    ("GetAttrEntry", "left.right", Pair, "CUSTOM", Pair(Pair(1, 2))),
    ("GetAttrEntry", "no name", Pair, "CUSTOM", None),
    ("FlattenedEntry", 0, UserList, "CUSTOM", UserList([5])),
    ("SequenceEntry", 1, list, "LIST", [3, 4]),
    ("SequenceEntry", 0, deque, "DEQUE", deque([3])),
    ("MappingEntry", "k", OrderedDict, "ORDEREDDICT", OrderedDict(k=4)),
    ("MappingEntry", (1, 2), defaultdict, "DEFAULTDICT", defaultdict(int, {(1, 2): 4})),
    ("NamedTupleEntry", 1, Point, "NAMEDTUPLE", Point(3, 4)),
    ("StructSequenceEntry", 2, time.struct_time, "STRUCTSEQUENCE", time.gmtime(0)),
    ("StructSequenceEntry", 7, os.stat_result, "STRUCTSEQUENCE", os.stat_result(range(19))),
    ("DataclassEntry", "right", Pair, "CUSTOM", Pair(1, 2)),
    ("DataclassEntry", 1, Pair, "CUSTOM", Pair(1, 2)),
    ("PyTreeEntry", 0, list, "LIST", [7]),
]


def entry(library: Any, name: str, key: Any, cls: type, kind: str) -> Any:
    return getattr(library, name)(key, cls, getattr(library.PyTreeKind, kind))


@pytest.mark.parametrize(("name", "key", "cls", "kind", "node"), STEPS)
def test_entry_as_optree(name: str, key: Any, cls: type, kind: str, node: Any) -> None:
    ours = entry(treeops, name, key, cls, kind)
    theirs = entry(optree, name, key, cls, kind)
    assert repr(ours) == repr(theirs)
    assert ours.codify("node") == theirs.codify("node")
    assert (ours.entry, ours.type, int(ours.kind)) == (theirs.entry, theirs.type, int(theirs.kind))
    facts = [fact for fact in dir(theirs) if isinstance(getattr(type(theirs), fact), property)]
    assert [getattr(ours, fact) for fact in facts] == [getattr(theirs, fact) for fact in facts]


@pytest.mark.parametrize(
    ("name", "key", "cls", "kind", "node"), [step for step in STEPS if step[4] is not None]
)
def test_entry_reaches_what_its_code_says(
    name: str, key: Any, cls: type, kind: str, node: Any
) -> None:
    ours = entry(treeops, name, key, cls, kind)
    assert ours(node) == entry(optree, name, key, cls, kind)(node)


@pytest.mark.parametrize(("name", "key", "cls", "kind", "node"), STEPS)
def test_entry_is_a_value(name: str, key: Any, cls: type, kind: str, node: Any) -> None:
    ours = entry(treeops, name, key, cls, kind)
    again = entry(treeops, name, key, cls, kind)
    assert ours == again
    assert hash(ours) == hash(again)
    assert ours != entry(treeops, name, "other", cls, kind)
    assert ours != key
    assert pickle.loads(pickle.dumps(ours)) == ours
    assert copy.deepcopy(ours) == ours
    with pytest.raises(dataclasses.FrozenInstanceError, match="no change of an entry"):
        ours.entry = 3
    with pytest.raises(dataclasses.FrozenInstanceError, match="got one of 'kind'"):
        del ours.kind


def test_entries_that_go_the_same_way_are_equal() -> None:
    class Other(treeops.SequenceEntry):
        __slots__ = ()

    class Elsewhere(treeops.SequenceEntry):
        __slots__ = ()

        def __call__(self, obj: Any) -> Any:
            return obj[-1 - self.entry]

    kind = treeops.PyTreeKind.LIST
    plain = treeops.SequenceEntry(0, list, kind)
    assert plain == Other(0, list, kind)
    assert plain != Elsewhere(0, list, kind)


@pytest.mark.parametrize("name", [*ENTRY_NAMES])
@pytest.mark.parametrize("kind", ["LEAF", "NONE"])
def test_no_entry_of_what_has_no_children(name: str, kind: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}: expected a kind of node .*, got {kind}"):
        entry(treeops, name, 0, object, kind)
    with pytest.raises(ValueError, match="Cannot create"):
        entry(optree, name, 0, object, kind)


def test_entry_cannot_look_into_what_has_no_items() -> None:
    flat = treeops.FlattenedEntry(0, Pair, treeops.PyTreeKind.CUSTOM)
    with pytest.raises(TypeError, match=r"FlattenedEntry: expected a node .*, got Pair; give"):
        flat(Pair(1))


@pytest.mark.parametrize(
    "cls", [Point, time.struct_time, Pair, UserDict, UserList, object, dict, list]
)
def test_auto_entry_chooses_as_optree(cls: type) -> None:
    ours = treeops.AutoEntry(0, cls, treeops.PyTreeKind.CUSTOM)
    theirs = optree.AutoEntry(0, cls, optree.PyTreeKind.CUSTOM)
    assert type(ours).__name__ == type(theirs).__name__
    assert repr(ours) == repr(theirs)


def test_auto_entry_subclass_stays() -> None:
    class Mine(treeops.AutoEntry):
        __slots__ = ()

    assert type(Mine(0, list, treeops.PyTreeKind.CUSTOM)) is Mine


def test_auto_entry_is_for_custom_nodes() -> None:
    with pytest.raises(ValueError, match=r"AutoEntry: expected the kind CUSTOM, got LIST"):
        treeops.AutoEntry(0, list, treeops.PyTreeKind.LIST)


# ---- accessors ---------------------------------------------------------------------------------

TREE = {"a": [1, (2, Point(3, {"b": 4}))]}


def accessor(library: Any) -> Any:
    kinds = library.PyTreeKind
    return library.PyTreeAccessor(
        (
            library.MappingEntry("a", dict, kinds.DICT),
            library.SequenceEntry(1, list, kinds.LIST),
            library.SequenceEntry(1, tuple, kinds.TUPLE),
            library.NamedTupleEntry(1, Point, kinds.NAMEDTUPLE),
        )
    )


def test_accessor_as_optree() -> None:
    ours, theirs = accessor(treeops), accessor(optree)
    assert repr(ours) == repr(theirs)
    assert ours.codify() == theirs.codify() == "*['a'][1][1].y"
    assert ours.codify("tree") == theirs.codify("tree")
    assert ours(TREE) == theirs(TREE) == {"b": 4}
    assert ours.path == theirs.path == ("a", 1, 1, 1)
    assert repr(treeops.PyTreeAccessor()) == repr(optree.PyTreeAccessor())
    assert treeops.PyTreeAccessor()(TREE) is TREE


@pytest.mark.parametrize(
    "combine",
    [
        lambda a: a[1:],
        lambda a: a[-1],
        lambda a: a[::-1],
        lambda a: a + a,
        lambda a: a + a[0],
        lambda a: a[0] + a[1],
        lambda a: a[0] + a[1:],
        lambda a: 2 * a,
        lambda a: a * 2,
        lambda a: a * 0,
        lambda a: len(a),
        lambda a: a == a[:],
        lambda a: a != a[1:],
        lambda a: a == tuple(a),
        lambda a: type(a + a).__name__ + type(a[1:]).__name__ + type(a * 2).__name__,
    ],
)
def test_accessors_combine_as_in_optree(combine: Any) -> None:
    assert repr(combine(accessor(treeops))) == repr(combine(accessor(optree)))


def test_accessor_is_a_value() -> None:
    ours = accessor(treeops)
    assert ours == accessor(treeops)
    assert hash(ours) == hash(accessor(treeops))
    assert pickle.loads(pickle.dumps(ours)) == ours
    with pytest.raises(TypeError, match="unsupported operand"):
        ours[0] + 1
    with pytest.raises(TypeError, match=r"unsupported operand|can only concatenate"):
        ours + 1


def test_accessor_takes_entries_only() -> None:
    with pytest.raises(TypeError, match=r"expected entries, got str at position 1"):
        treeops.PyTreeAccessor([accessor(treeops)[0], "b"])


# ---- names from JAX ----------------------------------------------------------------------------


def test_keystr_of_accessors_and_paths() -> None:
    ours = accessor(treeops)
    assert treeops.keystr(ours) == "['a'][1][1].y"
    assert treeops.keystr(ours.path) == "['a'][1][1][1]"
    assert treeops.keystr(ours, simple=True, separator="/") == "a/1/1/y"
    assert treeops.keystr(("a", 1), simple=True) == "a1"
    assert treeops.keystr(()) == ""
    custom = treeops.PyTreeKind.CUSTOM
    fields = treeops.DataclassEntry(1, Pair, custom), treeops.GetAttrEntry("x.y", Pair, custom)
    assert treeops.keystr(fields) == ".right.x.y"
    assert treeops.keystr(fields, simple=True, separator=".") == "right.x.y"
    kind = treeops.PyTreeKind.STRUCTSEQUENCE
    stat = [treeops.StructSequenceEntry(i, os.stat_result, kind) for i in (0, 7)]
    assert treeops.keystr(stat, simple=True, separator=" ") == "st_mode 7"


def test_keystr_as_jax() -> None:
    jax = pytest.importorskip("jax", reason="compares with JAX: pip install jax")
    tree = {"a": [1, (2, Point(3, {"b": 4}))], "c d": None}
    theirs = jax.tree_util.tree_leaves_with_path(tree)
    ours = treeops.tree_accessors(tree)
    for options in ({}, {"simple": True, "separator": "/"}):
        expected = [jax.tree_util.keystr(path, **options) for path, _ in theirs]
        assert [treeops.keystr(accessor, **options) for accessor in ours] == expected


def test_tree_leaves_with_path() -> None:
    tree = {"b": [1, None], "a": (2,)}
    assert treeops.tree_leaves_with_path(tree) == [(("a", 0), 2), (("b", 0), 1)]
    with_none = treeops.tree_leaves_with_path(tree, none_is_leaf=True)
    assert with_none == [(("a", 0), 2), (("b", 0), 1), (("b", 1), None)]
    whole = treeops.tree_leaves_with_path(tree, lambda node: isinstance(node, list))
    assert whole == [(("a", 0), 2), (("b",), [1, None])]
