#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Walks of many trees, next to OpTree, JAX, torch's two pytree modules and dm-tree.

    python packages/treeops/benchmarks/bench_trees.py [--trees resnet50 ...] [--rounds 40]

``--optree DIR`` takes OpTree from a folder (``pip install --no-deps --target DIR optree==0.18``).
The column "written out" is the dicts of a tree as one expression of Python, which the interpreter
evaluates: what allocating, filling and freeing them costs whoever does it.
Every library handles the same trees of real tensors in one process. Rounds are interleaved, so that
a busy machine disturbs all alike; a number is the median over the rounds of the CPU time per call.
Libraries that are not installed are named, with the command that installs them.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.util
import json
import pickle
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import example_trees

import treeops

Operation = Callable[[], object]

BASIC = ("flatten", "unflatten", "map")


class Library(NamedTuple):
    """One library's names for the basic operations."""

    name: str
    flatten: Callable[[Any], tuple[Any, Any]]
    unflatten: Callable[[Any, Any], Any]
    map: Callable[..., Any]
    custom: bool = True  # whether it knows the custom nodes


def is_installed(module: str, hint: str) -> bool:
    """Whether a rival can be imported; says how to get it if not."""
    if importlib.util.find_spec(module) is not None:
        return True
    print(f"{module} is missing: {hint}", file=sys.stderr)
    return False


def take_apart(layer: example_trees.Layer) -> tuple[Any, None]:
    return (layer.weight, layer.bias), None


def put_together(_: None, children: Any) -> example_trees.Layer:
    return example_trees.Layer(*children)


def put_together_torch(children: Any, _: None) -> example_trees.Layer:
    return example_trees.Layer(*children)


def libraries() -> list[Library]:
    """treeops and the rivals that are installed, with the custom node registered."""
    node = example_trees.Layer
    space = treeops.registry.GLOBAL_NAMESPACE
    treeops.register_pytree_node(node, take_apart, put_together, namespace=space)
    found = [Library("treeops", treeops.tree_flatten, treeops.tree_unflatten, treeops.tree_map)]
    if is_installed("optree", "pip install optree==0.20.0"):
        optree = importlib.import_module("optree")
        everyone = optree.registry.__dict__["__GLOBAL_NAMESPACE"]
        optree.register_pytree_node(node, take_apart, put_together, namespace=everyone)
        name = f"optree {optree.__version__}"
        found.append(Library(name, optree.tree_flatten, optree.tree_unflatten, optree.tree_map))
    if is_installed("jax", "pip install jax"):
        jax = importlib.import_module("jax")
        tree = jax.tree_util
        tree.register_pytree_node(node, take_apart, put_together)
        name = f"jax {jax.__version__}"
        found.append(Library(name, tree.tree_flatten, tree.tree_unflatten, tree.tree_map))
    if is_installed("torch", "pip install torch"):
        for module in ("_pytree", "_cxx_pytree"):
            if module == "_cxx_pytree" and importlib.util.find_spec("optree") is None:
                continue  # it is made of OpTree
            tree = importlib.import_module(f"torch.utils.{module}")
            if module == "_pytree":  # which tells the other
                tree.register_pytree_node(node, take_apart, put_together_torch)
            swapped = lambda spec, leaves, tree=tree: tree.tree_unflatten(leaves, spec)  # noqa: E731
            found.append(Library(f"torch {module}", tree.tree_flatten, swapped, tree.tree_map))
    if is_installed("tree", "pip install dm-tree"):
        tree = importlib.import_module("tree")
        flatten = lambda nest: (tree.flatten(nest), nest)  # noqa: E731
        found.append(
            Library("dm-tree", flatten, tree.unflatten_as, tree.map_structure, custom=False)
        )
    return found


def keep(leaf: Any) -> Any:
    return leaf


def keep_second(_: Any, leaf: Any) -> Any:
    return leaf


def written_out(tree: Any) -> Operation:
    """A function that makes a tree of dicts by evaluating its dict displays."""
    leaves: list[Any] = []

    def expression(node: Any) -> str:
        if type(node) is dict:
            return f"{{{', '.join(f'{key!r}: {expression(node[key])}' for key in node)}}}"
        leaves.append(node)
        return f"leaves[{len(leaves) - 1}]"

    return eval(f"lambda: {expression(tree)}", {"leaves": leaves})


def basic_operations(library: Library, tree: Any) -> dict[str, Operation]:
    leaves, treespec = library.flatten(tree)
    return {
        "flatten": lambda: library.flatten(tree),
        "unflatten": lambda: library.unflatten(treespec, leaves),
        "map": lambda: library.map(keep, tree),
    }


def other_operations(library: Any, tree: Any) -> dict[str, Operation]:
    """What only treeops and OpTree have, under the same names."""
    treespec = library.tree_structure(tree)
    other = library.tree_structure(library.tree_map(keep, tree))
    pair = library.tree_structure((0, 0))
    pairs = library.tree_map(lambda leaf: (leaf, leaf), tree)
    dumped = pickle.dumps(treespec)
    return {
        "leaves": lambda: library.tree_leaves(tree),
        "structure": lambda: library.tree_structure(tree),
        "flatten_up_to": lambda: treespec.flatten_up_to(tree),
        "map of two": lambda: library.tree_map(keep_second, tree, tree),
        "map_with_path": lambda: library.tree_map_with_path(keep_second, tree),
        "map_with_accessor": lambda: library.tree_map_with_accessor(keep_second, tree),
        "transpose": lambda: library.tree_transpose(treespec, pair, pairs),
        "broadcast_prefix": lambda: library.broadcast_prefix(tree, tree),
        "treespec ==": lambda: treespec == other,
        "treespec hash": lambda: hash(treespec),
        "treespec dumps": lambda: pickle.dumps(treespec),
        "treespec loads": lambda: pickle.loads(dumped),
    }


def cpu_time(operation: Operation, calls: int) -> float:
    """CPU seconds per call."""
    repeat = range(calls)
    start = time.process_time()
    for _ in repeat:
        operation()
    return (time.process_time() - start) / calls


def measure(table: dict[str, Operation], rounds: int) -> dict[str, float]:
    """Median microseconds per call, by library."""
    calls = {}
    for name, operation in table.items():
        once = cpu_time(operation, 3)
        calls[name] = max(1, min(10_000, round(0.002 / max(once, 1e-7))))
    samples: dict[str, list[float]] = {name: [] for name in table}
    for _ in range(rounds):
        for name, operation in table.items():
            samples[name].append(cpu_time(operation, calls[name]))
    return {name: 1e6 * statistics.median(times) for name, times in samples.items()}


def print_row(label: str, operation: str, times: dict[str, float], names: list[str]) -> None:
    own = times["treeops"]
    cells = " | ".join(
        f"{times[name]:>9.1f} {times[name] / own:>5.1f}x" if name in times else f"{'-':>16}"
        for name in names
    )
    print(f"| {label:<20} | {operation:<17} | {own:>8.2f} | {cells} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trees", nargs="+", metavar="TEXT", help="only trees named like this")
    parser.add_argument("--rounds", type=int, default=40, help="rounds per number (default 40)")
    parser.add_argument("--optree", metavar="DIR", help="folder with the OpTree to compare with")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers to FILE")
    parser.add_argument("--quick", action="store_true", help="fewer numbers, in seconds")
    options = parser.parse_args()
    if options.quick:
        parser.set_defaults(trees=["resnet50"], rounds=5)
        options = parser.parse_args()
    if importlib.util.find_spec("torch") is None:
        parser.exit(1, "bench_trees: expected torch for the leaves; pip install torch\n")
    if options.optree:
        sys.path.insert(0, options.optree)
    torch = importlib.import_module("torch")

    sys.setrecursionlimit(20_000)  # the pure Python rivals recurse
    rivals = libraries()
    names = [*(library.name for library in rivals[1:]), "written out"]
    wanted = {
        label: tree
        for label, tree in example_trees.trees(torch.empty).items()
        if options.trees is None or any(text in label for text in options.trees)
    }
    rows = []
    head = " | ".join(f"{name:>16}" for name in names)
    print(f"| {'tree (us)':<20} | {'operation':<17} | {'treeops':>8} | {head} |")
    print("|---" * (3 + len(names)) + "|")
    for label, tree in wanted.items():
        able = [library for library in rivals if library.custom or "custom" not in label]
        tables = {library.name: basic_operations(library, tree) for library in able}
        for operation in BASIC:
            times = measure({name: t[operation] for name, t in tables.items()}, options.rounds)
            print_row(label, operation, times, names)
            rows.append({"tree": label, "operation": operation, "us": times})
        if type(tree) is dict and "resnet" in label:
            table = {"treeops": tables["treeops"]["unflatten"], "written out": written_out(tree)}
            times = measure(table, options.rounds)
            print_row(label, "unflatten", times, names)
        gc.collect()
    if importlib.util.find_spec("optree") is not None:
        optree = importlib.import_module("optree")
        for label, tree in wanted.items():
            if label not in ("resnet50 dict", "resnet50 OrderedDict", "dict of 3", "custom nodes"):
                continue
            ours, theirs = other_operations(treeops, tree), other_operations(optree, tree)
            for operation in ours:
                times = measure(
                    {"treeops": ours[operation], names[0]: theirs[operation]}, options.rounds
                )
                print_row(label, operation, times, names)
                rows.append({"tree": label, "operation": operation, "us": times})
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
