# SPDX-License-Identifier: Apache-2.0
"""All optimizers on the same two problems with the same budget: one table, one plot.

Run: python packages/optcore/benchmarks/bench_optimizers.py [--steps 150] [--optimizers adam ...]
     [--out out/optimizers.png]
Digits: a network 64-32-10 (tanh) on scikit-learn's digits, minibatches of 128 that are the same
for everyone. Rosenbrock: the valley in two dimensions from (-1.2, 1). Every optimizer takes the
same number of gradients at each learning rate of one grid, all else at its defaults, and is judged
by its best rate: lowest mean loss on all training digits, lowest value in the valley. What becomes
infinite or NaN has failed. SAM stands around Adam, the plateau behind gradient descent. Needs
scikit-learn and matplotlib.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

import optcore

Params = dict[str, torch.Tensor]


def sam(lr: float) -> optcore.GradientTransformation:
    """Around Adam; a step downhill for every two gradients."""
    uphill = optcore.chain(optcore.normalize(), optcore.sgd(lr=0.05))
    return optcore.sam(optcore.adam(lr), uphill)


def reduce_on_plateau(lr: float) -> optcore.GradientTransformation:
    """Behind gradient descent."""
    return optcore.chain(optcore.sgd(lr), optcore.reduce_on_plateau())


ROWS = {**optcore.OPTIMIZERS, **optcore.INFORMED_OPTIMIZERS}
FACTORIES: dict[str, Callable[..., optcore.GradientTransformation]] = {
    **{name: row.factory for name, row in ROWS.items()},
    "sam": sam,
    "reduce_on_plateau": reduce_on_plateau,
}
RATES = (1e-3, 1e-2, 1e-1, 1.0)
BATCH = 128


class Problem(NamedTuple):
    """What is minimized, and how good a result is."""

    start: Callable[[], Params]
    loss: Callable[[Params, int], torch.Tensor]  # of the parameters at a step
    judge: Callable[[Params], tuple[float, float]]  # what is minimized, what is shown


class Result(NamedTuple):
    """The best run of an optimizer."""

    lr: float
    value: float
    shown: float


def digits() -> Problem:
    """A small network; its judge gives training loss and test accuracy."""
    images, labels = load_digits(return_X_y=True)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(labels), generator=generator)
    x = torch.tensor(images, dtype=torch.float32)[order] / 16
    y = torch.tensor(labels)[order]
    train, test = slice(0, 1400), slice(1400, None)
    draws = torch.randint(0, 1400, (10_000, BATCH), generator=generator)

    def start() -> Params:
        generator = torch.Generator().manual_seed(1)
        return {
            "in.weight": torch.randn(64, 32, generator=generator) / 8,
            "in.bias": torch.zeros(32),
            "out.weight": torch.randn(32, 10, generator=generator) / 32**0.5,
            "out.bias": torch.zeros(10),
        }

    def scores(p: Params, x: torch.Tensor) -> torch.Tensor:
        return (x @ p["in.weight"] + p["in.bias"]).tanh() @ p["out.weight"] + p["out.bias"]

    def loss(p: Params, step: int) -> torch.Tensor:
        rows = draws[step]
        return torch.nn.functional.cross_entropy(scores(p, x[rows]), y[rows])

    def judge(p: Params) -> tuple[float, float]:
        fit = torch.nn.functional.cross_entropy(scores(p, x[train]), y[train])
        right = (scores(p, x[test]).argmax(1) == y[test]).float().mean()
        return fit.item(), 100 * right.item()

    return Problem(start, loss, judge)


def rosenbrock() -> Problem:
    """The curved valley in two dimensions; its judge gives the value, shown as its logarithm."""

    def value(p: Params) -> torch.Tensor:
        x, y = p["x"][0]
        return (1 - x) ** 2 + 100 * (y - x**2) ** 2

    def judge(p: Params) -> tuple[float, float]:
        found = value(p).item()
        return found, math.log10(max(found, 1e-30)) if math.isfinite(found) else math.nan

    return Problem(
        lambda: {"x": torch.tensor([[-1.2, 1.0]], dtype=torch.float64)},
        lambda p, step: value(p),
        judge,
    )


def transformation(name: str, lr: float, start: Params) -> optcore.GradientTransformation:
    """An optimizer at its defaults; the vectors of one that takes matrices only go to Adam."""
    optimizer = FACTORIES[name](lr=lr)
    if name != "muon":
        return optimizer
    labels = {key: "matrix" if p.ndim == 2 else "vector" for key, p in start.items()}
    return optcore.partition({"matrix": optimizer, "vector": optcore.adam(lr=1e-2)}, labels)


def run(name: str, lr: float, problem: Problem, steps: int) -> tuple[float, float]:
    """What the judge says after so many gradients."""
    params = {key: p.requires_grad_() for key, p in problem.start().items()}
    tx = transformation(name, lr, params)
    state = tx.init(params)
    for step in range(steps):
        value = problem.loss(params, step)
        grads = torch.autograd.grad(value, list(params.values()))
        updates, state = tx.update(
            dict(zip(params, grads, strict=True)),
            state,
            params,
            inplace=True,
            value=value.detach(),
            obj_fn=lambda p, step=step: problem.loss(p, step),
        )
        optcore.apply_updates(params, updates, inplace=True)
    if name.startswith("schedule_free"):
        params = optcore.schedule_free_eval_params(state, params)
    with torch.no_grad():
        return problem.judge(params)


def best(name: str, problem: Problem, steps: int) -> Result | None:
    """The best of all rates; None if every run failed."""
    found = [Result(lr, *run(name, lr, problem, steps)) for lr in RATES]
    finite = [result for result in found if math.isfinite(result.value)]
    return min(finite, key=lambda result: result.value, default=None)


def cells(result: Result | None, form: str) -> Iterator[str]:
    """How a result stands in the table."""
    if result is None:
        yield from ("failed", "")
    else:
        yield from (form.format(result.shown), f"{result.lr:g}")


def plot(results: dict[str, tuple[Result | None, Result | None]], path: Path) -> None:
    """Both problems side by side, a line for each optimizer, the best digits on top."""
    names = sorted(results, key=lambda n: results[n][0].value if results[n][0] else math.inf)
    figure, axes = plt.subplots(1, 2, figsize=(10, 0.24 * len(names) + 1.5), sharey=True)
    titles = ("digits", "Rosenbrock")
    labels = ("mean loss on all training digits", "value reached (minimum 0)")
    for column, (axis, title, label) in enumerate(zip(axes, titles, labels, strict=True)):
        points = [(results[n][column], place) for place, n in enumerate(names)]
        known = [(result.value, place) for result, place in points if result is not None]
        axis.plot([max(v, 1e-30) for v, _ in known], [place for _, place in known], "o", ms=4)
        failed = [place for result, place in points if result is None]
        right = axis.get_yaxis_transform()  # x as a part of the axis: a failure has no value
        axis.plot([0.98] * len(failed), failed, "rx", ms=5, transform=right)
        crosses = " (red crosses: every rate failed)" if failed else ""
        axis.set(xscale="log", title=title, xlabel=label + crosses)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("optimizer")
    axes[0].set_yticks(range(len(names)), names, fontsize=7)
    axes[0].invert_yaxis()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=150, help="gradients on the digits")
    parser.add_argument("--optimizers", nargs="+", choices=FACTORIES, default=list(FACTORIES))
    parser.add_argument("--out", type=Path, default=Path("out/optimizers.png"))
    parser.add_argument("--quick", action="store_true", help="fewer numbers, in seconds")
    options = parser.parse_args()
    if options.quick:
        parser.set_defaults(steps=20, optimizers=["sgd", "adam", "lion", "muon", "shampoo"])
        options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    problems = digits(), rosenbrock()
    print(f"{options.steps} gradients on the digits, {2 * options.steps} in the valley, at each")
    print(f"of the learning rates {', '.join(f'{rate:g}' for rate in RATES)}; the best of them\n")
    print("| optimizer | digits: test % | lr | Rosenbrock: log10 | lr |")
    print("|---|---|---|---|---|")
    results = {}
    for name in options.optimizers:
        found = best(name, problems[0], options.steps), best(name, problems[1], 2 * options.steps)
        results[name] = found
        shown = (*cells(found[0], "{:.1f}"), *cells(found[1], "{:.2f}"))
        print(f"| {name} | {' | '.join(shown)} |", flush=True)
    plot(results, options.out)
    print(f"\n{options.out}; {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
