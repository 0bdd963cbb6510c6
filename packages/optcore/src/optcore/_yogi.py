# SPDX-License-Identifier: Apache-2.0
"""Yogi: a second moment that changes by steps of one size."""

from __future__ import annotations

from typing import Any

from optcore._chain import link
from optcore._hyperparams import Hyperparam, check_betas, check_number, numbers_only
from optcore._leafwise import (
    Tick,
    ema,
    fit,
)
from optcore._moment_rules import (
    adam_step,
    descend,
    with_moments,
)
from optcore._rows import OptimizerRow
from optcore._transform import GradientTransformation


@numbers_only("initial_accumulator_value")
def scale_by_yogi(
    b1: Hyperparam = 0.9,
    b2: Hyperparam = 0.999,
    eps: Hyperparam = 1e-3,
    eps_root: Hyperparam = 0.0,
    initial_accumulator_value: float = 1e-6,
) -> GradientTransformation:
    r"""Scale as Adam does, with a second moment that changes by steps of one size.

    .. math::
        \mu_t &= b_1 \mu_{t-1} + (1 - b_1)\,g_t \\
        \nu_t &= \nu_{t-1} - (1 - b_2)\,\operatorname{sign}(\nu_{t-1} - g_t^2)\,g_t^2 \\
        u_t &= \frac{\mu_t / (1 - b_1^t)}{\sqrt{\nu_t / (1 - b_2^t) + \epsilon_r} + \epsilon}

    Args:
        b1: Decay of the first moment, in ``[0, 1)``.
        b2: Decay of the second moment, in ``[0, 1)``.
        eps: :math:`\epsilon \ge 0`, added to the root.
        eps_root: :math:`\epsilon_r \ge 0`, added under the root.
        initial_accumulator_value: Start value of both moments: a number >= 0.

    State:
        ``count``, ``mu``, ``nu``: like ``params``.

    Differentiable:
        In everything, twice, where the sign does not change.

    Raises:
        ValueError: A hyperparameter outside its range.

    Example:
        >>> import torch
        >>> tx = scale_by_yogi(b2=0.0, eps=0.0, initial_accumulator_value=0.0)
        >>> tx.update([torch.full((1,), 3.0)], tx.init([torch.zeros(1)]))[0]
        [tensor([1.])]

    Reference:
        Zaheer et al., 2018, "Adaptive methods for nonconvex optimization", Algorithm 2.
    """
    check_number("scale_by_yogi", "initial_accumulator_value", initial_accumulator_value, 0.0)
    return with_moments(
        "scale_by_yogi",
        _yogi,
        start=initial_accumulator_value,
        b1=b1,
        b2=b2,
        eps=eps,
        eps_root=eps_root,
    )


@numbers_only("initial_accumulator_value")
def yogi(
    lr: Hyperparam = 1e-3,
    betas: tuple[Hyperparam, Hyperparam] = (0.9, 0.999),
    eps: Hyperparam = 1e-3,
    weight_decay: Hyperparam = 0.0,
    *,
    initial_accumulator_value: float = 1e-6,
    maximize: bool = False,
) -> GradientTransformation:
    """Yogi: :func:`scale_by_yogi` and a learning rate; equals ``optax.yogi``.

    Args:
        lr: Learning rate >= 0.
        betas: ``(b1, b2)``, each in ``[0, 1)``.
        eps: Added to the root, >= 0.
        weight_decay: L2 penalty >= 0; needs ``params`` in ``update``.
        initial_accumulator_value: Start value of both moments: a number >= 0.
        maximize: Ascend instead of descend.

    Raises:
        ValueError: A hyperparameter outside its range.

    Example:
        >>> import torch
        >>> opt = yogi(lr=0.1, betas=(0.9, 0.0), eps=0.0, initial_accumulator_value=0.0)
        >>> opt.update([torch.full((1,), 3.0)], opt.init([torch.zeros(1)]))[0]
        [tensor([-0.1000])]

    Reference:
        Zaheer et al., 2018, "Adaptive methods for nonconvex optimization", Algorithm 2.
    """
    b1, b2 = check_betas("yogi", betas)
    rule = link(
        "yogi", scale_by_yogi, b1, b2, eps, initial_accumulator_value=initial_accumulator_value
    )
    return descend("yogi", rule, lr, weight_decay, maximize)


ROWS = (OptimizerRow(yogi, "Yogi", {"count": "step", "mu": "exp_avg", "nu": "exp_avg_sq"}),)


def _yogi(
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
    square = g * g
    nu = nu - (nu - square).sign() * square * fit(1 - b2, nu)
    return adam_step(mu, nu, tick, inplace, b1, b2, eps, eps_root), mu, nu
