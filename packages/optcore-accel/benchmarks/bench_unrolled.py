# SPDX-License-Identifier: Apache-2.0
"""K unrolled Adam steps with a cheap inner gradient and the way back: what the optimizer costs.

Run: python packages/optcore-accel/benchmarks/bench_unrolled.py [--device cpu|cuda]
     [--sizes 0.1M 1M 10M] [--steps 10] [--threads 1] [--rounds 15] [--only PART ...]
60 tensors, float32; the inner gradient is phi p, one operation a tensor, and the gradient of the
sum of all last parameters is taken in phi and the first ones. Everyone runs interleaved in one
process. The times are medians of CPU time, "x" how often plain operations take the time (median
over rounds; aim for the kernels: 4.5, 3, 2.2 at the three sizes), "saved" bytes that autograd keeps
per element and step (aim: 17), each memory counted once. The error is the largest of all gradients,
relative to those of plain operations in float64 ("wrong" above 1e-3). Bytes and error are measured
at 1M elements at most. "SGD alone" is the inner loop with the simplest update there is. What is
compiled is one step, forward and backward. TorchOpt takes part where it is installed; the
derivative of its operation is wrong (see the error). On CUDA times are those between two events on
the stream; the CPU's beside them is what the calls take until they return.
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
from interleaved import chosen_device, device_name, interleaved, ratio

import optcore

LR, B1, B2, EPS = 1e-2, 0.9, 0.999, 1e-3
SIZES = {"0.1M": 100_000, "1M": 1_000_000, "10M": 10_000_000}
AIMS = {"0.1M": 4.5, "1M": 3.0, "10M": 2.2}
TENSORS = 60

Tensors = list[torch.Tensor]
Loop = Callable[[torch.Tensor, Tensors, int], Tensors]  # phi, first parameters, steps -> last ones


def inner_gradient(phi: torch.Tensor, params: Tensors) -> Tensors:
    return [phi * p for p in params]


def plain(phi: torch.Tensor, params: Tensors, steps: int) -> Tensors:
    m = v = [torch.zeros_like(p) for p in params]
    for t in range(1, steps + 1):
        grads = inner_gradient(phi, params)
        m = [B1 * a + (1 - B1) * g for a, g in zip(m, grads, strict=True)]
        v = [B2 * b + (1 - B2) * g * g for b, g in zip(v, grads, strict=True)]
        c1, c2 = 1 - B1**t, 1 - B2**t
        moved = zip(params, m, v, strict=True)
        params = [p - LR * (a / c1) / ((b / c2).sqrt() + EPS) for p, a, b in moved]
    return params


def foreach(phi: torch.Tensor, params: Tensors, steps: int) -> Tensors:
    m = v = [torch.zeros_like(p) for p in params]
    for t in range(1, steps + 1):
        grads = inner_gradient(phi, params)
        m = torch._foreach_add(torch._foreach_mul(m, B1), grads, alpha=1 - B1)
        squares = torch._foreach_mul(grads, grads)
        v = torch._foreach_add(torch._foreach_mul(v, B2), squares, alpha=1 - B2)
        c1, c2 = 1 - B1**t, 1 - B2**t
        root = torch._foreach_add(torch._foreach_sqrt(torch._foreach_div(v, c2)), EPS)
        params = torch._foreach_add(params, torch._foreach_div(m, root), alpha=-LR / c1)
    return params


def sgd(phi: torch.Tensor, params: Tensors, steps: int) -> Tensors:
    for _ in range(steps):
        grads = inner_gradient(phi, params)
        params = [p.add(g, alpha=-LR) for p, g in zip(params, grads, strict=True)]
    return params


def whole_steps(use_accelerated_op: bool, compiled: bool = False) -> Loop:
    opt = optcore.adam(LR, (B1, B2), EPS, use_accelerated_op=use_accelerated_op)
    take = torch.compile(opt.step, fullgraph=True) if compiled else opt.step

    def loop(phi: torch.Tensor, params: Tensors, steps: int) -> Tensors:
        state = opt.init(params)
        for _ in range(steps):
            params, state = take(inner_gradient(phi, params), state, params, inplace=False)
        return params

    return loop


def updates(package: Any, **options: Any) -> Loop:
    opt = package.adam(LR, (B1, B2), EPS, **options)

    def loop(phi: torch.Tensor, params: Tensors, steps: int) -> Tensors:
        state = opt.init(params)
        for _ in range(steps):
            grads = inner_gradient(phi, params)
            found, state = opt.update(grads, state, params=params, inplace=False)
            params = package.apply_updates(params, found, inplace=False)
        return params

    return loop


def torchopt_loop(**options: Any) -> Loop:
    import torchopt

    return updates(torchopt, **options)


BASE, FUSED = "plain operations", "optcore adam(use_accelerated_op=True).step"
LOOPS: dict[str, Callable[[], Loop]] = {
    BASE: lambda: plain,
    "torch._foreach": lambda: foreach,
    "SGD alone": lambda: sgd,
    "optcore adam().step": lambda: whole_steps(False),
    FUSED: lambda: whole_steps(True),
    "optcore adam(use_accelerated_op=True).update, apply": lambda: updates(
        optcore, use_accelerated_op=True
    ),
    "torch.compile of adam().step": lambda: whole_steps(False, compiled=True),
    "torchopt adam().update, apply": torchopt_loop,
    "torchopt adam(use_accelerated_op=True).update, apply": lambda: torchopt_loop(
        use_accelerated_op=True
    ),
}
MAY_BE_MISSING = ("torchopt", "torch.compile")  # need what is not everywhere: a library, a compiler


class Problem:
    """First parameters and the derivative of the outer sum."""

    def __init__(
        self, elements: int, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        torch.manual_seed(0)
        made = [torch.randn(elements // TENSORS, device=device) for _ in range(TENSORS)]
        self.first = [tensor.to(dtype) for tensor in made]
        self.phi = torch.ones((), dtype=dtype, device=device, requires_grad=True)

    def gradient(self, loop: Loop, steps: int) -> Tensors:
        params = [p.clone().requires_grad_() for p in self.first]
        last = loop(self.phi, params, steps)
        total = torch.stack([p.sum() for p in last]).sum()
        return list(torch.autograd.grad(total, [self.phi, *params]))

    def saved(self, loop: Loop, steps: int) -> float:
        """Bytes that the graph of the loop keeps, per element and step."""
        kept: dict[int, torch.Tensor] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        params = [p.clone().requires_grad_() for p in self.first]
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            last = loop(self.phi, params, steps)
        total = sum(t.untyped_storage().nbytes() for t in kept.values())
        del last
        return total / steps / sum(p.numel() for p in self.first)


def error(found: Tensors, truth: Tensors) -> float:
    """The largest over all tensors, relative to the tensor's largest element."""
    pairs = zip(found, truth, strict=True)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def compare(size: str, names: list[str], device: torch.device, steps: int, rounds: int) -> None:
    """One size: a line for everyone."""
    torch.compiler.reset()
    problem = Problem(SIZES[size], device)
    small = min(SIZES[size], SIZES["1M"])  # in float64 more takes gigabytes
    sample = Problem(small, device)
    truth = Problem(small, device, torch.float64).gradient(plain, steps)
    loops: dict[str, Loop] = {}
    facts: dict[str, tuple[float, float]] = {}
    for name in names:
        try:
            loop = LOOPS[name]()
            off = error(sample.gradient(loop, steps), truth) if name != "SGD alone" else 0.0
        except (ImportError, RuntimeError) as missing:
            if not name.startswith(MAY_BE_MISSING):
                raise
            reason = str(missing).strip().partition("\n")[0]
            print(f"| {size:<4} | {name:<54} | skipped: {reason} |", flush=True)
        else:
            loops[name], facts[name] = loop, (sample.saved(loop, steps), off)
    del sample, truth
    runs = {name: (lambda loop=loop: problem.gradient(loop, steps)) for name, loop in loops.items()}
    taken = interleaved(runs, rounds, device)
    for name, times in taken.items():
        own, beside = (statistics.median(t) * 1e3 for t in times)
        saved, off = facts[name]
        fast = ratio(taken[BASE].own, times.own)
        line = f"| {size:<4} | {name:<54} | {own:>7.1f} | {beside:>7.1f} "
        line += f"| {fast:>6.2f} | {saved:>5.1f} | {off:.1e}{' wrong' * (off > 1e-3)} |"
        if name == FUSED and device.type == "cpu":
            line += f" {AIMS[size]}, 17"
        print(line + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--steps", type=int, default=10, help="K (default: 10)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15, help="timed runs of each")
    parser.add_argument("--only", nargs="+", metavar="PART", help="loops with this in the name")
    parser.add_argument("--quick", action="store_true", help="fewer numbers, in seconds")
    options = parser.parse_args()
    if options.quick:
        parser.set_defaults(
            sizes=["0.1M"], rounds=3, only=["foreach", "SGD", "update, apply", "optcore adam()."]
        )
        options = parser.parse_args()
    warnings.simplefilter("ignore")  # of the others
    device = chosen_device(options.device)
    torch.set_num_threads(options.threads)
    wanted = options.only or [""]
    names = [n for n in LOOPS if n in (BASE, FUSED) or any(part in n for part in wanted)]
    print(
        f"K = {options.steps} Adam steps and the way back, {TENSORS} tensors, float32, "
        f"{device_name(device)}\n"
    )
    own, beside = ("GPU ms", "CPU ms") if device.type == "cuda" else ("CPU ms", "wall ms")
    head = f"| size | {'loop':<54} | {own:>7} | {beside:>7} |      x | saved | error | aim |"
    print(head)
    print("|---" * (head.count("|") - 1) + "|")
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        for size in options.sizes:
            compare(size, names, device, options.steps, options.rounds)


if __name__ == "__main__":
    main()
