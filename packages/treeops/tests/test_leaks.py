# SPDX-License-Identifier: Apache-2.0
"""Every operation leaves as many references and as much memory as it found, failing or not."""

from __future__ import annotations

import gc
import itertools
import os
import pickle
import sys
import tracemalloc
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from typing import Any

import pytest

import treeops

SPACE = "leaks"
Pair = namedtuple("Pair", ["left", "right"])


class Leaf:
    pass


class Node:
    def __init__(self, *children: Any) -> None:
        self.children = children


class CheckedPair(Pair):
    def __new__(cls, left: Any, right: Any) -> CheckedPair:
        return super().__new__(cls, left, right)


class Acting:
    """A node whose flatten function does what it is told, and whose unflatten function fails."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self.act = act


class Registered:
    pass


METADATA = ("metadata", "of a node")


@pytest.fixture(scope="module", autouse=True)
def registered() -> Any:
    treeops.register_pytree_node(
        Node,
        lambda node: (node.children, METADATA, range(len(node.children))),
        lambda metadata, children: Node(*children),
        namespace=SPACE,
    )
    treeops.register_pytree_node(
        Acting, lambda node: node.act(), lambda _, children: 1 // 0, namespace=SPACE
    )
    yield
    treeops.unregister_pytree_node(Node, namespace=SPACE)
    treeops.unregister_pytree_node(Acting, namespace=SPACE)


def everything(leaf: Any, key: Any) -> dict[Any, Any]:
    return {
        key: leaf,
        "list": [leaf, None, ()],
        "tuple": (leaf, [leaf]),
        "ordered": OrderedDict([("z", leaf), ("a", leaf), (key, leaf)]),
        "default": defaultdict(list, {key: leaf, "b": leaf}),
        "deque": deque([leaf, leaf], maxlen=4),
        "pair": Pair(leaf, [leaf]),
        "checked": CheckedPair(leaf, leaf),
        "node": Node(leaf, [leaf]),
        "many": {str(i): leaf for i in range(20, 0, -1)},
    }


def failing_at(count: int) -> Callable[..., Any]:
    calls = itertools.count(1)

    def fail(*leaves: Any) -> Any:
        if next(calls) == count:
            raise LookupError
        return None

    return fail


def attempt(function: Callable[[], Any], error: type[Exception]) -> None:
    try:
        function()
    except error:
        return
    raise AssertionError("expected an error")


def structure(tree: Any) -> treeops.PyTreeSpec:
    return treeops.tree_structure(tree, namespace=SPACE)


def leaves(tree: Any) -> list[Any]:
    return treeops.tree_leaves(tree, namespace=SPACE)


def flatten_acting(tree: Any, act: Callable[[], Any], error: type[Exception]) -> None:
    attempt(lambda: leaves([tree, Acting(act), tree]), error)


def rebuild(tree: Any, change: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> Any:
    """From the parts of a pickle, changed."""
    make, payload = structure(tree).__reduce__()
    return make(*change(payload))


def register(space: str = SPACE) -> None:
    treeops.register_pytree_node(
        Registered, lambda node: ((), None), lambda _, children: Registered(), namespace=space
    )


def register_and_walk(tree: Any) -> None:
    register()
    attempt(register, ValueError)
    structure([Registered(), tree])
    treeops.register_pytree_node.get(Registered, namespace=SPACE)
    treeops.unregister_pytree_node(Registered, namespace=SPACE)


def unregister_during_the_walk(tree: Any) -> None:
    register()

    def act() -> Any:
        treeops.unregister_pytree_node(Registered, namespace=SPACE)
        return [Registered()], None

    leaves([Acting(act), Registered(), tree])


def walk_in_part(tree: Any) -> None:
    iterator = treeops.tree_iter(tree, namespace=SPACE)
    for _ in range(5):
        next(iterator)


def change_the_list(tree: Any) -> None:
    changing = [[1], [2], tree]
    calls = itertools.count()
    attempt(
        lambda: treeops.tree_leaves(changing, lambda node: next(calls) == 2 and changing.clear()),
        RuntimeError,
    )


def cycle(tree: Any) -> None:
    ring: list[Any] = [tree["pair"]]
    ring.append(ring)
    attempt(lambda: leaves(ring), RecursionError)
    attempt(lambda: treeops.tree_map(str, ring), RecursionError)


def cut(payload: tuple[Any, ...]) -> tuple[Any, ...]:
    return *payload[:3], payload[3][:-1]


def with_garbage(payload: tuple[Any, ...]) -> tuple[Any, ...]:
    return *payload[:3], (*payload[3][:-2], (3, "no arity"), payload[3][-1])


OPERATIONS: dict[str, Callable[[Any], Any]] = {
    "flatten": lambda tree: treeops.tree_flatten(tree, namespace=SPACE),
    "flatten none_is_leaf": lambda tree: treeops.tree_flatten(tree, none_is_leaf=True),
    "is_leaf": lambda tree: treeops.tree_leaves(tree, lambda node: isinstance(node, tuple)),
    "paths": lambda tree: treeops.tree_flatten_with_path(tree, namespace=SPACE),
    "accessors": lambda tree: treeops.tree_flatten_with_accessor(tree, namespace=SPACE),
    "iterator": lambda tree: list(treeops.tree_iter(tree, namespace=SPACE)),
    "iterator in part": walk_in_part,
    "map": lambda tree: treeops.tree_map(lambda *leaves: leaves, tree, tree, namespace=SPACE),
    "map with path": lambda tree: treeops.tree_map_with_path(lambda *parts: parts, tree, tree),
    "map with accessor": lambda tree: treeops.tree_map_with_accessor(
        lambda *parts: parts, tree, namespace=SPACE
    ),
    "map_": lambda tree: treeops.tree_map_(lambda leaf: None, tree),
    "round trip": lambda tree: treeops.tree_unflatten(*treeops.tree_flatten(tree)[::-1]),
    "from an iterator": lambda tree: treeops.tree_structure(tree).unflatten(
        iter(treeops.tree_leaves(tree))
    ),
    "up to": lambda tree: structure(tree).flatten_up_to(tree),
    "broadcast": lambda tree: treeops.tree_broadcast_prefix(1, tree, namespace=SPACE),
    "broadcast leaves": lambda tree: treeops.broadcast_prefix(1, tree, namespace=SPACE),
    "broadcast common": lambda tree: treeops.broadcast_common(1, tree, namespace=SPACE),
    "transpose": lambda tree: treeops.tree_transpose_map(
        lambda leaf: (leaf, [leaf]), tree, namespace=SPACE
    ),
    "compare": lambda tree: structure(tree) == structure(tree),
    "prefix": lambda tree: structure(tree) <= structure(tree),
    "common suffix": lambda tree: structure(tree).broadcast_to_common_suffix(structure(tree)),
    "compose": lambda tree: structure(tree).compose(structure({"a": tree})),
    "transform": lambda tree: structure(tree).transform(lambda node: node, lambda leaf: leaf),
    "traverse": lambda tree: structure(tree).traverse(leaves(tree), lambda node: node),
    "walk": lambda tree: structure(tree).walk(leaves(tree), lambda *parts: parts, id),
    "children": lambda tree: [structure(tree).children(), structure(tree).child(3)],
    "one level": lambda tree: [structure(tree).one_level(), structure(tree).entries()],
    "from a collection": lambda tree: treeops.treespec_from_collection(
        treeops.tree_map(lambda leaf: structure(0), tree["ordered"])
    ),
    "repr": lambda tree: repr(structure(tree)),
    "reduce": lambda tree: structure(tree).__reduce__(),
    "rebuild": lambda tree: rebuild(tree, lambda payload: payload),
    "pickle": lambda tree: pickle.loads(pickle.dumps(structure(tree["many"]))),
    "register": register_and_walk,
    "unregister during the walk": unregister_during_the_walk,
    "re-entering node": lambda tree: leaves(Acting(lambda: (leaves(tree), None))),
    "failing node": lambda tree: flatten_acting(tree, lambda: 1 // 0, ZeroDivisionError),
    "node of one part": lambda tree: flatten_acting(tree, lambda: (tree,), RuntimeError),
    "node of no iterable": lambda tree: flatten_acting(tree, lambda: (1, tree), TypeError),
    "node of bad entries": lambda tree: flatten_acting(
        tree, lambda: ([tree], None, [tree, 2]), RuntimeError
    ),
    "node that cannot be made": lambda tree: attempt(
        lambda: treeops.tree_map(id, [tree, Acting(lambda: ([tree], None))], namespace=SPACE),
        ZeroDivisionError,
    ),
    "list that changes": change_the_list,
    "cycle": cycle,
    "failing map": lambda tree: attempt(
        lambda: treeops.tree_map(failing_at(9), tree, namespace=SPACE), LookupError
    ),
    "failing map with path": lambda tree: attempt(
        lambda: treeops.tree_map_with_path(failing_at(9), tree, namespace=SPACE), LookupError
    ),
    "failing predicate": lambda tree: attempt(
        lambda: treeops.tree_leaves(tree, failing_at(20)), LookupError
    ),
    "failing predicate of an iterator": lambda tree: attempt(
        lambda: list(treeops.tree_iter(tree, failing_at(20))), LookupError
    ),
    "failing traverse": lambda tree: attempt(
        lambda: structure(tree).traverse(leaves(tree), failing_at(5)), LookupError
    ),
    "failing transform": lambda tree: attempt(
        lambda: structure(tree).transform(None, failing_at(5)), TypeError
    ),
    "transform of other arity": lambda tree: attempt(
        lambda: structure(tree).transform(lambda node: structure([1])), ValueError
    ),
    "mismatch": lambda tree: attempt(
        lambda: treeops.tree_map(str, tree, {**tree, "pair": Pair(1, 2)}), ValueError
    ),
    "missing key": lambda tree: attempt(
        lambda: treeops.tree_map(str, tree, dict(list(tree.items())[1:])), ValueError
    ),
    "no common suffix": lambda tree: attempt(
        lambda: structure(tree).broadcast_to_common_suffix(structure({**tree, "list": (1,)})),
        ValueError,
    ),
    "no prefix": lambda tree: attempt(
        lambda: treeops.tree_broadcast_prefix({**tree, "list": (1,)}, tree), ValueError
    ),
    "too few leaves": lambda tree: attempt(
        lambda: treeops.tree_structure(tree).unflatten(treeops.tree_leaves(tree)[1:]), ValueError
    ),
    "too many leaves": lambda tree: attempt(
        lambda: treeops.tree_structure(tree).unflatten(iter([*treeops.tree_leaves(tree), 1])),
        ValueError,
    ),
    "collection of no treespecs": lambda tree: attempt(
        lambda: treeops.treespec_from_collection(tree), ValueError
    ),
    "pickle cut short": lambda tree: attempt(lambda: rebuild(tree, cut), ValueError),
    "pickle with garbage": lambda tree: attempt(lambda: rebuild(tree, with_garbage), ValueError),
    "unregister what is not": lambda tree: attempt(
        lambda: treeops.unregister_pytree_node(Leaf, namespace=f"none {id(tree)}"), ValueError
    ),
    "wrong arguments": lambda tree: [
        attempt(lambda: treeops.tree_leaves(tree, 1), TypeError),
        attempt(lambda: treeops.tree_leaves(tree, name=tree), TypeError),
        attempt(lambda: treeops.tree_map(tree, tree), TypeError),
        attempt(lambda: structure(tree).unflatten(1), TypeError),
        attempt(lambda: structure(tree).child(100), IndexError),
        attempt(lambda: structure(tree).compose(tree), TypeError),
    ],
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_reference_is_lost_or_kept(name: str) -> None:
    leaf, key = Leaf(), "key of a dict " + str(id(name))
    operation = OPERATIONS[name]
    tree = everything(leaf, key)
    classes = [Pair, CheckedPair, Node, Acting, Registered, Leaf]
    watched = [leaf, key, METADATA, tree, tree["many"], *classes]
    for _ in range(3):  # fills the caches
        operation(tree)
    gc.collect()
    before, lists = [sys.getrefcount(item) for item in watched], sys.getrefcount(list)
    for _ in range(50):
        operation(tree)
    gc.collect()
    assert [sys.getrefcount(item) for item in watched] == before
    # the collector and other threads refer to it too: a few more or less are theirs
    assert abs(sys.getrefcount(list) - lists) < 25


def growth(operation: Callable[[], Any], calls: int) -> int:
    """Bytes that are left behind by a number of calls."""
    gc.collect()
    tracemalloc.start()
    try:
        start = tracemalloc.get_traced_memory()[0]
        for _ in range(calls):
            operation()
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - start
    finally:
        tracemalloc.stop()


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_memory_does_not_grow(name: str) -> None:
    tree = everything(Leaf(), "key")
    for _ in range(1000):  # fills the interpreter's free lists
        OPERATIONS[name](tree)
    windows = [growth(lambda: OPERATIONS[name](tree), 500) for _ in range(3)]
    # They grow now and then all the same; what is lost per call is lost every time.
    assert min(windows) < 500 * 16


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc: Linux only")
def test_the_process_does_not_grow() -> None:
    """Sees what is allocated in C++, too: 24 bytes lost by any of the operations would show."""
    rounds = 1000

    def run() -> int:
        for _ in range(rounds):
            tree = everything(Leaf(), "key")
            for operation in OPERATIONS.values():
                operation(tree)
        gc.collect()
        return resident()

    run()
    sizes = [run() for _ in range(4)]
    growths = [after - before for before, after in itertools.pairwise(sizes)]
    assert min(growths) < rounds * 24


def test_many_shapes_do_not_pile_up() -> None:
    fresh = itertools.count()

    def walk() -> None:
        i = next(fresh)
        treeops.tree_structure({f"key {i}": 1, f"other {i}": 2})

    growth(walk, 3000)  # fills the bounded tables
    assert growth(walk, 3000) < 3000 * 200


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc: Linux only")
def test_names_that_are_only_asked_for_are_not_kept() -> None:
    """A namespace holds ten kilobytes of cache."""
    fresh = itertools.count()

    def ask() -> None:
        space = f"asked for {next(fresh)}"
        attempt(lambda: treeops.unregister_pytree_node(Leaf, namespace=space), ValueError)
        with treeops.dict_insertion_ordered(False, namespace=space):
            treeops.tree_leaves([1], namespace=space)

    for _ in range(100):
        ask()
    before = resident()
    for _ in range(3000):
        ask()
    assert resident() - before < 3000 * 5_000
