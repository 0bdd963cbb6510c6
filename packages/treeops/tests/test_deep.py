# SPDX-License-Identifier: Apache-2.0
"""Trees too deep for a walk, or for the stack of a thread, are refused by name, never a crash."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections import OrderedDict, deque, namedtuple
from collections.abc import Callable
from typing import Any

import pytest

import treeops

SPACE = "deep"
LIMIT = treeops.MAX_RECURSION_DEPTH
One = namedtuple("One", ["x"])


class Box:
    def __init__(self, content: Any) -> None:
        self.content = content


@pytest.fixture(scope="module", autouse=True)
def registered() -> Any:
    treeops.register_pytree_node(
        Box,
        lambda box: ((box.content,), None),
        lambda _, children: Box(*children),
        namespace=SPACE,
    )
    yield
    treeops.unregister_pytree_node(Box, namespace=SPACE)


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "list": lambda tree: [tree],
    "tuple": lambda tree: (tree,),
    "dict": lambda tree: {"key": tree},
    "OrderedDict": lambda tree: OrderedDict(key=tree),
    "deque": lambda tree: deque([tree]),
    "namedtuple": One,
    "custom": Box,
}


def nested(wrap: Callable[[Any], Any], depth: int) -> Any:
    tree: Any = 0
    for _ in range(depth):
        tree = wrap(tree)
    return tree


WALKS: dict[str, Callable[[Any], Any]] = {
    "tree_flatten": lambda tree: treeops.tree_flatten(tree, namespace=SPACE),
    "tree_leaves": lambda tree: treeops.tree_leaves(tree, lambda _: False, namespace=SPACE),
    "tree_structure": lambda tree: treeops.tree_structure(tree, namespace=SPACE),
    "tree_paths": lambda tree: treeops.tree_paths(tree, namespace=SPACE),
    "tree_accessors": lambda tree: treeops.tree_accessors(tree, namespace=SPACE),
    "tree_map": lambda tree: treeops.tree_map(str, tree, tree, namespace=SPACE),
    "tree_map_": lambda tree: treeops.tree_map_(str, tree, namespace=SPACE),
    "tree_iter": lambda tree: list(treeops.tree_iter(tree, namespace=SPACE)),
    "broadcast_prefix": lambda tree: treeops.broadcast_prefix(0, tree, namespace=SPACE),
}


DEPTHS = dict.fromkeys(WRAPPERS, 50_000) | dict.fromkeys(["list", "tuple", "dict"], 1_000_000)


@pytest.fixture(scope="module", params=DEPTHS.items(), ids=DEPTHS)
def deep(request: Any) -> Any:
    """One such tree at a time: a million dicts take 250 MB."""
    kind, depth = request.param
    return nested(WRAPPERS[kind], depth)


@pytest.mark.parametrize("name", WALKS)
def test_a_million_levels(name: str, deep: Any) -> None:
    message = f"^{name}: expected a tree at most {LIMIT} deep, got a deeper one; it may contain its"
    with pytest.raises(RecursionError, match=message):
        WALKS[name](deep)


@pytest.mark.parametrize("kind", WRAPPERS)
def test_deep_trees_are_subtrees_to_a_treespec(kind: str) -> None:
    """A treespec is bounded: what it walks is, whatever hangs below."""
    wrap = WRAPPERS[kind]
    treespec = treeops.tree_structure(nested(wrap, 5), namespace=SPACE)
    below = nested(WRAPPERS["list"], 100_000)
    tree = wrap(wrap(wrap(wrap(wrap(below)))))
    assert treespec.flatten_up_to(tree)[0] is below
    (again,) = treespec.flatten_up_to(treespec.unflatten([below]))
    assert again is below
    assert treeops.tree_map(lambda _, rest: rest is below, nested(wrap, 5), tree, namespace=SPACE)


@pytest.mark.parametrize("kind", WRAPPERS)
def test_treespecs_as_deep_as_allowed(kind: str) -> None:
    tree = nested(WRAPPERS[kind], LIMIT)
    first, second = (treeops.tree_structure(tree, namespace=SPACE) for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)
    assert first <= second
    assert not first < second
    assert repr(first).count("*") == 1
    assert first.broadcast_to_common_suffix(second) == first
    assert pickle.loads(pickle.dumps(first)) == first
    assert len(first.paths()[0]) == len(first.accessors()[0]) == LIMIT
    assert first.transform(lambda node: node, lambda leaf: leaf) == first
    assert first.traverse([1], lambda node: 2) == 2
    assert treeops.tree_structure(first.unflatten([1]), namespace=SPACE) == first
    with pytest.raises(RecursionError, match="expected a treespec at most 1000 deep"):
        first.compose(treeops.tree_structure([0]))


def test_hash_of_treespecs_in_metadata() -> None:
    """Hashing, unlike comparing, is not counted by the interpreter."""
    treespec = treeops.tree_structure(0)
    held = []

    class Holder:
        pass

    treeops.register_pytree_node(
        Holder, lambda holder: ((), held[-1]), lambda metadata, _: Holder(), namespace=SPACE
    )
    for _ in range(100_000):
        held = [treespec]
        treespec = treeops.tree_structure(Holder(), namespace=SPACE)
    with pytest.raises(RecursionError, match="while hashing a treespec"):
        hash(treespec)
    treeops.unregister_pytree_node(Holder, namespace=SPACE)


def run(code: str) -> str:
    """In a process of its own, where a crash shows."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


PREPARE = """
import collections, pickle, sys, threading
import treeops
class Box:
    def __init__(self, content): self.content = content
treeops.register_pytree_node(
    Box, lambda box: ((box.content,), None), lambda _, children: Box(*children), namespace="s")
def nested(wrap, depth):
    tree = 0
    for _ in range(depth): tree = wrap(tree)
    return tree
def in_thread(function):
    outcome = []
    def target():
        try:
            function()
        except RecursionError as error:
            outcome.append(str(error).split(":")[0])
        else:
            outcome.append("done")
    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    return outcome[0]
"""


@pytest.mark.parametrize(
    "wrap",
    ["lambda x: [x]", "lambda x: {'a': x}", "lambda x: collections.OrderedDict(a=x)", "Box"],
)
def test_a_thread_with_a_small_stack(wrap: str) -> None:
    code = f"""{PREPARE}
tree = nested({wrap}, 1000)
spec, other = (treeops.tree_structure(tree, namespace="s") for _ in range(2))
rebuild, payload = spec.__reduce__()
walks = [
    lambda: treeops.tree_leaves(tree, namespace="s"),
    lambda: treeops.tree_leaves(tree, lambda node: False, namespace="s"),
    lambda: treeops.tree_map(lambda *leaves: 0, tree, tree, namespace="s"),
    lambda: spec.flatten_up_to(tree),
    lambda: spec.unflatten([1]),
    lambda: repr(spec),
    spec.paths,
    spec.accessors,
    lambda: spec.transform(lambda node: node),
    lambda: spec.traverse([1], lambda node: node),
    lambda: spec <= other,
    lambda: spec.broadcast_to_common_suffix(other),
    lambda: rebuild(*payload),
    lambda: list(treeops.tree_iter(tree, namespace="s")),
]
wide = [nested({wrap}, 20) for _ in range(100)]
for size in (64, 96, 128, 256, 1024):
    threading.stack_size(size << 10)
    assert {{in_thread(walk) for walk in walks}} <= {{"done", "treeops"}}
assert in_thread(lambda: treeops.tree_map(lambda *leaves: 0, wide, wide, namespace="s")) == "done"
assert [in_thread(walk) for walk in walks] == ["done"] * len(walks)
print("survived")
"""
    assert run(code) == "survived\n"


def test_walks_within_walks() -> None:
    """Each walk may be 1000 deep, and the interpreter allows 1000 calls within each other."""
    code = f"""{PREPARE}
tree = nested(lambda x: {{"a": x}}, 999)
calls = 0
def again(node):
    global calls
    if node == 0:
        calls += 1
        treeops.tree_leaves(tree, again)
    return False
try:
    treeops.tree_leaves(tree, again)
except RecursionError as error:
    print(calls > 2, error)
"""
    assert run(code) == (
        "True treeops: expected room on the stack of this thread for a tree this deep, got a stack "
        "nearly full; use a thread with a larger one (threading.stack_size) or fewer nested calls\n"
    )
