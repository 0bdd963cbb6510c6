# SPDX-License-Identifier: Apache-2.0
"""Hooks on what flows backward through the updates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from optcore._leafwise import leafwise
from optcore._repairs import check_replacements, without_nan
from optcore._transform import EmptyState, GradientTransformation, stateless_init
from optcore._tree import Tree, describe

Hook: TypeAlias = "Callable[[torch.Tensor], torch.Tensor | None]"


def register_hook(hook: Hook) -> GradientTransformation:
    r"""Pass updates on, and their gradients through ``hook`` on the way back.

    Args:
        hook: ``hook(grad)`` gives the gradient to go on with, or None to leave it as it is. A
            module-level function pickles.

    Differentiable:
        By the hook, as far as it is itself. Where no graph is recorded nothing happens.

    Differs:
        TorchOpt's hook sits on the gradient tensor itself and sees everything that flows into it;
        this one sees what flows back through the update, and leaves the tensor alone.

    Raises:
        TypeError: ``hook`` is not callable.

    Example:
        >>> tx = register_hook(zero_nan_hook)
        >>> g = torch.ones(2, requires_grad=True)
        >>> (u,), _ = tx.update([g], tx.init([g]))
        >>> torch.autograd.grad(u, g, torch.tensor([float("nan"), 3.0]))
        (tensor([0., 3.]),)
    """
    if not callable(hook):
        raise TypeError(f"register_hook: expected a function grad -> grad, got {describe(hook)}")
    return GradientTransformation(
        stateless_init, _hook_update, static={"hook": hook}, name="register_hook"
    )


def _hook_update(
    updates: Tree, state: EmptyState, params: Tree, *, inplace: bool, hook: Hook
) -> tuple[Tree, EmptyState]:
    if inplace:
        return updates, state
    return leafwise("register_hook", lambda g: _Hooked.apply(g, hook), updates)[0], state


class _Hooked(torch.autograd.Function):
    """The identity; its backward is the hook. Tensor hooks would not work in torch.func."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: torch.Tensor, hook: Hook) -> torch.Tensor:
        return grad.view_as(grad)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.hook = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        hooked = ctx.hook(grad)
        return (grad if hooked is None else hooked), None

    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor, _: None) -> torch.Tensor:
        return tangent.view_as(tangent)


def zero_nan_hook(grad: torch.Tensor) -> torch.Tensor:
    """Replace NaN by 0; a hook for :func:`register_hook`.

    Example:
        >>> zero_nan_hook(torch.tensor([float("nan"), 2.0]))
        tensor([0., 2.])
    """
    return without_nan(grad)


def nan_to_num_hook(
    nan: float = 0.0, posinf: float | None = None, neginf: float | None = None
) -> Hook:
    """A hook for :func:`register_hook` that does what :func:`nan_to_num` does.

    Args:
        nan: For NaN.
        posinf: For positive infinity; None means the largest number of the dtype.
        neginf: For negative infinity; None means the smallest.

    Raises:
        TypeError: An argument is no number.

    Example:
        >>> nan_to_num_hook(posinf=9.0)(torch.tensor([float("nan"), float("inf")]))
        tensor([0., 9.])
    """
    return _NanToNumHook(**check_replacements("nan_to_num_hook", nan, posinf, neginf))


@dataclass(frozen=True)
class _NanToNumHook:
    nan: float
    posinf: float | None
    neginf: float | None

    def __call__(self, grad: torch.Tensor) -> torch.Tensor:
        return torch.nan_to_num(grad, nan=self.nan, posinf=self.posinf, neginf=self.neginf)
