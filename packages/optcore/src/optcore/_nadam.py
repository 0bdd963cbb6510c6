# SPDX-License-Identifier: Apache-2.0
"""Adam with Nesterov momentum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from optcore._chain import link
from optcore._hyperparams import Hyperparam, check_betas, check_flag
from optcore._leafwise import (
    Tick,
    add_scaled,
    counts_like,
    ema,
    ema_square,
    fit,
    leafwise,
    safe_sqrt,
    zeros_like,
)
from optcore._moment_rules import (
    bias_correction,
    check_moments,
    descend,
)
from optcore._rows import OptimizerRow
from optcore._transform import GradientTransformation
from optcore._tree import Tree, tree_map


class ScaleByNadamState(NamedTuple):
    """Moments kept by :func:`scale_by_nadam`; every field is a tree like the parameters."""

    count: Tree  # i64[]: updates that this leaf had
    mu: Tree  # decayed average of gradients
    nu: Tree  # decayed average of squared gradients
    mu_product: Tree  # f64[]: product of the momentum schedule so far


def scale_by_nadam(
    b1: Hyperparam = 0.9,
    b2: Hyperparam = 0.999,
    eps: Hyperparam = 1e-8,
    momentum_decay: Hyperparam = 4e-3,
    *,
    constant_momentum: bool = False,
) -> GradientTransformation:
    r"""Scale as Adam does, with Nesterov momentum on a schedule.

    With :math:`m_t = b_1 (1 - \tfrac12 0.96^{t \psi})` (or :math:`b_1`) and
    :math:`M_t = \prod_{i \le t} m_i`:

    .. math::
        u_t = \frac{(1 - m_t)\,g_t / (1 - M_t) + m_{t+1}\,\mu_t / (1 - M_{t+1})}
            {\sqrt{\nu_t / (1 - b_2^t)} + \epsilon}

    Args:
        b1: Decay of the first moment, in ``[0, 1)``.
        b2: Decay of the second moment, in ``[0, 1)``.
        eps: :math:`\epsilon \ge 0`, added to the root.
        momentum_decay: :math:`\psi \ge 0`.
        constant_momentum: :math:`m_t = b_1` at every step; ``momentum_decay`` does not count then.

    State:
        ``count``, ``mu``, ``nu``: like ``params``, start at zero; ``mu_product`` starts at one.

    Differentiable:
        In everything, twice; where the second moment is 0 its root has derivative 0.

    Raises:
        ValueError: A hyperparameter outside its range.

    Differs:
        optax has no schedule of the momentum: ``constant_momentum=True``.

    Example:
        >>> import torch
        >>> tx = scale_by_nadam(momentum_decay=0.0)
        >>> tx.update([torch.full((1,), 3.0)], tx.init([torch.zeros(1)]))[0]
        [tensor([1.0564])]

    Reference:
        Dozat, 2016, "Incorporating Nesterov momentum into Adam", Algorithm 8.
    """
    who = "scale_by_nadam"
    check_moments(who, b1=b1, b2=b2, eps=eps, momentum_decay=momentum_decay)
    check_flag(who, "constant_momentum", constant_momentum)
    return GradientTransformation(
        _nadam_init,
        _nadam_update,
        {"b1": b1, "b2": b2, "eps": eps, "momentum_decay": momentum_decay},
        {"constant_momentum": constant_momentum},
        name=who,
    )


def nadam(
    lr: Hyperparam = 2e-3,
    betas: tuple[Hyperparam, Hyperparam] = (0.9, 0.999),
    eps: Hyperparam = 1e-8,
    weight_decay: Hyperparam = 0.0,
    momentum_decay: Hyperparam = 4e-3,
    decoupled_weight_decay: bool = False,
    *,
    constant_momentum: bool = False,
    maximize: bool = False,
) -> GradientTransformation:
    """Nesterov Adam: :func:`scale_by_nadam`; equals ``torch.optim.NAdam``.

    Args:
        lr: Learning rate >= 0.
        betas: ``(b1, b2)``, each in ``[0, 1)``.
        eps: Added to the root, >= 0.
        weight_decay: L2 penalty or decoupled rate >= 0; needs ``params`` in ``update``.
        momentum_decay: Of the momentum schedule, >= 0.
        decoupled_weight_decay: Decay as AdamW does.
        constant_momentum: No schedule of the momentum, as in optax.
        maximize: Ascend instead of descend.

    Differentiable:
        As :func:`scale_by_nadam`, and in ``lr``, ``weight_decay`` and the parameters.

    Raises:
        ValueError: A hyperparameter outside its range.

    Example:
        >>> import torch
        >>> opt = nadam(lr=0.1, momentum_decay=0.0)
        >>> opt.update([torch.full((1,), 3.0)], opt.init([torch.zeros(1)]))[0]
        [tensor([-0.1056])]

    Reference:
        Dozat, 2016, "Incorporating Nesterov momentum into Adam", Algorithm 8.
    """
    b1, b2 = check_betas("nadam", betas)
    check_flag("nadam", "decoupled_weight_decay", decoupled_weight_decay)
    rule = link(
        "nadam", scale_by_nadam, b1, b2, eps, momentum_decay, constant_momentum=constant_momentum
    )
    return descend("nadam", rule, lr, weight_decay, maximize, decoupled_weight_decay)


def nadamw(
    lr: Hyperparam = 2e-3,
    betas: tuple[Hyperparam, Hyperparam] = (0.9, 0.999),
    eps: Hyperparam = 1e-8,
    weight_decay: Hyperparam = 1e-4,
    *,
    mask: Tree | Callable[[Tree], Tree] | None = None,
    maximize: bool = False,
) -> GradientTransformation:
    r"""Nesterov Adam with decoupled weight decay, and no schedule of the momentum.

    :math:`\theta' = \theta - \eta\,(u_t + \lambda\,\theta)` with :math:`u_t` of
    :func:`scale_by_nadam` at ``constant_momentum=True``.

    Args:
        lr: Learning rate :math:`\eta \ge 0`.
        betas: ``(b1, b2)``, each in ``[0, 1)``.
        eps: Added to the root, >= 0.
        weight_decay: Rate :math:`\lambda \ge 0`; needs ``params`` in ``update`` unless it is 0.
        mask: Which parameters decay; see :func:`add_decayed_weights`.
        maximize: Ascend instead of descend (the decay still shrinks).

    State:
        That of :func:`scale_by_nadam`, inside the tuple of a :func:`chain`.

    Differentiable:
        As :func:`scale_by_nadam`, and in ``lr``, ``weight_decay`` and the parameters.

    Raises:
        ValueError: A hyperparameter outside its range.

    Differs:
        ``torch.optim.NAdam(decoupled_weight_decay=True)`` has the schedule: that is
        ``nadam(decoupled_weight_decay=True)``.

    Example:
        >>> import torch
        >>> opt = nadamw(lr=0.1, weight_decay=0.5)
        >>> params = [torch.ones(1)]
        >>> opt.update([torch.full((1,), 3.0)], opt.init(params), params)[0]
        [tensor([-0.1974])]

    Reference:
        Dozat, 2016, "Incorporating Nesterov momentum into Adam", with the decay of Loshchilov and
        Hutter, 2019, arXiv:1711.05101. Equals ``optax.nadamw``.
    """
    b1, b2 = check_betas("nadamw", betas)
    rule = link("nadamw", scale_by_nadam, b1, b2, eps, constant_momentum=True)
    return descend("nadamw", rule, lr, weight_decay, maximize, decoupled=True, mask=mask)


_TORCH_KEYS = {
    "count": "step",
    "mu": "exp_avg",
    "nu": "exp_avg_sq",
    "mu_product": "mu_product",
}

ROWS = (OptimizerRow(nadam, "NAdam", _TORCH_KEYS), OptimizerRow(nadamw, "NAdamW", _TORCH_KEYS))


def _nadam_init(params: Tree, **_: Any) -> ScaleByNadamState:
    who = "scale_by_nadam"
    one = torch.ones((), dtype=torch.float64)
    return ScaleByNadamState(
        counts_like(params),
        zeros_like(who, params),
        zeros_like(who, params),
        tree_map(lambda p: None if p is None else one, params),
    )


def _nadam_update(
    updates: Tree,
    state: ScaleByNadamState,
    params: Tree,
    *,
    inplace: bool,
    b1: Any,
    b2: Any,
    eps: Any,
    momentum_decay: Any,
    constant_momentum: bool,
) -> tuple[Tree, ScaleByNadamState]:
    schedule = _constant if constant_momentum else _momenta

    def formula(
        g: torch.Tensor,
        mu: torch.Tensor,
        nu: torch.Tensor,
        product: torch.Tensor,
        *,
        tick: Tick,
        b1: Any,
        b2: Any,
        eps: Any,
        momentum_decay: Any,
    ) -> Any:
        mu = ema(mu, g, b1, inplace)
        nu = ema_square(nu, g, b2, inplace)
        now, ahead, product = tick.derive(schedule, b1, momentum_decay, product)
        second = tick.derive(bias_correction, b2)
        direction = g * fit(now, nu)
        direction = add_scaled(direction, mu, fit(ahead, nu))
        denominator = safe_sqrt(nu, inplace) * fit(1 / second**0.5, nu) + fit(eps, nu)
        return direction / denominator, mu, nu, product

    updates, mu, nu, product, count = leafwise(  # leaf by leaf: the products are scalars
        "scale_by_nadam",
        formula,
        updates,
        state.mu,
        state.nu,
        state.mu_product,
        counts=state.count,
        b1=b1,
        b2=b2,
        eps=eps,
        momentum_decay=momentum_decay,
    )
    return updates, ScaleByNadamState(count, mu, nu, product)


def _momenta(
    count: torch.Tensor, b1: Any, decay: Any, product: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights of the gradient and of the first moment, and the product of the schedule."""
    now = b1 * (1 - 0.5 * torch.pow(0.96, count * decay))
    ahead = b1 * (1 - 0.5 * torch.pow(0.96, (count + 1) * decay))
    product = product * now
    return (1 - now) / (1 - product), ahead / (1 - product * ahead), product


def _constant(
    count: torch.Tensor, b1: Any, decay: Any, product: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same without a schedule."""
    product = product * b1
    return (1 - b1) / (1 - product), b1 / (1 - product * b1), product
