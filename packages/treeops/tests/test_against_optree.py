# SPDX-License-Identifier: Apache-2.0
"""OpTree 0.20 as an independent oracle: same leaves, paths, structures and results."""

from __future__ import annotations

import inspect
import os
import time
from collections import OrderedDict, defaultdict, deque, namedtuple
from typing import Any, NamedTuple

import optree
import optree.registry
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import treeops

SPACE = "oracle"
Point = namedtuple("Point", ["x", "y"])


class Typed(NamedTuple):
    first: Any
    second: Any = 0


class SubPoint(Point):
    pass


class CheckedPoint(Point):
    """A namedtuple whose construction does something."""

    def __new__(cls, x: Any, y: Any) -> CheckedPoint:
        self = super().__new__(cls, x, y)
        self.checked = True
        return self


class Box:
    """A custom node with named entries."""

    def __init__(self, **parts: Any) -> None:
        self.parts = parts

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Box) and self.parts == other.parts

    __hash__ = None


class Bag:
    """A custom node with positions for entries, only in the namespace."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bag) and self.items == other.items

    __hash__ = None


class DictSubclass(dict):
    pass


class ListSubclass(list):
    pass


class TupleSubclass(tuple):
    pass


class OrderedDictSubclass(OrderedDict):
    pass


def flatten_box(box: Box) -> tuple[Any, ...]:
    return box.parts.values(), tuple(box.parts), list(box.parts)


def unflatten_box(names: tuple[str, ...], children: Any) -> Box:
    return Box(**dict(zip(names, children, strict=True)))


def flatten_bag(bag: Bag) -> tuple[Any, ...]:
    return iter(bag.items), len(bag.items)


def unflatten_bag(size: int, children: Any) -> Bag:
    return Bag(list(children))


@pytest.fixture(scope="module", autouse=True)
def registered() -> Any:
    optree_global = vars(optree.registry)["__GLOBAL_NAMESPACE"]
    both = (
        (treeops, treeops.registry.GLOBAL_NAMESPACE),
        (optree, optree_global),
    )
    for library, everywhere in both:
        library.register_pytree_node(Box, flatten_box, unflatten_box, namespace=everywhere)
        library.register_pytree_node(Bag, flatten_bag, unflatten_bag, namespace=SPACE)
    yield
    for library, everywhere in both:
        library.unregister_pytree_node(Box, namespace=everywhere)
        library.unregister_pytree_node(Bag, namespace=SPACE)


TREES = [
    1,
    None,
    (),
    [],
    {},
    OrderedDict(),
    defaultdict(list),
    defaultdict(None),
    deque(),
    deque(maxlen=3),
    (1,),
    [1, [2, (3, None)]],
    {"b": 1, "a": [2, {"d": 3, "c": 4}]},
    OrderedDict([("b", 1), ("a", OrderedDict(z=2, y=None))]),
    defaultdict(int, {"b": 1, "a": 2}),
    deque([1, [2]], maxlen=5),
    Point(1, [2]),
    Typed(1, Typed(2)),
    SubPoint(1, 2),
    CheckedPoint(1, (2, 3)),
    time.struct_time(range(9)),
    os.terminal_size((80, 24)),
    os.stat_result(range(10)),
    DictSubclass(a=1),
    ListSubclass([1]),
    TupleSubclass((1,)),
    OrderedDictSubclass(a=1),
    {1: "one", 10: "ten", 2: "two"},
    {1: 0, "a": 1, (2, 3): 2, None: 3, 2: 4, "B": 5, (1, 9): 6, 0.5: 7},
    {"é": 1, "a": 2, "z": 3, "日本": 4, "ab": 5, "a\0": 6},
    {f"key{i}": i for i in range(300, 0, -1)},
    dict.fromkeys(range(40, 0, -1), 0),
    Box(left=1, right=[2, Box(inner=None)]),
    [Bag([1, 2]), Box(bag=Bag([]))],
    {True: 1, False: 2, 3: 4},
    {frozenset({1}): 1, frozenset({1, 2}): 2},
]

keys = st.one_of(
    st.integers(-3, 300),
    st.text(max_size=9),
    st.booleans(),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.none(),
)
leaves = st.one_of(st.integers(), st.none(), st.text(max_size=2), st.just(ListSubclass([1])))


def nodes(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    lists = st.lists(children, max_size=4)
    dicts = st.dictionaries(keys, children, max_size=7)
    return st.one_of(
        lists,
        lists.map(tuple),
        dicts,
        dicts.map(OrderedDict),
        dicts.map(lambda d: defaultdict(list, d)),
        st.builds(deque, lists, st.sampled_from([None, 4, 9])),
        st.builds(Point, children, children),
        st.builds(CheckedPoint, children, children),
        st.builds(Box, a=children, b=children),
        lists.map(Bag),
    )


trees = st.recursive(leaves, nodes, max_leaves=25)
options = st.fixed_dictionaries(
    {"none_is_leaf": st.booleans(), "namespace": st.sampled_from(["", SPACE, "unknown"])}
)

OPTIONS = [
    {},
    {"none_is_leaf": True},
    {"namespace": SPACE},
    {"none_is_leaf": True, "namespace": SPACE},
    {"is_leaf": lambda node: isinstance(node, tuple)},
    {"is_leaf": lambda node: node is None},
]


def assert_agree(tree: Any, arguments: dict[str, Any]) -> None:
    own_paths, own_leaves, own = treeops.tree_flatten_with_path(tree, **arguments)
    paths, expected_leaves, expected = optree.tree_flatten_with_path(tree, **arguments)
    assert repr(own) == repr(expected)
    assert own_paths == paths == own.paths() == treeops.tree_paths(tree, **arguments)
    assert [id(leaf) for leaf in own_leaves] == [id(leaf) for leaf in expected_leaves]
    for name in ("num_leaves", "num_nodes", "num_children", "none_is_leaf", "namespace", "type"):
        assert getattr(own, name) == getattr(expected, name)
    assert len(own) == len(expected)
    rebuilt = own.unflatten(own_leaves)
    assert repr(rebuilt) == repr(expected.unflatten(own_leaves))  # the order of dicts too
    subtrees = own.flatten_up_to(tree)
    assert [id(leaf) for leaf in subtrees] == [id(leaf) for leaf in own_leaves]
    own_pairs = treeops.tree_map(lambda leaf, other: (leaf, other), tree, tree, **arguments)
    pairs = optree.tree_map(lambda leaf, other: (leaf, other), tree, tree, **arguments)
    assert repr(own_pairs) == repr(pairs)


@pytest.fixture(autouse=True)
def plain_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    for cls in (Box, Bag):
        monkeypatch.setattr(cls, "__repr__", lambda self: f"{type(self).__name__}({vars(self)})")


@pytest.mark.parametrize("arguments", OPTIONS, ids=lambda arguments: ",".join(arguments) or "none")
@pytest.mark.parametrize("tree", TREES, ids=lambda tree: type(tree).__name__)
def test_table(tree: Any, arguments: dict[str, Any]) -> None:
    assert_agree(tree, arguments)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(tree=trees, arguments=options)
def test_any_tree(tree: Any, arguments: dict[str, Any]) -> None:
    assert_agree(tree, arguments)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(first=trees, second=trees, arguments=options)
def test_equality(first: Any, second: Any, arguments: dict[str, Any]) -> None:
    own = [treeops.tree_structure(tree, **arguments) for tree in (first, second)]
    expected = [optree.tree_structure(tree, **arguments) for tree in (first, second)]
    assert (own[0] == own[1]) == (expected[0] == expected[1])
    assert (own[0] != own[1]) == (expected[0] != expected[1])
    assert own[0] != own[1] or hash(own[0]) == hash(own[1])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(prefix=trees, tree=trees, arguments=options)
def test_which_trees_are_prefixes(prefix: Any, tree: Any, arguments: dict[str, Any]) -> None:
    def outcome(library: Any) -> Any:
        try:
            spec = library.tree_structure(prefix, **arguments)
            return [id(subtree) for subtree in spec.flatten_up_to(tree)]
        except ValueError:
            return ValueError

    assert outcome(treeops) == outcome(optree)


def test_incomparable_keys_stay_in_insertion_order() -> None:
    class Key:
        pass

    first, second, third = keys = [Key(), Key(), Key()]
    for order in ([first, second, third], [third, first, second], [second, third, first]):
        tree = {key: keys.index(key) for key in order}
        assert treeops.tree_leaves(tree) == [keys.index(key) for key in order]
        assert list(treeops.tree_map(str, tree)) == order
    mixed = {first: 0, "b": 1, "a": 2}
    assert treeops.tree_leaves(mixed) == optree.tree_leaves(mixed)


def test_ordered_dict_goes_in_iteration_order() -> None:
    """The deliberate difference: OpTree walks the dict beneath and ignores move_to_end."""
    for size in (2, 3, 5, 12):
        for moved in range(size):
            for last in (True, False):
                tree = OrderedDict((str(i), i) for i in range(size))
                tree.move_to_end(str(moved), last=last)
                leaves, treespec = treeops.tree_flatten(tree)
                assert leaves == list(tree.values())
                assert treeops.tree_paths(tree) == [(key,) for key in tree]
                assert list(treespec.unflatten(leaves).items()) == list(tree.items())
                assert treespec.flatten_up_to(tree) == leaves


@pytest.mark.parametrize(
    "name",
    sorted(
        {
            "tree_all",
            "tree_any",
            "tree_flatten",
            "tree_flatten_with_path",
            "tree_leaves",
            "tree_map",
            "tree_map_",
            "tree_map_with_path",
            "tree_map_with_path_",
            "tree_paths",
            "tree_reduce",
            "tree_structure",
            "tree_unflatten",
        }
    ),
)
def test_signatures(name: str) -> None:
    own = inspect.signature(getattr(treeops, name)).parameters.values()
    expected = inspect.signature(getattr(optree, name)).parameters.values()
    assert [(p.name, p.kind) for p in own] == [(p.name, p.kind) for p in expected]
    assert [p.default for p in own if p.name != "initial"] == [
        p.default for p in expected if p.name != "initial"
    ]


@pytest.mark.parametrize("name", ["MAX_RECURSION_DEPTH", "NONE_IS_LEAF", "NONE_IS_NODE"])
def test_constants(name: str) -> None:
    assert getattr(treeops, name) == getattr(optree, name)
