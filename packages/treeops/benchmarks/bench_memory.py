#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Memory of a treespec of ResNet-152, next to OpTree: growth of the process over many of them.

python packages/treeops/benchmarks/bench_memory.py [--quick]
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path

COUNT = 2000
PROGRAM = """
import gc, resource, sys
from collections import OrderedDict
sys.path.insert(0, {folder!r})
import example_trees
import {library} as library
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
tree = example_trees.resnet_tree("resnet152", {container}, lambda shape: None)
kept = [library.tree_structure(tree, none_is_leaf=True) for _ in range(10)]
gc.collect()
before = resident()
kept += [library.tree_structure(tree, none_is_leaf=True) for _ in range({count})]
print((resident() - before) // {count})
"""


def bytes_each(library: str, container: str, count: int) -> int:
    """Bytes of one treespec, measured in a process of its own."""
    program = PROGRAM.format(
        folder=str(Path(__file__).parent), library=library, container=container, count=count
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return int(result.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the treespecs")
    count = COUNT // 10 if parser.parse_args().quick else COUNT
    libraries = ["treeops"]
    if importlib.util.find_spec("optree") is not None:
        libraries.append("optree")
    else:
        print("OpTree is missing: pip install optree==0.20.0", file=sys.stderr)
    print(f"| bytes per treespec of ResNet-152 | {' | '.join(libraries)} |")
    print("|---" * (1 + len(libraries)) + "|")
    for container in ("OrderedDict", "dict"):
        cells = " | ".join(str(bytes_each(library, container, count)) for library in libraries)
        print(f"| {container:<32} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
