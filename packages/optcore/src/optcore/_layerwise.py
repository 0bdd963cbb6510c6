# SPDX-License-Identifier: Apache-2.0
"""Optimizers whose step in each layer is proportional to its parameters: LAMB and LARS."""

from __future__ import annotations

from collections.abc import Callable

from optcore._adam import scale_by_adam
from optcore._chain import chain, link
from optcore._hyperparams import Hyperparam, check_betas, check_range, is_zero
from optcore._masking import check_mask, masked
from optcore._momentum import trace
from optcore._param_scaling import scale_by_trust_ratio
from optcore._rows import OptimizerRow
from optcore._scaling import scale_by_learning_rate, uphill
from optcore._transform import GradientTransformation
from optcore._tree import Tree
from optcore._weight_decay import add_decayed_weights


def lamb(
    lr: Hyperparam = 1e-3,
    betas: tuple[Hyperparam, Hyperparam] = (0.9, 0.999),
    eps: Hyperparam = 1e-6,
    weight_decay: Hyperparam = 0.0,
    *,
    eps_root: Hyperparam = 0.0,
    mask: Tree | Callable[[Tree], Tree] | None = None,
    maximize: bool = False,
) -> GradientTransformation:
    """LAMB: Adam with decoupled decay, each leaf's step scaled to the norm of its parameter.

    Args:
        lr: Learning rate >= 0.
        betas: ``(b1, b2)``, each in ``[0, 1)``.
        eps: Added to the root, >= 0.
        weight_decay: Rate >= 0, inside the trust ratio.
        eps_root: Added under the root, >= 0.
        mask: Which parameters decay; see :func:`add_decayed_weights`.
        maximize: Ascend instead of descend.

    Differentiable:
        As :func:`scale_by_adam` and :func:`scale_by_trust_ratio`, where no norm is 0.

    Raises:
        ValueError: A hyperparameter outside its range; ``update`` was given no ``params``.

    Example:
        >>> import torch
        >>> opt = lamb(lr=0.1)
        >>> params = [torch.full((1,), 2.0)]
        >>> opt.update([torch.full((1,), 3.0)], opt.init(params), params)[0]
        [tensor([-0.2000])]

    Reference:
        You et al., 2020, arXiv:1904.00962, Algorithm 2. Equals ``optax.lamb``.
    """
    check_range("lamb", "lr", lr, 0.0)
    check_range("lamb", "weight_decay", weight_decay, 0.0)
    b1, b2 = check_betas("lamb", betas)
    return chain(
        *uphill("lamb", maximize),
        link("lamb", scale_by_adam, b1, b2, eps, eps_root),
        *([] if is_zero(weight_decay) else [link("lamb", add_decayed_weights, weight_decay, mask)]),
        link("lamb", scale_by_trust_ratio),
        scale_by_learning_rate(lr),
    ).named("lamb")


def lars(
    lr: Hyperparam = 1e-3,
    *,
    momentum: Hyperparam = 0.9,
    nesterov: bool = False,
    weight_decay: Hyperparam = 0.0,
    trust_coefficient: Hyperparam = 1e-3,
    eps: Hyperparam = 0.0,
    weight_decay_mask: Tree | Callable[[Tree], Tree] | None = None,
    trust_ratio_mask: Tree | Callable[[Tree], Tree] | None = None,
    maximize: bool = False,
) -> GradientTransformation:
    """LARS: gradient descent with momentum, each leaf's step scaled to the norm of its parameter.

    Args:
        lr: Learning rate >= 0.
        momentum: Decay of the momentum of the scaled steps, >= 0.
        nesterov: Nesterov momentum.
        weight_decay: Rate >= 0, inside the trust ratio.
        trust_coefficient: Of :func:`scale_by_trust_ratio`.
        eps: Added to the norm of the update, >= 0.
        weight_decay_mask: Which parameters decay.
        trust_ratio_mask: Which parameters are scaled.
        maximize: Ascend instead of descend.

    Differentiable:
        As :func:`scale_by_trust_ratio`, where no norm is 0.

    Raises:
        ValueError: A hyperparameter outside its range; ``update`` was given no ``params``.

    Example:
        >>> import torch
        >>> opt = lars(lr=0.1, trust_coefficient=1.0)
        >>> params = [torch.full((1,), 2.0)]
        >>> opt.update([torch.full((1,), 3.0)], opt.init(params), params)[0]
        [tensor([-0.2000])]

    Reference:
        You, Gitman and Ginsburg, 2017, arXiv:1708.03888, Algorithm 1. Equals ``optax.lars``.
    """
    check_range("lars", "lr", lr, 0.0)
    check_range("lars", "weight_decay", weight_decay, 0.0)
    check_range("lars", "momentum", momentum, 0.0)
    masks = {"weight_decay_mask": weight_decay_mask, "trust_ratio_mask": trust_ratio_mask}
    for name, mask in masks.items():
        if mask is not None and not callable(mask):
            check_mask("lars", mask, name)
    trust = link("lars", scale_by_trust_ratio, trust_coefficient=trust_coefficient, eps=eps)
    decay = link("lars", add_decayed_weights, weight_decay, weight_decay_mask)
    return chain(
        *uphill("lars", maximize),
        *([] if is_zero(weight_decay) else [decay]),
        trust if trust_ratio_mask is None else link("lars", masked, trust, trust_ratio_mask),
        scale_by_learning_rate(lr),
        *([] if is_zero(momentum) else [link("lars", trace, momentum, nesterov=nesterov)]),
    ).named("lars")


ROWS = (
    OptimizerRow(lamb, "Lamb", {"count": "step", "mu": "exp_avg", "nu": "exp_avg_sq"}),
    OptimizerRow(lars, "LARS", {"trace": "momentum_buffer"}),
)
