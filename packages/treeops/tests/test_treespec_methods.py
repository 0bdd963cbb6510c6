# SPDX-License-Identifier: Apache-2.0
"""Treespecs made from treespecs: every message, depth, references, callbacks that fail."""

from __future__ import annotations

import gc
import pickle
import re
import sys
import weakref
from collections import OrderedDict, namedtuple
from typing import Any

import optree
import pytest

import treeops

Pair = namedtuple("Pair", ["left", "right"])
SPACE = "treespec methods"


class Node:
    def __init__(self, *children: Any) -> None:
        self.children = children


@pytest.fixture(scope="module", autouse=True)
def registered() -> Any:
    treeops.register_pytree_node(
        Node,
        lambda node: (node.children, len(node.children)),
        lambda _, children: Node(*children),
        namespace=SPACE,
    )
    yield
    treeops.unregister_pytree_node(Node, namespace=SPACE)


def of(tree: Any, **options: Any) -> Any:
    return treeops.tree_structure(tree, **options)


def none_leaf(tree: Any) -> Any:
    return of(tree, none_is_leaf=True)


def spaced(tree: Any) -> Any:
    return of(Node(tree), namespace=SPACE)


NODE = f"{Node.__module__}.Node"
PAIR = f"{Pair.__module__}.Pair"
SUFFIX = "PyTreeSpec.broadcast_to_common_suffix: "
DIFFERS = SUFFIX + "other differs from self at "

CASES = [
    (lambda: of([1]).entry(1), IndexError,
     "PyTreeSpec.entry: expected an index of one of 1 children, got 1"),
    (lambda: of(1).child(0), IndexError,
     "PyTreeSpec.child: expected an index of one of 0 children, got 0"),
    (lambda: of([1]).child("0"), TypeError,
     "PyTreeSpec.child: expected index to be an int, got str"),
    (lambda: of([1]).entry(0.0), TypeError,
     "PyTreeSpec.entry: expected index to be an int, got float"),
    (lambda: of([1]).entry(10**5000), IndexError,
     "PyTreeSpec.entry: expected an index of one of 1 children, got one far outside"),
    (lambda: of([1]).child(-(10**30)), IndexError,
     "PyTreeSpec.child: expected an index of one of 1 children, got one far outside"),
    (lambda: of([1]).is_prefix([1]), TypeError,
     "PyTreeSpec.is_prefix: expected other to be a PyTreeSpec, got list of 1"),
    (lambda: of([1]).is_suffix(None), TypeError,
     "PyTreeSpec.is_suffix: expected other to be a PyTreeSpec, got None"),
    (lambda: of([1]).compose(5), TypeError,
     "PyTreeSpec.compose: expected inner to be a PyTreeSpec, got int"),
    (lambda: of([1]).compose(none_leaf([1])), ValueError,
     "PyTreeSpec.compose: expected treespecs with none_is_leaf=False, got one with True"),
    (lambda: of([1]).broadcast_to_common_suffix(5), TypeError,
     SUFFIX + "expected other to be a PyTreeSpec, got int"),
    (lambda: of([1]).broadcast_to_common_suffix(none_leaf([1])), ValueError,
     SUFFIX + "expected treespecs with the same none_is_leaf, got one with True and one with "
     "False"),
    (lambda: of({"a": [(1,)]}).broadcast_to_common_suffix(of({"a": [[1]]})), ValueError,
     DIFFERS + "['a'][0]: expected tuple of 1, got list of 1"),
    (lambda: of([1, [2]]).broadcast_to_common_suffix(of([1, [2, 3]])), ValueError,
     DIFFERS + "[1]: expected list of 1, got list of 2"),
    (lambda: of({"a": 1, "b": 2}).broadcast_to_common_suffix(of(OrderedDict(a=1, c=2))), ValueError,
     DIFFERS + "the root: expected dict of 2, got collections.OrderedDict of 2 "
     "(missing keys ['b'], extra keys ['c'])"),
    (lambda: of(Pair(1, [2])).broadcast_to_common_suffix(of(Pair(1, (2,)))), ValueError,
     DIFFERS + ".right: expected list of 1, got tuple of 1"),
    (lambda: of(Pair(1, 2)).broadcast_to_common_suffix(
        of(namedtuple("Pair", "left right", module=Pair.__module__)(1, 2))), ValueError,
     DIFFERS + f"the root: expected {PAIR} of 2, got another type of the same name"),
    (lambda: of(None).broadcast_to_common_suffix(of([])), ValueError,
     DIFFERS + "the root: expected None, got list of 0"),
    (lambda: of([1]).transform(lambda node: 5), TypeError,
     "PyTreeSpec.transform: expected f_node to return a PyTreeSpec, got int"),
    (lambda: of([1]).transform(None, lambda leaf: None), TypeError,
     "PyTreeSpec.transform: expected f_leaf to return a PyTreeSpec, got None"),
    (lambda: of([1]).transform(lambda node: none_leaf([1])), ValueError,
     "PyTreeSpec.transform: expected treespecs with none_is_leaf=False, got one with True"),
    (lambda: of([1, 2]).transform(lambda node: of([1])), ValueError,
     "PyTreeSpec.transform: expected f_node to return a treespec with as many leaves as list of 2 "
     "has children, got 1 of them"),
    (lambda: of([1, 2]).transform(lambda node: of([[1], 2])), ValueError,
     "PyTreeSpec.transform: expected f_node to return a one-level treespec for list of 2, got one "
     "of 4 nodes"),
    (lambda: of([1]).transform(lambda node: of(1)), ValueError,
     "PyTreeSpec.transform: expected f_node to return a one-level treespec for list of 1, got one "
     "of 1 nodes"),
    (lambda: of([1]).transform(5), TypeError,
     "PyTreeSpec.transform: expected f_node to be callable or None, got int"),
    (lambda: of([1]).traverse([1, 2]), ValueError,
     "PyTreeSpec.traverse: expected 1 leaves, got 2"),
    (lambda: of([1]).walk([]), ValueError, "PyTreeSpec.walk: expected 1 leaves, got 0"),
    (lambda: of([1]).walk([1], None, 5), TypeError,
     "PyTreeSpec.walk: expected f_leaf to be callable or None, got int"),
    (lambda: treeops.treespec_list([of(1), 5]), ValueError,
     "treespec_list: expected a container of PyTreeSpecs, got int in it"),
    (lambda: treeops.treespec_tuple([none_leaf(1)]), ValueError,
     "treespec_tuple: expected treespecs with none_is_leaf=False, got one with True"),
    (lambda: treeops.treespec_list([spaced(1)], namespace="other"), ValueError,
     f"treespec_list: expected treespecs of one namespace, got 'other' and '{SPACE}'"),
    (lambda: treeops.treespec_list(namespace=5), TypeError,
     "treespec_list: expected namespace to be a str, got int"),
    (lambda: treeops.treespec_tuple(3), TypeError,
     "treespec_tuple: expected an iterable, got int"),
    (lambda: treeops.treespec_list(3), TypeError, "treespec_list: expected an iterable, got int"),
    (lambda: treeops.treespec_dict(3), TypeError,
     "treespec_dict: expected a mapping or pairs, got int"),
    (lambda: treeops.treespec_ordereddict(3), TypeError,
     "treespec_ordereddict: expected a mapping or pairs, got int"),
    (lambda: treeops.treespec_defaultdict(None, 3), TypeError,
     "treespec_defaultdict: expected a mapping or pairs, got int"),
    (lambda: treeops.treespec_defaultdict(3), TypeError,
     "treespec_defaultdict: expected default_factory to be callable or None, got int"),
    (lambda: treeops.treespec_deque(3), TypeError, "treespec_deque: expected an iterable, got int"),
    (lambda: treeops.treespec_deque([], "x"), TypeError,
     "treespec_deque: expected maxlen to be an int or None, got str"),
    (lambda: treeops.treespec_deque([], -1), ValueError,
     "treespec_deque: expected maxlen to be at least 0, got -1"),
    (lambda: treeops.treespec_deque([], 10**5000), OverflowError,
     f"treespec_deque: expected maxlen to be at most {sys.maxsize}, got more"),
    (lambda: treeops.treespec_namedtuple((1, 2)), ValueError,
     "treespec_namedtuple: expected a namedtuple, got tuple"),
    (lambda: treeops.treespec_structseq((1, 2)), ValueError,
     "treespec_structseq: expected a struct sequence, got tuple"),
    (lambda: treeops.treespec_frozendict(), RuntimeError,
     "treespec_frozendict: expected a Python with a built-in frozendict (3.15), got none; "
     "use treespec_dict"),
    # functions on trees
    (lambda: treeops.tree_flatten_one_level(1), ValueError,
     "tree_flatten_one_level: expected a node with children, got a leaf of int"),
    (lambda: treeops.tree_transpose(5, of(1), 1), TypeError,
     "tree_transpose: expected outer_treespec to be a PyTreeSpec, got int"),
    (lambda: treeops.tree_transpose(of([]), of(1), 1), ValueError,
     "tree_transpose: expected outer_treespec to have leaves, got PyTreeSpec([])"),
    (lambda: treeops.tree_transpose(of(1), none_leaf(1), 1), ValueError,
     "tree_transpose: expected treespecs with the same none_is_leaf, got False and True"),
    (lambda: treeops.tree_transpose(of([1, 2]), of((1, 2)), [1, 2]), TypeError,
     "tree_transpose: tree differs from outer_treespec of inner_treespec at [0]: expected tuple of "
     "2, got a leaf"),
    (lambda: treeops.tree_transpose(of({"a": 1}), of([1]), {"a": [[2, 3]]}), TypeError,
     "tree_transpose: tree differs from outer_treespec of inner_treespec at ['a'][0]: expected a "
     "leaf, got list of 2"),
    (lambda: treeops.tree_transpose(of(Pair(1, 2)), of([1]), Pair([1], None)), TypeError,
     "tree_transpose: tree differs from outer_treespec of inner_treespec at .right: expected list "
     "of 1, got None"),
    (lambda: treeops.tree_transpose(of([1]), of({"a": 1, "b": 2}), [{"a": 1, "c": [2, 3]}]),
     TypeError,
     "tree_transpose: tree differs from outer_treespec of inner_treespec at [0]: expected dict of "
     "2, got dict of 2 (missing keys ['b'], extra keys ['c'])"),
    (lambda: treeops.tree_transpose(of([1, 2]), of(1), [1]), TypeError,
     "tree_transpose: tree differs from outer_treespec of inner_treespec at the root: expected "
     "list of 2, got list of 1"),
    (lambda: treeops.tree_transpose(of(Pair(1, 2)), of(1),
        namedtuple("Pair", "left right", module=Pair.__module__)(1, None)), TypeError,
     "tree_transpose: tree differs from outer_treespec of inner_treespec at the root: expected "
     f"{PAIR} of 2, got another type of the same name"),
    (lambda: treeops.tree_transpose_map(lambda leaf: leaf, []), ValueError,
     "tree_transpose_map: expected tree to have leaves, got PyTreeSpec([])"),
    (lambda: treeops.tree_transpose_map(lambda leaf: (), [1]), ValueError,
     "tree_transpose_map: expected inner_treespec to have leaves, got PyTreeSpec(())"),
    (lambda: treeops.tree_transpose_map(lambda leaf: 1, [1], inner_treespec=5), TypeError,
     "tree_transpose_map: expected inner_treespec to be a PyTreeSpec, got int"),
    (lambda: treeops.tree_max([]), ValueError,
     "tree_max: expected a tree with leaves, got one without; pass a default"),
    (lambda: treeops.tree_min([]), ValueError,
     "tree_min: expected a tree with leaves, got one without; pass a default"),
    (lambda: treeops.broadcast_prefix([1], [1, 2]), ValueError,
     "broadcast_prefix: argument 2 differs from argument 1 at the root: expected list of 1, got "
     "list of 2"),
    (lambda: treeops.tree_broadcast_prefix([[1]], [1]), ValueError,
     "tree_broadcast_prefix: argument 2 differs from argument 1 at [0]: expected list of 1, got "
     "int"),
    (lambda: treeops.tree_broadcast_prefix([1]), TypeError,
     "tree_broadcast_prefix: expected positional arguments prefix_tree, full_tree, is_leaf, got 1 "
     "of them"),
    (lambda: treeops.all_leaves(1), TypeError, "all_leaves: expected an iterable, got int"),
    (lambda: treeops.tree_partition(3, []), TypeError,
     "tree_partition: expected predicate to be callable, got int"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), CASES, ids=[case[2][:60] for case in CASES])
def test_message(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        call()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("accessors", ()),
        ("child", (1,)),
        ("children", ()),
        ("entries", ()),
        ("entry", (1,)),
        ("is_leaf", ()),
        ("is_one_level", ()),
        ("is_prefix", (of(1),)),
        ("is_strict_leaf", ()),
        ("is_suffix", (of(1),)),
        ("one_level", ()),
        ("paths", ()),
        ("transform", ()),
    ],
)
def test_functions_on_something_else(name: str, arguments: tuple[Any, ...]) -> None:
    """AttributeError, as OpTree raises."""
    message = f"^treespec_{name}: expected treespec to be a PyTreeSpec, got int$"
    with pytest.raises(AttributeError, match=message):
        getattr(treeops, f"treespec_{name}")(3, *arguments)
    with pytest.raises(AttributeError):
        getattr(optree, f"treespec_{name}")(3, *arguments)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("is_leaf", (True,)),
        ("is_prefix", ()),
        ("is_suffix", ()),
        ("transform", (None, None, None)),
        ("traverse", ()),
        ("walk", ()),
    ],
)
def test_methods_called_wrongly_say_which(name: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match=rf"^PyTreeSpec\.{name}\(\) takes "):
        getattr(of([1]), name)(*arguments)


PREFIX_CASES = [
    ([1], (1,), "t: expected list, as in the prefix, got tuple in the full tree"),
    ([1, [2]], [1, 2], "t[1]: expected list, as in the prefix, got int in the full tree"),
    ([1, [2]], [1, [2, 3]],
     "t[1]: expected list of 1, as in the prefix, got list of 2 in the full tree"),
    ({"x": {"a": 1}}, {"x": {"b": 1}},
     "t['x']: expected dict of 1, as in the prefix, got dict of 1 in the full tree "
     "(missing keys ['a'], extra keys ['b'])"),
]  # fmt: skip


@pytest.mark.parametrize(("prefix", "full", "message"), PREFIX_CASES)
def test_prefix_errors(prefix: Any, full: Any, message: str) -> None:
    (error,) = treeops.prefix_errors(prefix, full)
    assert isinstance(error("t"), ValueError)
    assert str(error("t")) == message


def test_prefix_errors_finds_all() -> None:
    prefix, full = {"a": [1], "b": (2,), "c": 3}, {"a": (1,), "b": [2], "c": [3]}
    paths = [str(error("t")).split(":")[0] for error in treeops.prefix_errors(prefix, full)]
    assert paths == ["t['a']", "t['b']"]


def test_prefix_errors_of_other_metadata() -> None:
    class Tagged(Node):
        pass

    treeops.register_pytree_node(
        Tagged, lambda node: (node.children[1:], node.children[0]), Tagged, namespace=SPACE
    )
    (error,) = treeops.prefix_errors(Tagged("a", 1), Tagged("b", 1), namespace=SPACE)
    assert str(error("t")).endswith("with other metadata in the full tree")
    treeops.unregister_pytree_node(Tagged, namespace=SPACE)


def test_a_tree_that_contains_itself() -> None:
    tree: list[Any] = []
    tree.append(tree)
    with pytest.raises(RecursionError, match=r"^tree_iter: expected a tree at most 1000 deep"):
        list(treeops.tree_iter(tree))
    with pytest.raises(RecursionError, match=r"^prefix_errors: expected a tree at most 1000 deep"):
        treeops.prefix_errors(tree, tree)


def deep(levels: int) -> Any:
    tree: Any = 1
    for _ in range(levels):
        tree = [tree]
    return of(tree)


def test_depth_is_limited_where_treespecs_are_put_together() -> None:
    limit = treeops.MAX_RECURSION_DEPTH
    deepest = deep(limit)
    assert deep(limit // 2).compose(deep(limit // 2)) == deepest
    for call in (
        lambda: deepest.compose(of([1])),
        lambda: of([1]).transform(None, lambda leaf: deepest),
        lambda: treeops.treespec_list([deepest]),
    ):
        with pytest.raises(RecursionError, match="expected a treespec at most 1000 deep, got a de"):
            call()
    assert deepest.is_prefix(deepest)
    assert deepest.broadcast_to_common_suffix(deep(3)) == deepest
    assert deepest.traverse([1], lambda node: node, lambda leaf: leaf) is not None
    assert len(deepest.accessors()[0]) == limit
    assert deepest.transform(lambda node: node) == deepest


def test_too_many_nodes() -> None:
    wide = of([0] * 100_000)
    with pytest.raises(OverflowError, match=r"^PyTreeSpec\.compose: expected fewer than 2"):
        wide.compose(wide)


def test_an_iterator_is_collected() -> None:
    class Leaf:
        pass

    def start() -> weakref.ref[Leaf]:
        leaf = Leaf()
        tree: list[Any] = [1, leaf]
        iterator = treeops.tree_iter(tree, is_leaf=lambda node: iterator is None)
        tree.append(iterator)
        assert next(iterator) == 1
        return weakref.ref(leaf)

    gone = start()
    gc.collect()
    assert gone() is None


def test_an_iterator_that_is_advanced_by_its_predicate() -> None:
    seen: list[Any] = []

    def advance(node: Any) -> bool:
        if node == "again":
            seen.extend(iterator)
        return False

    iterator = treeops.tree_iter([1, "again", [2, 3], 4], advance)
    assert list(iterator) == [1, "again"]
    assert seen == [2, 3, 4]
    assert next(iterator, "end") == "end"


def test_an_iterator_goes_on_after_an_error() -> None:
    def fail_at_two(node: Any) -> bool:
        if node == 2:
            raise LookupError
        return False

    iterator = treeops.tree_iter([1, 2, [3]], fail_at_two)
    assert next(iterator) == 1
    with pytest.raises(LookupError):
        next(iterator)
    assert list(iterator) == [3]


def test_iterator_type() -> None:
    iterator = treeops.tree_iter([1])
    assert iter(iterator) is iterator
    with pytest.raises(TypeError, match=r"cannot create 'treeops\.PyTreeIter' instances"):
        type(iterator)()


def test_containers_are_opened_when_reached() -> None:
    inner: list[Any] = []
    iterator = treeops.tree_iter([1, inner])
    assert next(iterator) == 1
    inner.append(2)
    assert list(iterator) == [2]


TREE = {"b": [1, (2, None)], "a": Pair(3, OrderedDict(z=4, y=5))}


@pytest.mark.parametrize(
    "operation",
    [
        lambda spec: spec.accessors(),
        lambda spec: spec.children(),
        lambda spec: [spec.child(1), spec.entry(1), spec.entries(), spec.one_level()],
        lambda spec: spec.compose(spec),
        lambda spec: spec.broadcast_to_common_suffix(of({"a": 1, "b": 2})),
        lambda spec: spec.is_prefix(spec),
        lambda spec: spec.transform(lambda node: node, lambda leaf: spec),
        lambda spec: spec.traverse(range(5), lambda node: node, lambda leaf: leaf),
        lambda spec: spec.walk(range(5), lambda *parts: parts),
        lambda spec: treeops.treespec_from_collection({"a": spec, "b": [spec][0]}),
        lambda spec: list(treeops.tree_iter(TREE)),
        lambda spec: treeops.tree_broadcast_prefix({"a": 1, "b": 2}, TREE),
        lambda spec: treeops.tree_flatten_with_accessor(TREE),
        lambda spec: pickle.loads(pickle.dumps(spec)),
        lambda spec: treeops.register_pytree_node.get(),
    ],
)
def test_nothing_leaks(operation: Any) -> None:
    spec = of(TREE)
    for _ in range(3):
        operation(spec)
    gc.collect()
    watched = [spec, Pair, None, TREE, TREE["a"], "b", treeops.PyTreeSpec]
    before = [sys.getrefcount(item) for item in watched]
    for _ in range(100):
        operation(spec)
    gc.collect()
    after = [sys.getrefcount(item) for item in watched]
    assert [late - early for late, early in zip(after, before, strict=True)] == pytest.approx(
        [0] * len(watched),
        abs=50,  # a leak of each time would be 100; None is everybody's
    )


@pytest.mark.parametrize("count", range(8))
def test_callbacks_that_raise(count: int) -> None:
    spec = of(TREE)
    calls = iter(range(count))

    def fail(*parts: Any) -> Any:
        if next(calls, None) is None:
            raise LookupError
        return parts[-1]

    for operation in (
        lambda: spec.transform(fail, fail),
        lambda: spec.traverse(range(5), fail, fail),
        lambda: spec.walk(range(5), fail, fail),
        lambda: treeops.tree_map_with_accessor(fail, TREE),
        lambda: treeops.tree_partition(fail, TREE),
    ):
        with pytest.raises(LookupError):
            operation()


def test_a_predicate_that_raises_is_not_swallowed() -> None:
    def fail(node: Any) -> bool:
        raise LookupError

    for call in (
        lambda: treeops.tree_is_leaf(1, fail),
        lambda: treeops.all_leaves([1], fail),
        lambda: treeops.broadcast_prefix(1, [1], fail),
        lambda: list(treeops.tree_iter(1, fail)),
    ):
        with pytest.raises(LookupError):
            call()


def test_from_collection_warns_of_a_leaf() -> None:
    with pytest.warns(UserWarning, match="^treespec_from_collection: expected a container, got"):
        assert treeops.treespec_from_collection(1) == of(1)


def test_numpy_like_indices() -> None:
    class Index:
        def __index__(self) -> int:
            return 1

    class Whole:
        def __int__(self) -> int:
            return 0

    spec = of([1, (2,)])
    assert spec.child(Index()) == of((2,))
    assert spec.entry(Whole()) == 0
