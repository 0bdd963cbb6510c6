# SPDX-License-Identifier: Apache-2.0
"""The inner problem of `weight_decays.py`: regression with a decay for each pixel."""

from __future__ import annotations

import enum
from collections.abc import Callable

import torch
from digits import Images
from torch import Tensor
from torch.nn import functional

import optdiff
from optdiff import minimize
from optdiff.linear_solve import solve_cg


class Loss(str, enum.Enum):
    """What is minimized, for each image."""

    entropy = "entropy"
    squares = "squares"

    def of(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of images with these scores, ``(images, 10)``."""
        if self is Loss.entropy:
            return functional.cross_entropy(scores, labels)
        return 0.5 * (scores - functional.one_hot(labels, 10)).square().sum(1).mean()


def solver(images: Images, loss: Loss, tol: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The best weights for some images, as a differentiable function of the decays."""

    def objective(w: Tensor, log_decay: Tensor) -> Tensor:
        return loss.of(images.x @ w, images.y) + 0.5 * (log_decay.exp() @ w.square()).sum()

    @optdiff.custom_root(torch.func.grad(objective), solve=solve_cg(rtol=1e-8))
    def fit(init: Tensor, log_decay: Tensor) -> Tensor:
        # In units of about the root of the curvature L-BFGS needs a fifth of the steps.
        scale = (0.05 * images.x.square().mean(0) + log_decay.exp()).rsqrt()[:, None]

        def scaled(v: Tensor, log_decay: Tensor) -> Tensor:
            return objective(scale * v, log_decay)

        return scale * minimize.lbfgs(scaled, init / scale, log_decay, tol=tol).solution

    return fit


def start(images: Images) -> Tensor:
    """Weights of zero."""
    return images.x.new_zeros(64, 10)


def accuracy(w: Tensor, images: Images) -> float:
    """Share of the images that are read correctly."""
    return ((images.x @ w).argmax(1) == images.y).double().mean().item()
