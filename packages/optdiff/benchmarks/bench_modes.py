# SPDX-License-Identifier: Apache-2.0
"""The three modes on one problem: cost, memory and accuracy of the same hypergradient.

Run: python packages/optdiff/benchmarks/bench_modes.py [--rounds 3] [--only implicit ...]
The problem: softmax regression on scikit-learn's digits, 640 weights, one weight decay for each of
64 pixels, and the derivative of the validation loss in their logarithms; the truth comes from the
whole Hessian at the minimum. Steps are gradient descent with momentum. CPU time on one thread, the
median of the rounds (one where a run takes more than three seconds); memory is the peak of what
operations made and kept, in copies of the weights.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from bench_unroll_memory import Meter
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import optdiff
from optdiff import minimize, testing
from optdiff.linear_solve import solve_cg

Hypergradient = Callable[[torch.Tensor], torch.Tensor]


def digits() -> list[np.ndarray]:
    """Images and held-out images, labels and held-out labels."""
    features, labels = load_digits(return_X_y=True)
    return train_test_split(features / 16, labels, test_size=0.5, random_state=0)


def decays() -> testing.BilevelProblem:
    x, x_held_out, y, y_held_out = map(torch.from_numpy, digits())
    return testing.logistic_regression(x, y, (x_held_out, y_held_out), log_decay=-4.0)


PROBLEM = decays()
Carry = tuple[torch.Tensor, torch.Tensor]


def step(carry: Carry, i: int, theta: torch.Tensor) -> Carry:
    w, velocity = carry
    velocity = 0.9 * velocity - 0.2 * PROBLEM.optimality(w, theta)
    return w + velocity, velocity


def start() -> Carry:
    return PROBLEM.init.clone(), torch.zeros_like(PROBLEM.init)


def outer(carry: Carry, theta: torch.Tensor) -> torch.Tensor:
    return PROBLEM.outer(carry[0])


def explicit(steps: int, **options: object) -> Hypergradient:
    def run(theta: torch.Tensor) -> torch.Tensor:
        theta = theta.clone().requires_grad_()
        carry = optdiff.unroll(step, start(), steps, theta, **options)
        return torch.autograd.grad(PROBLEM.outer(carry[0]), theta)[0]

    return run


def forward(steps: int) -> Hypergradient:
    def run(theta: torch.Tensor) -> torch.Tensor:
        return optdiff.forward_hypergradient(outer, step, start(), steps, theta)[1]

    return run


@optdiff.custom_root(PROBLEM.optimality, solve=solve_cg())
def by_newton(init: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    return minimize.newton(PROBLEM.objective, init, theta).solution


def by_steps(steps: int) -> Callable[..., torch.Tensor]:
    @optdiff.custom_root(PROBLEM.optimality, solve=solve_cg())
    def solve(init: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        carry = init, torch.zeros_like(init)
        with torch.no_grad():
            for i in range(steps):
                carry = step(carry, i, theta)
        return carry[0]

    return solve


def implicit(solve: Callable[..., torch.Tensor]) -> Hypergradient:
    def run(theta: torch.Tensor) -> torch.Tensor:
        theta = theta.clone().requires_grad_()
        return torch.autograd.grad(PROBLEM.outer(solve(PROBLEM.init, theta)), theta)[0]

    return run


def zero_order(steps: int, method: str, samples: int) -> Hypergradient:
    def value(theta: torch.Tensor) -> torch.Tensor:
        carry = start()
        for i in range(steps):
            carry = step(carry, i, theta)
        return PROBLEM.outer(carry[0])

    estimated = optdiff.zero_order(
        torch.distributions.Normal(0.0, 1.0), method, num_samples=samples, sigma=0.01, chunk_size=64
    )(value)

    def run(theta: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        theta = theta.clone().requires_grad_()
        return torch.autograd.grad(estimated(theta), theta)[0]

    return run


VARIANTS: dict[str, Hypergradient] = {
    "explicit, 30 steps": explicit(30),
    "explicit, 100 steps": explicit(100),
    "  forward mode": forward(100),
    "explicit, 300 steps": explicit(300),
    '  checkpoint="sqrt"': explicit(300, checkpoint="sqrt"),
    "  truncate=30": explicit(300, truncate=30),
    "implicit, 30 steps": implicit(by_steps(30)),
    "implicit, 300 steps": implicit(by_steps(300)),
    "implicit, Newton": implicit(by_newton),
    "zero-order, 300 steps, finite differences": zero_order(300, "finite_difference", 1),
    "zero-order, 100 steps, antithetic, 64 samples": zero_order(100, "antithetic", 64),
    "zero-order, 100 steps, antithetic, 256 samples": zero_order(100, "antithetic", 256),
}


def cpu_seconds(run: Hypergradient, theta: torch.Tensor, rounds: int) -> float:
    times: list[float] = []
    while len(times) < rounds and (not times or times[0] < 3):
        begin = time.process_time()
        run(theta)
        times.append(time.process_time() - begin)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="timed runs (default: 3)")
    parser.add_argument("--only", nargs="+", metavar="PART", help="modes with this in the name")
    parser.add_argument("--quick", action="store_true", help="fewer numbers, in seconds")
    options = parser.parse_args()
    if options.quick:
        parser.set_defaults(rounds=1, only=["30 steps", "Newton"])
        options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"expected --rounds >= 1, got {options.rounds}")
    wanted = options.only or [""]
    torch.set_num_threads(1)
    (theta,) = PROBLEM.args
    (exact,) = PROBLEM.hypergradient(theta)
    copies = PROBLEM.init.nbytes
    implicit(by_newton)(theta)  # torch loads its parts
    print("| mode | CPU s | memory, copies of the weights | relative error | cosine |")
    print("|---|---|---|---|---|")
    for name, run in VARIANTS.items():
        if not any(part in name for part in wanted):
            continue
        seconds = cpu_seconds(run, theta, options.rounds)
        with Meter() as meter:
            found = run(theta)
        error = ((found - exact).norm() / exact.norm()).item()
        cosine = torch.nn.functional.cosine_similarity(found, exact, dim=0).item()
        print(
            f"| {name} | {seconds:.2f} | {meter.peak / copies:.0f} | {error:.1e} | {cosine:.4f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
