# SPDX-License-Identifier: Apache-2.0
"""What makes the metagradient of a training run useful, one change at a time.

Run: python packages/optdiff/benchmarks/bench_smoothness.py [--steps 200] [--directions 4]
A small net is trained on scikit-learn's digits; the metagradient of its validation loss in the
weights of the 1000 training images is compared with central differences along random directions
(`optdiff.check_smoothness`). 1: it tells what happens; near 0: it does not. Plain are batches of
20, eps=1e-8 and a warm-up over half of the steps. float64.
"""

from __future__ import annotations

import argparse
import time
from typing import Any, NamedTuple

import torch
from torch import nn

import optcore
import optdiff

TRAIN, VALIDATION = 1000, 400
SCALES = (1e-1, 1e-2, 1e-3)  # of a change of the weights, as a share of them


class Recipe(NamedTuple):
    """How the net is trained."""

    norm: str = "none"
    batch: int = 20
    eps: float = 1e-8
    warm_up: float = 0.5  # share of the steps
    activation: type[nn.Module] = nn.ReLU


CHANGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch norm before it": {"norm": "before"},
    "batch norm after it": {"norm": "after"},
    "batches of 200": {"batch": 200},
    "eps 1e-3": {"eps": 1e-3},
    "warm-up 5 %": {"warm_up": 0.05},
    "batch norm before, 200, 1e-3": {"norm": "before", "batch": 200, "eps": 1e-3},
}
RECIPES = {
    f"{activation.__name__}, {name}": Recipe(activation=activation, **change)
    for activation in (nn.ReLU, nn.GELU)
    for name, change in CHANGES.items()
}


class Problem:
    """Training on the digits."""

    def __init__(self, num_steps: int, lr: float) -> None:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        x, y = torch.from_numpy(images / 16), torch.from_numpy(labels).long()
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(len(x), generator=generator)
        self.train = x[order[:TRAIN]], y[order[:TRAIN]]
        rest = order[TRAIN : TRAIN + VALIDATION]
        self.validation = x[rest], y[rest]
        self.num_steps, self.lr = num_steps, lr

    def loop(self, recipe: Recipe, weights: torch.Tensor) -> optdiff.Replay:
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for size in (64, 32):
            between = {
                "none": [recipe.activation()],
                "before": [nn.BatchNorm1d(32), recipe.activation()],
                "after": [recipe.activation(), nn.BatchNorm1d(32)],
            }[recipe.norm]
            layers += [nn.Linear(size, 32), *between]
        net = nn.Sequential(*layers, nn.Linear(32, 10))
        warm = max(1, round(recipe.warm_up * self.num_steps))

        def rate(count: torch.Tensor) -> torch.Tensor:
            left = (self.num_steps - count) / max(1, self.num_steps - warm)
            return self.lr * torch.clamp(torch.minimum((count + 1) / warm, left), 0, 1)

        def loss_fn(net: nn.Module, batch: Any, rows: Any, weights: Any) -> torch.Tensor:
            x, y = batch
            losses = nn.functional.cross_entropy(net(x), y, reduction="none")
            return (weights[rows] * losses).mean()

        return optdiff.Replay(
            net,
            optcore.flatten(optcore.adamw(rate, eps=recipe.eps)),
            self.train,
            loss_fn,
            weights,
            num_steps=self.num_steps,
            sampler=optdiff.ShuffledBatches(TRAIN, recipe.batch),
            checkpoint=100,
        )

    def loss(self, net: nn.Module) -> torch.Tensor:
        # by the statistics of these images: running ones are constants to a metagradient
        return nn.functional.cross_entropy(net(self.validation[0]), self.validation[1])

    def check(self, recipe: Recipe, directions: int) -> tuple[float, optdiff.Smoothness]:
        """The validation loss, and whether its metagradient is of use."""
        weights = torch.ones(TRAIN, requires_grad=True)
        loop = self.loop(recipe, weights)
        loss = self.loss(loop.run())
        found = optdiff.check_smoothness(
            lambda weights: self.loss(loop.run(weights)),
            weights,
            gradient=loop.backward(loss),
            steps=SCALES,
            directions=directions,
            generator=torch.Generator().manual_seed(0),
        )
        return loss.item(), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--directions", type=int, default=4)
    parser.add_argument("--lr", type=float, default=3e-3, help="largest (default: 3e-3)")
    parser.add_argument("--quick", action="store_true", help="fewer numbers, in seconds")
    options = parser.parse_args()
    if options.quick:
        parser.set_defaults(steps=20, directions=1)
        options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    problem = Problem(options.steps, options.lr)
    began = time.process_time()
    print("| training | validation loss | " + " | ".join(f"by {h:.0e}" for h in SCALES) + " |")
    print("|---|---|" + "---|" * len(SCALES))
    for name, recipe in RECIPES.items():
        loss, found = problem.check(recipe, options.directions)
        agreed = " | ".join(f"{agreement:.2f}" for agreement in found.agreement.tolist())
        print(f"| {name} | {loss:.3f} | {agreed} |", flush=True)
    print(f"\n{time.process_time() - began:.0f} s of CPU")


if __name__ == "__main__":
    main()
