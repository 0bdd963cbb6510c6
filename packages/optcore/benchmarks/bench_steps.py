# SPDX-License-Identifier: Apache-2.0
"""One plain step, gradients given: optcore's classes and functions against their incumbents.

Run: python packages/optcore/benchmarks/bench_steps.py [--sizes 0.1M 1M 10M] [--rounds 15]
     [--optimizers adam sgd ...] [--import-time]
All contenders run interleaved in one process on one thread. Figures are CPU time: the base in
microseconds, everything else as the median of its ratios to the base of the same round. TorchOpt
and optax take part where they are installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch and jax start
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
os.environ["JAX_PLATFORMS"] = "cpu"

import torch

import optcore

Step = Callable[[], Any]

SIZES = {"0.1M": (100_000, 10), "1M": (1_000_000, 60), "10M": (10_000_000, 60)}
NAMES = (
    "torch foreach",
    "torch fused",
    "optcore class",
    "optcore func",
    "TorchOpt class",
    "TorchOpt func",
    "TorchOpt func, gradients kept",
    "optax jit",
)
SAMPLE = 0.01  # seconds of CPU time that one sample takes at least

# name: torch's class, optcore's class, keywords of both, optax's name and keywords
OPTIMIZERS: dict[str, tuple[str | None, str, dict[str, Any], str, dict[str, Any]]] = {
    "sgd": ("SGD", "SGD", {"lr": 1e-3}, "sgd", {"learning_rate": 1e-3}),
    "momentum": (
        "SGD",
        "SGD",
        {"lr": 1e-3, "momentum": 0.9},
        "sgd",
        {"learning_rate": 1e-3, "momentum": 0.9},
    ),
    "adam": ("Adam", "Adam", {"lr": 1e-3}, "adam", {"learning_rate": 1e-3}),
    "adamw": (
        "AdamW",
        "AdamW",
        {"lr": 1e-3, "weight_decay": 1e-2},
        "adamw",
        {"learning_rate": 1e-3, "weight_decay": 1e-2},
    ),
    "rmsprop": (
        "RMSprop",
        "RMSprop",
        {"lr": 1e-3, "alpha": 0.99},
        "rmsprop",
        {"learning_rate": 1e-3, "decay": 0.99},
    ),
    "lion": (
        None,
        "Lion",
        {"lr": 1e-4, "weight_decay": 1e-3},
        "lion",
        {"learning_rate": 1e-4, "weight_decay": 1e-3},
    ),
}


def parameters(elements: int, tensors: int) -> list[torch.nn.Parameter]:
    """Equal parameters with gradients."""
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(elements // tensors)) for _ in range(tensors)]
    for param in params:
        param.grad = torch.randn_like(param)
    return params


def lion_by_hand(params: list[torch.nn.Parameter], lr: float, weight_decay: float) -> Step:
    """The loop of in-place operations that one writes where torch has no class."""
    momenta = [torch.zeros_like(p) for p in params]

    @torch.no_grad()
    def step() -> None:
        for param, momentum in zip(params, momenta, strict=True):
            grad = param.grad
            direction = momentum.mul(0.9).add_(grad, alpha=0.1).sign_()
            param.mul_(1 - lr * weight_decay).add_(direction, alpha=-lr)
            momentum.lerp_(grad, 0.01)

    return step


def functional(
    package: Any, name: str, params: list[Any], keywords: dict[str, Any], inplace: bool = True
) -> Step:
    """``update``, in place or not, and ``apply_updates``, in place."""
    optimizer = getattr(package, name)(**keywords)
    leaves = {str(i): p for i, p in enumerate(params)}
    state = optimizer.init(leaves)
    grads = {key: p.grad for key, p in leaves.items()}

    def step() -> None:
        nonlocal state, leaves
        updates, state = optimizer.update(grads, state, params=leaves, inplace=inplace)
        leaves = package.apply_updates(leaves, updates, inplace=True)

    return step


def optax_jit(name: str, shape: tuple[int, int], keywords: dict[str, Any]) -> Step:
    """One compiled function that takes over the buffers it is given."""
    import jax
    import optax

    elements, tensors = shape
    optimizer = getattr(optax, name)(**keywords)
    keys = jax.random.split(jax.random.key(0), 2 * tensors)
    arrays = [jax.random.normal(key, (elements // tensors,)) for key in keys]
    params, grads = arrays[:tensors], arrays[tensors:]
    state = optimizer.init(params)

    def take(params: Any, state: Any, grads: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(take, donate_argnums=(0, 1))

    def step() -> None:
        nonlocal params, state
        params, state = jax.block_until_ready(compiled(params, state, grads))

    return step


def contenders(optimizer: str, shape: tuple[int, int]) -> Iterator[tuple[str, Step]]:
    """Name and step of everyone that can run; the first is the base."""
    theirs, ours, keywords, optax_name, optax_keywords = OPTIMIZERS[optimizer]
    if theirs is None:
        yield "loop by hand", lion_by_hand(parameters(*shape), **keywords)
    else:
        cls = getattr(torch.optim, theirs)
        yield "torch loop", cls(parameters(*shape), foreach=False, **keywords).step
        yield "torch foreach", cls(parameters(*shape), foreach=True, **keywords).step
        if theirs in ("SGD", "Adam", "AdamW"):
            yield "torch fused", cls(parameters(*shape), fused=True, **keywords).step
    yield "optcore class", getattr(optcore, ours)(parameters(*shape), **keywords).step
    yield "optcore func", functional(optcore, ours.lower(), parameters(*shape), keywords)
    if importlib.util.find_spec("torchopt") is not None:
        import torchopt

        if hasattr(torchopt, ours):
            cls = getattr(torchopt, ours)
            yield "TorchOpt class", cls(parameters(*shape), **keywords).step
            name = ours.lower()
            yield "TorchOpt func", functional(torchopt, name, parameters(*shape), keywords)
            # in place it leaves updates where the gradients were
            kept = functional(torchopt, name, parameters(*shape), keywords, inplace=False)
            yield "TorchOpt func, gradients kept", kept
    if importlib.util.find_spec("optax") is not None:
        yield "optax jit", optax_jit(optax_name, shape, optax_keywords)


def seconds(step: Step, repeats: int) -> float:
    """CPU time of one step."""
    begin = time.process_time()
    for _ in range(repeats):
        step()
    return (time.process_time() - begin) / repeats


def measure(steps: dict[str, Step], rounds: int) -> tuple[float, dict[str, float]]:
    """Median of the base in seconds, and of everyone's ratios to it."""
    repeats = {}
    for name, step in steps.items():
        seconds(step, 3)
        repeats[name] = max(1, round(SAMPLE / max(seconds(step, 3), 1e-6)))
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            taken[name].append(seconds(step, repeats[name]))
    base = next(iter(taken.values()))
    ratios = {
        name: statistics.median(a / b for a, b in zip(times, base, strict=True))
        for name, times in taken.items()
    }
    return statistics.median(base), ratios


def import_milliseconds(rounds: int) -> float:
    """Wall time of ``import optcore`` after ``import torch``, each in a fresh process."""
    code = (
        "import time, torch; t = time.perf_counter(); import optcore;"
        "print((time.perf_counter() - t) * 1e3)"
    )
    command = [sys.executable, "-c", code]
    return statistics.median(
        float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(rounds)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--rounds", type=int, default=15, help="timed samples of each")
    parser.add_argument("--import-time", action="store_true", help="measure nothing but the import")
    parser.add_argument("--quick", action="store_true", help="fewer numbers, in seconds")
    options = parser.parse_args()
    if options.quick:
        parser.set_defaults(sizes=["0.1M"], optimizers=["sgd", "adam"], rounds=5)
        options = parser.parse_args()
    if options.import_time:
        print(f"import optcore after torch: {import_milliseconds(options.rounds):.0f} ms")
        return
    torch.set_num_threads(1)
    print(
        "float32, 1 thread, gradients given; base in us of CPU time, the others as ratios to it\n"
    )
    print(f"| optimizer | size | base | us | {' | '.join(NAMES)} |")
    print("|---" * (4 + len(NAMES)) + "|")
    for optimizer in options.optimizers:
        for size in options.sizes:
            base, ratios = measure(dict(contenders(optimizer, SIZES[size])), options.rounds)
            name = next(iter(ratios))
            found = (f"{ratios[other]:.2f}" if other in ratios else "-" for other in NAMES)
            shown = " | ".join(f"{text:>{len(n)}}" for text, n in zip(found, NAMES, strict=True))
            print(f"| {optimizer:<8} | {size:<4} | {name:<12} | {base * 1e6:>6.0f} | {shown} |")


if __name__ == "__main__":
    main()
