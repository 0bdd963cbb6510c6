# SPDX-License-Identifier: Apache-2.0
"""Treespecs as values: comparison, hash, repr, pickle, copy."""

from __future__ import annotations

import copy
import pickle
import time
import weakref
from collections import OrderedDict, defaultdict, deque, namedtuple
from typing import Any

import pytest

import treeops

Pair = namedtuple("Pair", ["left", "right"])
OtherPair = namedtuple("Pair", ["left", "right"])
SPACE = "treespec"


class Node:
    def __init__(self, children: Any, metadata: Any = None, entries: Any = None) -> None:
        self.parts = (children, metadata, entries)


@pytest.fixture(scope="module", autouse=True)
def registered() -> Any:
    treeops.register_pytree_node(
        Node,
        lambda node: node.parts,
        lambda metadata, children: Node(children, metadata),
        namespace=SPACE,
    )
    yield
    treeops.unregister_pytree_node(Node, namespace=SPACE)


def structure(tree: Any, **options: Any) -> treeops.PyTreeSpec:
    return treeops.tree_structure(tree, namespace=SPACE, **options)


TREES = [
    1,
    None,
    (1, [2, ()]),
    {"b": [1, None], "a": 2},
    OrderedDict(b=1, a=2),
    defaultdict(list, {"b": 1, "a": 2}),
    deque([1, 2], maxlen=3),
    Pair(1, [2]),
    time.struct_time(range(9)),
    {3: 1, "x": 2, (1, 2): 3},
    Node([1, [2]], "metadata", ["first", "second"]),
    [Node((), ("a", 1))],
    {str(i): {"deep": [i]} for i in range(50)},
]


@pytest.mark.parametrize(
    ("first", "second", "equal"),
    [
        ({"a": 1, "b": 2}, {"b": 3, "a": 4}, True),
        (OrderedDict(a=1, b=2), OrderedDict(b=1, a=2), False),
        ({"a": 1}, OrderedDict(a=1), False),
        (defaultdict(list, a=1), defaultdict(int, a=1), False),
        (defaultdict(list, a=1), defaultdict(list, a=1), True),
        (deque([1]), deque([1], maxlen=1), False),
        (Pair(1, 2), OtherPair(1, 2), False),
        ([1], (1,), False),
        ([1, [2]], [[1], 2], False),
        (None, (), False),
        (Node([1], "a"), Node([1], "a"), True),
        (Node([1], "a"), Node([1], "b"), False),
        ({1: 0, 2: 0}, {2: 0, 1: 0}, True),
        ({1: 0}, {True: 0}, True),
    ],
)
def test_equality_and_hash(first: Any, second: Any, equal: bool) -> None:
    left, right = structure(first), structure(second)
    assert (left == right) is equal
    assert (left != right) is not equal
    assert (hash(left) == hash(right)) is equal


def test_none_is_leaf_and_namespace_count() -> None:
    assert treeops.tree_structure([1]) != treeops.tree_structure([1], none_is_leaf=True)
    assert treeops.tree_structure([1]) == treeops.tree_structure([1], namespace=SPACE)
    assert treeops.tree_structure([1], namespace=SPACE).namespace == ""
    assert structure(Node([])).namespace == SPACE
    assert treeops.tree_structure([1]) != [1]


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("none_is_leaf", [False, True])
@pytest.mark.parametrize("tree", TREES, ids=lambda tree: type(tree).__name__)
def test_pickle(tree: Any, none_is_leaf: bool, protocol: int) -> None:
    spec = structure(tree, none_is_leaf=none_is_leaf)
    loaded = pickle.loads(pickle.dumps(spec, protocol))
    assert loaded == spec
    assert hash(loaded) == hash(spec)
    assert repr(loaded) == repr(spec)
    assert loaded.paths() == spec.paths()
    for name in ("num_leaves", "num_nodes", "num_children", "none_is_leaf", "namespace", "type"):
        assert getattr(loaded, name) == getattr(spec, name)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
@pytest.mark.parametrize("tree", TREES, ids=lambda tree: type(tree).__name__)
def test_copy(tree: Any, copied: Any) -> None:
    spec = structure(tree)
    assert copied(spec) == spec


def test_pickle_keeps_the_order_of_dicts() -> None:
    leaves, spec = treeops.tree_flatten({"b": 1, "a": 2})
    assert list(pickle.loads(pickle.dumps(spec)).unflatten(leaves)) == ["b", "a"]


def test_deepcopy_copies_metadata() -> None:
    metadata = [1]
    spec = structure(Node([1], metadata))
    copied = copy.deepcopy(spec)
    metadata.append(2)
    assert copied == structure(Node([1], [1]))
    assert spec == structure(Node([1], [1, 2]))


def payload(spec: treeops.PyTreeSpec) -> tuple[Any, ...]:
    return spec.__reduce__()[1]


LEAF, LIST, DICT = 1, 4, 5
Point = namedtuple("Point", ["x", "y"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2, False, "", (LEAF,)), "of version 1, got version 2;"),
        ((10**5000, False, "", (LEAF,)), "a version that no release has"),
        ((True, False, "", (LEAF,)), "no version"),
        ((), "no version"),
        ((1, False, ""), "wrong number of fields"),
        ((1, 0, "", (LEAF,)), "fields of the wrong type"),
        ((1, False, "", ()), "too few nodes"),
        ((1, False, "", (LEAF, LEAF)), "too many nodes"),
        ((1, False, "", ((LIST, 2), LEAF)), "too few nodes"),
        ((1, False, "", ((LIST, -1),)), "out of range"),
        ((1, False, "", ((LIST, "2"),)), "no int"),
        ((1, False, "", ((LIST,),)), "the wrong number of parts"),
        ((1, False, "", (LIST,)), "the wrong number of parts"),
        ((1, False, "", ((LEAF,),)), "the wrong number of parts"),
        ((1, False, "", ((DICT, ("a",), True, 5), LEAF)), "the wrong number of parts"),
        ((1, False, "", ((),)), "a node of no kind"),
        ((1, False, "", (True,)), "a node kind that is no int"),
        ((1, False, "", (99,)), "unknown node kind"),
        ((1, False, "", ("x",)), "a node kind that is no int"),
        ((1, False, "", ((DICT, ["a"]), LEAF)), "keys that are no tuple"),
        ((1, False, "", ((DICT, ("a", "a")), LEAF, LEAF)), "a key that occurs twice"),
        ((1, True, "", (2,)), "None is a leaf"),
        ((1, False, "", ((6, 1, int), LEAF)), "no namedtuple"),
        ((1, False, "", ((6, 1, "int"), LEAF)), "no class"),
        ((1, False, "", ((6, 1, Point), LEAF)), "fields that its class does not have"),
        ((1, False, "", ((10, 1, time.struct_time), LEAF)), "fields that its class does not have"),
        ((1, False, "", ((8, ("a",), 5), LEAF)), "a default_factory that cannot be called"),
        ((1, False, "", ((9, 1, "3"), LEAF)), "a maxlen that is no int"),
        ((1, False, "", ((9, 1, True), LEAF)), "a maxlen that is no int"),
        ((1, False, "", ((9, 2, 1), LEAF, LEAF)), "a maxlen that its items exceed"),
        ((1, False, "", ((9, 0, -1),)), "a maxlen that its items exceed"),
        ((1, False, "", ((9, 0, 10**30),)), "a maxlen that its items exceed"),
        ((1, False, SPACE, ((0, 1, Node, None, ()), LEAF)), "entries"),
        ((1, False, "", ((0, 0, Node, None, None),)), "to be registered in namespace ''"),
    ],
)
def test_bad_pickles_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    rebuild = structure(1).__reduce__()[0]
    with pytest.raises(ValueError, match=f"^PyTreeSpec: expected .*{message}"):
        rebuild(*arguments)


def test_deep_pickles_are_refused() -> None:
    rebuild = structure(1).__reduce__()[0]
    nodes = ((LIST, 1),) * (treeops.MAX_RECURSION_DEPTH + 1) + (LEAF,)
    assert rebuild(1, False, "", nodes[1:]).num_leaves == 1
    with pytest.raises(RecursionError, match=r"^PyTreeSpec: expected a tree at most 1000 deep"):
        rebuild(1, False, "", nodes)


def test_payload_is_versioned() -> None:
    assert payload(structure([1, None])) == (1, False, "", ((LIST, 2), LEAF, 2))


def test_metadata_that_holds_its_own_treespec() -> None:
    metadata: list[Any] = []
    spec = structure(Node([1], metadata))
    metadata.append(spec)
    text = "PyTreeSpec(CustomTreeNode(Node[[PyTreeSpec(...)]], [*]), namespace='treespec')"
    assert repr(spec) == text


def test_weak_references() -> None:
    spec = structure([1])
    reference = weakref.ref(spec)
    assert reference() is spec
    del spec
    assert reference() is None


def test_is_a_dict_key() -> None:
    table = {structure({"a": 1, "b": 2}): "found"}
    assert table[structure({"b": 0, "a": 0})] == "found"


def test_attributes_cannot_be_set() -> None:
    with pytest.raises(AttributeError):
        structure(1).num_leaves = 2


def test_order_is_that_of_prefixes() -> None:
    leaf, pair, deeper = structure(1), structure([1, 2]), structure([1, (2, 3)])
    assert leaf < pair < deeper
    assert deeper >= deeper > pair
    assert not pair < pair
    assert not structure([1]) <= structure((1,))
    with pytest.raises(TypeError, match="'<' not supported between instances of 'treeops"):
        _ = leaf < 1


def test_names() -> None:
    assert treeops.PyTreeDef is treeops.PyTreeSpec
    assert treeops.PyTreeSpec.__module__ == "treeops"
