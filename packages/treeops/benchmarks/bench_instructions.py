#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Instructions per call on a fixed tree, counted by valgrind: a number that no busy machine moves.

    python packages/treeops/benchmarks/bench_instructions.py [--record]

Compares with the counts in ``instructions.json``, which hold for one version of Python and one
compiler, and fails if one has grown by a tenth. ``interpreter`` is the share of Python and the C
library, where containers are allocated, filled and freed: beyond the reach of treeops. Needs
valgrind.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

RECORD = Path(__file__).with_name("instructions.json")
TOLERANCE = 1.1
CALLS = 100

PROGRAM = """
import gc
import sys
from collections import OrderedDict
sys.path.insert(0, '{folder}')
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


def instructions(container: str, operation: str, calls: int) -> Counter[str]:
    """Instructions of a whole program by the library that executes them."""
    program = PROGRAM.format(
        folder=RECORD.parent, container=container, calls=calls, operation=operation
    )
    with tempfile.TemporaryDirectory() as folder:
        valgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out",
                    "--compress-strings=no", "--compress-pos=no"]  # fmt: skip
        run(valgrind, program)
        return by_library((Path(folder) / "out").read_text())


def run(tool: list[str], program: str) -> None:
    """One fresh interpreter; hashes, and so the order of sets, are those of every other run."""
    command = [*tool, sys.executable, "-c", program]
    subprocess.run(command, capture_output=True, check=True, env={"PYTHONHASHSEED": "0"})


def by_library(profile: str) -> Counter[str]:
    """Sums what callgrind wrote; the line after ``calls=`` repeats the callee's cost."""
    counts: Counter[str] = Counter()
    library, of_callee = "", False
    for line in profile.splitlines():
        if line.startswith("ob="):
            library = line.removeprefix("ob=")
        elif line.startswith("calls="):
            of_callee = True
        elif line[:1].isdigit():
            if not of_callee:
                counts[library] += int(line.split()[1])
            of_callee = False
    if not counts:
        raise RuntimeError("bench_instructions: expected valgrind to write counts, got none")
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write the counts down")
    parser.add_argument("--quick", action="store_true", help="one operation on dicts")
    options = parser.parse_args()
    if shutil.which("valgrind") is None:
        print("bench_instructions: valgrind is missing: apt-get install valgrind")
        return
    # once without valgrind, so that no bytecode is left to compile
    run([], PROGRAM.format(folder=RECORD.parent, container="dict", calls=1, operation="pass"))
    counts, interpreter = {}, {}
    containers = ("dict",) if options.quick else ("OrderedDict", "dict")
    operations = {"map": OPERATIONS["map"]} if options.quick else OPERATIONS
    for container in containers:
        for operation_name, operation in operations.items():
            name = f"resnet50 {container} {operation_name}"
            more = instructions(container, operation, 2 * CALLS)
            more.subtract(instructions(container, operation, CALLS))
            own = sum(count for library, count in more.items() if "/treeops/" in library)
            counts[name] = more.total() // CALLS
            interpreter[name] = 1 - own / more.total()
    system = f"Python {platform.python_version()}, {platform.machine()}"
    recorded = json.loads(RECORD.read_text()) if RECORD.exists() else {"system": None, "counts": {}}
    grown = []
    print(f"recorded with {recorded['system']}\n")
    print(f"| {'instructions per call':<34} | {'now':>8} | interpreter | recorded |")
    print("|---|---|---|---|")
    for name, count in counts.items():
        before = recorded["counts"].get(name)
        share = f"{interpreter[name]:.0%}"
        was = "-" if before is None else before
        print(f"| {name:<34} | {count:>8} | {share:>11} | {was:>8} |")
        if before is not None and recorded["system"] == system and count > TOLERANCE * before:
            grown.append(name)
    if options.record:
        RECORD.write_text(json.dumps({"system": system, "counts": counts}, indent=1) + "\n")
    elif grown:
        sys.exit(f"bench_instructions: more than a tenth above the record: {', '.join(grown)}")


if __name__ == "__main__":
    main()
