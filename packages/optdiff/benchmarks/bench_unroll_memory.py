# SPDX-License-Identifier: Apache-2.0
"""Peak memory of K unrolled Adam steps and their hypergradient, with and without checkpoints.

Run: python packages/optdiff/benchmarks/bench_unroll_memory.py [--steps 10 100 1000]
Memory is that of the living storages which operations made, in copies of the parameters; CPU time
is measured apart from it, on one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

import optcore
import optdiff


class Meter(TorchDispatchMode):
    """Bytes of the living storages that operations made; the peak is exact to 2 %."""

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self._now = 0
        self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        for result in results if isinstance(results, (tuple, list)) else (results,):
            if not isinstance(result, torch.Tensor) or result._is_zerotensor():
                continue  # the latter have no storage
            storage = result.untyped_storage()
            known, size = self._alive.get(storage.data_ptr(), (None, 0))
            if known is None or known.expired():  # an address may serve again
                self._alive[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())
                self._now += storage.nbytes() - size
        if self._now > 1.02 * self.peak:
            self._alive = {k: v for k, v in self._alive.items() if not v[0].expired()}
            self._now = sum(size for _, size in self._alive.values())
            self.peak = max(self.peak, self._now)
        return results


class Problem:
    """An MLP trained by Adam with a learned rate."""

    def __init__(self, width: int) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
        self.params = dict(self.net.named_parameters())
        self.elements = sum(p.numel() for p in self.params.values())
        self.x, self.y = torch.randn(8, width), torch.randn(8, width)

    def loss(self, params: dict[str, torch.Tensor]) -> torch.Tensor:
        out = torch.func.functional_call(self.net, params, (self.x,))
        return (out - self.y).square().mean()

    def step(self, carry: Any, i: int, lr: torch.Tensor) -> Any:
        params, state = carry
        found = torch.autograd.grad(self.loss(params), tuple(params.values()), create_graph=True)
        grads = dict(zip(params, found, strict=True))
        updates, state = optcore.adam(lr, eps=1e-3).update(grads, state, params)
        return optcore.apply_updates(params, updates), state

    def start(self) -> Any:
        return self.params, optcore.adam(1e-3).init(self.params)

    def reverse(self, steps: int, **options: Any) -> torch.Tensor:
        lr = torch.tensor(1e-4, requires_grad=True)
        params, _ = optdiff.unroll(self.step, self.start(), steps, lr, **options)
        return torch.autograd.grad(self.loss(params), lr)[0]

    def forward(self, steps: int) -> torch.Tensor:
        _, gradient = optdiff.forward_hypergradient(
            lambda carry, lr: self.loss(carry[0]),
            self.step,
            self.start(),
            steps,
            torch.tensor(1e-4),
        )
        return gradient


VARIANTS: dict[str, Callable[[Problem, int], torch.Tensor]] = {
    "plain": lambda problem, steps: problem.reverse(steps),
    'checkpoint="sqrt"': lambda problem, steps: problem.reverse(steps, checkpoint="sqrt"),
    "truncate=10": lambda problem, steps: problem.reverse(steps, truncate=10),
    "forward mode": lambda problem, steps: problem.forward(steps),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--width", type=int, default=32, help="of the MLP (default: 32)")
    parser.add_argument("--quick", action="store_true", help="fewer numbers, in seconds")
    options = parser.parse_args()
    if options.quick:
        parser.set_defaults(steps=[10, 100])
        options = parser.parse_args()
    torch.set_num_threads(1)
    problem = Problem(options.width)
    copies = 4 * problem.elements
    print(f"K Adam steps and d loss / d lr, {problem.elements} parameters, float32, 1 thread\n")
    print(f"|    K | {'variant':<18} | parameter copies | CPU ms | ratio |    d/dlr |")
    print("|---|---|---|---|---|---|")
    for steps in options.steps:
        base = 0.0
        for name, run in VARIANTS.items():
            run(problem, 2)
            begin = time.process_time()
            gradient = run(problem, steps)
            cpu = time.process_time() - begin
            base = base or cpu
            with Meter() as meter:
                run(problem, steps)
            print(
                f"| {steps:>4} | {name:<18} | {meter.peak / copies:>16.0f} | {cpu * 1e3:>6.0f} "
                f"| {cpu / base:>5.2f} | {gradient.item():.5f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
