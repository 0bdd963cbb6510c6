# SPDX-License-Identifier: Apache-2.0
"""AdaBelief: scaling by how far gradients are from their average."""

from __future__ import annotations

from typing import Any

from optcore._chain import link
from optcore._hyperparams import Hyperparam, check_betas
from optcore._leafwise import (
    Tick,
    ema,
    ema_square,
    fit,
)
from optcore._moment_rules import (
    adam_step,
    descend,
    with_moments,
)
from optcore._rows import OptimizerRow
from optcore._transform import GradientTransformation


def scale_by_belief(
    b1: Hyperparam = 0.9,
    b2: Hyperparam = 0.999,
    eps: Hyperparam = 1e-16,
    eps_root: Hyperparam = 1e-16,
) -> GradientTransformation:
    r"""Scale by how far gradients are from their average.

    .. math::
        \mu_t &= b_1 \mu_{t-1} + (1 - b_1)\,g_t \\
        \nu_t &= b_2 \nu_{t-1} + (1 - b_2)\,(g_t - \mu_t)^2 + \epsilon_r \\
        u_t &= \frac{\mu_t / (1 - b_1^t)}{\sqrt{\nu_t / (1 - b_2^t)} + \epsilon}

    Args:
        b1: Decay of the first moment, in ``[0, 1)``.
        b2: Decay of the second moment, in ``[0, 1)``.
        eps: :math:`\epsilon \ge 0`, added to the root.
        eps_root: :math:`\epsilon_r \ge 0`, added to the second moment at every step.

    State:
        ``count``, ``mu``, ``nu``: like ``params``, start at zero.

    Differentiable:
        In everything, twice; where the second moment is 0 its root has derivative 0.

    Raises:
        ValueError: A hyperparameter outside its range.

    Example:
        >>> import torch
        >>> tx = scale_by_belief(b1=0.5)
        >>> tx.update([torch.full((1,), 3.0)], tx.init([torch.zeros(1)]))[0]
        [tensor([2.0000])]

    Reference:
        Zhuang et al., 2020, arXiv:2010.07468, Algorithm 2.
    """
    return with_moments("scale_by_belief", _belief, b1=b1, b2=b2, eps=eps, eps_root=eps_root)


def adabelief(
    lr: Hyperparam = 1e-3,
    betas: tuple[Hyperparam, Hyperparam] = (0.9, 0.999),
    eps: Hyperparam = 1e-16,
    weight_decay: Hyperparam = 0.0,
    *,
    eps_root: Hyperparam = 1e-16,
    maximize: bool = False,
) -> GradientTransformation:
    """AdaBelief: :func:`scale_by_belief` and a learning rate; equals ``optax.adabelief``.

    Args:
        lr: Learning rate >= 0.
        betas: ``(b1, b2)``, each in ``[0, 1)``.
        eps: Added to the root, >= 0.
        weight_decay: L2 penalty >= 0; needs ``params`` in ``update``.
        eps_root: Added to the second moment, >= 0.
        maximize: Ascend instead of descend.

    Raises:
        ValueError: A hyperparameter outside its range.

    Example:
        >>> import torch
        >>> opt = adabelief(lr=0.1, betas=(0.5, 0.999))
        >>> opt.update([torch.full((1,), 3.0)], opt.init([torch.zeros(1)]))[0]
        [tensor([-0.2000])]

    Reference:
        Zhuang et al., 2020, arXiv:2010.07468, Algorithm 2.
    """
    b1, b2 = check_betas("adabelief", betas)
    rule = link("adabelief", scale_by_belief, b1, b2, eps, eps_root)
    return descend("adabelief", rule, lr, weight_decay, maximize)


ROWS = (
    OptimizerRow(adabelief, "AdaBelief", {"count": "step", "mu": "exp_avg", "nu": "exp_avg_sq"}),
)


def _belief(
    g: Any,
    mu: Any,
    nu: Any,
    *,
    tick: Tick,
    inplace: bool,
    b1: Any,
    b2: Any,
    eps: Any,
    eps_root: Any,
) -> Any:
    mu = ema(mu, g, b1, inplace)
    nu = ema_square(nu, g - mu, b2, inplace) + fit(eps_root, nu)
    return adam_step(mu, nu, tick, inplace, b1, b2, eps, 0.0), mu, nu
