# SPDX-License-Identifier: Apache-2.0
"""K unrolled Adam steps and the gradient of an outer loss: optdiff against its rivals.

Run: python packages/optdiff/benchmarks/bench_unrolled.py [--sizes 0.09M 0.98M] [--steps 10]
     [--rounds 15] [--only optdiff ...]
All variants run interleaved in one process on one thread, float32. The CPU time is that of the
hand-written loop, a ratio the median over rounds of a variant's time to the loop's in the same
round. Memory is the most that was allocated at a time, in copies of the parameters: for torch by
its profiler, for jax (temporaries and results) by its compiler. The error is the largest, over the
meta-parameter and all initial parameters, relative to the same gradient by the hand-written loop
in float64 (near 1e-4 with bias corrections rounded to float32, as torch.optim and optax have them;
"wrong" above 1e-3). The first call is wall time, compilers start from empty caches. The accelerated
variants take part where optcore-accel is installed, so do TorchOpt, higher, jax and optax.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch and jax start
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["KINETO_LOG_LEVEL"] = "6"  # torch's profiler would report between the lines of the table

import torch
from torch import nn

import optcore
import optdiff

LR, B1, B2, EPS = 1e-2, 0.9, 0.999, 1e-3
SIZES = {"0.09M": (55, 30), "0.98M": (180, 30)}  # width and layers: each 60 tensors

Params = dict[str, torch.Tensor]
Network = Callable[[torch.Tensor], torch.Tensor]


class Problem:
    """An MLP whose inner inputs are scaled by the meta-parameter."""

    def __init__(self, size: str, dtype: torch.dtype = torch.float32) -> None:
        width, depth = SIZES[size]
        torch.manual_seed(0)
        layers = [part for _ in range(depth) for part in (nn.Linear(width, width), nn.Tanh())]
        self.net = nn.Sequential(*layers).to(dtype)
        self.x, self.y = torch.randn(16, width).to(dtype), torch.randn(16, width).to(dtype)
        self.phi = torch.ones(width, dtype=dtype, requires_grad=True)
        self.inputs = [self.phi, *self.net.parameters()]
        self.bytes = sum(p.nbytes for p in self.net.parameters())

    def params(self) -> Params:
        """The initial parameters, as tensors like those that steps make."""
        return {name: p.clone() for name, p in self.net.named_parameters()}

    def of(self, params: Params) -> Network:
        """The network with these parameters."""
        return lambda x: torch.func.functional_call(self.net, params, (x,))

    def inner(self, network: Network, phi: torch.Tensor | None = None) -> torch.Tensor:
        phi = self.phi if phi is None else phi
        return (network(self.x * phi) - self.y).square().mean()

    def outer(self, network: Network) -> torch.Tensor:
        return (network(self.x) - self.y).square().mean()

    def inner_gradient(self, params: Params, phi: torch.Tensor | None = None) -> Params:
        loss = self.inner(self.of(params), phi)
        found = torch.autograd.grad(loss, tuple(params.values()), create_graph=True)
        return dict(zip(params, found, strict=True))

    def result(self, network: Network) -> list[torch.Tensor]:
        """Gradient of the outer loss in the meta-parameter and the initial weights."""
        return list(torch.autograd.grad(self.outer(network), self.inputs))


class Variant(NamedTuple):
    """A way to the meta-gradient."""

    run: Callable[[], list[torch.Tensor]]
    peak: int | None = None  # bytes, where torch cannot tell


# ---- torch alone -------------------------------------------------------------------------------


def hand_update(params: Params, grads: Params, m: Params, v: Params, t: Any) -> Any:
    """Adam as one writes it down."""
    m = {k: B1 * m[k] + (1 - B1) * g for k, g in grads.items()}
    v = {k: B2 * v[k] + (1 - B2) * g * g for k, g in grads.items()}
    c1, c2 = 1 - B1**t, 1 - B2**t
    params = {k: p - LR * (m[k] / c1) / ((v[k] / c2).sqrt() + EPS) for k, p in params.items()}
    return params, m, v


def hand_loop(problem: Problem, steps: int) -> Variant:
    """The yardstick."""

    def run() -> list[torch.Tensor]:
        params = dict(problem.net.named_parameters())
        m = v = {k: torch.zeros_like(p) for k, p in params.items()}
        for t in range(1, steps + 1):
            params, m, v = hand_update(params, problem.inner_gradient(params), m, v, t)
        return problem.result(problem.of(params))

    return Variant(run)


def hand_compiled_update(problem: Problem, steps: int) -> Variant:
    update = torch.compile(hand_update, fullgraph=True)

    def run() -> list[torch.Tensor]:
        params = problem.params()
        m = {k: torch.zeros_like(p, requires_grad=True) for k, p in params.items()}
        v = {k: torch.zeros_like(p, requires_grad=True) for k, p in params.items()}
        for t in range(1, steps + 1):
            count = torch.tensor(float(t))
            params, m, v = update(params, problem.inner_gradient(params), m, v, count)
        return problem.result(problem.of(params))

    return Variant(run)


def nested_func_grad(problem: Problem, steps: int) -> Variant:
    def outer(phi: torch.Tensor, params: Params) -> torch.Tensor:
        gradient = torch.func.grad(lambda params: problem.inner(problem.of(params), phi))
        m = v = {k: torch.zeros_like(p) for k, p in params.items()}
        for t in range(1, steps + 1):
            params, m, v = hand_update(params, gradient(params), m, v, t)
        return problem.outer(problem.of(params))

    def run() -> list[torch.Tensor]:
        at = problem.phi, dict(problem.net.named_parameters())
        phi, params = torch.func.grad(outer, argnums=(0, 1))(*at)
        return [phi, *params.values()]

    return Variant(run)


def torch_differentiable(problem: Problem, steps: int) -> Variant:
    def run() -> list[torch.Tensor]:
        params = problem.params()
        settings = {"lr": LR, "betas": (B1, B2), "eps": EPS, "differentiable": True}
        opt = torch.optim.Adam([p.detach() for p in params.values()], **settings)
        state: list[Any] = [{} for _ in params]
        for _ in range(steps):
            grads = problem.inner_gradient(params)
            params = {k: p.clone() for k, p in params.items()}  # the step overwrites them
            for k, p in params.items():
                p.grad = grads[k]
            opt.param_groups[0]["params"] = list(params.values())
            opt.state.clear()
            opt.state.update(zip(params.values(), state, strict=True))
            opt.step()
            state = [opt.state[p] for p in params.values()]
        return problem.result(problem.of(params))

    return Variant(run)


# ---- optdiff -----------------------------------------------------------------------------------


def meta_adam(problem: Problem, steps: int, **options: Any) -> Variant:
    start = optdiff.extract_state_dict(problem.net)

    def run() -> list[torch.Tensor]:
        meta = optdiff.MetaAdam(problem.net, lr=LR, betas=(B1, B2), eps=EPS, **options)
        for _ in range(steps):
            meta.step(problem.inner(problem.net))
        result = problem.result(problem.net)
        optdiff.recover_state_dict(problem.net, start)
        return result

    return Variant(run)


def unroll(problem: Problem, steps: int, **options: Any) -> Variant:
    opt = optcore.adam(lr=LR, betas=(B1, B2), eps=EPS)

    def step(carry: Any, i: int, phi: torch.Tensor) -> Any:
        params, state = carry
        updates, state = opt.update(problem.inner_gradient(params, phi), state, params)
        return optcore.apply_updates(params, updates), state

    def run() -> list[torch.Tensor]:
        params = problem.params()
        params, _ = optdiff.unroll(step, (params, opt.init(params)), steps, problem.phi, **options)
        return problem.result(problem.of(params))

    return Variant(run)


def unroll_accelerated(problem: Problem, steps: int) -> Variant:
    opt = optcore.adam(lr=LR, betas=(B1, B2), eps=EPS, use_accelerated_op=True)

    def step(carry: Any, i: int, phi: torch.Tensor) -> Any:
        params, state = carry
        return opt.step(problem.inner_gradient(params, phi), state, params)

    def run() -> list[torch.Tensor]:
        params = problem.params()
        params, _ = optdiff.unroll(step, (params, opt.init(params)), steps, problem.phi)
        return problem.result(problem.of(params))

    return Variant(run)


def unroll_compiled(problem: Problem, steps: int) -> Variant:
    adam = optcore.adam(lr=LR, betas=(B1, B2), eps=EPS, moment_requires_grad=True)
    opt = optcore.flatten(adam)

    @torch.compile(fullgraph=True)
    def step(carry: Any, i: int, phi: torch.Tensor) -> Any:
        params, state = carry
        grads = torch.func.grad(lambda params: problem.inner(problem.of(params), phi))(params)
        updates, state = opt.update(grads, state, params)
        return optcore.apply_updates(params, updates), state

    def run(steps: int = steps) -> list[torch.Tensor]:
        params = problem.params()
        params, _ = optdiff.unroll(step, (params, opt.init(params)), steps, problem.phi)
        return problem.result(problem.of(params))

    run(1)
    with torch.compiler.set_stance("fail_on_recompile"):  # the first step was compiled for all
        run()
    return Variant(run)


# ---- others ------------------------------------------------------------------------------------


def higher_adam(problem: Problem, steps: int) -> Variant:
    import higher

    def run() -> list[torch.Tensor]:
        opt = torch.optim.Adam(problem.net.parameters(), lr=LR, betas=(B1, B2), eps=EPS)
        with higher.innerloop_ctx(problem.net, opt, copy_initial_weights=False) as (net, diffopt):
            for _ in range(steps):
                diffopt.step(problem.inner(net))
            return problem.result(net)

    return Variant(run)


def torchopt_adam(problem: Problem, steps: int, **options: Any) -> Variant:
    import torchopt

    start = torchopt.extract_state_dict(problem.net, by="reference")

    def run() -> list[torch.Tensor]:
        settings = {"lr": LR, "betas": (B1, B2), "eps": EPS, **options}
        meta = torchopt.MetaAdam(problem.net, **settings)
        for _ in range(steps):
            meta.step(problem.inner(problem.net))
        result = problem.result(problem.net)
        torchopt.recover_state_dict(problem.net, start)
        return result

    return Variant(run)


def jax_optax(problem: Problem, steps: int, remat: bool) -> Variant:
    import jax
    import jax.numpy as jnp
    import optax

    opt = optax.adam(LR, b1=B1, b2=B2, eps=EPS)
    x, y = jnp.asarray(problem.x.numpy()), jnp.asarray(problem.y.numpy())

    def loss(params: Any, x: Any) -> Any:
        for weight, bias in zip(params[::2], params[1::2], strict=True):
            x = jnp.tanh(x @ weight.T + bias)
        return jnp.mean((x - y) ** 2)

    def outer(phi: Any, params: Any) -> Any:
        def step(carry: Any, _: Any) -> Any:
            params, state = carry
            grads = jax.grad(loss)(params, x * phi)
            updates, state = opt.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        body = jax.checkpoint(step) if remat else step
        (params, _), _ = jax.lax.scan(body, (params, opt.init(params)), length=steps)
        return loss(params, x)

    at = (
        jnp.asarray(problem.phi.detach().numpy()),
        [jnp.asarray(p.detach().numpy()) for p in problem.net.parameters()],
    )
    compiled = jax.jit(jax.grad(outer, argnums=(0, 1))).lower(*at).compile()
    memory = compiled.memory_analysis()

    def run() -> list[torch.Tensor]:
        phi, params = jax.block_until_ready(compiled(*at))
        return [torch.from_dlpack(found) for found in (phi, *params)]

    return Variant(run, memory.temp_size_in_bytes + memory.output_size_in_bytes)


BASE = "loop by hand"
VARIANTS: dict[str, Callable[[Problem, int], Variant]] = {
    BASE: hand_loop,
    "optdiff.MetaAdam": meta_adam,
    "optdiff.unroll": unroll,
    'optdiff.unroll, checkpoint="sqrt"': lambda p, k: unroll(p, k, checkpoint="sqrt"),
    "optdiff.MetaAdam, accelerated": lambda p, k: meta_adam(p, k, use_accelerated_op=True),
    "optdiff.unroll, accelerated step": unroll_accelerated,
    "optdiff.unroll, compiled step": unroll_compiled,
    "torch, compiled update": hand_compiled_update,
    "torch.func.grad, nested": nested_func_grad,
    "torch.optim, differentiable=True": torch_differentiable,
    "higher": higher_adam,
    "TorchOpt": torchopt_adam,
    "TorchOpt, accelerated": lambda p, k: torchopt_adam(p, k, use_accelerated_op=True),
    "jax + optax, jit": lambda p, k: jax_optax(p, k, remat=False),
    "jax + optax, jit, remat": lambda p, k: jax_optax(p, k, remat=True),
}


# ---- measuring ---------------------------------------------------------------------------------


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most that torch allocated at a time, in compiled code too."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds, profile_memory=True) as profile:
        run()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def error(found: list[torch.Tensor], truth: list[torch.Tensor]) -> float:
    """The largest over all tensors, relative to the tensor's largest element."""
    pairs = zip(found, truth, strict=True)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def compare(size: str, names: list[str], steps: int, rounds: int) -> None:
    """One size: a line for every variant."""
    torch.compiler.reset()
    truth = hand_loop(Problem(size, torch.float64), steps).run()
    problem = Problem(size)
    variants: dict[str, Variant] = {}
    lines: dict[str, tuple[float, float, float]] = {}
    for name in names:
        begin = time.perf_counter()
        try:
            variant = VARIANTS[name](problem, steps)
        except ImportError as missing:
            print(f"| {size:<5} | {name:<35} | skipped: {missing} |")
            continue
        found = variant.run()
        first = time.perf_counter() - begin
        peak = peak_bytes(variant.run) if variant.peak is None else variant.peak
        variants[name], lines[name] = variant, (peak / problem.bytes, error(found, truth), first)
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, variant in variants.items():
            begin = time.process_time()
            variant.run()
            times[name].append(time.process_time() - begin)
    for name, taken in times.items():
        cpu = statistics.median(taken) * 1e3
        ratio = statistics.median(a / b for a, b in zip(taken, times[BASE], strict=True))
        copies, off, first = lines[name]
        row = (
            f"| {size:<5} | {name:<35} | {cpu:>6.1f} | {ratio:>5.2f} | {copies:>6.0f} "
            f"| {off:.1e}{' wrong' * (off > 1e-3)} | {first:.1f} |"
        )
        print(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--steps", type=int, default=10, help="inner steps K (default: 10)")
    parser.add_argument("--rounds", type=int, default=15, help="timed runs (default: 15)")
    parser.add_argument("--only", nargs="+", metavar="PART", help="variants with this in the name")
    parser.add_argument("--quick", action="store_true", help="fewer numbers, in seconds")
    options = parser.parse_args()
    if options.quick:
        parser.set_defaults(
            sizes=["0.09M"],
            rounds=3,
            only=["MetaAdam", "sqrt", "accelerated step", "differentiable", "higher", "TorchOpt"],
        )
        options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of the others
    wanted = options.only or [""]
    names = [n for n in VARIANTS if n == BASE or any(part in n for part in wanted)]
    print(f"K = {options.steps} Adam steps + outer gradient, float32, 1 thread\n")
    print(f"| size  | {'variant':<35} | CPU ms | ratio | copies | error | first call, s |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        for size in options.sizes:
            compare(size, names, options.steps, options.rounds)


if __name__ == "__main__":
    main()
