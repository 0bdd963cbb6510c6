# SPDX-License-Identifier: Apache-2.0
"""Equations given as such, without an objective."""

from __future__ import annotations

from typing import Any

import torch

from optdiff.testing._problem import BilevelProblem


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
