# SPDX-License-Identifier: Apache-2.0
"""Rectified Adam."""

from __future__ import annotations

from typing import Any

import torch

from optcore._chain import link
from optcore._hyperparams import Hyperparam, check_betas, check_flag, check_range, is_zero
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


def scale_by_radam(
    b1: Hyperparam = 0.9,
    b2: Hyperparam = 0.999,
    eps: Hyperparam = 1e-8,
    eps_root: Hyperparam = 0.0,
    threshold: float = 5.0,
    *,
    correct_eps: bool = False,
) -> GradientTransformation:
    r"""Scale as Adam does once the variance of its step is small enough to be known.

    With :math:`\rho_\infty = 2 / (1 - b_2) - 1` and
    :math:`\rho_t = \rho_\infty - 2 t b_2^t / (1 - b_2^t)`:

    .. math::
        r_t &= \sqrt{\frac{(\rho_t - 4)(\rho_t - 2)\rho_\infty}
            {(\rho_\infty - 4)(\rho_\infty - 2)\rho_t}} \\
        u_t &= \hat\mu_t\, r_t \frac{\sqrt{1 - b_2^t}}{\sqrt{\nu_t + \epsilon_r} + \epsilon}
            \quad\text{if } \rho_t > \text{threshold, else } \hat\mu_t

    Args:
        b1: Decay of the first moment, in ``[0, 1)``.
        b2: Decay of the second moment, in ``[0, 1)``.
        eps: :math:`\epsilon \ge 0`, added to the root.
        eps_root: :math:`\epsilon_r \ge 0`, added under the root.
        threshold: From which :math:`\rho_t` on the step is scaled, >= 4.
        correct_eps: Add ``eps`` to the root of the bias-corrected moment instead.

    State:
        ``count``, ``mu``, ``nu``: like ``params``, start at zero.

    Differentiable:
        In everything, twice; where the second moment is 0 its root has derivative 0.

    Raises:
        ValueError: A hyperparameter outside its range.

    Differs:
        optax adds ``eps`` after the bias correction: ``correct_eps=True``.

    Example:
        >>> import torch
        >>> tx = scale_by_radam()
        >>> tx.update([torch.full((1,), 3.0)], tx.init([torch.zeros(1)]))[0]
        [tensor([3.])]

    Reference:
        Liu et al., 2020, arXiv:1908.03265, Algorithm 2.
    """
    check_range("scale_by_radam", "threshold", threshold, 4.0)
    check_flag("scale_by_radam", "correct_eps", correct_eps)
    formula = _radam_corrected if correct_eps else _radam
    return with_moments(
        "scale_by_radam", formula, b1=b1, b2=b2, eps=eps, eps_root=eps_root, threshold=threshold
    )


def radam(
    lr: Hyperparam = 1e-3,
    betas: tuple[Hyperparam, Hyperparam] = (0.9, 0.999),
    eps: Hyperparam = 1e-8,
    weight_decay: Hyperparam = 0.0,
    decoupled_weight_decay: bool = False,
    *,
    correct_eps: bool = False,
    maximize: bool = False,
) -> GradientTransformation:
    """Rectified Adam: :func:`scale_by_radam`; equals ``torch.optim.RAdam``.

    Args:
        lr: Learning rate >= 0.
        betas: ``(b1, b2)``, each in ``[0, 1)``.
        eps: Added to the root, >= 0.
        weight_decay: L2 penalty or decoupled rate >= 0; needs ``params`` in ``update``.
        decoupled_weight_decay: Decay as AdamW does.
        correct_eps: optax's rule; see :func:`scale_by_radam`.
        maximize: Ascend instead of descend.

    Raises:
        ValueError: A hyperparameter outside its range.

    Example:
        >>> import torch
        >>> opt = radam(lr=0.1)
        >>> opt.update([torch.full((1,), 3.0)], opt.init([torch.zeros(1)]))[0]
        [tensor([-0.3000])]

    Reference:
        Liu et al., 2020, arXiv:1908.03265, Algorithm 2.
    """
    b1, b2 = check_betas("radam", betas)
    check_flag("radam", "decoupled_weight_decay", decoupled_weight_decay)
    rule = link("radam", scale_by_radam, b1, b2, eps, correct_eps=correct_eps)
    return descend("radam", rule, lr, weight_decay, maximize, decoupled_weight_decay)


ROWS = (OptimizerRow(radam, "RAdam", {"count": "step", "mu": "exp_avg", "nu": "exp_avg_sq"}),)


def _rectification(
    count: torch.Tensor, b2: Any, threshold: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """``(r_t or 0, 0 or 1)``: the factors of the scaled and of the plain step."""
    second = bias_correction(count, b2)
    largest = 2 / (1 - b2) - 1
    length = largest - 2 * count * (1 - second) / second
    on = length > threshold
    safe = torch.where(on, length, torch.full_like(length, 5.0))
    ratio = (safe - 4) * (safe - 2) * largest / ((largest - 4) * (largest - 2) * safe)
    # at t = 1 and b2 close to 0 `largest` is below 4, where no step is ever scaled
    ratio = torch.where(on, ratio, torch.ones_like(ratio))
    scaled = torch.where(on, ratio.sqrt(), torch.zeros_like(ratio))
    return scaled, 1 - on.to(scaled.dtype)


def _radam(
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
    threshold: Any,
) -> Any:
    mu = ema(mu, g, b1, inplace)
    nu = ema_square(nu, g, b2, inplace)
    first, second = tick.derive(bias_correction, b1), tick.derive(bias_correction, b2)
    scaled, plain = tick.derive(_rectification, b2, threshold)
    square = nu if is_zero(eps_root) else nu + fit(eps_root, nu)
    adaptive = mu / (safe_sqrt(square, inplace) + fit(eps, nu))
    update = adaptive * fit(scaled * second**0.5 / first, nu) + mu * fit(plain / first, nu)
    return update, mu, nu


def _radam_corrected(
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
    threshold: Any,
) -> Any:
    mu = ema(mu, g, b1, inplace)
    nu = ema_square(nu, g, b2, inplace)
    scaled, plain = tick.derive(_rectification, b2, threshold)
    adaptive = adam_step(mu, nu, tick, inplace, b1, b2, eps, eps_root)
    first = tick.derive(bias_correction, b1)
    return adaptive * fit(scaled, nu) + mu * fit(plain / first, nu), mu, nu
