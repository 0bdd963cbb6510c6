# SPDX-License-Identifier: Apache-2.0
"""Dataclasses as nodes, against OpTree."""

from __future__ import annotations

import dataclasses
import math
import pickle
import sys
from typing import Any, ClassVar

import optree
import pytest

import treeops
import treeops.dataclasses as tree_dataclasses

LIBRARIES = (treeops, optree)
SPACE = "test-dataclasses"


@tree_dataclasses.dataclass(namespace=SPACE)
class Point:
    x: float
    y: float
    unit: str = tree_dataclasses.field(default="m", pytree_node=False)
    norm: float = tree_dataclasses.field(init=False, pytree_node=False)
    count: ClassVar[int] = 0

    def __post_init__(self) -> None:
        self.norm = math.hypot(self.x, self.y)


@tree_dataclasses.dataclass(namespace=SPACE, frozen=True, slots=True, kw_only=True)
class Box:
    content: Any
    label: str = tree_dataclasses.field(default="", metadata={"pytree_node": False})


def both_views(make: Any, namespace: str) -> list[Any]:
    """What each library sees in an instance of the class it has made."""
    views = []
    for library in LIBRARIES:
        tree = make(library)
        accessors, leaves, spec = library.tree_flatten_with_accessor(tree, namespace=namespace)
        again = library.tree_unflatten(spec, leaves)
        doubled = library.tree_map(lambda leaf: (leaf, leaf), tree, namespace=namespace)
        views.append(
            (
                leaves,
                repr(spec),
                library.tree_paths(tree, namespace=namespace),
                [(repr(a), a.codify("node"), a(tree)) for a in accessors],
                repr(again),
                again == tree,
                repr(doubled),
            )
        )
    return views


def plain(library: Any) -> Any:
    @library.dataclasses.dataclass(namespace=SPACE)
    class Plain:
        b: Any
        a: Any = 2

    return Plain([1, {"k": 3}])


def with_metadata(library: Any) -> Any:
    field = library.dataclasses.field

    @library.dataclasses.dataclass(namespace=SPACE)
    class WithMetadata:
        b: Any
        tag: str = field(default="t", pytree_node=False)
        level: int = field(default=3, metadata={"pytree_node": False, "unit": "m"})
        made: Any = field(init=False, default=0, pytree_node=False)

    return WithMetadata((1, None))


def frozen_slots(library: Any) -> Any:
    @library.dataclasses.dataclass(namespace=SPACE, frozen=True, slots=True)
    class FrozenSlots:
        only: Any

    return FrozenSlots(5)


def empty(library: Any) -> Any:
    return library.dataclasses.make_dataclass("Empty", [], namespace=SPACE)()


def made(library: Any) -> Any:
    cls = library.dataclasses.make_dataclass(
        "Made", ["a", ("b", int), ("c", int, library.dataclasses.field(default=4))],
        ns={"total": lambda self: self.a + self.b}, namespace=SPACE,
    )  # fmt: skip
    return cls(1, 2)


def exchanged(library: Any) -> Any:
    return library.dataclasses.make_dataclass(
        "Exchanged", ["a"], ns=SPACE, namespace={"answer": 42}
    )(1)


def existing(library: Any) -> Any:
    @dataclasses.dataclass
    class Existing:
        a: Any
        b: Any = dataclasses.field(default="meta", metadata={"pytree_node": False})

    return library.dataclasses.register_node(Existing, namespace=SPACE)([1, 2])


def decorated(library: Any) -> Any:
    @library.dataclasses.register_node(SPACE)
    @dataclasses.dataclass
    class Decorated:
        a: Any

    return Decorated(1)


def for_everyone(library: Any) -> Any:
    @library.dataclasses.dataclass(namespace="")
    class ForEveryone:
        a: Any

    return ForEveryone([1, 2])


MAKERS = [
    plain, with_metadata, frozen_slots, empty, made, exchanged, existing, decorated, for_everyone
]  # fmt: skip


@pytest.mark.parametrize("make", MAKERS)
def test_nodes_as_in_optree(make: Any) -> None:
    ours, theirs = both_views(make, SPACE)
    assert ours == theirs


def test_a_node_only_in_its_namespace() -> None:
    point = Point(3, 4)
    assert treeops.tree_leaves(point) == [point]
    assert treeops.tree_leaves(point, namespace=SPACE) == [3, 4]
    assert treeops.tree_leaves(for_everyone(treeops)) == [1, 2]


def test_post_init_runs_and_metadata_stays() -> None:
    point = treeops.tree_map(lambda v: 2 * v, Point(3, 4, "km"), namespace=SPACE)
    assert point == Point(6, 8, "km")
    assert point.norm == 10
    box = treeops.tree_map(lambda v: -v, Box(content=[1], label="b"), namespace=SPACE)
    assert box == Box(content=[-1], label="b")


def test_structures_compare_by_metadata() -> None:
    spec = treeops.tree_structure(Point(1, 2), namespace=SPACE)
    assert spec == treeops.tree_structure(Point(5, 6), namespace=SPACE)
    assert spec != treeops.tree_structure(Point(1, 2, "km"), namespace=SPACE)
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_entries_by_position_name_the_children() -> None:
    kind = treeops.PyTreeKind.CUSTOM
    entry = treeops.DataclassEntry(1, Point, kind)
    assert entry.children_fields == ("x", "y")
    assert entry.fields == ("x", "y", "unit", "norm")
    assert entry.init_fields == ("x", "y", "unit")
    assert entry.field == entry.name == "y"


def test_the_standard_names_are_those_of_the_library() -> None:
    assert set(dataclasses.__all__) <= set(tree_dataclasses.__all__)
    replaced = {"dataclass", "field", "make_dataclass"}
    for name in set(dataclasses.__all__) - replaced:
        assert getattr(tree_dataclasses, name) is getattr(dataclasses, name)
    assert set(optree.dataclasses.__all__) <= set(tree_dataclasses.__all__)


# ---- refused -----------------------------------------------------------------------------------


def bare() -> type:
    return dataclasses.make_dataclass("Bare", ["a"])


def registered(library: Any) -> type:
    return library.dataclasses.make_dataclass("Known", ["a"], namespace=SPACE)


class Unmarkable(type):
    def __setattr__(cls, name: str, value: Any) -> None:
        if name.endswith("_dataclass_fields__") and name != "__dataclass_fields__":
            raise RuntimeError("no marks")
        super().__setattr__(name, value)


def unmarkable() -> type:
    return dataclasses.dataclass(Unmarkable("Unmarked", (), {"__annotations__": {"a": int}}))


REFUSALS = [
    (lambda d, _: d.dataclass(3, namespace=SPACE), TypeError, "dataclass: expected a class"),
    (lambda d, _: d.dataclass(bare(), namespace=3), TypeError, "expected namespace to be a str"),
    (lambda d, _: d.register_node(3, namespace=SPACE), TypeError, "expected a class, got int"),
    (lambda d, _: d.register_node(int, namespace=SPACE), TypeError, "expected a dataclass, got"),
    (lambda d, _: d.register_node(bare()), ValueError, "expected a namespace, got none"),
    (lambda d, _: d.register_node(bare(), namespace=3), TypeError, "namespace to be a str"),
    (lambda d, _: d.register_node("a", namespace="b"), ValueError, "one namespace, got two"),
    (lambda d, _: d.register_node(""), ValueError, "non-empty namespace"),
    (lambda d, t: d.register_node(registered(t), namespace="n"), TypeError, "not registered, got"),
    (lambda d, t: d.dataclass(registered(t), namespace=SPACE), TypeError, "not registered, got"),
    (lambda d, _: d.field(init=False), TypeError, "field: expected a child to be an argument"),
    (
        lambda d, _: d.make_dataclass(
            "I", [("a", dataclasses.InitVar[int])], namespace=SPACE
        ),
        TypeError,
        "fields that instances keep, got InitVar a",
    ),
    (
        lambda d, _: d.make_dataclass(
            "N", [("a", int, dataclasses.field(init=False, default=1))], namespace=SPACE
        ),
        TypeError,
        "expected the child a of N to be an argument",
    ),
    (lambda d, _: d.make_dataclass("M", ["a"], namespace=3), TypeError, "namespace to be a str"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), REFUSALS)
def test_refused_as_by_optree(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(treeops.dataclasses, treeops)
    with pytest.raises(error):
        call(optree.dataclasses, optree)


def test_a_class_that_cannot_be_marked_is_not_left_registered() -> None:
    cls = unmarkable()
    with pytest.raises(RuntimeError, match="no marks"):
        treeops.dataclasses.register_node(cls, namespace=SPACE)
    assert treeops.tree_leaves(cls(1), namespace=SPACE) == [cls(1)]


def test_a_class_without_constructor_warns() -> None:
    for library in LIBRARIES:
        with pytest.warns(UserWarning, match="init=False"):

            @library.dataclasses.dataclass(namespace=SPACE, init=False)
            class NoInit:
                a: int


@pytest.mark.parametrize(
    ("version", "call"),
    [
        ((3, 11), lambda: registered_with(weakref_slot=True, slots=True)),
        ((3, 12), lambda: registered_with(module="somewhere")),
        ((3, 14), lambda: registered_with(decorator=lambda cls, **_: cls)),
        ((3, 14), lambda: tree_dataclasses.field(doc="text")),
    ],
)
def test_what_needs_a_newer_python_says_so(version: tuple[int, int], call: Any) -> None:
    if sys.version_info < version:
        with pytest.raises(TypeError, match=f"expected Python {version[0]}.{version[1]} or later"):
            call()
    else:
        assert call() is not None


def registered_with(**options: Any) -> type:
    return tree_dataclasses.make_dataclass("Newer", [("a", int)], namespace=SPACE, **options)


# ---- register_dataclass ------------------------------------------------------------------------


def test_register_dataclass_by_names() -> None:
    @dataclasses.dataclass
    class Layer:
        weight: Any
        name: str
        cache: Any = None

    result = treeops.register_dataclass(Layer, ["weight"], ["name"], ["cache"], namespace=SPACE)
    assert result is Layer
    layer = treeops.tree_map(lambda v: -v, Layer(1, "n", 5), namespace=SPACE)
    assert layer == Layer(-1, "n", None)
    assert treeops.tree_paths(layer, namespace=SPACE) == [("weight",)]


def test_register_dataclass_by_fields() -> None:
    @dataclasses.dataclass
    class Auto:
        a: Any
        b: Any = dataclasses.field(default=0, metadata={"static": True})
        c: Any = dataclasses.field(default=0, metadata={"pytree_node": False})
        d: Any = 7

    treeops.register_dataclass(Auto, drop_fields=["d"])
    assert treeops.tree_leaves(Auto(1, 2, 3, 4)) == [1]
    assert treeops.tree_map(lambda v: -v, Auto(1, 2, 3, 4)) == Auto(-1, 2, 3, 7)


def test_register_dataclass_of_another_class() -> None:
    class Bag:
        def __init__(self, items: Any, label: str) -> None:
            self.items, self.label = items, label

    treeops.register_dataclass(Bag, ["items"], ["label"], namespace=SPACE)
    bag = treeops.tree_map(lambda v: v + 1, Bag([1, 2], "l"), namespace=SPACE)
    assert (bag.items, bag.label) == ([2, 3], "l")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3,), TypeError, "register_dataclass: expected a class, got int"),
        ((int,), TypeError, "expected a dataclass, got the class int; pass data_fields"),
        ((bare(), ["a"]), ValueError, "expected both or neither"),
        ((bare(), ["a", "b"], []), ValueError, r"missing \[\], extra \['b'\], twice \[\]"),
        ((bare(), [], []), ValueError, r"missing \['a'\]"),
        ((bare(), ["a"], ["a"]), ValueError, r"twice \['a'\]"),
    ],
)
def test_register_dataclass_refuses(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        treeops.register_dataclass(*arguments)


def test_register_dataclass_needs_a_namespace_that_is_one() -> None:
    with pytest.raises(TypeError, match="expected namespace to be a str, got int"):
        treeops.register_dataclass(bare(), namespace=3)
