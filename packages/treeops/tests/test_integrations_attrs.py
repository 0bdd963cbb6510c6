# SPDX-License-Identifier: Apache-2.0
"""Classes made by attrs as nodes, against OpTree."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

attrs = pytest.importorskip("attrs", reason="needs attrs: pip install attrs")

import optree  # noqa: E402
import optree.integrations.attrs  # noqa: E402

import treeops  # noqa: E402
import treeops.integrations.attrs as tree_attrs  # noqa: E402

LIBRARIES = (treeops, optree)
SPACE = "test-attrs"


def integration(library: Any) -> Any:
    return importlib.import_module(f"{library.__name__}.integrations.attrs")


def defined(library: Any) -> Any:
    a = integration(library)

    @a.define(namespace=SPACE)
    class Defined:
        b: Any
        _private: Any
        tag: str = a.field(default="t", pytree_node=False)
        _level: int = a.field(default=3, metadata={"pytree_node": False})
        made: Any = a.field(init=False, default=0, pytree_node=False)

    return Defined([1, 2], private=(3, None), level=4)


def frozen(library: Any) -> Any:
    a = integration(library)

    @a.frozen(namespace=SPACE)
    class Frozen:
        only: Any = a.field(converter=lambda value: value)

    return Frozen(5)


def made(library: Any) -> Any:
    return integration(library).make_class("Made", ["a", "b"], namespace=SPACE)(1, {"k": 2})


def registered(library: Any) -> Any:
    @integration(library).register_node(SPACE)
    @attrs.define
    class Registered:
        a: Any

    return Registered(1)


def for_everyone(library: Any) -> Any:
    @integration(library).define(namespace="")
    class ForEveryone:
        a: Any

    return ForEveryone([1])


@pytest.mark.parametrize("make", [defined, frozen, made, registered, for_everyone])
def test_nodes_as_in_optree(make: Any) -> None:
    views = []
    for library in LIBRARIES:
        tree = make(library)
        accessors, leaves, spec = library.tree_flatten_with_accessor(tree, namespace=SPACE)
        again = library.tree_unflatten(spec, leaves)
        views.append(
            (
                leaves,
                repr(spec),
                [
                    (repr(a).replace("optree.integrations.attrs", __name__), a(tree))
                    for a in accessors
                ],
                [a.codify("node") for a in accessors],
                again == tree,
                repr(library.tree_map(lambda leaf: [leaf], tree, namespace=SPACE)),
            )
        )
    assert views[0] == views[1]


def test_a_made_class_belongs_to_its_maker() -> None:
    assert type(made(treeops)).__module__ == __name__


def test_entries_by_position_name_the_children() -> None:
    node = defined(treeops)
    kind = treeops.PyTreeKind.CUSTOM
    entry = tree_attrs.AttrsEntry(1, type(node), kind)
    assert entry.field == entry.name == "_private"
    assert entry.children_fields == ("b", "_private")
    assert entry.fields == ("b", "_private", "tag", "_level", "made")
    assert entry.init_fields == ("b", "_private", "tag", "_level")
    assert entry(node) == (3, None)
    assert repr(entry).startswith("AttrsEntry(field='_private', type=<class")


def test_the_names_are_those_of_optree() -> None:
    theirs = optree.integrations.attrs
    assert set(theirs.__all__) == set(tree_attrs.__all__)
    assert tree_attrs.mutable is tree_attrs.define
    assert tree_attrs.asdict is attrs.asdict


REFUSALS = [
    (lambda a: a.define(3, namespace=SPACE), TypeError, "define: expected a class, got int"),
    (lambda a: a.register_node(3, namespace=SPACE), TypeError, "expected a class, got int"),
    (lambda a: a.register_node(int, namespace=SPACE), TypeError, "expected an attrs class"),
    (lambda a: a.register_node(attrs.make_class("A", [])), ValueError, "namespace, got none"),
    (lambda a: a.register_node("a", namespace="b"), ValueError, "one namespace, got two"),
    (lambda a: a.register_node(""), ValueError, "non-empty namespace"),
    (lambda a: a.make_class("A", [], namespace=3), TypeError, "namespace to be a str, got int"),
    (lambda a: a.field(init=False), TypeError, "field: expected a child to be an argument"),
    (
        lambda a: a.register_node(a.make_class("A", ["x"], namespace=SPACE), namespace="n"),
        TypeError,
        "not registered, got A",
    ),
    (
        lambda a: a.make_class("A", {"x": attrs.field(init=False)}, namespace=SPACE),
        TypeError,
        "expected the child x of A to be an argument",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSALS)
def test_refused_as_by_optree(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(tree_attrs)
    with pytest.raises(error):
        call(optree.integrations.attrs)


def test_a_class_with_its_own_constructor_warns() -> None:
    for library in LIBRARIES:
        with pytest.warns(UserWarning, match=r"init=False|not the one attrs makes"):

            @integration(library).define(namespace=SPACE, init=False)
            class NoInit:
                a: int
