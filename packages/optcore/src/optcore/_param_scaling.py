# SPDX-License-Identifier: Apache-2.0
"""Transformations that scale each leaf's update by the size of its parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from optcore._hyperparams import Hyperparam, check_range
from optcore._leafwise import leafwise
from optcore._norms import at_least, block_norm, block_rms, times
from optcore._transform import EmptyState, GradientTransformation, stateless_init
from optcore._tree import Tree


def scale_by_trust_ratio(
    min_norm: Hyperparam = 0.0, trust_coefficient: Hyperparam = 1.0, eps: Hyperparam = 0.0
) -> GradientTransformation:
    r"""Scale each leaf's update by the ratio of the parameter's norm to the update's.

    .. math::
        u = g\,\frac{\tau \max(\lVert\theta\rVert, m)}{\max(\lVert g\rVert, m) + \epsilon}

    A leaf one of whose norms is 0 keeps its update.

    Args:
        min_norm: :math:`m \ge 0`, a lower bound of both norms.
        trust_coefficient: :math:`\tau`.
        eps: :math:`\epsilon \ge 0`.

    Differentiable:
        In the updates, the parameters and tensor hyperparameters, twice. Where an update or a
        parameter is exactly zero the ratio jumps, so there is no limit: the derivative is that of
        the identity. A norm below its bound counts as constant.

    Raises:
        TypeError: A hyperparameter is no number, schedule, tensor or tree of such.
        ValueError: ``min_norm`` or ``eps`` is negative, one of them not finite; ``update`` was
            given no ``params``.

    Example:
        >>> tx = scale_by_trust_ratio()
        >>> params = [torch.tensor([6.0, 8.0])]
        >>> tx.update([torch.tensor([3.0, 4.0])], tx.init(params), params)[0]
        [tensor([6., 8.])]

    Reference:
        You et al., 2020, arXiv:1904.00962, Algorithm 2.
    """
    who = "scale_by_trust_ratio"
    check_range(who, "min_norm", min_norm, 0.0)
    check_range(who, "trust_coefficient", trust_coefficient)
    check_range(who, "eps", eps, 0.0)
    return GradientTransformation(
        stateless_init,
        _trust_ratio_update,
        {"min_norm": min_norm, "trust_coefficient": trust_coefficient, "eps": eps},
        name=who,
        needs_params=True,
    )


def _trust_ratio_update(
    updates: Tree,
    state: EmptyState,
    params: Tree,
    *,
    inplace: bool,
    min_norm: Any,
    trust_coefficient: Any,
    eps: Any,
) -> tuple[Tree, EmptyState]:
    (updates,) = leafwise(
        "scale_by_trust_ratio",
        _trusted,
        updates,
        params=params,
        min_norm=min_norm,
        trust_coefficient=trust_coefficient,
        eps=eps,
    )
    return updates, state


def _trusted(
    grad: torch.Tensor, param: torch.Tensor, *, min_norm: Any, trust_coefficient: Any, eps: Any
) -> torch.Tensor:
    own = at_least(block_norm(param), min_norm)
    step = at_least(block_norm(grad), min_norm)
    unknown = (own == 0) | (step == 0)
    ratio = trust_coefficient * own / torch.where(unknown, 1.0, step + eps)
    return times(grad, torch.where(unknown, 1.0, ratio))


def scale_by_param_block_norm(min_scale: Hyperparam = 1e-3) -> GradientTransformation:
    r"""Scale each leaf's update by its parameter's norm: :math:`u = g \max(\lVert\theta\rVert, m)`.

    Args:
        min_scale: :math:`m \ge 0`.

    Differentiable:
        In the updates, the parameters and a tensor ``min_scale``, twice. A norm that is not above
        ``min_scale`` counts as constant.

    Raises:
        TypeError: ``min_scale`` is not a hyperparameter.
        ValueError: ``min_scale`` is negative or not finite; ``update`` was given no ``params``.

    Example:
        >>> tx = scale_by_param_block_norm()
        >>> params = [torch.tensor([3.0, 4.0])]
        >>> tx.update([torch.ones(2)], tx.init(params), params)[0]
        [tensor([5., 5.])]
    """
    return _scale_by_block("scale_by_param_block_norm", _norm_update, min_scale)


def scale_by_param_block_rms(min_scale: Hyperparam = 1e-3) -> GradientTransformation:
    r"""Scale each leaf's update by the parameter's root mean square, at least ``min_scale``.

    Args:
        min_scale: :math:`m \ge 0` in :math:`u = g \max(\operatorname{rms}(\theta), m)`.

    Differentiable:
        In the updates, the parameters and a tensor ``min_scale``, twice. A root mean square that is
        not above ``min_scale`` counts as constant.

    Raises:
        TypeError: ``min_scale`` is not a hyperparameter.
        ValueError: ``min_scale`` is negative or not finite; ``update`` was given no ``params``.

    Example:
        >>> tx = scale_by_param_block_rms()
        >>> params = [torch.tensor([3.0, 3.0])]
        >>> tx.update([torch.ones(2)], tx.init(params), params)[0]
        [tensor([3., 3.])]

    Reference:
        Shazeer and Stern, 2018, arXiv:1804.04235, section 8.
    """
    return _scale_by_block("scale_by_param_block_rms", _rms_update, min_scale)


def _scale_by_block(
    who: str, update: Callable[..., Any], min_scale: Hyperparam
) -> GradientTransformation:
    check_range(who, "min_scale", min_scale, 0.0)
    return GradientTransformation(
        stateless_init, update, {"min_scale": min_scale}, name=who, needs_params=True
    )


def _norm_update(
    updates: Tree, state: EmptyState, params: Tree, *, inplace: bool, min_scale: Any
) -> tuple[Tree, EmptyState]:
    (updates,) = leafwise(
        "scale_by_param_block_norm", _norm_scaled, updates, params=params, min_scale=min_scale
    )
    return updates, state


def _norm_scaled(grad: torch.Tensor, param: torch.Tensor, *, min_scale: Any) -> torch.Tensor:
    return times(grad, at_least(block_norm(param), min_scale))


def _rms_update(
    updates: Tree, state: EmptyState, params: Tree, *, inplace: bool, min_scale: Any
) -> tuple[Tree, EmptyState]:
    (updates,) = leafwise(
        "scale_by_param_block_rms", _rms_scaled, updates, params=params, min_scale=min_scale
    )
    return updates, state


def _rms_scaled(grad: torch.Tensor, param: torch.Tensor, *, min_scale: Any) -> torch.Tensor:
    return times(grad, at_least(block_rms(param), min_scale))
