#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Instructions per call on a fixed tree, counted by valgrind: a number that no busy machine moves.

    python packages/treeops/benchmarks/bench_instructions.py [--record]

Compares with the counts in ``instructions.json``, which hold for one version of Python and one
compiler, and fails if one has grown by a tenth. Needs valgrind.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

RECORD = Path(__file__).with_name("instructions.json")
TOLERANCE = 1.1
CALLS = 100

PROGRAM = """
import gc
import sys
from collections import OrderedDict
sys.path.insert(0, {folder!r})
import example_trees, treeops
tree = example_trees.resnet_tree("resnet50", {container}, lambda shape: object())
leaves, treespec = treeops.tree_flatten(tree)
gc.disable()
for _ in range({calls}):
    {operation}
"""
OPERATIONS = {
    "flatten": "treeops.tree_flatten(tree)",
    "unflatten": "treeops.tree_unflatten(treespec, leaves)",
    "map": "treeops.tree_map(id, tree)",
}


def instructions(container: str, operation: str, calls: int) -> int:
    """Instructions of a whole program."""
    program = PROGRAM.format(
        folder=str(RECORD.parent), container=container, calls=calls, operation=operation
    )
    with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run(
            ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out",
             sys.executable, "-c", program],
            capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "0"},
        )  # fmt: skip
    found = re.search(r"Collected : (\d+)", result.stderr)
    if found is None:
        raise RuntimeError("bench_instructions: expected valgrind to print a count, got none")
    return int(found.group(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write the counts down")
    options = parser.parse_args()
    if shutil.which("valgrind") is None:
        print("bench_instructions: valgrind is missing: apt-get install valgrind")
        return
    counts = {
        f"resnet50 {container} {name}": (
            instructions(container, operation, 2 * CALLS)
            - instructions(container, operation, CALLS)
        )
        // CALLS
        for container in ("OrderedDict", "dict")
        for name, operation in OPERATIONS.items()
    }
    system = f"Python {platform.python_version()}, {platform.machine()}"
    recorded = json.loads(RECORD.read_text()) if RECORD.exists() else {"system": None, "counts": {}}
    grown = []
    print(f"{'instructions per call':<34}{'now':>10}{'recorded':>10}   ({recorded['system']})")
    for name, count in counts.items():
        before = recorded["counts"].get(name)
        print(f"{name:<34}{count:>10}{before if before is not None else '-':>10}")
        if before is not None and recorded["system"] == system and count > TOLERANCE * before:
            grown.append(name)
    if options.record:
        RECORD.write_text(json.dumps({"system": system, "counts": counts}, indent=1) + "\n")
    elif grown:
        sys.exit(f"bench_instructions: more than a tenth above the record: {', '.join(grown)}")


if __name__ == "__main__":
    main()
