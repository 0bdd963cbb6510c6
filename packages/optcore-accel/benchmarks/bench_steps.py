# SPDX-License-Identifier: Apache-2.0
"""One Adam step in place on 60 tensors, gradients given: the kernels, their users, their rivals.

Run: python packages/optcore-accel/benchmarks/bench_steps.py [--device cpu|cuda]
     [--sizes 0.1M 1M 10M 100M] [--threads 1 2] [--rounds 15] [--only PART ...]
Everyone runs interleaved in one process, float32. "floor" is what the memory allows: the seven
streams of the step (parameter, gradient and two moments read, all but the gradient written) with
an addition for arithmetic, p += g, m += 1, v += 1, each one call of torch on one tensor that holds
all elements. Times are medians, ratios medians over rounds of ratios of CPU time (of all threads):
how often a step of torch's fused Adam takes the time of this one (aim: 2, 2, 1 at the three sizes),
and how many floors this one takes (aim: 1.5 from 1M on). A scheduler sets another learning rate
before each step. The compiled step is a function of 60 tensors that gives new ones. TorchOpt takes
part where it is installed.

On CUDA times are those between two events on the stream, and the CPU time beside them is what the
calls take until they return: where it is the larger one, the GPU waits for Python. "GB/s" is what
the seven streams need, by the time; "copy" the share of that which a copy of 1 GiB reaches in the
same run. Below 10M elements everything fits into the cache of a large GPU. 100M takes 30 GB.
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
from interleaved import chosen_device, copy_speed, device_name, interleaved, ratio

import optcore
from optcore_accel._devices import module_for
from optcore_accel._rules import ADAM

Step = Callable[[], Any]
Parameters = list[torch.nn.Parameter]

SIZES = {"0.1M": 100_000, "1M": 1_000_000, "10M": 10_000_000, "100M": 100_000_000}
AIMS = {"0.1M": (2.0, None), "1M": (2.0, 1.5), "10M": (1.0, 1.5)}  # of torch fused, of the floor
TENSORS, STREAMS = 60, 7
BASE, FLOOR = "torch.optim.Adam(fused=True)", "floor"
FUSED = "optcore.Adam(use_accelerated_op=True)"
MAY_BE_MISSING = ("torchopt", "torch.compile")  # need what is not everywhere: a library, a compiler


def parameters(elements: int, device: torch.device) -> Parameters:
    """Equal parameters with gradients."""
    torch.manual_seed(0)
    made = [torch.randn(elements // TENSORS, device=device) for _ in range(TENSORS)]
    params = [torch.nn.Parameter(tensor) for tensor in made]
    for param in params:
        param.grad = torch.randn_like(param)
    return params


def floor(params: Parameters) -> Step:
    elements = sum(param.numel() for param in params)
    p, g, m, v = (torch.zeros(elements, device=params[0].device) for _ in range(4))

    def step() -> None:
        p.add_(g)
        m.add_(1.0)
        v.add_(1.0)

    return step


def kernel(params: Parameters) -> Step:
    grads, device = [p.grad for p in params], params[0].device
    buffers = [[torch.zeros_like(p) for p in params] for _ in range(2)]
    scalars = [1.0, 0.0, 0.0, 1e-3, 0.9, 0.999, 1e-8, 0.0, 1.0]
    stream = torch.cuda.current_stream().cuda_stream if device.type == "cuda" else 0
    step = module_for("bench_steps", device).step
    return lambda: step(ADAM.number, scalars, params, grads, buffers, params, buffers, stream)


def scheduled(optimizer: torch.optim.Optimizer) -> Step:
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=1 - 1e-6)

    def step() -> None:
        optimizer.step()
        scheduler.step()

    return step


def updates(params: Parameters) -> Step:
    opt, grads = optcore.adam(use_accelerated_op=True), [p.grad for p in params]
    state = opt.init(params)

    @torch.no_grad()
    def step() -> None:
        nonlocal state
        found, state = opt.update(grads, state, params, inplace=True)
        optcore.apply_updates(params, found, inplace=True)

    return step


def functional(params: Parameters) -> Step:
    opt, grads = optcore.adam(use_accelerated_op=True), [p.grad for p in params]
    state = opt.init(params)

    def step() -> None:
        nonlocal state
        _, state = opt.step(grads, state, params, inplace=True)

    return step


def compiled(first: Parameters) -> Step:
    opt, grads = optcore.adam(), [p.grad for p in first]
    params = [p.detach() for p in first]
    state = opt.init(params)
    take = torch.compile(opt.step, fullgraph=True)

    @torch.no_grad()
    def step() -> None:
        nonlocal params, state
        params, state = take(grads, state, params)

    return step


def torchopt_adam(params: Parameters, **options: Any) -> Step:
    import torchopt

    return torchopt.Adam(params, lr=1e-3, **options).step


VARIANTS: dict[str, Callable[[Parameters], Step]] = {
    FLOOR: floor,
    "the kernel's call alone": kernel,
    FUSED: lambda w: optcore.Adam(w, use_accelerated_op=True).step,
    FUSED + ", scheduler": lambda w: scheduled(optcore.Adam(w, use_accelerated_op=True)),
    "adam(use_accelerated_op=True).step": functional,
    "adam(use_accelerated_op=True).update, apply": updates,
    "optcore.Adam": lambda w: optcore.Adam(w).step,
    BASE: lambda w: torch.optim.Adam(w, fused=True).step,
    BASE + ", scheduler": lambda w: scheduled(torch.optim.Adam(w, fused=True)),
    "torch.optim.Adam(foreach=True)": lambda w: torch.optim.Adam(w, foreach=True).step,
    "torch.optim.Adam(foreach=False)": lambda w: torch.optim.Adam(w, foreach=False).step,
    "torch.compile of adam().step": compiled,
    "torchopt.Adam": torchopt_adam,
    "torchopt.Adam(use_accelerated_op=True)": lambda w: torchopt_adam(w, use_accelerated_op=True),
}


def steps_of(size: str, names: list[str], device: torch.device, threads: int) -> dict[str, Step]:
    """Everyone's step, taken once; a line for each that cannot be had here."""
    steps: dict[str, Step] = {}
    for name in names:
        try:
            step = VARIANTS[name](parameters(SIZES[size], device))
            step()
        except (ImportError, RuntimeError) as error:
            if not name.startswith(MAY_BE_MISSING):
                raise
            reason = str(error).strip().partition("\n")[0]
            print(f"| {size:<4} | {threads} | {name:<54} | skipped: {reason} |", flush=True)
        else:
            steps[name] = step
    return steps


def compare(
    size: str,
    names: list[str],
    device: torch.device,
    threads: int,
    rounds: int,
    copied: float | None,
) -> None:
    """One size: a line for everyone."""
    torch.set_num_threads(threads)
    torch.compiler.reset()
    taken = interleaved(steps_of(size, names, device, threads), rounds, device)
    for name, times in taken.items():
        own, beside = (statistics.median(t) * 1e6 for t in times)
        fast = ratio(taken[BASE].own, times.own)
        floors = ratio(times.own, taken[FLOOR].own)
        line = (
            f"| {size:<4} | {threads} | {name:<54} | {own:>7.0f} | {beside:>7.0f} "
            f"| {fast:>7.2f} | {floors:>6.2f} |"
        )
        if copied is not None:
            speed = STREAMS * 4 * SIZES[size] / (own / 1e6)
            line += f" {speed / 1e9:>5.0f} | {speed / copied:>4.0%} |"
        elif name == FUSED and size in AIMS:
            wanted, most = AIMS[size]
            line += f" {wanted:.0f}" + (f", {most}" if most else "") + " |"
        else:
            line += " |"
        print(line, flush=True)


def fits(size: str, names: list[str]) -> bool:
    """Whether everyone's parameters, gradients and moments, and a few copies, fit on the GPU."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    return 4 * 4 * SIZES[size] * (len(names) + 4) < free


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, help="default: up to 10M, on CUDA all")
    parser.add_argument("--threads", nargs="+", type=int, help="of the CPU (default: 1 2)")
    parser.add_argument("--rounds", type=int, default=15, help="timed samples of each")
    parser.add_argument("--only", nargs="+", metavar="PART", help="variants with this in the name")
    parser.add_argument("--quick", action="store_true", help="fewer numbers, in seconds")
    options = parser.parse_args()
    if options.quick:
        parser.set_defaults(sizes=["0.1M", "1M"], threads=[1], rounds=5, only=["optim", "torchopt"])
        options = parser.parse_args()
    warnings.simplefilter("ignore")  # of the others
    device = chosen_device(options.device)
    gpu = device.type == "cuda"
    wanted = options.only or [""]
    always = (FLOOR, FUSED, BASE)
    names = [n for n in VARIANTS if n in always or any(part in n for part in wanted)]
    print(f"Adam in place, {TENSORS} tensors, float32, {device_name(device)}\n")
    copied = None
    head = f"| size | t | {'step':<54} | "
    if gpu:
        copied = copy_speed(device, options.rounds)
        print(f"copy of 1 GiB: {copied / 1e9:.0f} GB/s read and written\n")
        head += " GPU us |  CPU us | x fused | floors |  GB/s | copy |"
    else:
        head += " CPU us | wall us | x fused | floors | aim |"
    print(head)
    print("|---" * (head.count("|") - 1) + "|")
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        for threads in options.threads or ([1] if gpu else [1, 2]):
            for size in options.sizes or [*SIZES][: 4 if gpu else 3]:
                if gpu and not fits(size, names):
                    print(
                        f"| {size:<4} | {threads} | skipped: the GPU has too little memory free |"
                    )
                    continue
                compare(size, names, device, threads, options.rounds, copied)


if __name__ == "__main__":
    main()
