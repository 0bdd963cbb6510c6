# SPDX-License-Identifier: Apache-2.0
"""What a bilevel problem is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


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


def normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)
