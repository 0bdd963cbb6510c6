# SPDX-License-Identifier: Apache-2.0
"""Transformations that take something away from updates: their mean or their norm."""

from __future__ import annotations

from typing import Any

import torch

from optcore._hyperparams import Hyperparam, check_range
from optcore._leafwise import leafwise
from optcore._norms import inverse, multiply, per_prefix, total_norm
from optcore._transform import EmptyState, GradientTransformation, stateless_init
from optcore._tree import Tree


def centralize() -> GradientTransformation:
    r"""Subtract from each output unit's gradient its mean.

    A leaf ``(out, ...)`` of two or more dimensions loses the mean over all but the first; others
    stay as they are.

    Differentiable:
        Linear in the updates.

    Example:
        >>> tx = centralize()
        >>> tx.update([torch.tensor([[1.0, 3.0]])], tx.init([torch.zeros(1, 2)]))[0]
        [tensor([[-1.,  1.]])]

    Reference:
        Yong et al., 2020, arXiv:2004.01461, equation 1.
    """
    return GradientTransformation(stateless_init, _centralize_update, name="centralize")


def _centralize_update(
    updates: Tree, state: EmptyState, params: Tree, *, inplace: bool
) -> tuple[Tree, EmptyState]:
    return leafwise("centralize", _centralized, updates)[0], state


def _centralized(grad: torch.Tensor) -> torch.Tensor:
    if grad.ndim < 2:
        return grad
    return grad - grad.mean(tuple(range(1, grad.ndim)), keepdim=True)


def normalize() -> GradientTransformation:
    r"""Divide all updates by their common norm: :math:`u = g / \lVert g \rVert`.

    Differentiable:
        In the updates, twice. Where all are zero, which has no limit, the updates and their
        derivatives are 0.

    Differs:
        In optax, updates that are all zero become NaN.

    Example:
        >>> tx = normalize()
        >>> tx.update([torch.tensor([3.0, 4.0])], tx.init([torch.zeros(2)]))[0]
        [tensor([0.6000, 0.8000])]
    """
    return GradientTransformation(stateless_init, _normalize_update, name="normalize")


def _normalize_update(
    updates: Tree, state: EmptyState, params: Tree, *, inplace: bool
) -> tuple[Tree, EmptyState]:
    return multiply(
        "normalize", updates, inverse(total_norm("normalize", updates, 2.0, inplace))
    ), state


def normalize_by_update_norm(
    scale_factor: Hyperparam = 1.0, eps: Hyperparam = 1e-6
) -> GradientTransformation:
    r"""Bring the common norm of all updates to one value.

    .. math::
        u = \frac{s\,g}{\lVert g \rVert + \epsilon}

    Args:
        scale_factor: :math:`s`, the norm wanted.
        eps: :math:`\epsilon \ge 0`.

    Differentiable:
        In the updates and tensor hyperparameters, twice. Where all updates are zero the derivative
        is :math:`s / \epsilon`, and 0 if :math:`\epsilon` is 0.

    Raises:
        TypeError: A hyperparameter is no number, schedule, tensor or tree of such.
        ValueError: ``eps`` is negative, or one of them not finite.

    Example:
        >>> tx = normalize_by_update_norm(10.0)
        >>> tx.update([torch.tensor([3.0, 4.0])], tx.init([torch.zeros(2)]))[0]
        [tensor([6.0000, 8.0000])]
    """
    who = "normalize_by_update_norm"
    check_range(who, "scale_factor", scale_factor)
    check_range(who, "eps", eps, 0.0)
    return GradientTransformation(
        stateless_init, _update_norm_update, {"scale_factor": scale_factor, "eps": eps}, name=who
    )


def _update_norm_update(
    updates: Tree, state: EmptyState, params: Tree, *, inplace: bool, scale_factor: Any, eps: Any
) -> tuple[Tree, EmptyState]:
    who = "normalize_by_update_norm"
    norm = total_norm(who, updates, 2.0, inplace)
    updates = multiply(who, updates, per_prefix(lambda e: inverse(norm + e), eps))
    return multiply(who, updates, scale_factor), state
