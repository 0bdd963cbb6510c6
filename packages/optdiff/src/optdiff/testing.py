# SPDX-License-Identifier: Apache-2.0
"""Bilevel problems whose solutions and hypergradients are known, to hold any of the modes against.

Each has an inner problem ``optimality(x, *args) = 0`` and an outer objective ``outer(x)``.
``TRANSFORMS`` are ways to differentiate a function, which all have to work on any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.func import jacfwd, jacrev, vmap

import optdiff.minimize
import treeops
from optdiff.linear_solve import solve_cholesky


@dataclass(frozen=True)
class BilevelProblem:
    """An inner problem, an outer objective, and the truth about them.

    Attributes:
        name: For test ids.
        init: Where a solver may start: a tree like the solution.
        args: Outer parameters at which to take derivatives; ``float64`` tensors.
        optimality: ``optimality(x, *args)``, zero at the solution.
        objective: ``objective(x, *args)`` that the solution minimizes; None if it is only a root.
        solution: ``solution(*args)``, in closed form if ``closed`` and differentiable then.
        outer: ``outer(x)``, a scalar.
        hypergradient: ``hypergradient(*args)``: derivative of ``outer(solution(*args))`` in each.
        closed: Whether the solution has a closed form.
        symmetric: Whether the Jacobian of the optimality is symmetric positive definite.
    """

    name: str
    init: Any
    args: tuple[torch.Tensor, ...]
    optimality: Callable[..., Any]
    objective: Callable[..., torch.Tensor] | None
    solution: Callable[..., Any]
    outer: Callable[[Any], torch.Tensor]
    hypergradient: Callable[..., tuple[torch.Tensor, ...]]
    closed: bool = True
    symmetric: bool = True


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
    factor = _normal(generator, dim, dim)
    hessian = factor @ factor.mT / dim
    target = _normal(generator, dim)
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
        (_normal(generator, dim), torch.tensor(0.3, dtype=torch.float64)),
        torch.func.grad(objective),
        objective,
        solution,
        lambda x: 0.5 * (x - target).square().sum(),
        hypergradient,
    )


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
        features, targets = _normal(generator, 12, 3), _normal(generator, 12)
        held_out = _normal(generator, 6, 3), _normal(generator, 6)
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
        features = _normal(generator, 20, 4)
        labels = torch.randint(3, (20,), generator=generator)
        held_out = _normal(generator, 10, 4), torch.randint(3, (10,), generator=generator)
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


def square_root(value: float = 2.0) -> BilevelProblem:
    r"""A 0-d unknown: :math:`x^2 = a`, outer :math:`x^3`, hypergradient :math:`\tfrac32\sqrt a`.

    Example:
        >>> problem = square_root(4.0)
        >>> problem.solution(*problem.args), problem.hypergradient(*problem.args)
        (tensor(2., dtype=torch.float64), (tensor(3., dtype=torch.float64),))
    """
    return BilevelProblem(
        "square_root",
        torch.tensor(1.0, dtype=torch.float64),
        (torch.tensor(value, dtype=torch.float64),),
        lambda x, a: x**2 - a,
        None,
        torch.sqrt,
        lambda x: x**3,
        lambda a: (1.5 * a.sqrt(),),
    )


def coupled_pair() -> BilevelProblem:
    r"""Two leaves that depend on each other, with a Jacobian that is not symmetric.

    .. math::
        2 u + v = a, \qquad 3 v - u = b, \qquad
        \text{outer} = \tfrac12 \textstyle\sum u^2 + \sum v

    Example:
        >>> problem = coupled_pair()
        >>> sorted(problem.solution(*problem.args))
        ['u', 'v']
    """

    def optimality(x: dict[str, torch.Tensor], a: torch.Tensor, b: torch.Tensor) -> Any:
        return {"u": 2 * x["u"] + x["v"] - a, "v": 3 * x["v"] - x["u"] - b}

    def solution(a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"u": (3 * a - b) / 7, "v": (a + 2 * b) / 7}

    def hypergradient(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
        u = (3 * a - b) / 7
        return (3 * u + 1) / 7, (2 - u) / 7

    def pair(*values: float) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64)

    return BilevelProblem(
        "coupled",
        {"u": pair(0.0, 0.0), "v": pair(0.0, 0.0)},
        (pair(1.0, 2.0), pair(0.5, -1.0)),
        optimality,
        None,
        solution,
        lambda x: 0.5 * x["u"].square().sum() + x["v"].sum(),
        hypergradient,
        symmetric=False,
    )


PROBLEMS = {
    "quadratic": quadratic_bilevel,
    "ridge": ridge_regression,
    "logistic": logistic_regression,
    "square_root": square_root,
    "coupled": coupled_pair,
}


def assert_equal_under(
    transform: str,
    found: Callable[..., Any],
    expected: Callable[..., Any],
    args: tuple[torch.Tensor, ...],
    tolerance: float = 1e-8,
) -> None:
    """Compare two functions, or their derivatives, at some arguments.

    Args:
        transform: A key of ``TRANSFORMS``.
        found: ``found(*args)``, a tree of tensors.
        expected: The same by other means.
        args: Where to compare.
        tolerance: The largest difference of any element.

    Raises:
        AssertionError: They differ.

    Example:
        >>> assert_equal_under("reverse", lambda a: a * a, torch.square, (torch.tensor(2.0),))
    """
    positions = tuple(range(len(args)))
    values = [
        treeops.tree_leaves(TRANSFORMS[transform](function, positions)(*args))
        for function in (found, expected)
    ]
    for one, other in zip(*values, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


Function = Callable[..., Any]
Positions = tuple[int, ...]


def _batch(value: torch.Tensor) -> torch.Tensor:
    return torch.stack([value, 1.1 * value])


def _mapped(function: Function) -> Function:
    return lambda *args: vmap(function)(*map(_batch, args))


def _mapped_over_first(function: Function) -> Function:
    def mapped(first: torch.Tensor, *rest: torch.Tensor) -> Any:
        return vmap(function, (0, *[None] * len(rest)))(_batch(first), *rest)

    return mapped


TRANSFORMS: dict[str, Callable[[Function, Positions], Function]] = {
    "value": lambda f, n: f,
    "reverse": jacrev,
    "forward": jacfwd,
    "reverse_reverse": lambda f, n: jacrev(jacrev(f, n), n),
    "forward_reverse": lambda f, n: jacfwd(jacrev(f, n), n),
    "reverse_forward": lambda f, n: jacrev(jacfwd(f, n), n),
    "forward_forward": lambda f, n: jacfwd(jacfwd(f, n), n),
    "vmap": lambda f, n: _mapped(f),
    "reverse_vmap": lambda f, n: jacrev(_mapped(f), n),
    "forward_vmap_shared": lambda f, n: jacfwd(_mapped_over_first(f), n),
    "reverse_vmap_reverse": lambda f, n: jacrev(_mapped(jacrev(f, n)), n),
    "reverse_vmap_forward": lambda f, n: jacrev(_mapped(jacfwd(f, n)), n),
}


def _normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)
