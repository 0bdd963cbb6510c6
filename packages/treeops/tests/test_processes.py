# SPDX-License-Identifier: Apache-2.0
"""Threads, forked processes and sub-interpreters."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import treeops

THREADS = 8
ROUNDS = 150


def together(work: Callable[[int], Any]) -> list[Any]:
    """What `work` gives in each of several threads that start at once and switch often."""
    start = threading.Barrier(THREADS, timeout=60)

    def wait_and_work(number: int) -> Any:
        start.wait()
        return work(number)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(wait_and_work, range(THREADS)))
    finally:
        sys.setswitchinterval(interval)


def test_threads_walk_the_same_tree() -> None:
    tree = {f"key {i}": [i, (i, {"a": i, "b": None})] for i in range(50)}
    leaves, treespec = treeops.tree_flatten(tree)

    def work(number: int) -> bool:
        good = True
        for _ in range(ROUNDS):
            good &= treeops.tree_flatten(tree) == (leaves, treespec)
            good &= treespec.unflatten(leaves) == tree
            good &= treeops.tree_map(lambda x, y: x + y - x, tree, tree) == tree
            good &= hash(treespec) == hash(treeops.tree_structure(tree))
        return good

    assert together(work) == [True] * THREADS


def test_threads_walk_shapes_of_their_own() -> None:
    def work(number: int) -> bool:
        good = True
        for i in range(ROUNDS):
            tree = {f"{number} {i} {j}": [j] for j in range(12)}
            good &= treeops.tree_map(lambda x: x, tree) == tree
            good &= treeops.tree_leaves(tree, lambda node: False) == treeops.tree_leaves(tree)
        return good

    assert together(work) == [True] * THREADS


def test_threads_register_while_others_walk() -> None:
    class Shared:
        pass

    def work(number: int) -> int:
        space = f"thread {number}"
        nodes = 0
        for i in range(ROUNDS):
            made = type(f"Made{i}", (), {})
            treeops.register_pytree_node(
                made, lambda node: ((1, [2]), None), lambda _, children: children, namespace=space
            )
            tree = [made(), {"a": Shared(), "b": made()}]
            nodes += treeops.tree_structure(tree, namespace=space).num_leaves
            nodes += len(treeops.tree_leaves(tree))
            treeops.unregister_pytree_node(made, namespace=space)
        return nodes

    assert together(work) == [ROUNDS * (5 + 3)] * THREADS


def test_one_registration_wins() -> None:
    """In every round all threads register the same class at once."""

    class Contended:
        pass

    turn = threading.Barrier(THREADS, timeout=60)

    def work(number: int) -> list[bool]:
        won = []
        for _ in range(ROUNDS):
            turn.wait()
            try:
                treeops.register_pytree_node(
                    Contended, lambda node: ((), None), lambda _, children: 0, namespace="contended"
                )
                won.append(True)
            except ValueError:
                won.append(False)
            turn.wait()
            if won[-1]:
                treeops.unregister_pytree_node(Contended, namespace="contended")
        return won

    assert [sum(wins) for wins in zip(*together(work), strict=True)] == [1] * ROUNDS
    assert treeops.register_pytree_node.get(Contended, namespace="contended") is None


@pytest.mark.parametrize("step", ["set", "clear"])
def test_containers_that_another_thread_changes(step: str) -> None:
    """Whatever is seen of them, nothing breaks."""
    tree: dict[str, Any] = {"list": [[0]] * 50, "dict": {i: [i] for i in range(50)}}
    changes = {
        "set": lambda i: (
            tree["dict"].update({i % 90: [0]}) or tree["list"].append(tree["list"].pop())
        ),
        "clear": lambda i: tree.update({"list": [[0]] * 50, "dict": {i: [i]}}),
    }
    errors: list[type[BaseException]] = []

    def work(number: int) -> None:
        for i in range(ROUNDS):
            changes[step](number * ROUNDS + i)
            try:
                treeops.tree_map(lambda x: x, tree)
                treeops.tree_leaves(tree, lambda node: False)
            except RuntimeError as error:
                errors.append(type(error))

    together(work)
    assert set(errors) <= {RuntimeError}


def run(code: str) -> str:
    """In a process of its own, where a crash or a hang shows."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork: POSIX only")
def test_a_forked_process_goes_on() -> None:
    code = """
import os, treeops
class Node: pass
treeops.register_pytree_node(Node, lambda n: ((1, 2), "m"), lambda m, c: c, namespace="fork")
tree = {"b": [1, (2, None)], "a": Node()}
deep = 0
for _ in range(900): deep = [deep]
leaves, spec = treeops.tree_flatten(tree, namespace="fork")
treeops.tree_leaves(deep)
child = os.fork()
if child == 0:
    assert treeops.tree_flatten(tree, namespace="fork") == (leaves, spec)
    assert treeops.tree_map(lambda x: x, deep) == deep
    treeops.unregister_pytree_node(Node, namespace="fork")
    assert treeops.tree_structure(tree, namespace="fork").num_leaves == 3
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert treeops.tree_structure(tree, namespace="fork") == spec
print(spec.num_leaves)
"""
    assert run(code) == "4\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork: POSIX only")
def test_a_process_forked_from_a_thread_exits_well() -> None:
    code = """
import os, sys, threading, treeops
def work():
    treeops.tree_leaves([{"a": 1}])
    child = os.fork()
    if child == 0:
        deep = 0
        for _ in range(900): deep = [deep]
        assert treeops.tree_leaves(deep) == [0]
        sys.exit(0)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
codes = []
threading.stack_size(1 << 20)
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(codes)
"""
    assert run(code) == "[0]\n"


SUB_INTERPRETERS = """
import sys
if sys.version_info >= (3, 13):
    import _interpreters as interpreters
    run = interpreters.exec
else:
    import _xxsubinterpreters as interpreters
    run = interpreters.run_string
source = '''
try:
    import treeops
except ImportError as error:
    assert str(error) in (
        "treeops: expected the main interpreter, got a sub-interpreter; import it in the main "
        "interpreter or in another process",
        "module treeops._C does not support loading in subinterpreters",
    ), error
else:
    raise AssertionError("imported")
'''
"""


@pytest.mark.parametrize(
    "before", ["", "import treeops; kept = treeops.tree_flatten({'a': [1]})"], ids=["fresh", "used"]
)
def test_a_sub_interpreter_is_refused(before: str) -> None:
    code = f"""{SUB_INTERPRETERS}
{before}
for _ in range(3):
    interpreter = interpreters.create()
    assert run(interpreter, source) is None
    interpreters.destroy(interpreter)
assert run(interpreters.create(), source) is None
import treeops
print(treeops.tree_leaves([1, (2,)]))
"""
    assert run(code) == "[1, 2]\n"


def test_a_function_of_a_module_that_is_gone() -> None:
    code = """
import gc, sys, typing, treeops
register = treeops._C.register_node
for name in [name for name in sys.modules if name.startswith("treeops")]: del sys.modules[name]
del treeops
for clear in typing._cleanups: clear()
gc.collect()
try:
    register(int, abs, abs, int, "space")
except RuntimeError as error:
    print(error)
"""
    assert run(code) == (
        "treeops: expected the module of this function to be loaded, got one that is gone; "
        "import treeops again\n"
    )
