# SPDX-License-Identifier: Apache-2.0
"""One implicit hypergradient, beside JAXopt's: the linear solve alone, and solver and all.

Run: python packages/optdiff/benchmarks/bench_implicit.py [--rounds 15],
with JAXopt, if Python finds it (``make bench`` installs it); else only optdiff is timed. The
problem: softmax regression on scikit-learn's digits, 64 weight decays. Both sides get the same
float64 numbers, L-BFGS with a history of 10 to the same norm of the gradient, and conjugate
gradients to the same relative residual; that the hypergradients agree is checked first. CPU time on
one thread, rounds interleaved, medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from bench_modes import PROBLEM, digits

import optdiff
from optdiff import minimize
from optdiff.linear_solve import solve_cg

TOL, RTOL, MAXITER = 1e-9, 1e-10, 2000
AGREE = 1e-6  # relative, to the hypergradient from the whole Hessian
Array = Any  # of torch or of jax
(THETA,) = PROBLEM.args


class Side(NamedTuple):
    """One way to the hypergradient: its two parts, and how many steps its solver takes."""

    linear: Callable[[], Array]
    whole: Callable[[], Array]
    iterations: int


def ours() -> Side:
    """Everything by optdiff."""
    solver = solve_cg(rtol=RTOL)

    def solved(init: torch.Tensor, theta: torch.Tensor) -> minimize.SolverResult:
        return minimize.lbfgs(PROBLEM.objective, init, theta, tol=TOL, maxiter=MAXITER)

    @optdiff.custom_root(PROBLEM.optimality, solve=solver)
    def solution(init: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        return solved(init, theta).solution

    result = solved(PROBLEM.init, THETA)
    slope = torch.func.grad(PROBLEM.outer)(result.solution)

    def linear() -> torch.Tensor:
        return optdiff.root_vjp(PROBLEM.optimality, result.solution, (THETA,), slope, solver)[0]

    def whole() -> torch.Tensor:
        theta = THETA.clone().requires_grad_()
        return torch.autograd.grad(PROBLEM.outer(solution(PROBLEM.init, theta)), theta)[0]

    return Side(linear, whole, int(result.iterations))


def jaxopts(jit: bool) -> Side:
    """The same by JAXopt, each part under ``jax.jit`` or called as it is."""
    jax, jaxopt = import_module("jax"), import_module("jaxopt")
    jnp = jax.numpy
    x, x_held_out, y, y_held_out = map(jnp.asarray, digits())
    init, theta = jnp.asarray(PROBLEM.init.numpy()), jnp.asarray(THETA.numpy())

    def entropy(logits: Array, labels: Array) -> Array:
        picked = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
        return (jax.nn.logsumexp(logits, axis=1) - picked).mean()

    def objective(w: Array, theta: Array) -> Array:
        return entropy(x @ w, y) + 0.5 * (jnp.exp(theta)[:, None] * w**2).sum()

    def outer(w: Array) -> Array:
        return entropy(x_held_out @ w, y_held_out)

    def solver(matvec: Callable[[Array], Array], b: Array) -> Array:
        return jaxopt.linear_solve.solve_cg(matvec, b, tol=RTOL, maxiter=10 * b.size)

    lbfgs = jaxopt.LBFGS(
        objective, maxiter=MAXITER, tol=TOL, history_size=10, implicit_diff_solve=solver
    )
    w, state = lbfgs.run(init, theta)
    slope = jax.grad(outer)(w)

    def linear(w: Array, theta: Array, slope: Array) -> Array:
        return jaxopt.implicit_diff.root_vjp(jax.grad(objective), w, (theta,), slope, solver)[0]

    whole = jax.grad(lambda theta: outer(lbfgs.run(init, theta).params))
    if jit:
        linear, whole = jax.jit(linear), jax.jit(whole)
    return Side(
        lambda: jax.block_until_ready(linear(w, theta, slope)),
        lambda: jax.block_until_ready(whole(theta)),
        int(state.iter_num),
    )


def sides() -> dict[str, Side]:
    """Those that can be timed here."""
    found = {"optdiff": ours()}
    if find_spec("jax") is None or find_spec("jaxopt") is None:
        print("jax or jaxopt is not installed: only optdiff is timed")
        return found
    # Read when jax is first used: one thread, as for torch.
    flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # jaxopt says that it is retired
        import_module("jaxopt")
    import_module("jax").config.update("jax_enable_x64", True)
    return found | {"JAXopt": jaxopts(jit=False), "JAXopt, jax.jit": jaxopts(jit=True)}


def check(found: dict[str, Side], exact: torch.Tensor) -> dict[str, float]:
    """Largest relative error of each side's two hypergradients; all must be small."""
    errors = {}
    for name, side in found.items():
        grads = [torch.tensor(np.asarray(part())) for part in (side.linear, side.whole)]
        errors[name] = max(((grad - exact).norm() / exact.norm()).item() for grad in grads)
        if not errors[name] <= AGREE:
            raise SystemExit(f"bench_implicit: {name} is off by {errors[name]:.1e}: not timed")
    return errors


def medians(found: dict[str, Side], rounds: int) -> dict[str, tuple[float, float]]:
    """CPU milliseconds of the parts of each side."""
    taken = {name: ([], []) for name in found}
    for _ in range(rounds):
        for name, side in found.items():
            for times, part in zip(taken[name], (side.linear, side.whole)):
                begin = time.process_time()
                part()
                times.append(1000 * (time.process_time() - begin))
    return {name: tuple(map(statistics.median, times)) for name, times in taken.items()}


def main(rounds: int) -> None:
    torch.set_num_threads(1)
    (exact,) = PROBLEM.hypergradient(THETA)
    found = sides()
    errors = check(found, exact)
    figures = medians(found, rounds)
    first = figures["optdiff"]
    print("| | linear solve, CPU ms | its ratio | whole, CPU ms | ratio | L-BFGS steps | error |")
    print("|---|---|---|---|---|---|---|")
    for name, (linear, whole) in figures.items():
        print(
            f"| {name} | {linear:.1f} | {linear / first[0]:.2f} | {whole:.1f} | "
            f"{whole / first[1]:.2f} | {found[name].iterations} | {errors[name]:.0e} |"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="3 rounds")
    chosen = parser.parse_args()
    main(3 if chosen.quick else chosen.rounds)
