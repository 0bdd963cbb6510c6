# SPDX-License-Identifier: Apache-2.0
"""What importing treeops costs and brings along, and that leaving is clean."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


def test_brings_in_neither_torch_nor_numpy() -> None:
    output = run(
        "import sys, treeops\n"
        "found = {'torch', 'numpy', 'jax', 'optree', 'typing_extensions'} & set(sys.modules)\n"
        "print(sorted(found))"
    )
    assert output.strip() == "[]"


def test_takes_less_than_forty_milliseconds() -> None:
    code = (
        "import time\n"
        "start = time.process_time()\n"
        "import treeops\n"
        "print(1e3 * (time.process_time() - start))"
    )
    assert min(float(run(code)) for _ in range(5)) < 40


@pytest.mark.parametrize(
    "code",
    [
        "import treeops; kept = treeops.tree_flatten({'a': [1]})",
        "import sys, treeops; sys.kept = treeops.tree_structure({'a': [1]})",
        "import builtins, treeops; builtins.kept = treeops._C.register_node",
        # a finalizer that walks trees while the interpreter shuts down
        "import treeops, collections\n"
        "class Late:\n"
        "    def __init__(self): self.spec = treeops.tree_structure([1, {'a': 2}])\n"
        "    def __del__(self, walk=treeops.tree_map, keep=lambda leaf: leaf):\n"
        "        walk(keep, {'x': [1, (2, None)]}); self.spec.unflatten([1, 2])\n"
        "late = Late(); late.cycle = late",
        "import sys, treeops; del treeops; del sys.modules['treeops'], sys.modules['treeops._C']\n"
        "import gc; gc.collect(); import treeops; print(treeops.tree_leaves([1]))",
    ],
)
def test_leaves_quietly(code: str) -> None:
    run(code)
