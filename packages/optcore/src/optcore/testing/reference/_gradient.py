# SPDX-License-Identifier: Apache-2.0
"""What every formula is given: the field of gradients."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Gradient = Callable[[Tensor, int], Tensor]


def signed(gradient: Tensor, maximize: bool) -> Tensor:
    """Minus the gradient where the objective is to be maximized."""
    return -gradient if maximize else gradient
