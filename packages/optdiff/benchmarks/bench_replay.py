# SPDX-License-Identifier: Apache-2.0
"""Peak memory and time of metagradients through K steps of AdamW: unroll and replay.

Run: python packages/optdiff/benchmarks/bench_replay.py [--steps 10 100 1000 10000] [--out FILE]
Memory is that of the living storages that operations made, in copies of the carry (weights and
both moments); CPU time, on one thread, is that of the gradient in units of a forward run of replay.
A plot of both against K is saved.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_unroll_memory import Meter
from torch import nn

import optcore
import optdiff

MOST = 1000  # steps whose graph is kept whole: more of them fill the memory
ROWS, INPUTS, CLASSES = 8, 100, 50


class Problem:
    """Softmax regression by AdamW; the meta-parameters are weights of the examples."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.x, self.y = torch.randn(ROWS, INPUTS), torch.randint(CLASSES, (ROWS,))
        self.start = 0.1 * torch.randn(INPUTS, CLASSES)
        self.copy = 3 * self.start.nbytes
        self.optimizer = optcore.adamw(1e-3, eps=1e-3)

    def step(self, carry: Any, i: int, weights: torch.Tensor) -> Any:
        w, state = carry
        losses = nn.functional.cross_entropy(self.x @ w, self.y, reduction="none")
        (grad,) = torch.autograd.grad((weights * losses).mean(), w, create_graph=True)
        updates, state = self.optimizer.update(grad, state, w)
        return optcore.apply_updates(w, updates), state

    def run(self, loop: Callable[..., Any], num_steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss after the loop, and the weights."""
        weights = torch.ones(ROWS, requires_grad=True)
        w = self.start.clone().requires_grad_()
        init = w, self.optimizer.init(w)
        w, _ = loop(self.step, init, num_steps, weights)
        return nn.functional.cross_entropy(self.x @ w, self.y), weights

    def gradient(self, loop: Callable[..., Any], num_steps: int) -> torch.Tensor:
        loss, weights = self.run(loop, num_steps)
        return torch.autograd.grad(loss, weights)[0]


def plain(*args: Any) -> Any:
    return optdiff.unroll(*args)


def by_root(*args: Any) -> Any:
    return optdiff.unroll(*args, checkpoint="sqrt")


def by_four(*args: Any) -> Any:
    return optdiff.replay(*args, branching=4)


VARIANTS = {
    "unroll": plain,
    'unroll, checkpoint="sqrt"': by_root,
    "replay": optdiff.replay,
    "replay, branching=4": by_four,
}


def seconds(call: Callable[[], Any]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def alone(problem: Problem, num_steps: int) -> float:
    with torch.no_grad():
        return seconds(lambda: problem.run(optdiff.replay, num_steps))


def save_plot(path: Path, found: dict[str, list[tuple[int, float, float]]]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for (name, points), marker in zip(found.items(), "ovsD"):
        if not points:  # more steps than it was run for
            continue
        steps, memory, ratio = zip(*points)
        left.loglog(steps, memory, f"{marker}-", label=name)
        right.semilogx(steps, ratio, f"{marker}-", label=name)
    right.semilogx(steps, [math.log2(k) + 2 for k in steps], "k:", label="$\\log_2 K + 2$")
    left.axhline(20, color="k", linestyle=":", label="20 copies")
    left.set(xlabel="steps K", ylabel="peak memory, copies of the carry")
    right.set(xlabel="steps K", ylabel="CPU time, forward runs", ylim=(0, None))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def check_plot(parser: argparse.ArgumentParser, path: Path) -> None:
    """Stop now where no plot could be saved at the end."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    kinds = sorted(FigureCanvasAgg.get_supported_filetypes())
    if path.suffix.removeprefix(".") not in kinds:
        parser.error(f"--out: expected a file name ending in one of {kinds}, got {path.name!r}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out: expected a folder to write to, got {error.strerror!r}, at {path}")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        parser.error(f"--out: expected a file to write to, got one that cannot be, at {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 100, 1000, 10_000])
    parser.add_argument("--out", type=Path, default=Path("out/bench_replay.png"))
    parser.add_argument("--quick", action="store_true", help="fewer numbers, in seconds")
    options = parser.parse_args()
    if options.quick:
        parser.set_defaults(steps=[10, 100])
        options = parser.parse_args()
    check_plot(parser, options.out)
    torch.set_num_threads(1)
    problem = Problem()
    for loop in VARIANTS.values():
        problem.gradient(loop, 3)  # what is done once only
    found: dict[str, list[tuple[int, float, float]]] = {name: [] for name in VARIANTS}
    print("| K | | memory, copies of the carry | CPU time, forward runs | log2 K + 2 | error |")
    print("|---|---|---|---|---|---|")
    for num_steps in options.steps:
        truth = problem.gradient(by_root, num_steps)
        for name, loop in VARIANTS.items():
            if loop is plain and num_steps > MOST:
                continue
            ratios = []
            for _ in range(max(1, 500 // num_steps)):  # few steps take less than the clock sees
                before = alone(problem, num_steps)
                whole = seconds(lambda: problem.gradient(loop, num_steps))  # noqa: B023
                ratios.append(2 * whole / (before + alone(problem, num_steps)))
            ratio = statistics.median(ratios)
            with Meter() as meter:
                error = (problem.gradient(loop, num_steps) - truth).norm() / truth.norm()
            copies = meter.peak / problem.copy
            found[name].append((num_steps, copies, ratio))
            print(
                f"| {num_steps} | {name} | {copies:.1f} | {ratio:.1f} | "
                f"{math.log2(num_steps) + 2:.1f} | {error:.0e} |",
                flush=True,
            )
    save_plot(options.out, found)
    print(f"\nplot in {options.out}")


if __name__ == "__main__":
    main()
