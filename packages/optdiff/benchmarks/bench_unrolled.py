# SPDX-License-Identifier: Apache-2.0
"""K unrolled Adam steps and the gradient of an outer loss, against a hand-written torch loop.

Run: python packages/optdiff/benchmarks/bench_unrolled.py [--steps 10] [--repeats 15]
All variants run interleaved in one process on one thread; figures are medians of CPU time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

import optcore
import optdiff

LR, B1, B2, EPS = 1e-2, 0.9, 0.999, 1e-3


def network(width: int, depth: int) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.Tanh()]
    return nn.Sequential(*layers)


class Problem:
    """An MLP whose inner inputs are scaled by the meta-parameter."""

    def __init__(self, width: int, depth: int) -> None:
        self.net = network(width, depth)
        self.start = optdiff.extract_state_dict(self.net)
        self.phi = torch.ones(width, requires_grad=True)
        self.x, self.y = torch.randn(16, width), torch.randn(16, width)
        self.inputs = [self.phi, *self.net.parameters()]

    def inner(self, call: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Inner loss of a network given as a function."""
        return (call(self.x * self.phi) - self.y).square().mean()

    def outer(self, call: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
        """Gradient of the outer loss in the meta-parameter and the initial weights."""
        loss = (call(self.x) - self.y).square().mean()
        return list(torch.autograd.grad(loss, self.inputs))


def hand_loop(problem: Problem, steps: int) -> list[torch.Tensor]:
    """Adam as one writes it down: the yardstick."""
    params = dict(problem.net.named_parameters())
    m = {k: torch.zeros_like(p) for k, p in params.items()}
    v = {k: torch.zeros_like(p) for k, p in params.items()}

    def call(x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(problem.net, params, (x,))

    for t in range(1, steps + 1):
        grads = torch.autograd.grad(problem.inner(call), tuple(params.values()), create_graph=True)
        for (k, p), g in zip(list(params.items()), grads, strict=True):
            m[k] = B1 * m[k] + (1 - B1) * g
            v[k] = B2 * v[k] + (1 - B2) * g * g
            params[k] = p - LR * (m[k] / (1 - B1**t)) / ((v[k] / (1 - B2**t)).sqrt() + EPS)
    return problem.outer(call)


def meta_adam(problem: Problem, steps: int) -> list[torch.Tensor]:
    """The same through the module."""
    optdiff.recover_state_dict(problem.net, problem.start)
    meta = optdiff.MetaAdam(problem.net, lr=LR, betas=(B1, B2), eps=EPS)
    for _ in range(steps):
        meta.step(problem.inner(problem.net))
    result = problem.outer(problem.net)
    optdiff.recover_state_dict(problem.net, problem.start)
    return result


def functional_adam(problem: Problem, steps: int) -> list[torch.Tensor]:
    """The same with the functional API."""
    params = dict(problem.net.named_parameters())
    opt = optcore.adam(lr=LR, betas=(B1, B2), eps=EPS)
    state = opt.init(params)

    def call(x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(problem.net, params, (x,))

    for _ in range(steps):
        found = torch.autograd.grad(problem.inner(call), tuple(params.values()), create_graph=True)
        updates, state = opt.update(dict(zip(params, found, strict=True)), state)
        params = optcore.apply_updates(params, updates)
    return problem.outer(call)


VARIANTS = {
    "hand-written loop": hand_loop,
    "optdiff.MetaAdam": meta_adam,
    "optcore.adam": functional_adam,
}
SIZES = {"0.09M": (55, 30), "0.98M": (180, 30)}  # each 60 tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10, help="inner steps K (default: 10)")
    parser.add_argument("--repeats", type=int, default=15, help="timed runs (default: 15)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"K = {options.steps} Adam steps + outer gradient, float32, CPU ms (median), 1 thread")
    print(f"{'parameters':<12}{'variant':<20}{'CPU ms':>9}{'ratio':>8}{'max rel. diff.':>16}")
    for size, shape in SIZES.items():
        problem = Problem(*shape)
        times: dict[str, list[float]] = {name: [] for name in VARIANTS}
        results = {name: run(problem, options.steps) for name, run in VARIANTS.items()}
        for _ in range(options.repeats):
            for name, run in VARIANTS.items():
                begin = time.process_time()
                run(problem, options.steps)
                times[name].append(time.process_time() - begin)
        base = times["hand-written loop"]
        expected = results["hand-written loop"]
        for name, taken in times.items():
            ratio = statistics.median(a / b for a, b in zip(taken, base, strict=True))
            apart = max(
                ((a - b).abs().max() / b.abs().max()).item()
                for a, b in zip(results[name], expected, strict=True)
            )
            cpu = statistics.median(taken) * 1e3
            print(f"{size:<12}{name:<20}{cpu:>9.1f}{ratio:>8.2f}{apart:>16.1e}")


if __name__ == "__main__":
    main()
