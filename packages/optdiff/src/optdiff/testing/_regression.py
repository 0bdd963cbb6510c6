# SPDX-License-Identifier: Apache-2.0
"""Regressions, validated on held-out rows, with a penalty to learn."""

from __future__ import annotations

import torch

import optdiff.minimize
from optdiff.linear_solve import solve_cholesky
from optdiff.testing._problem import BilevelProblem, normal


def ridge_regression(
    features: torch.Tensor | None = None,
    targets: torch.Tensor | None = None,
    held_out: tuple[torch.Tensor, torch.Tensor] | None = None,
    theta: float = 0.5,
) -> BilevelProblem:
    r"""Ridge regression, validated on held-out rows; the logarithm of the ridge is to learn.

    .. math::
        (X^\top X + e^\theta n I)\, w = X^\top y,
        \qquad \text{outer}(w) = \tfrac1m \|X' w - y'\|^2

    Args:
        features: ``(n, dim)``; random by default.
        targets: ``(n,)``.
        held_out: Features and targets of the outer objective.
        theta: Logarithm of the ridge.

    Example:
        >>> problem = ridge_regression()
        >>> len(problem.hypergradient(*problem.args))
        1
    """
    generator = torch.Generator().manual_seed(0)
    if features is None or targets is None or held_out is None:
        features, targets = normal(generator, 12, 3), normal(generator, 12)
        held_out = normal(generator, 6, 3), normal(generator, 6)
    rows, dim = features.shape
    gram, moment = features.mT @ features, features.mT @ targets
    eye = torch.eye(dim, dtype=features.dtype)

    def objective(w: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        return 0.5 * (features @ w - targets).square().sum() + 0.5 * rows * theta.exp() * w @ w

    def solution(theta: torch.Tensor) -> torch.Tensor:
        return torch.linalg.inv(gram + theta.exp() * rows * eye) @ moment

    def outer(w: torch.Tensor) -> torch.Tensor:
        return (held_out[0] @ w - held_out[1]).square().mean()

    def hypergradient(theta: torch.Tensor) -> tuple[torch.Tensor, ...]:
        matrix = gram + theta.exp() * rows * eye
        w = torch.linalg.solve(matrix, moment)
        slope = 2 * held_out[0].mT @ (held_out[0] @ w - held_out[1]) / len(held_out[1])
        return (-theta.exp() * rows * (torch.linalg.solve(matrix, slope) @ w),)

    return BilevelProblem(
        "ridge",
        torch.zeros(dim, dtype=features.dtype),
        (torch.tensor(theta, dtype=features.dtype),),
        torch.func.grad(objective),
        objective,
        solution,
        outer,
        hypergradient,
    )


def logistic_regression(
    features: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    held_out: tuple[torch.Tensor, torch.Tensor] | None = None,
    log_decay: float = -1.0,
) -> BilevelProblem:
    r"""Softmax regression with a weight decay for each feature, validated on held-out rows.

    .. math::
        f(W, \theta) = \tfrac1n \sum_i \text{CE}(x_i^\top W, y_i)
        + \tfrac12 \sum_j e^{\theta_j} \|W_j\|^2

    The solution is Newton's; the hypergradient comes from the whole Hessian.

    Args:
        features: ``(n, dim)``; random, with three classes, by default.
        labels: ``(n,)``, integers.
        held_out: Features and labels of the outer objective, the mean cross-entropy.
        log_decay: Logarithm of every weight decay.

    Example:
        >>> logistic_regression().args[0].shape
        torch.Size([4])
    """
    generator = torch.Generator().manual_seed(0)
    if features is None or labels is None or held_out is None:
        features = normal(generator, 20, 4)
        labels = torch.randint(3, (20,), generator=generator)
        held_out = normal(generator, 10, 4), torch.randint(3, (10,), generator=generator)
    dim, classes = features.shape[1], int(labels.max()) + 1
    entropy = torch.nn.functional.cross_entropy

    def objective(w: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        decay = 0.5 * (theta.exp()[:, None] * w.square()).sum()
        return entropy(features @ w, labels) + decay

    init = torch.zeros(dim, classes, dtype=features.dtype)

    def solution(theta: torch.Tensor) -> torch.Tensor:
        result = optdiff.minimize.newton(
            objective, init, theta, tol=1e-13, solve=solve_cholesky(), on_failure="ignore"
        )
        return result.solution

    def outer(w: torch.Tensor) -> torch.Tensor:
        return entropy(held_out[0] @ w, held_out[1])

    def hypergradient(theta: torch.Tensor) -> tuple[torch.Tensor, ...]:
        w = solution(theta)
        hessian = torch.func.hessian(objective)(w, theta).reshape(w.numel(), w.numel())
        u = torch.linalg.solve(hessian, torch.func.grad(outer)(w).reshape(-1)).reshape(w.shape)
        return (-theta.exp() * (u * w).sum(1),)

    return BilevelProblem(
        "logistic",
        init,
        (torch.full((dim,), log_decay, dtype=features.dtype),),
        torch.func.grad(objective),
        objective,
        solution,
        outer,
        hypergradient,
        closed=False,
    )
