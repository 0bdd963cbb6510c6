#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Flatten, unflatten and map of ResNet parameter trees, next to OpTree and JAX.

    python packages/treeops/benchmarks/bench_trees.py [--models resnet18 ...] [--rounds 40]

Every library handles the same trees of real tensors, nested as the modules are, in one process.
Rounds are interleaved, so that a busy machine disturbs all alike; a number is the median over the
rounds of the CPU time per call.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.util
import json
import statistics
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import treeops

Shape = tuple[int, ...]
Operation = Callable[[], object]

BLOCKS = {  # blocks per stage, and whether they are bottlenecks
    "resnet18": ((2, 2, 2, 2), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
    "resnet152": ((3, 8, 36, 3), True),
}
EXPANSION = 4  # of a bottleneck's last convolution
OPERATIONS = ("flatten", "unflatten", "map")


class Library(NamedTuple):
    """One library's names for the three operations."""

    name: str
    flatten: Callable[[Any], tuple[list[Any], Any]]
    unflatten: Callable[[Any, list[Any]], Any]
    map: Callable[..., Any]


def resnet_shapes(model: str) -> Iterator[tuple[str, Shape]]:
    """The names and shapes of a ResNet's parameters, in the order of its modules."""
    stages, bottleneck = BLOCKS[model]
    yield "conv1.weight", (64, 3, 7, 7)
    yield from _norm("bn1", 64)
    inputs = 64
    for stage, blocks in enumerate(stages):
        width = 64 * 2**stage
        outputs = width * EXPANSION if bottleneck else width
        for block in range(blocks):
            prefix = f"layer{stage + 1}.{block}"
            kernels = ((1, width), (3, width), (1, outputs)) if bottleneck else ((3, width),) * 2
            channels = inputs
            for i, (kernel, out) in enumerate(kernels, start=1):
                yield f"{prefix}.conv{i}.weight", (out, channels, kernel, kernel)
                yield from _norm(f"{prefix}.bn{i}", out)
                channels = out
            if block == 0 and inputs != outputs:
                yield f"{prefix}.downsample.0.weight", (outputs, inputs, 1, 1)
                yield from _norm(f"{prefix}.downsample.1", outputs)
            inputs = outputs
    yield "fc.weight", (1000, inputs)
    yield "fc.bias", (1000,)


def _norm(prefix: str, channels: int) -> Iterator[tuple[str, Shape]]:
    yield f"{prefix}.weight", (channels,)
    yield f"{prefix}.bias", (channels,)


def nested_tree(model: str, container: type[dict[str, Any]], make: Callable[[Shape], Any]) -> Any:
    """The parameters of a model, nested as its modules are; names interned, as attributes are."""
    tree = container()
    for name, shape in resnet_shapes(model):
        *modules, parameter = map(sys.intern, name.split("."))
        node = tree
        for module in modules:
            node = node.setdefault(module, container())
        node[parameter] = make(shape)
    return tree


def libraries() -> list[Library]:
    """treeops and the rivals that are installed; says how to get the others."""
    found = [Library("treeops", treeops.tree_flatten, treeops.tree_unflatten, treeops.tree_map)]
    if importlib.util.find_spec("optree") is not None:
        optree = importlib.import_module("optree")
        found.append(
            Library(
                f"optree {optree.__version__}",
                optree.tree_flatten,
                optree.tree_unflatten,
                optree.tree_map,
            )
        )
    else:
        print("OpTree is missing: pip install optree==0.20.0", file=sys.stderr)
    if importlib.util.find_spec("jax") is not None:
        jax = importlib.import_module("jax")
        tree = jax.tree_util
        found.append(
            Library(f"jax {jax.__version__}", tree.tree_flatten, tree.tree_unflatten, tree.tree_map)
        )
    else:
        print("JAX is missing (optional): pip install jax", file=sys.stderr)
    return found


def operations(library: Library, tree: Any) -> dict[str, Operation]:
    """The three operations on one tree, without arguments."""
    leaves, treespec = library.flatten(tree)
    return {
        "flatten": lambda: library.flatten(tree),
        "unflatten": lambda: library.unflatten(treespec, leaves),
        "map": lambda: library.map(_keep, tree),
    }


def _keep(leaf: Any) -> Any:
    return leaf


def cpu_time(operation: Operation, calls: int) -> float:
    """CPU seconds per call."""
    repeat = range(calls)
    start = time.process_time()
    for _ in repeat:
        operation()
    return (time.process_time() - start) / calls


def measure(tree: Any, rivals: list[Library], rounds: int) -> dict[str, dict[str, float]]:
    """Median microseconds by operation and library."""
    table = {library.name: operations(library, tree) for library in rivals}
    result: dict[str, dict[str, float]] = {}
    for operation in OPERATIONS:
        calls = {
            name: max(1, round(0.002 / cpu_time(functions[operation], 20)))
            for name, functions in table.items()
        }
        samples: dict[str, list[float]] = {name: [] for name in table}
        for _ in range(rounds):
            for name, functions in table.items():
                samples[name].append(cpu_time(functions[operation], calls[name]))
        result[operation] = {
            name: 1e6 * statistics.median(times) for name, times in samples.items()
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=sorted(BLOCKS), default=list(BLOCKS))
    parser.add_argument("--rounds", type=int, default=40, help="rounds per number (default 40)")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers to FILE")
    options = parser.parse_args()
    if importlib.util.find_spec("torch") is None:
        parser.exit(1, "bench_trees: expected torch for the leaves; pip install torch\n")
    torch = importlib.import_module("torch")

    rivals = libraries()
    others = [library.name for library in rivals[1:]]
    header = f"{'tree':<24}{'leaves':>7}  {'operation':<10}{'treeops us':>11}"
    print(header + "".join(f"{name + ' us':>18}{'ratio':>8}" for name in others))
    rows = []
    for container in (OrderedDict, dict):
        for model in options.models:
            tree = nested_tree(model, container, torch.empty)
            num_leaves = len(treeops.tree_leaves(tree))
            label = f"{model} {container.__name__}"
            for operation, times in measure(tree, rivals, options.rounds).items():
                own = times["treeops"]
                cells = "".join(f"{times[n]:>18.1f}{times[n] / own:>7.1f}x" for n in others)
                print(f"{label:<24}{num_leaves:>7}  {operation:<10}{own:>11.1f}{cells}", flush=True)
                rows.append({"tree": label, "operation": operation, "us": times})
            gc.collect()
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
