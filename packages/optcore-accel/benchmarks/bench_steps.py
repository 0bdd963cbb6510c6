# SPDX-License-Identifier: Apache-2.0
"""One Adam step in place on 60 tensors, gradients given: the kernels, their users, their rivals.

Run: python packages/optcore-accel/benchmarks/bench_steps.py [--sizes 0.1M 1M 10M] [--threads 1 2]
     [--rounds 15] [--only PART ...]
Everyone runs interleaved in one process, float32. "floor" is what the memory allows: the seven
streams of the step (parameter, gradient and two moments read, all but the gradient written) with
an addition for arithmetic, p += g, m += 1, v += 1, each one call of torch on one tensor that holds
all elements. Times are medians, ratios medians over rounds of ratios of CPU time (of all threads):
how often a step of torch's fused Adam takes the time of this one (aim: 2, 2, 1 at the three sizes),
and how many floors this one takes (aim: 1.5 from 1M on). A scheduler sets another learning rate
before each step. The compiled step is a function of 60 tensors that gives new ones. TorchOpt takes
part where it is installed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

# Idle threads that spin would take the core that the next one is timed on.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch starts

import torch
from interleaved import interleaved, ratio

import optcore
from optcore_accel import _cpu
from optcore_accel._rules import ADAM

Step = Callable[[], Any]

SIZES = {"0.1M": 100_000, "1M": 1_000_000, "10M": 10_000_000}
AIMS = {"0.1M": (2.0, None), "1M": (2.0, 1.5), "10M": (1.0, 1.5)}  # of torch fused, of the floor
TENSORS = 60
BASE, FLOOR = "torch.optim.Adam(fused=True)", "floor"
FUSED = "optcore.Adam(use_accelerated_op=True)"


def parameters(elements: int) -> list[torch.nn.Parameter]:
    """Equal parameters with gradients."""
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(elements // TENSORS)) for _ in range(TENSORS)]
    for param in params:
        param.grad = torch.randn_like(param)
    return params


def floor(elements: int) -> Step:
    p, g, m, v = (torch.zeros(elements) for _ in range(4))

    def step() -> None:
        p.add_(g)
        m.add_(1.0)
        v.add_(1.0)

    return step


def kernel(elements: int) -> Step:
    params = parameters(elements)
    grads = [p.grad for p in params]
    buffers = [[torch.zeros_like(p) for p in params] for _ in range(2)]
    scalars = [1.0, 0.0, 0.0, 1e-3, 0.9, 0.999, 1e-8, 0.0, 1.0]
    return lambda: _cpu.step(ADAM.number, scalars, params, grads, buffers, params, buffers)


def scheduled(optimizer: torch.optim.Optimizer) -> Step:
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=1 - 1e-6)

    def step() -> None:
        optimizer.step()
        scheduler.step()

    return step


def updates(elements: int) -> Step:
    params = parameters(elements)
    opt, grads = optcore.adam(use_accelerated_op=True), [p.grad for p in params]
    state = opt.init(params)

    @torch.no_grad()
    def step() -> None:
        nonlocal state
        found, state = opt.update(grads, state, params, inplace=True)
        optcore.apply_updates(params, found, inplace=True)

    return step


def functional(elements: int) -> Step:
    params = parameters(elements)
    opt, grads = optcore.adam(use_accelerated_op=True), [p.grad for p in params]
    state = opt.init(params)

    def step() -> None:
        nonlocal state
        _, state = opt.step(grads, state, params, inplace=True)

    return step


def compiled(elements: int) -> Step:
    tensors = parameters(elements)
    opt, grads = optcore.adam(), [p.grad for p in tensors]
    params = [p.detach() for p in tensors]
    state = opt.init(params)
    take = torch.compile(opt.step, fullgraph=True)

    @torch.no_grad()
    def step() -> None:
        nonlocal params, state
        params, state = take(grads, state, params)

    return step


def torchopt_adam(elements: int, **options: Any) -> Step:
    import torchopt

    return torchopt.Adam(parameters(elements), lr=1e-3, **options).step


VARIANTS: dict[str, Callable[[int], Step]] = {
    FLOOR: floor,
    "the kernel's call alone": kernel,
    FUSED: lambda n: optcore.Adam(parameters(n), use_accelerated_op=True).step,
    FUSED + ", scheduler": lambda n: scheduled(
        optcore.Adam(parameters(n), use_accelerated_op=True)
    ),
    "adam(use_accelerated_op=True).step": functional,
    "adam(use_accelerated_op=True).update, apply": updates,
    "optcore.Adam": lambda n: optcore.Adam(parameters(n)).step,
    BASE: lambda n: torch.optim.Adam(parameters(n), fused=True).step,
    BASE + ", scheduler": lambda n: scheduled(torch.optim.Adam(parameters(n), fused=True)),
    "torch.optim.Adam(foreach=True)": lambda n: torch.optim.Adam(parameters(n), foreach=True).step,
    "torch.optim.Adam(foreach=False)": lambda n: (
        torch.optim.Adam(parameters(n), foreach=False).step
    ),
    "torch.compile of adam().step": compiled,
    "torchopt.Adam": torchopt_adam,
    "torchopt.Adam(use_accelerated_op=True)": lambda n: torchopt_adam(n, use_accelerated_op=True),
}


def compare(size: str, names: list[str], threads: int, rounds: int) -> None:
    """One size: a line for everyone."""
    torch.set_num_threads(threads)
    torch.compiler.reset()
    steps: dict[str, Step] = {}
    for name in names:
        try:
            steps[name] = VARIANTS[name](SIZES[size])
        except ImportError as missing:
            print(f"{size:<6}{threads:>3}  {name:<54} skipped: {missing}")
    taken = interleaved(steps, rounds)
    for name, times in taken.items():
        cpu, wall = (statistics.median(t) * 1e6 for t in times)
        fast = ratio(taken[BASE].cpu, times.cpu)
        floors = ratio(times.cpu, taken[FLOOR].cpu)
        line = (
            f"{size:<6}{threads:>3}  {name:<54}{cpu:>9.0f}{wall:>9.0f}{fast:>10.2f}{floors:>8.2f}"
        )
        if name == FUSED:
            wanted, most = AIMS[size]
            line += f"   aim: {wanted:.0f}" + (f", {most}" if most else "")
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15, help="timed samples of each")
    parser.add_argument("--only", nargs="+", metavar="PART", help="variants with this in the name")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of the others
    wanted = options.only or [""]
    always = (FLOOR, FUSED, BASE)
    names = [n for n in VARIANTS if n in always or any(part in n for part in wanted)]
    print(f"Adam in place, {TENSORS} tensors, float32, {_cpu.instruction_set()}")
    print(
        f"{'size':<6}{'th':>3}  {'step':<54}{'CPU us':>9}{'wall us':>9}{'x fused':>10}{'floors':>8}"
    )
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        for threads in options.threads:
            for size in options.sizes:
                compare(size, names, threads, options.rounds)


if __name__ == "__main__":
    main()
