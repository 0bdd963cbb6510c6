# SPDX-License-Identifier: Apache-2.0
"""Custom node types and namespaces."""

from __future__ import annotations

import pickle
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
    kind = treeops.PyTreeKind.CUSTOM
    assert entry == (Node, flatten_node, unflatten_node, treeops.AutoEntry, kind, SPACE)


class Named(treeops.GetAttrEntry):
    pass


def test_path_entry_type() -> None:
    register(namespace=SPACE)
    register(namespace="other", path_entry_type=Named)
    tree = [Node(1)]
    assert [type(step) for step in treeops.tree_accessors(tree, namespace="other")[0]] == [
        treeops.SequenceEntry,
        Named,
    ]
    assert treeops.register_pytree_node.get(Node, namespace="other").path_entry_type is Named
    assert treeops.register_pytree_node.get(Node) is None


def test_path_entry_type_of_a_class() -> None:
    class Made(Node):
        TREE_PATH_ENTRY_TYPE = Named

        def __tree_flatten__(self) -> Any:
            return self.children, None

        __tree_unflatten__ = classmethod(lambda cls, metadata, children: cls(*children))

    for space, options, expected in (
        ("by attribute", {}, Named),
        ("by argument", {"path_entry_type": treeops.GetItemEntry}, treeops.GetItemEntry),
    ):
        treeops.register_pytree_node_class(Made, namespace=space, **options)
        (accessor,) = treeops.tree_accessors(Made(1), namespace=space)
        assert type(accessor[0]) is expected
        treeops.unregister_pytree_node(Made, namespace=space)


@pytest.mark.parametrize("namespace", ["", "other", SPACE])
def test_get_all(namespace: str) -> None:
    before = treeops.register_pytree_node.get(namespace=namespace)
    register(namespace=SPACE)
    after = treeops.register_pytree_node.get(namespace=namespace)
    assert set(after) - set(before) == ({Node} if namespace == SPACE else set())
    assert {list, dict, namedtuple, OrderedDict, defaultdict, deque, type(None)} < set(before)
    assert all(entry.type is cls for cls, entry in after.items())


@pytest.mark.parametrize(
    ("cls", "kind"),
    [
        (type(None), "NONE"),
        (tuple, "TUPLE"),
        (Pair, "NAMEDTUPLE"),
        (namedtuple, "NAMEDTUPLE"),
        (time.struct_time, "STRUCTSEQUENCE"),
    ],
)
def test_get_builtin(cls: Any, kind: str) -> None:
    assert treeops.register_pytree_node.get(cls).kind.name == kind


def test_insertion_ordered_dicts() -> None:
    tree = {"b": 1, "a": [{"d": 2, "c": 3}]}
    with treeops.dict_insertion_ordered(True, namespace=SPACE):
        leaves, treespec = treeops.tree_flatten(tree, namespace=SPACE)
        assert leaves == [1, 2, 3] == list(treeops.tree_iter(tree, namespace=SPACE))
        assert treeops.tree_leaves(tree) == [3, 2, 1]
        with treeops.dict_insertion_ordered(False, namespace=SPACE):
            assert treeops.tree_leaves(tree, namespace=SPACE) == [3, 2, 1]
        assert treeops.tree_leaves(tree, namespace=SPACE) == [1, 2, 3]
    assert treeops.tree_leaves(tree, namespace=SPACE) == [3, 2, 1]
    assert list(treespec.unflatten(leaves)) == ["b", "a"]
    assert treespec.unflatten(leaves) == tree
    assert treespec.flatten_up_to({"a": [{"c": 3, "d": 2}], "b": 1}) == [1, 2, 3]
    assert treespec.paths() == [("b",), ("a", 0, "d"), ("a", 0, "c")]
    assert treespec != treeops.tree_structure(tree)
    assert treespec <= treeops.tree_structure(tree)
    assert pickle.loads(pickle.dumps(treespec)) == treespec
    with treeops.dict_insertion_ordered(True, namespace=GLOBAL_NAMESPACE):
        assert treeops.tree_leaves(tree) == [1, 2, 3]
        assert treeops.tree_leaves(defaultdict(int, b=1, a=2), namespace="any") == [1, 2]


def test_insertion_order_ends_with_an_error() -> None:
    with pytest.raises(LookupError), treeops.dict_insertion_ordered(True, namespace=SPACE):
        raise LookupError
    assert treeops.tree_leaves({"b": 1, "a": 2}, namespace=SPACE) == [2, 1]


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
    (lambda: register(namespace=SPACE, path_entry_type=int), TypeError,
     "register_pytree_node: expected path_entry_type to be a subclass of PyTreeEntry, got int"),
    (lambda: register(namespace=SPACE, path_entry_type=5), TypeError,
     "register_pytree_node: expected path_entry_type to be a subclass of PyTreeEntry, got int"),
    (lambda: treeops.register_pytree_node_class(Node, path_entry_type=5, namespace=SPACE),
     TypeError,
     "register_pytree_node_class: expected path_entry_type to be a subclass of PyTreeEntry, got "
     "int"),
    (lambda: treeops.register_pytree_node.get(5), TypeError,
     "register_pytree_node.get: expected a class, got int"),
    (lambda: treeops.register_pytree_node.get(list, namespace=5), TypeError,
     "register_pytree_node.get: expected namespace to be a str, got int"),
    (lambda: treeops.dict_insertion_ordered(True, namespace="").__enter__(), ValueError,
     "dict_insertion_ordered: expected a non-empty namespace, got ''; "
     "pass treeops.registry.GLOBAL_NAMESPACE to register for everyone"),
    (lambda: treeops.dict_insertion_ordered(True, namespace=5).__enter__(), TypeError,
     "dict_insertion_ordered: expected namespace to be a str, got int"),
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


def test_a_metaclass_that_changes_the_registry_gets_an_error():
    class Restless(type):
        @property
        def _fields(cls):
            fresh = type("Fresh", (), {})
            treeops.register_pytree_node(
                fresh, lambda _: ((), None), lambda _, __: fresh(), namespace="restless"
            )
            treeops.unregister_pytree_node(fresh, namespace="restless")
            return ("x",)

    class Odd(tuple, metaclass=Restless):
        __slots__ = ()

    message = "expected the registry to stay as it is while a class is looked at, got a change each"
    with pytest.raises(RuntimeError, match=message):
        treeops.tree_leaves([Odd((1,))])


def test_a_namedtuple_with_a_metaclass_is_built_by_calling_it():
    calls = []

    class Counting(type):
        def __call__(cls, *args):
            calls.append(args)
            return super().__call__(*args)

    class Point(namedtuple("Point", "x y"), metaclass=Counting):
        __slots__ = ()

    point = Point(1, 2)
    calls.clear()
    assert treeops.tree_map(lambda x: x + 1, point) == (2, 3)
    assert calls == [(2, 3)]
