# SPDX-License-Identifier: Apache-2.0
"""Custom node types and namespaces."""

from __future__ import annotations

import re
import time
from collections import OrderedDict, defaultdict, deque, namedtuple
from typing import Any

import pytest

import treeops
from treeops.registry import GLOBAL_NAMESPACE

Pair = namedtuple("Pair", ["left", "right"])
SPACE = "registry"


class Node:
    def __init__(self, *children: Any) -> None:
        self.children = children

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.children == self.children

    __hash__ = None


class SubNode(Node):
    pass


def flatten_node(node: Node) -> tuple[Any, Any]:
    return node.children, None


def flatten_reversed(node: Node) -> tuple[Any, Any]:
    return node.children[::-1], "reversed"


def unflatten_node(metadata: Any, children: Any) -> Node:
    return Node(*children[:: -1 if metadata == "reversed" else 1])


@pytest.fixture(autouse=True)
def clean() -> Any:
    yield
    for space in (SPACE, "other", GLOBAL_NAMESPACE):
        for cls in (Node, SubNode, Pair):
            try:
                treeops.unregister_pytree_node(cls, namespace=space)
            except ValueError:
                continue


def register(**options: Any) -> Any:
    return treeops.register_pytree_node(Node, flatten_node, unflatten_node, **options)


def test_namespace_first_then_global() -> None:
    tree = Node(1, [2])
    assert treeops.tree_leaves(tree) == [tree]
    assert register(namespace=SPACE) is Node
    assert treeops.tree_leaves(tree) == [tree]
    assert treeops.tree_leaves(tree, namespace="other") == [tree]
    assert treeops.tree_leaves(tree, namespace=SPACE) == [1, 2]
    treeops.register_pytree_node(Node, flatten_reversed, unflatten_node, namespace=GLOBAL_NAMESPACE)
    assert treeops.tree_leaves(tree, namespace=SPACE) == [1, 2]
    assert treeops.tree_leaves(tree, namespace="other") == [2, 1]
    assert treeops.tree_leaves(tree) == [2, 1]
    assert treeops.tree_map(str, tree) == Node("1", ["2"])
    treeops.unregister_pytree_node(Node, namespace=SPACE)
    assert treeops.tree_leaves(tree, namespace=SPACE) == [2, 1]
    treeops.unregister_pytree_node(Node, namespace=GLOBAL_NAMESPACE)
    assert treeops.tree_leaves(tree, namespace=SPACE) == [tree]


def test_subclasses_are_not_included() -> None:
    register(namespace=SPACE)
    tree = SubNode(1)
    assert treeops.tree_leaves(tree, namespace=SPACE) == [tree]


def test_treespecs_outlive_the_registration() -> None:
    register(namespace=SPACE)
    leaves, treespec = treeops.tree_flatten(Node(1, 2), namespace=SPACE)
    treeops.unregister_pytree_node(Node, namespace=SPACE)
    assert treespec.unflatten(leaves) == Node(1, 2)
    assert treespec.flatten_up_to(Node(3, 4)) == [3, 4]


def test_removed_entry() -> None:
    register(namespace=SPACE)
    entry = treeops.unregister_pytree_node(Node, namespace=SPACE)
    assert entry == (Node, flatten_node, unflatten_node, SPACE)


def test_a_namedtuple_may_be_overridden() -> None:
    with pytest.warns(UserWarning, match="^register_pytree_node: Pair is a namedtuple, a node"):
        treeops.register_pytree_node(
            Pair,
            lambda pair: ((pair.left,), pair.right),
            lambda right, children: Pair(*children, right),
            namespace=SPACE,
        )
    assert treeops.tree_leaves(Pair(1, 2)) == [1, 2]
    assert treeops.tree_leaves(Pair(1, 2), namespace=SPACE) == [1]
    assert treeops.tree_map(str, Pair(1, 2), namespace=SPACE) == Pair("1", 2)


def test_children_of_any_iterable_and_entries() -> None:
    treeops.register_pytree_node(
        Node,
        lambda node: [iter(node.children), None, (f"part{i}" for i in range(len(node.children)))],
        unflatten_node,
        namespace=SPACE,
    )
    tree = {"a": Node(1, [2])}
    assert treeops.tree_paths(tree, namespace=SPACE) == [("a", "part0"), ("a", "part1", 0)]
    assert treeops.tree_map(str, tree, namespace=SPACE) == {"a": Node("1", ["2"])}


def test_unflatten_gets_a_tuple() -> None:
    got: list[Any] = []
    treeops.register_pytree_node(
        Node, flatten_node, lambda *arguments: got.append(arguments), namespace=SPACE
    )
    treeops.tree_map(str, Node(1, 2), namespace=SPACE)
    assert got == [(None, ("1", "2"))]


@pytest.mark.parametrize(
    "names",
    [("__tree_flatten__", "__tree_unflatten__"), ("tree_flatten", "tree_unflatten")],
)
@pytest.mark.parametrize(
    "decorate",
    [
        treeops.register_pytree_node_class("by class"),
        treeops.register_pytree_node_class(namespace="by class"),
        lambda cls: treeops.register_pytree_node_class(cls, namespace="by class"),
    ],
    ids=["positional", "keyword", "call"],
)
def test_by_class(names: tuple[str, str], decorate: Any) -> None:
    made = type(
        "Made",
        (Node,),
        {
            names[0]: lambda self: (self.children, None),
            names[1]: classmethod(lambda cls, metadata, children: cls(*children)),
        },
    )
    assert decorate(made) is made
    assert treeops.tree_map(str, made(1, 2), namespace="by class") == made("1", "2")
    treeops.unregister_pytree_node(made, namespace="by class")


CASES = [
    (lambda: register(namespace=SPACE) and register(namespace=SPACE), ValueError,
     f"register_pytree_node: expected a type not yet registered, got {Node.__module__}.Node, which "
     "is already registered in namespace 'registry'; call unregister_pytree_node first to replace "
     "it"),
    (lambda: register(namespace=GLOBAL_NAMESPACE) and register(namespace=GLOBAL_NAMESPACE),
     ValueError,
     f"register_pytree_node: expected a type not yet registered, got {Node.__module__}.Node, which "
     "is already registered in the global namespace; call unregister_pytree_node first to replace "
     "it"),
    (lambda: register(namespace=""), ValueError,
     "register_pytree_node: expected a non-empty namespace, got ''; "
     "pass treeops.registry.GLOBAL_NAMESPACE to register for everyone"),
    (lambda: register(namespace=5), TypeError,
     "register_pytree_node: expected namespace to be a str, got int"),
    (lambda: treeops.register_pytree_node(5, flatten_node, unflatten_node, namespace=SPACE),
     TypeError, "register_pytree_node: expected a class, got int"),
    (lambda: treeops.register_pytree_node(Node, 5, unflatten_node, namespace=SPACE), TypeError,
     "register_pytree_node: expected flatten_func to be callable, got int"),
    (lambda: treeops.register_pytree_node(Node, flatten_node, None, namespace=SPACE), TypeError,
     "register_pytree_node: expected unflatten_func to be callable, got NoneType"),
    (lambda: treeops.unregister_pytree_node(Node, namespace=SPACE), ValueError,
     "unregister_pytree_node: expected a type registered in namespace 'registry', "
     f"got {Node.__module__}.Node, which is not"),
    (lambda: treeops.unregister_pytree_node(5, namespace=SPACE), TypeError,
     "unregister_pytree_node: expected a class, got int"),
    (lambda: treeops.unregister_pytree_node(list, namespace=SPACE), ValueError,
     "unregister_pytree_node: expected a registered custom type, got the built-in container list; "
     "it cannot be unregistered"),
    (lambda: treeops.register_pytree_node_class(Node, namespace=SPACE), TypeError,
     "register_pytree_node_class: expected Node to define __tree_flatten__ and "
     "__tree_unflatten__, got a class without them"),
    (lambda: treeops.register_pytree_node_class(Node), ValueError,
     "register_pytree_node_class: expected a namespace, got none; pass namespace=..."),
    (lambda: treeops.register_pytree_node_class("a", namespace="b"), ValueError,
     "register_pytree_node_class: expected one namespace, got two"),
    (lambda: treeops.register_pytree_node_class(""), ValueError,
     "register_pytree_node_class: expected a non-empty namespace, got ''; "
     "pass treeops.registry.GLOBAL_NAMESPACE to register for everyone"),
    (lambda: treeops.register_pytree_node_class(5, namespace="a"), TypeError,
     "register_pytree_node_class: expected a class, got int"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), CASES, ids=[case[2][:70] for case in CASES])
def test_message(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        call()


@pytest.mark.parametrize("cls", [tuple, list, dict, OrderedDict, defaultdict, deque, type(None)])
def test_builtin_containers_cannot_be_registered(cls: type) -> None:
    message = "^register_pytree_node: expected a type treeops does not know yet, got the built-in"
    with pytest.raises(ValueError, match=message):
        treeops.register_pytree_node(cls, flatten_node, unflatten_node, namespace=SPACE)


def test_a_struct_sequence_may_be_overridden() -> None:
    with pytest.warns(UserWarning, match="is a struct sequence"):
        treeops.register_pytree_node(
            time.struct_time,
            lambda moment: (tuple(moment)[:1], tuple(moment)[1:]),
            lambda rest, children: time.struct_time((*children, *rest)),
            namespace=SPACE,
        )
    assert treeops.tree_leaves(time.struct_time(range(9)), namespace=SPACE) == [0]
    treeops.unregister_pytree_node(time.struct_time, namespace=SPACE)
