# SPDX-License-Identifier: Apache-2.0
"""Minimizing a quadratic."""

from __future__ import annotations

import torch

from optdiff.testing._problem import BilevelProblem, normal


def quadratic_bilevel(dim: int = 4, seed: int = 0) -> BilevelProblem:
    r"""A quadratic inner problem with a linear term and a curvature to learn.

    .. math::
        f(x, \theta, \alpha) = \tfrac12 x^\top H x + \tfrac{e^\alpha}2 \|x\|^2 - \theta^\top x,
        \qquad \text{outer}(x) = \tfrac12 \|x - t\|^2

    Args:
        dim: Number of unknowns.
        seed: Of the random numbers.

    Example:
        >>> problem = quadratic_bilevel()
        >>> x = problem.solution(*problem.args)
        >>> bool(problem.optimality(x, *problem.args).abs().max() < 1e-12)
        True
    """
    generator = torch.Generator().manual_seed(seed)
    factor = normal(generator, dim, dim)
    hessian = factor @ factor.mT / dim
    target = normal(generator, dim)
    eye = torch.eye(dim, dtype=torch.float64)

    def objective(x: torch.Tensor, theta: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        return 0.5 * x @ hessian @ x + 0.5 * alpha.exp() * x @ x - theta @ x

    def solution(theta: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        return torch.linalg.inv(hessian + alpha.exp() * eye) @ theta

    def hypergradient(theta: torch.Tensor, alpha: torch.Tensor) -> tuple[torch.Tensor, ...]:
        inverse = torch.linalg.inv(hessian + alpha.exp() * eye)
        x = inverse @ theta
        u = inverse @ (x - target)
        return u, -alpha.exp() * (u @ x)

    return BilevelProblem(
        "quadratic",
        torch.zeros(dim, dtype=torch.float64),
        (normal(generator, dim), torch.tensor(0.3, dtype=torch.float64)),
        torch.func.grad(objective),
        objective,
        solution,
        lambda x: 0.5 * (x - target).square().sum(),
        hypergradient,
    )
