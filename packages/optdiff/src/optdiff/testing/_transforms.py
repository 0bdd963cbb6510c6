# SPDX-License-Identifier: Apache-2.0
"""Ways to differentiate a function, and comparing two functions under them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.func import jacfwd, jacrev, vmap

import treeops

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
        >>> import torch
        >>> assert_equal_under("reverse", lambda a: a * a, torch.square, (torch.tensor(2.0),))
    """
    positions = tuple(range(len(args)))
    values = [
        treeops.tree_leaves(TRANSFORMS[transform](function, positions)(*args))
        for function in (found, expected)
    ]
    for one, other in zip(*values, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)
