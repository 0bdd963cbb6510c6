# SPDX-License-Identifier: Apache-2.0
"""Every message, in full: who, expected, got, where, and never what a leaf holds."""

from __future__ import annotations

import dataclasses
import re
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from typing import Any

import pytest

import treeops
import treeops.dataclasses
import treeops.functools

Pair = namedtuple("Pair", ["left", "right"])
Trio = namedtuple("Trio", ["a", "b", "c"])
SPACE = "errors"


class Node:
    """Flattens to whatever it is given."""

    def __init__(self, parts: Any) -> None:
        self.parts = parts


@dataclasses.dataclass
class Plain:
    x: Any
    y: Any


class Secret:
    def __repr__(self) -> str:
        raise AssertionError("a message shows what a leaf holds")


@pytest.fixture(scope="module", autouse=True)
def registered() -> Any:
    treeops.register_pytree_node(
        Node, lambda node: node.parts, lambda metadata, children: Node(children), namespace=SPACE
    )
    yield
    treeops.unregister_pytree_node(Node, namespace=SPACE)


class Registering(type):
    """Changes the registry whenever a class is looked at."""

    def __getattribute__(cls, name: str) -> Any:
        if name == "_fields":
            treeops.register_pytree_node(Secret, tuple, tuple, namespace=SPACE)
            treeops.unregister_pytree_node(Secret, namespace=SPACE)
        return super().__getattribute__(name)


Restless = Registering("Restless", (tuple,), {})


class Clearing:
    """A key that empties its dict when it is compared."""

    def __init__(self, owner: dict[Any, Any]) -> None:
        self.owner = owner

    def __lt__(self, other: Clearing) -> bool:
        self.owner.clear()
        return False


def clearing(value: Any) -> dict[Any, Any]:
    tree: dict[Any, Any] = {}
    tree.update({Clearing(tree): value, Clearing(tree): value})
    return tree


def keep(*leaves: Any) -> Any:
    return leaves


def self_containing() -> list[Any]:
    tree: list[Any] = []
    tree.append(tree)
    return tree


def custom(parts: Any) -> Callable[[], Any]:
    return lambda: treeops.tree_flatten([Node(parts)], namespace=SPACE)


def pair_of_maps(first: Any, second: Any, **options: Any) -> Callable[[], Any]:
    return lambda: treeops.tree_map(keep, first, second, **options)


def hash_of(tree: Any) -> Callable[[], Any]:
    return lambda: hash(treeops.tree_structure(tree, namespace=SPACE))


def bad_truth(node: Any) -> Any:
    class Undecided:
        def __bool__(self) -> bool:
            raise LookupError("undecided")

    return Undecided()


def damaged(tree: Any, position: int, part: Any) -> Callable[[], Any]:
    """Makes a treespec of its pickle with one part of the root replaced."""

    def call() -> Any:
        treespec = treeops.tree_structure(tree, namespace=SPACE)
        rebuild, (version, none_is_leaf, space, nodes) = treespec.__reduce__()
        root = (*nodes[0][:position], part, *nodes[0][position + 1 :])
        return rebuild(version, none_is_leaf, space, (root, *nodes[1:]))

    return call


def none_node_among_none_leaves() -> Any:
    rebuild, (version, _, space, nodes) = treeops.tree_structure(None).__reduce__()
    return rebuild(version, True, space, nodes)


def pickled(what: str) -> str:
    return (
        f"PyTreeSpec: expected a pickle made by treeops, got one with {what}; it is damaged or was "
        "not made by PyTreeSpec.__reduce__"
    )


NODE = f"{Node.__module__}.Node"
PAIR = f"{Pair.__module__}.Pair"
TWO = {"a": 1, "b": 2}
DIFFERS = "tree_map: argument 2 differs from argument 1 at "

CASES = [
    # mismatched trees
    (
        pair_of_maps({"enc": [(1, 2)]}, {"enc": [[1, 2]]}),
        ValueError,
        DIFFERS + "['enc'][0]: expected tuple of 2, got list of 2",
    ),
    (
        lambda: treeops.tree_map(keep, [1, [2]], [1, [2]], [1, [2, 3]]),
        ValueError,
        "tree_map: argument 3 differs from argument 1 at [1]: expected list of 1, got list of 2",
    ),
    (
        lambda: treeops.tree_map_(keep, [1], (1,)),
        ValueError,
        "tree_map_: argument 2 differs from argument 1 at the root: "
        "expected list of 1, got tuple of 1",
    ),
    (
        lambda: treeops.tree_map_with_path(keep, [1], 2),
        ValueError,
        "tree_map_with_path: argument 2 differs from argument 1 at the root: "
        "expected list of 1, got int",
    ),
    (
        pair_of_maps([[1]], [Secret()]),
        ValueError,
        DIFFERS + f"[0]: expected list of 1, got {Secret.__module__}.Secret",
    ),
    (
        pair_of_maps(None, Secret()),
        ValueError,
        DIFFERS + f"the root: expected None, got {Secret.__module__}.Secret",
    ),
    (pair_of_maps([()], [None]), ValueError, DIFFERS + "[0]: expected tuple of 0, got None"),
    (
        pair_of_maps({"x": Pair(1, [2])}, {"x": Pair(1, 3)}),
        ValueError,
        DIFFERS + "['x'].right: expected list of 1, got int",
    ),
    (
        pair_of_maps(Pair(1, 2), (1, 2)),
        ValueError,
        DIFFERS + f"the root: expected {PAIR} of 2, got tuple of 2",
    ),
    (
        pair_of_maps(Pair(1, 2), namedtuple("Pair", "left right", module=Pair.__module__)(1, 2)),
        ValueError,
        DIFFERS + f"the root: expected {PAIR} of 2, got another type of the same name",
    ),
    (
        pair_of_maps({"x": TWO}, {"x": {"a": 1, "c": 2}}),
        ValueError,
        DIFFERS + "['x']: expected dict of 2, got dict of 2 (missing keys ['b'], extra keys ['c'])",
    ),
    (
        pair_of_maps(OrderedDict(a=1), {"a": 1, "b": 2}),
        ValueError,
        DIFFERS + "the root: expected collections.OrderedDict of 1, got dict of 2 "
        "(missing keys [], extra keys ['b'])",
    ),
    (
        pair_of_maps({}, dict.fromkeys(range(20))),
        ValueError,
        DIFFERS + "the root: expected dict of 0, got dict of 20 "
        "(missing keys [], extra keys [0, 1, 2, 3, 4, 5, 6, 7, ...])",
    ),
    (
        pair_of_maps(defaultdict(int, a=[1]), {"a": 1}),
        ValueError,
        DIFFERS + "['a']: expected list of 1, got int",
    ),
    (
        pair_of_maps({"k" * 200: [1]}, {"k" * 200: 1}),
        ValueError,
        DIFFERS + "['" + "k" * 79 + "...]: expected list of 1, got int",
    ),
    (
        pair_of_maps(deque([1, 2]), deque([1])),
        ValueError,
        DIFFERS + "the root: expected collections.deque of 2, got collections.deque of 1",
    ),
    (
        pair_of_maps(Node([(1,), "m"]), Node([(1, 2), "m"]), namespace=SPACE),
        ValueError,
        DIFFERS + f"the root: expected {NODE} of 1, got {NODE} of 2",
    ),
    (
        pair_of_maps(Node([(1,), "m"]), Node([(1,), "n"]), namespace=SPACE),
        ValueError,
        DIFFERS + f"the root: expected {NODE} of 1, got {NODE} with other metadata",
    ),
    (
        pair_of_maps([Node([([1],), "m", ["child"]])], [Node([(1,), "m"])], namespace=SPACE),
        ValueError,
        DIFFERS + "[0]['child']: expected list of 1, got int",
    ),
    (
        lambda: treeops.tree_structure([1, [2]]).flatten_up_to([1, (2,)]),
        ValueError,
        "PyTreeSpec.flatten_up_to: tree differs from the treespec at [1]: "
        "expected list of 1, got tuple of 1",
    ),
    # functions of several trees number them
    (
        lambda: treeops.broadcast_common({"a": [1]}, {"a": (1, 2)}),
        ValueError,
        "broadcast_common: argument 2 differs from argument 1 at ['a']: "
        "expected list of 1, got tuple of 2",
    ),
    (
        lambda: treeops.tree_broadcast_common({"a": 1}, {"b": 1}),
        ValueError,
        "tree_broadcast_common: argument 2 differs from argument 1 at the root: "
        "expected dict of 1, got dict of 1 (missing keys ['a'], extra keys ['b'])",
    ),
    (
        lambda: treeops.tree_broadcast_map(max, [1, (2,)], [1, 2], [1, [2]]),
        ValueError,
        "tree_broadcast_map: argument 3 differs from the arguments before it at [1]: "
        "expected tuple of 1, got list of 1",
    ),
    (
        lambda: treeops.tree_broadcast_map_with_path(max, [1], (1,)),
        ValueError,
        "tree_broadcast_map_with_path: argument 2 differs from argument 1 at the root: "
        "expected list of 1, got tuple of 1",
    ),
    (
        lambda: treeops.tree_broadcast_map_with_accessor(max, [1], [1, 2]),
        ValueError,
        "tree_broadcast_map_with_accessor: argument 2 differs from argument 1 at the root: "
        "expected list of 1, got list of 2",
    ),
    (
        lambda: treeops.tree_transpose_map(max, [1, [2]], [1, [2]], [1, (2,)]),
        ValueError,
        "tree_transpose_map: argument 3 differs from argument 1 at [1]: "
        "expected list of 1, got tuple of 1",
    ),
    (
        lambda: treeops.tree_transpose_map_with_path(lambda path, x: [x] * x, [1, 2]),
        ValueError,
        "tree_transpose_map_with_path: result 2 differs from the first at the root: "
        "expected list of 1, got list of 2",
    ),
    (
        lambda: treeops.tree_transpose_map_with_accessor(
            lambda accessor, x: {"a": x},
            [1],
            inner_treespec=treeops.tree_structure({"a": (1,)}),
        ),
        ValueError,
        "tree_transpose_map_with_accessor: result 1 differs from inner_treespec at ['a']: "
        "expected tuple of 1, got int",
    ),
    (
        lambda: treeops.tree_structure([1]).broadcast_to_common_suffix(
            treeops.tree_structure((1,))
        ),
        ValueError,
        "PyTreeSpec.broadcast_to_common_suffix: other differs from self at the root: "
        "expected list of 1, got tuple of 1",
    ),
    # leaves that do not fit
    (
        lambda: treeops.tree_unflatten(treeops.tree_structure([1, 2]), [1]),
        ValueError,
        "tree_unflatten: expected 2 leaves, got 1",
    ),
    (
        lambda: treeops.tree_structure([1, 2]).unflatten((1, 2, 3)),
        ValueError,
        "PyTreeSpec.unflatten: expected 2 leaves, got 3",
    ),
    (
        lambda: treeops.tree_unflatten(treeops.tree_structure([1, 2]), iter([1])),
        ValueError,
        "tree_unflatten: expected 2 leaves, got 1",
    ),
    (
        lambda: treeops.tree_unflatten(treeops.tree_structure([1, 2]), iter([1, 2, 3, 4])),
        ValueError,
        "tree_unflatten: expected 2 leaves, got more",
    ),
    (
        lambda: treeops.tree_unflatten(treeops.tree_structure([1, 2]), 3),
        TypeError,
        "tree_unflatten: expected leaves to be iterable, got int",
    ),
    (
        lambda: treeops.tree_unflatten([1], treeops.tree_structure([1])),
        TypeError,
        "tree_unflatten: expected treespec to be a PyTreeSpec, got list of 1",
    ),
    (
        lambda: treeops.tree_unflatten(treeops.tree_structure(1)),
        TypeError,
        "tree_unflatten: expected treespec and leaves, got 1 arguments",
    ),
    (
        lambda: treeops.tree_unflatten(treeops.tree_structure(1), leaf=[1]),
        TypeError,
        "tree_unflatten: expected treespec and leaves, each once, got keyword 'leaf'",
    ),
    # arguments
    (
        lambda: treeops.tree_flatten(),
        TypeError,
        "tree_flatten: expected positional arguments tree, is_leaf, got 0 of them",
    ),
    (
        lambda: treeops.tree_leaves(1, None, True),
        TypeError,
        "tree_leaves: expected at most 2 positional arguments (tree, is_leaf), got 3",
    ),
    (
        lambda: treeops.tree_structure(tree=1),
        TypeError,
        "tree_structure: expected positional arguments tree, is_leaf, got 0 of them",
    ),
    (
        lambda: treeops.tree_flatten(1, leaf=None),
        TypeError,
        "tree_flatten: expected keywords is_leaf, none_is_leaf, namespace, got 'leaf'",
    ),
    (
        lambda: treeops.tree_flatten(1, None, is_leaf=None),
        TypeError,
        "tree_flatten: expected is_leaf once, got it by position and by name",
    ),
    (
        lambda: treeops.tree_flatten(1, 5),
        TypeError,
        "tree_flatten: expected is_leaf to be callable or None, got int",
    ),
    (
        lambda: treeops.tree_leaves(1, namespace=5),
        TypeError,
        "tree_leaves: expected namespace to be a str, got int",
    ),
    (lambda: treeops.tree_leaves(1, bad_truth), LookupError, "undecided"),
    (
        lambda: treeops.tree_map(keep),
        TypeError,
        "tree_map: expected positional arguments func, tree, *rests, got 1 of them",
    ),
    (lambda: treeops.tree_map(5, []), TypeError, "tree_map: expected func to be callable, got int"),
    (
        lambda: treeops.tree_reduce(keep, []),
        TypeError,
        "tree_reduce: expected a tree with leaves, got one without; pass an initial value",
    ),
    # treespecs
    (
        lambda: treeops.PyTreeSpec(),
        TypeError,
        "PyTreeSpec.__new__: expected a tree to take the structure of, got a direct call; "
        "call treeops.tree_structure(tree)",
    ),
    (
        lambda: treeops.PyTreeSpec.__new__(treeops.PyTreeSpec),
        TypeError,
        "PyTreeSpec.__new__: expected a tree to take the structure of, got a direct call; "
        "call treeops.tree_structure(tree)",
    ),
    (
        hash_of(Node([(), [1]])),
        TypeError,
        f"PyTreeSpec.__hash__: expected hashable metadata of custom node {NODE}, got list of 1; "
        "return hashable metadata from its flatten function",
    ),
    # depth
    (
        lambda: treeops.tree_flatten(self_containing()),
        RecursionError,
        "tree_flatten: expected a tree at most 1000 deep, got a deeper one; it may contain itself",
    ),
    # flatten functions that return junk
    (
        custom(None),
        TypeError,
        f"tree_flatten: expected the flatten function of {NODE} to return "
        "(children, metadata) or (children, metadata, entries), got None",
    ),
    (
        custom(([],)),
        RuntimeError,
        f"tree_flatten: expected the flatten function of {NODE} to return "
        "(children, metadata) or (children, metadata, entries), got 1 items",
    ),
    (
        custom((5, None)),
        TypeError,
        f"tree_flatten: expected the flatten function of {NODE} to return "
        "an iterable of children, got int",
    ),
    (
        custom(([1], None, 5)),
        TypeError,
        f"tree_flatten: expected the flatten function of {NODE} to return "
        "an iterable of entries or None, got int",
    ),
    (
        custom(([1], None, (1, 2))),
        RuntimeError,
        f"tree_flatten: expected the flatten function of {NODE} to return one entry per child, "
        "got 1 children and 2 entries",
    ),
    # damaged pickles
    (
        damaged([1], 1, "1"),
        ValueError,
        pickled("a number of children that is no int"),
    ),
    (
        damaged([1], 1, 2**32),
        OverflowError,
        "PyTreeSpec: expected fewer than 2**32 nodes, got more",
    ),
    (
        damaged(Pair(1, 2), 2, "Pair"),
        ValueError,
        pickled("a node class that is no class"),
    ),
    (
        damaged(Pair(1, 2), 2, tuple),
        ValueError,
        pickled("a class that is no namedtuple or struct sequence any more"),
    ),
    (
        none_node_among_none_leaves,
        ValueError,
        pickled("a None node where None is a leaf"),
    ),
    (
        damaged({"a": 1}, 2, 1),
        ValueError,
        pickled("a mark of order that is not True"),
    ),
    (
        damaged(deque([1]), 2, "3"),
        ValueError,
        pickled("a maxlen that is no int"),
    ),
    (
        damaged(Node([(1,), "m"]), 4, ("a", "b")),
        ValueError,
        pickled("entries that do not match the children"),
    ),
    # trees and registries that change
    (
        lambda: list(treeops.tree_iter(clearing(1))),
        RuntimeError,
        "tree_iter: expected the tree to stay as it is while it is walked, got a mapping that "
        "changed; do not change containers in comparisons of keys",
    ),
    (
        lambda: treeops.tree_leaves(Restless()),
        RuntimeError,
        "treeops: expected the registry to stay as it is while a class is looked at, got a change "
        f"each time {Restless.__module__}.Restless was; do not register nodes in a metaclass",
    ),
    # one level
    (
        lambda: treeops.register_pytree_node.get(type(None)).unflatten_func(None, [1]),
        ValueError,
        "unflatten_func of None: expected no children, got 1",
    ),
    (
        lambda: treeops.GetItemEntry(0, int, treeops.PyTreeKind.LEAF),
        ValueError,
        "GetItemEntry: expected a kind of node that has children, got LEAF",
    ),
    (
        lambda: treeops.FlattenedEntry(0, Node, treeops.PyTreeKind.CUSTOM)(Node(())),
        TypeError,
        "FlattenedEntry: expected a node whose children are got by [...], got Node; "
        "give its class a path_entry_type",
    ),
    (
        lambda: treeops.keystr(3),
        TypeError,
        "keystr: expected an accessor or a path, got int",
    ),
    # classes
    (
        lambda: treeops.register_dataclass(Node, ["parts"]),
        ValueError,
        "register_dataclass: expected both or neither of data_fields and meta_fields, got one",
    ),
    (
        lambda: treeops.register_dataclass(Plain, ["x"], ["x", "z"]),
        ValueError,
        "register_dataclass: expected data_fields and meta_fields to name each field of Plain "
        "once, got missing ['y'], extra ['z'], twice ['x']",
    ),
    (
        lambda: treeops.register_dataclass(int, [], []),
        TypeError,
        "register_dataclass: expected a class that can be changed, got int; make a subclass of it",
    ),
    (
        lambda: treeops.dataclasses.dataclass(int, namespace=SPACE),
        TypeError,
        "dataclass: expected a class that can be changed, got int; make a subclass of it",
    ),
    (
        lambda: treeops.functools.partial(3),
        TypeError,
        "partial: expected func to be callable, got int",
    ),
    (
        lambda: treeops.typing.StructSequence((1,)),
        TypeError,
        "StructSequence: expected no instance; it describes classes written in C",
    ),
    (
        lambda: type("Sub", (treeops.typing.StructSequence,), {}),
        TypeError,
        "StructSequence: expected no subclass; it describes classes written in C",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), CASES, ids=[case[2][:60] for case in CASES])
def test_message(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        call()


def test_subclassing_is_refused() -> None:
    with pytest.raises(TypeError, match="not an acceptable base type"):
        type("Sub", (treeops.PyTreeSpec,), {})


def test_deepest_tree() -> None:
    tree: Any = 1
    for _ in range(treeops.MAX_RECURSION_DEPTH):
        tree = [tree]
    leaves, treespec = treeops.tree_flatten(tree)
    assert leaves == [1]
    assert treeops.tree_structure(treespec.unflatten(leaves)) == treespec
    assert treespec.flatten_up_to(tree) == [1]
    assert treeops.tree_leaves(treeops.tree_map(str, tree)) == ["1"]
    assert repr(treespec).count("[") == treeops.MAX_RECURSION_DEPTH
    with pytest.raises(RecursionError):
        treeops.tree_leaves([tree])
