# SPDX-License-Identifier: Apache-2.0
"""An objective on vectors, and its derivatives in numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from optdiff._iteration import Unknowns, detached
from optdiff.linear_solve._operators import MatVec


@dataclass(frozen=True)
class Objective:
    """An objective on vectors, and its derivatives in numbers."""

    unknowns: Unknowns
    objective: Callable[..., torch.Tensor]
    args: tuple[Any, ...]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        value = self.objective(self.unknowns.tree(x), *detached(self.args))
        if not isinstance(value, torch.Tensor) or value.ndim:
            got = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise ValueError(f"{self.unknowns.who}: expected a scalar objective, got {got}")
        return value

    def value(self, x: torch.Tensor) -> torch.Tensor:
        return self(x).detach()

    def value_and_grad(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.enable_grad():
            g, value = torch.func.grad_and_value(self)(x)
        return value.detach(), g.detach()

    def hessian(self, x: torch.Tensor) -> MatVec:
        gradient = torch.func.grad(self)
        with torch.enable_grad():
            _, pull = torch.func.vjp(lambda x: (gradient(x),), x)
        return pull
