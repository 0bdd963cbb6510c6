# SPDX-License-Identifier: Apache-2.0
"""Transformations that bound updates: by element, by leaf, by unit, or all together."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch

from optcore._hyperparams import Hyperparam, check_range
from optcore._leafwise import leafwise
from optcore._norms import (
    at_least,
    block_rms,
    limit,
    multiply,
    per_prefix,
    times,
    total_norm,
    unitwise_norm,
)
from optcore._transform import EmptyState, GradientTransformation, stateless_init
from optcore._tree import Tree, describe


def clip(max_delta: Hyperparam) -> GradientTransformation:
    r"""Clip every element: :math:`u = \min(\max(g, -\delta), \delta)`.

    Args:
        max_delta: :math:`\delta \ge 0`.

    Differentiable:
        In the updates (derivative 1 up to and including the bounds, 0 beyond) and in a tensor
        ``max_delta``.

    Raises:
        TypeError: ``max_delta`` is not a hyperparameter.
        ValueError: ``max_delta`` is negative or not finite.

    Example:
        >>> tx = clip(1.0)
        >>> tx.update([torch.tensor([-3.0, 0.5])], tx.init([torch.zeros(2)]))[0]
        [tensor([-1.0000,  0.5000])]
    """
    check_range("clip", "max_delta", max_delta, 0.0)
    return GradientTransformation(
        stateless_init, _clip_update, {"max_delta": max_delta}, name="clip"
    )


def _clip_update(
    updates: Tree, state: EmptyState, params: Tree, *, inplace: bool, max_delta: Any
) -> tuple[Tree, EmptyState]:
    return leafwise("clip", _clipped, updates, max_delta=max_delta)[0], state


def _clipped(grad: torch.Tensor, *, max_delta: Any) -> torch.Tensor:
    if isinstance(max_delta, torch.Tensor):
        max_delta = max_delta.to(grad.device, grad.dtype)
    return grad.clamp(-max_delta, max_delta)


def clip_by_global_norm(max_norm: Hyperparam) -> GradientTransformation:
    r"""Scale all updates down together where their norm is too large.

    .. math::
        u = g \min\left(1, \frac{c}{\lVert g \rVert}\right)

    Args:
        max_norm: :math:`c \ge 0`. A prefix tree scales its leaves by their own bound over the same
            norm of all.

    Differentiable:
        In the updates, through the norm, twice, and in a tensor ``max_norm``; at zero it is the
        identity.

    Raises:
        TypeError: ``max_norm`` is not a hyperparameter.
        ValueError: ``max_norm`` is negative or not finite.

    Example:
        >>> tx = clip_by_global_norm(1.0)
        >>> tx.update([torch.tensor([3.0, 4.0])], tx.init([torch.zeros(2)]))[0]
        [tensor([0.6000, 0.8000])]

    Reference:
        Pascanu et al., 2013, arXiv:1211.5063, Algorithm 1.
    """
    check_range("clip_by_global_norm", "max_norm", max_norm, 0.0)
    return GradientTransformation(
        stateless_init, _global_norm_update, {"max_norm": max_norm}, name="clip_by_global_norm"
    )


def _global_norm_update(
    updates: Tree, state: EmptyState, params: Tree, *, inplace: bool, max_norm: Any
) -> tuple[Tree, EmptyState]:
    norm = total_norm("clip_by_global_norm", updates, 2.0, inplace)
    coefficient = per_prefix(lambda largest: limit(norm, largest), max_norm)
    return multiply("clip_by_global_norm", updates, coefficient), state


def clip_grad_norm(
    max_norm: Hyperparam, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> GradientTransformation:
    r"""Scale all updates down together as ``torch.nn.utils.clip_grad_norm_`` does.

    .. math::
        u = g \min\left(1, \frac{c}{\lVert g \rVert_p + 10^{-6}}\right)

    Args:
        max_norm: :math:`c \ge 0`.
        norm_type: :math:`p > 0`; ``inf`` (or ``"inf"``) is the largest absolute value.
        error_if_nonfinite: Raise where the norm is NaN or infinite. This waits for the device at
            every update and works neither under ``vmap`` nor in a compiled graph. Without it
            such a norm shows in the updates.

    Differentiable:
        In the updates, through the norm, and in a tensor ``max_norm``; at zero it is a
        multiplication. Twice; for :math:`p < 2` second derivatives at elements that are 0 are 0.

    Raises:
        TypeError: ``max_norm`` is not a hyperparameter, ``norm_type`` no number.
        ValueError: ``max_norm`` is negative or not finite, ``norm_type`` not positive.
        RuntimeError: In ``update``, a norm that is not finite, if asked for.

    Example:
        >>> tx = clip_grad_norm(1.0, norm_type="inf")
        >>> tx.update([torch.tensor([3.0, 4.0])], tx.init([torch.zeros(2)]))[0]
        [tensor([0.7500, 1.0000])]

    Reference:
        Pascanu et al., 2013, arXiv:1211.5063. Equals ``torch.nn.utils.clip_grad_norm_``.
    """
    who = "clip_grad_norm"
    check_range(who, "max_norm", max_norm, 0.0)
    order = math.inf if norm_type == "inf" else norm_type
    if not isinstance(order, Real) or isinstance(order, bool):
        raise TypeError(f"{who}: expected norm_type as a number or 'inf', got {describe(order)}")
    if not order > 0:
        raise ValueError(f"{who}: expected norm_type > 0, got {order}")
    return GradientTransformation(
        stateless_init,
        _grad_norm_update,
        {"max_norm": max_norm},
        {"norm_type": float(order), "error_if_nonfinite": error_if_nonfinite},
        name=who,
    )


def _grad_norm_update(
    updates: Tree,
    state: EmptyState,
    params: Tree,
    *,
    inplace: bool,
    max_norm: Any,
    norm_type: float,
    error_if_nonfinite: bool,
) -> tuple[Tree, EmptyState]:
    who = "clip_grad_norm"
    norm = total_norm(who, updates, norm_type, inplace)
    if error_if_nonfinite and not bool(torch.isfinite(norm)):
        raise RuntimeError(
            f"{who}: expected a finite norm of order {norm_type:g}, got one that is not; "
            "look for NaN or inf in the gradients, or pass error_if_nonfinite=False"
        )
    coefficient = per_prefix(lambda largest: (largest / (norm + 1e-6)).clamp_max(1.0), max_norm)
    return multiply(who, updates, coefficient), state


def clip_by_block_rms(threshold: Hyperparam) -> GradientTransformation:
    r"""Scale a leaf down where its root mean square is too large.

    .. math::
        u = g \min\left(1, \frac{c}{\operatorname{rms}(g)}\right)

    Args:
        threshold: :math:`c \ge 0`.

    Differentiable:
        In the updates, through the root mean square, twice, and in a tensor ``threshold``; at zero
        it is the identity.

    Raises:
        TypeError: ``threshold`` is not a hyperparameter.
        ValueError: ``threshold`` is negative or not finite.

    Example:
        >>> tx = clip_by_block_rms(1.0)
        >>> tx.update([torch.full((4,), 5.0)], tx.init([torch.zeros(4)]))[0]
        [tensor([1., 1., 1., 1.])]

    Reference:
        Shazeer and Stern, 2018, arXiv:1804.04235, section 6.
    """
    check_range("clip_by_block_rms", "threshold", threshold, 0.0)
    return GradientTransformation(
        stateless_init, _block_rms_update, {"threshold": threshold}, name="clip_by_block_rms"
    )


def _block_rms_update(
    updates: Tree, state: EmptyState, params: Tree, *, inplace: bool, threshold: Any
) -> tuple[Tree, EmptyState]:
    return leafwise("clip_by_block_rms", _rms_clipped, updates, threshold=threshold)[0], state


def _rms_clipped(grad: torch.Tensor, *, threshold: Any) -> torch.Tensor:
    return times(grad, limit(block_rms(grad), threshold))


def adaptive_grad_clip(
    clipping: Hyperparam, eps: Hyperparam = 1e-3, axis: int | tuple[int, ...] | None = None
) -> GradientTransformation:
    r"""Bound each unit's gradient by the norm of its weights.

    For a unit with gradient :math:`g` and weights :math:`\theta`:

    .. math::
        u = g \min\left(1, \frac{\lambda \max(\lVert\theta\rVert, \epsilon)}{\lVert g\rVert}\right)

    Args:
        clipping: :math:`\lambda \ge 0`.
        eps: :math:`\epsilon \ge 0`, so that weights of zero can move.
        axis: The dimensions that make a unit; see :func:`unitwise_norm`.

    Differentiable:
        In the updates, the parameters and tensor hyperparameters, twice; where a unit's gradient
        is zero it is the identity.

    Differs:
        optax takes units along the last dimension (see :func:`unitwise_norm`) and divides by a
        norm of at least 1e-6.

    Raises:
        TypeError: ``clipping`` or ``eps`` is not a hyperparameter.
        ValueError: One of them is negative or not finite; ``update`` was given no ``params``.

    Example:
        >>> tx = adaptive_grad_clip(0.1)
        >>> params = [torch.tensor([[3.0, 4.0], [6.0, 8.0]])]
        >>> tx.update([torch.tensor([[0.0, 1.0], [0.0, 1.0]])], tx.init(params), params)[0]
        [tensor([[0.0000, 0.5000],
                [0.0000, 1.0000]])]

    Reference:
        Brock et al., 2021, arXiv:2102.06171, equation 3.
    """
    who = "adaptive_grad_clip"
    check_range(who, "clipping", clipping, 0.0)
    check_range(who, "eps", eps, 0.0)
    return GradientTransformation(
        stateless_init,
        _adaptive_update,
        {"clipping": clipping, "eps": eps},
        {"axis": axis},
        name=who,
        needs_params=True,
    )


def _adaptive_update(
    updates: Tree,
    state: EmptyState,
    params: Tree,
    *,
    inplace: bool,
    clipping: Any,
    eps: Any,
    axis: int | tuple[int, ...] | None,
) -> tuple[Tree, EmptyState]:
    def clipped(grad: torch.Tensor, param: torch.Tensor, *, clipping: Any, eps: Any) -> Any:
        largest = clipping * at_least(unitwise_norm(param, axis), eps)
        return times(grad, limit(unitwise_norm(grad, axis), largest))

    (updates,) = leafwise(
        "adaptive_grad_clip", clipped, updates, params=params, clipping=clipping, eps=eps
    )
    return updates, state
