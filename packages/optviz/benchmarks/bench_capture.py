# SPDX-License-Identifier: Apache-2.0
"""CPU time to capture and draw deep graphs, beside torchviz.

Usage: ``python packages/optviz/benchmarks/bench_capture.py``
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import optviz

try:
    import torchviz
except ImportError:  # not installed, or too old for this Python (it wants distutils)
    torchviz = None


def chain(length: int) -> torch.Tensor:
    """A scalar after so many operations."""
    y = torch.ones(1, requires_grad=True)
    for _ in range(length):
        y = y * 1.0
    return y


def cpu(call: Callable[[], Any], repeats: int = 3) -> str:
    """Median CPU seconds, or how it failed."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        try:
            call()
        except RecursionError:
            return "RecursionError"
        times.append(time.process_time() - start)
    return f"{statistics.median(times):.2f} s"


def main() -> None:
    """Print the table."""
    print("| operations in a chain | draw | make_dot | torchviz.make_dot | SVG, folded |")
    print("|---|---|---|---|---|")
    for length in (500, 2_000, 20_000):
        y = chain(length)
        graph = optviz.draw(y)
        theirs = "not installed" if torchviz is None else cpu(lambda y=y: torchviz.make_dot(y))
        row = [
            cpu(lambda y=y: optviz.draw(y)),
            cpu(lambda y=y: optviz.make_dot(y)),
            theirs,
            cpu(lambda graph=graph: graph.to_svg()),
        ]
        print(f"| {length} | {' | '.join(row)} |")


if __name__ == "__main__":
    main()
