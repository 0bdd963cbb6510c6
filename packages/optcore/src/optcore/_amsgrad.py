# SPDX-License-Identifier: Apache-2.0
"""AMSGrad: Adam by the largest second moment so far."""

from __future__ import annotations

from typing import Any, NamedTuple

from optcore._chain import link
from optcore._hyperparams import Hyperparam, check_betas, check_flag, is_zero
from optcore._kernels import check_kernels
from optcore._leafwise import (
    Tick,
    ema,
    ema_square,
    fit,
    safe_sqrt,
)
from optcore._moment_rules import (
    adam_step,
    bias_correction,
    descend,
    with_moments,
)
from optcore._rows import OptimizerRow
from optcore._transform import GradientTransformation
from optcore._tree import Tree


class ScaleByAmsgradState(NamedTuple):
    """Moments kept by :func:`scale_by_amsgrad`; every field is a tree like the parameters."""

    count: Tree  # i64[]: updates that this leaf had
    mu: Tree  # decayed average of gradients
    nu: Tree  # decayed average of squared gradients
    nu_max: Tree  # its largest value so far


def scale_by_amsgrad(
    b1: Hyperparam = 0.9,
    b2: Hyperparam = 0.999,
    eps: Hyperparam = 1e-8,
    eps_root: Hyperparam = 0.0,
    *,
    correct_max: bool = False,
    use_accelerated_op: bool = False,
) -> GradientTransformation:
    r"""Scale as Adam does, by the largest second moment so far.

    .. math::
        \hat\nu_t = \max(\hat\nu_{t-1}, \nu_t), \qquad
        u_t = \frac{\mu_t / (1 - b_1^t)}{\sqrt{\hat\nu_t / (1 - b_2^t) + \epsilon_r} + \epsilon}

    Args:
        b1: Decay of the first moment, in ``[0, 1)``.
        b2: Decay of the second moment, in ``[0, 1)``.
        eps: :math:`\epsilon \ge 0`, added to the root.
        eps_root: :math:`\epsilon_r \ge 0`, added under the root.
        correct_max: Take the maximum of the bias-corrected moments instead.
        use_accelerated_op: Run the kernel that an installed package offers; see
            :func:`kernels_status`.

    State:
        ``count``, ``mu``, ``nu``, ``nu_max``: like ``params``, start at zero.

    Differentiable:
        In everything, twice, except at ties of the maximum, where the two sides share.

    Raises:
        ImportError: ``use_accelerated_op=True`` and no kernels are installed.
        ValueError: A hyperparameter outside its range.

    Differs:
        optax takes the maximum of the bias-corrected moments: ``correct_max=True``.

    Example:
        >>> import torch
        >>> tx = scale_by_amsgrad()
        >>> tx.update([torch.full((1,), 3.0)], tx.init([torch.zeros(1)]))[0]
        [tensor([1.])]

    Reference:
        Reddi, Kale and Kumar, 2018, arXiv:1904.09237, Algorithm 2.
    """
    check_flag("scale_by_amsgrad", "correct_max", correct_max)
    if correct_max and use_accelerated_op:
        raise ValueError(
            "scale_by_amsgrad: expected correct_max=False with use_accelerated_op=True, got True; "
            "the kernel has torch.optim's rule only"
        )
    return with_moments(
        "scale_by_amsgrad",
        _amsgrad_corrected if correct_max else _amsgrad,
        state=ScaleByAmsgradState,
        use_accelerated_op=use_accelerated_op,
        b1=b1,
        b2=b2,
        eps=eps,
        eps_root=eps_root,
    )


def amsgrad(
    lr: Hyperparam = 1e-3,
    betas: tuple[Hyperparam, Hyperparam] = (0.9, 0.999),
    eps: Hyperparam = 1e-8,
    weight_decay: Hyperparam = 0.0,
    *,
    eps_root: Hyperparam = 0.0,
    decoupled_weight_decay: bool = False,
    correct_max: bool = False,
    maximize: bool = False,
    use_accelerated_op: bool = False,
) -> GradientTransformation:
    """AMSGrad: :func:`scale_by_amsgrad`; equals ``torch.optim.Adam(amsgrad=True)``.

    With ``decoupled_weight_decay`` it equals ``torch.optim.AdamW(amsgrad=True)``.

    Args:
        lr: Learning rate >= 0.
        betas: ``(b1, b2)``, each in ``[0, 1)``.
        eps: Added to the root, >= 0.
        weight_decay: L2 penalty or decoupled rate >= 0; needs ``params`` in ``update``.
        eps_root: Added under the root, >= 0.
        decoupled_weight_decay: Decay as AdamW does.
        correct_max: optax's rule; see :func:`scale_by_amsgrad`.
        maximize: Ascend instead of descend.
        use_accelerated_op: Run the kernel that an installed package offers; see
            :func:`kernels_status`.

    Raises:
        ImportError: ``use_accelerated_op=True`` and no kernels are installed.
        ValueError: A hyperparameter outside its range.

    Example:
        >>> import torch
        >>> opt = amsgrad(lr=0.1)
        >>> opt.update([torch.full((1,), 3.0)], opt.init([torch.zeros(1)]))[0]
        [tensor([-0.1000])]

    Reference:
        Reddi, Kale and Kumar, 2018, arXiv:1904.09237, Algorithm 2.
    """
    b1, b2 = check_betas("amsgrad", betas)
    check_flag("amsgrad", "decoupled_weight_decay", decoupled_weight_decay)
    check_kernels("amsgrad", use_accelerated_op, "scale_by_amsgrad")
    rule = link(
        "amsgrad",
        scale_by_amsgrad,
        b1,
        b2,
        eps,
        eps_root,
        correct_max=correct_max,
        use_accelerated_op=use_accelerated_op,
    )
    return descend("amsgrad", rule, lr, weight_decay, maximize, decoupled_weight_decay)


ROWS = (
    OptimizerRow(
        amsgrad,
        "AMSGrad",
        {"count": "step", "mu": "exp_avg", "nu": "exp_avg_sq", "nu_max": "max_exp_avg_sq"},
    ),
)


def _amsgrad(
    g: Any,
    mu: Any,
    nu: Any,
    nu_max: Any,
    *,
    tick: Tick,
    inplace: bool,
    b1: Any,
    b2: Any,
    eps: Any,
    eps_root: Any,
) -> Any:
    mu = ema(mu, g, b1, inplace)
    nu = ema_square(nu, g, b2, inplace)
    nu_max = nu_max.maximum(nu)
    return adam_step(mu, nu_max, tick, inplace, b1, b2, eps, eps_root), mu, nu, nu_max


def _amsgrad_corrected(
    g: Any,
    mu: Any,
    nu: Any,
    nu_max: Any,
    *,
    tick: Tick,
    inplace: bool,
    b1: Any,
    b2: Any,
    eps: Any,
    eps_root: Any,
) -> Any:
    mu = ema(mu, g, b1, inplace)
    nu = ema_square(nu, g, b2, inplace)
    nu_max = nu_max.maximum(nu / fit(tick.derive(bias_correction, b2), nu))
    first = tick.derive(bias_correction, b1)
    square = nu_max if is_zero(eps_root) else nu_max + fit(eps_root, nu)
    return mu / ((safe_sqrt(square, inplace) + fit(eps, nu)) * fit(first, nu)), mu, nu, nu_max
