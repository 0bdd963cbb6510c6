# SPDX-License-Identifier: Apache-2.0
"""CPU time to capture and draw deep graphs, beside torchviz, TorchOpt, torchview and TorchLens.

Usage: ``python packages/optviz/benchmarks/bench_capture.py [--quick]``. Missing tools are left out.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import optviz


class Chain(torch.nn.Module):
    """So many operations in a row."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length
        self.start = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * self.start
        for _ in range(self.length):
            y = y * 1.0
        return y


def meta_adam(steps: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]] | None:
    """An outer loss after inner steps on a small network, and what to name."""
    try:
        import optdiff
    except ImportError:
        return None
    x, phi = torch.randn(8, 4), torch.zeros(8, 1, requires_grad=True)
    net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    inner = optviz.instrument(optdiff.MetaAdam(net, lr=0.1))
    for _ in range(steps):
        inner.step((phi.sigmoid() * net(x) ** 2).mean())
    return net(x).square().mean(), {"phi": phi}


def cpu(call: Callable[[], Any], repeats: int) -> str:
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


def tools() -> dict[str, Callable[[Chain, torch.Tensor], Any]]:
    """Capturers by name; each gets the module and its output."""
    one = torch.ones(1)
    known: dict[str, tuple[str, Callable[[Any], Callable[[Chain, torch.Tensor], Any]]]] = {
        "torchviz": ("torchviz", lambda m: lambda _, y: m.make_dot(y)),
        "TorchOpt": ("torchopt.visual", lambda m: lambda _, y: m.make_dot(y)),
        "torchview": (
            "torchview",
            lambda m: (
                lambda net, _: m.draw_graph(
                    net, input_data=one, device="cpu", hide_module_functions=False
                )
            ),
        ),
        "TorchLens": ("torchlens", lambda m: lambda net, _: m.trace(net, one)),
    }
    found: dict[str, Callable[[Chain, torch.Tensor], Any]] = {
        "optviz.draw": lambda _, y: optviz.draw(y),
        "optviz.make_dot": lambda _, y: optviz.make_dot(y),
        "draw and folded SVG": lambda _, y: optviz.draw(y).to_svg(),
    }
    for name, (module, use) in known.items():
        try:
            found[name] = use(importlib.import_module(module))
        except ImportError:
            continue
    return found


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="leave out the longest graphs")
    quick = parser.parse_args().quick
    found = tools()
    print(f"| operations in a chain | {' | '.join(found)} |")
    print("|---" * (1 + len(found)) + "|")
    for length in (500, 2_000) if quick else (500, 2_000, 20_000):
        net = Chain(length)
        y = net(torch.ones(1))
        repeats = 3 if length < 20_000 else 1
        row = [cpu(lambda call=call: call(net, y), repeats) for call in found.values()]  # noqa: B023
        print(f"| {length} | {' | '.join(row)} |")
    print("\n| inner steps of MetaAdam | operations | draw | boxes of the SVG | SVG |")
    print("|---|---|---|---|---|")
    for steps in (3, 10) if quick else (3, 10, 100):
        made = meta_adam(steps)
        if made is None:
            print(f"| {steps} | optdiff is not installed | | | |")
            continue
        graph = optviz.draw(*made)
        drawn = cpu(lambda made=made: optviz.draw(*made), 3)
        boxes = graph.to_svg().count('<rect class="box')
        svg = cpu(lambda graph=graph: graph.to_svg(), 3)
        print(f"| {steps} | {graph.summary()['ops']} | {drawn} | {boxes} | {svg} |")


if __name__ == "__main__":
    main()
