# SPDX-License-Identifier: Apache-2.0
"""What is a namedtuple, a struct sequence, a tree type; against OpTree."""

from __future__ import annotations

import os
import pickle
import sys
import time
from collections import OrderedDict, namedtuple
from typing import Any, NamedTuple, TypeVar

import optree
import pytest

import treeops
import treeops.typing

Point = namedtuple("Point", "x y")
T = TypeVar("T")


class Typed(NamedTuple):
    a: int
    b: str = ""


class Derived(Point):
    pass


class LooksLike(tuple):
    _fields = ("x",)


class BadFields(tuple):
    _fields = ("x", 1)
    _make = _asdict = classmethod(lambda cls: None)


class FakeStruct(tuple):
    n_fields = n_sequence_fields = 2
    n_unnamed_fields = 0


class FlattensItself:
    def __tree_flatten__(self) -> Any:
        return (), None

    @classmethod
    def __tree_unflatten__(cls, metadata: Any, children: Any) -> Any:
        return cls()


OBJECTS = [
    Point,
    Point(1, 2),
    Typed,
    Typed(1),
    Derived,
    Derived(1, 2),
    LooksLike,
    LooksLike((1,)),
    BadFields,
    FakeStruct,
    FakeStruct((1, 2)),
    namedtuple("Empty", ()),
    time.struct_time,
    time.gmtime(0),
    os.stat_result,
    os.stat_result(range(19)),
    os.terminal_size((1, 2)),
    type(sys.flags),
    sys.flags,
    sys.float_info,
    sys.version_info,
    tuple,
    (1, 2),
    dict,
    OrderedDict(),
    None,
    type,
    int,
    3,
]


@pytest.mark.parametrize("obj", OBJECTS, ids=repr)
@pytest.mark.parametrize(
    "name",
    [
        "is_namedtuple",
        "is_namedtuple_class",
        "is_namedtuple_instance",
        "is_structseq",
        "is_structseq_class",
        "is_structseq_instance",
    ],
)
def test_questions_are_answered_as_by_optree(name: str, obj: Any) -> None:
    assert getattr(treeops, name)(obj) is getattr(optree, name)(obj)


@pytest.mark.parametrize("obj", OBJECTS, ids=repr)
@pytest.mark.parametrize("name", ["namedtuple_fields", "structseq_fields"])
def test_fields_as_in_optree(name: str, obj: Any) -> None:
    def outcome(library: Any) -> Any:
        try:
            return getattr(library, name)(obj)
        except TypeError:
            return TypeError

    assert outcome(treeops) == outcome(optree)


@pytest.mark.parametrize(
    ("name", "obj", "message"),
    [
        ("namedtuple_fields", (1, 2), "namedtuple_fields: expected a namedtuple, got tuple"),
        ("namedtuple_fields", int, "expected a namedtuple, got the class int"),
        ("structseq_fields", Point(1, 2), "expected a struct sequence, got Point"),
        ("structseq_fields", int, "expected a struct sequence, got the class int"),
    ],
)
def test_fields_of_something_else(name: str, obj: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        getattr(treeops, name)(obj)


def test_struct_sequence_is_a_type_to_ask_for() -> None:
    struct = treeops.typing.StructSequence
    assert isinstance(time.gmtime(0), struct)
    assert issubclass(time.struct_time, struct)
    assert not isinstance(Point(1, 2), struct)
    assert not issubclass(FakeStruct, struct)
    with pytest.raises(TypeError, match="expected no instance"):
        struct((1,))
    with pytest.raises(TypeError, match="expected no subclass"):
        type("Sub", (struct,), {})


def test_kinds_are_those_of_optree() -> None:
    ours = {kind.name: kind.value for kind in treeops.PyTreeKind}
    assert ours == {kind.name: int(kind) for kind in optree.PyTreeKind}
    assert pickle.loads(pickle.dumps(treeops.PyTreeKind.DEQUE)) is treeops.PyTreeKind.DEQUE


@pytest.mark.parametrize(
    "item", [int, Point, T, Any, "Later", (int, "Name"), (int,), (int, None), int | str]
)
def test_tree_types_print_as_those_of_optree(item: Any) -> None:
    ours, theirs = repr(treeops.PyTree[item]), repr(optree.PyTree[item])
    assert ours == theirs.replace("optree.", "treeops.")
    assert treeops.PyTree[item] == treeops.PyTree[item]


def test_tree_type_of_trees_is_the_tree_type() -> None:
    assert treeops.PyTree[treeops.PyTree[int]] is treeops.PyTree[int]
    assert treeops.PyTreeTypeVar("X", int) == treeops.PyTree[int, "X"]
    assert treeops.PyTree[treeops.PyTreeTypeVar("X", int)] == treeops.PyTree[int, "X"]


@pytest.mark.parametrize("item", [(int, 3), (int, "a", "b"), ()])
def test_tree_types_of_something_else(item: Any) -> None:
    with pytest.raises(TypeError, match=r"PyTree: expected PyTree\[type\]"):
        treeops.PyTree[item]
    with pytest.raises(TypeError):
        optree.PyTree[item]


def test_typing_classes_are_no_containers() -> None:
    with pytest.raises(TypeError, match="got a call"):
        treeops.PyTree()
    with pytest.raises(TypeError, match="got a subclass"):
        type("Sub", (treeops.PyTree,), {})
    with pytest.raises(TypeError, match="expected the name to be a str, got int"):
        treeops.PyTreeTypeVar(3, int)
    with pytest.raises(TypeError, match="got a subclass"):
        type("Sub", (treeops.PyTreeTypeVar,), {})


def test_custom_tree_node_is_recognised_by_its_methods() -> None:
    assert isinstance(FlattensItself(), treeops.CustomTreeNode)
    assert not isinstance([], treeops.CustomTreeNode)


def test_every_public_name_of_optree_typing_is_there() -> None:
    missing = [name for name in optree.typing.__all__ if not hasattr(treeops.typing, name)]
    assert missing == []
    assert set(optree.typing.__all__) <= set(treeops.typing.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        treeops.typing.nothing  # noqa: B018
