# SPDX-License-Identifier: Apache-2.0
"""Adamax: the first moment over a decaying maximum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from optcore._chain import link
from optcore._hyperparams import Hyperparam, check_betas
from optcore._leafwise import (
    Tick,
    ema,
    fit,
)
from optcore._moment_rules import (
    bias_correction,
    descend,
    with_moments,
)
from optcore._rows import OptimizerRow
from optcore._transform import GradientTransformation
from optcore._tree import Tree


def scale_by_adamax(
    b1: Hyperparam = 0.9, b2: Hyperparam = 0.999, eps: Hyperparam = 1e-8
) -> GradientTransformation:
    r"""Divide the first moment by a decaying maximum.

    .. math::
        \mu_t = b_1 \mu_{t-1} + (1 - b_1)\,g_t, \quad
        \nu_t = \max(b_2 \nu_{t-1}, |g_t| + \epsilon), \quad
        u_t = \frac{\mu_t}{(1 - b_1^t)\,\nu_t}

    Args:
        b1: Decay of the first moment, in ``[0, 1)``.
        b2: Decay of the maximum, in ``[0, 1)``.
        eps: :math:`\epsilon \ge 0`.

    State:
        ``count``, ``mu``, ``nu``: like ``params``, start at zero.

    Differentiable:
        In everything, twice, except at ties of the maximum, where the two sides share.

    Raises:
        ValueError: A hyperparameter outside its range.

    Example:
        >>> import torch
        >>> tx = scale_by_adamax()
        >>> tx.update([torch.full((1,), 3.0)], tx.init([torch.zeros(1)]))[0]
        [tensor([1.])]

    Reference:
        Kingma and Ba, 2015, arXiv:1412.6980, Algorithm 2.
    """
    return with_moments("scale_by_adamax", _adamax, b1=b1, b2=b2, eps=eps)


def adamax(
    lr: Hyperparam = 2e-3,
    betas: tuple[Hyperparam, Hyperparam] = (0.9, 0.999),
    eps: Hyperparam = 1e-8,
    weight_decay: Hyperparam = 0.0,
    *,
    maximize: bool = False,
) -> GradientTransformation:
    """Adamax: :func:`scale_by_adamax` and a learning rate; equals ``torch.optim.Adamax``.

    Args:
        lr: Learning rate >= 0.
        betas: ``(b1, b2)``, each in ``[0, 1)``.
        eps: Added to the magnitude of each gradient, >= 0.
        weight_decay: L2 penalty >= 0; needs ``params`` in ``update``.
        maximize: Ascend instead of descend.

    Differentiable:
        As :func:`scale_by_adamax`, and in ``lr``, ``weight_decay`` and the parameters.

    Raises:
        ValueError: A hyperparameter outside its range.

    Example:
        >>> import torch
        >>> opt = adamax(lr=0.1)
        >>> opt.update([torch.full((1,), 3.0)], opt.init([torch.zeros(1)]))[0]
        [tensor([-0.1000])]

    Reference:
        Kingma and Ba, 2015, arXiv:1412.6980, Algorithm 2.
    """
    b1, b2 = check_betas("adamax", betas)
    return descend(
        "adamax", link("adamax", scale_by_adamax, b1, b2, eps), lr, weight_decay, maximize
    )


def adamaxw(
    lr: Hyperparam = 2e-3,
    betas: tuple[Hyperparam, Hyperparam] = (0.9, 0.999),
    eps: Hyperparam = 1e-8,
    weight_decay: Hyperparam = 1e-4,
    *,
    mask: Tree | Callable[[Tree], Tree] | None = None,
    maximize: bool = False,
) -> GradientTransformation:
    r"""Adamax with decoupled decay: :math:`\theta' = \theta - \eta\,(u_t + \lambda\,\theta)`.

    Args:
        lr: Learning rate :math:`\eta \ge 0`.
        betas: ``(b1, b2)``, each in ``[0, 1)``.
        eps: Added to the magnitude of each gradient, >= 0.
        weight_decay: Rate :math:`\lambda \ge 0`; needs ``params`` in ``update`` unless it is 0.
        mask: Which parameters decay; see :func:`add_decayed_weights`.
        maximize: Ascend instead of descend (the decay still shrinks).

    State:
        That of :func:`scale_by_adamax`, inside the tuple of a :func:`chain`.

    Differentiable:
        As :func:`scale_by_adamax`, and in ``lr``, ``weight_decay`` and the parameters.

    Raises:
        ValueError: A hyperparameter outside its range.

    Example:
        >>> import torch
        >>> opt = adamaxw(lr=0.1, weight_decay=0.5)
        >>> params = [torch.ones(1)]
        >>> opt.update([torch.full((1,), 3.0)], opt.init(params), params)[0]
        [tensor([-0.1500])]

    Reference:
        Kingma and Ba, 2015, arXiv:1412.6980, Algorithm 2, with the decay of Loshchilov and Hutter,
        2019, arXiv:1711.05101. Equals ``optax.adamaxw``.
    """
    b1, b2 = check_betas("adamaxw", betas)
    rule = link("adamaxw", scale_by_adamax, b1, b2, eps)
    return descend("adamaxw", rule, lr, weight_decay, maximize, decoupled=True, mask=mask)


_TORCH_KEYS = {"count": "step", "mu": "exp_avg", "nu": "exp_inf"}

ROWS = (
    OptimizerRow(adamax, "Adamax", _TORCH_KEYS, also=("AdaMax",)),
    OptimizerRow(adamaxw, "AdamaxW", _TORCH_KEYS),
)


def _adamax(
    g: Any, mu: Any, nu: Any, *, tick: Tick, inplace: bool, b1: Any, b2: Any, eps: Any
) -> Any:
    mu = ema(mu, g, b1, inplace)
    nu = (nu * fit(b2, nu)).maximum(g.abs() + fit(eps, nu))
    return mu / (nu * fit(tick.derive(bias_correction, b1), nu)), mu, nu
