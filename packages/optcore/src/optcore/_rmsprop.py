# SPDX-License-Identifier: Apache-2.0
"""RMSProp: scaling by a decayed second moment."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from optcore._chain import chain, link
from optcore._deferred import defers
from optcore._hyperparams import (
    Hyperparam,
    check_flag,
    check_number,
    check_range,
    is_zero,
    numbers_only,
)
from optcore._kernels import check_kernels, kernel_for
from optcore._leafwise import (
    ema,
    ema_square,
    fit,
    full_like,
    leafwise,
    quotient,
    root_plus,
    zeros_like,
)
from optcore._momentum import trace
from optcore._rows import OptimizerRow
from optcore._scaling import scale_by_learning_rate, uphill
from optcore._transform import GradientTransformation
from optcore._tree import Tree
from optcore._weight_decay import add_decayed_weights


class ScaleByRmsState(NamedTuple):
    """Second moment kept by :func:`scale_by_rms`."""

    nu: Tree  # like params: decayed average of squared gradients


class ScaleByRStdDevState(NamedTuple):
    """Moments kept by :func:`scale_by_stddev`; both are trees like the parameters."""

    mu: Tree  # decayed average of gradients
    nu: Tree  # decayed average of squared gradients


@numbers_only("initial_scale")
def scale_by_rms(
    decay: Hyperparam = 0.9,
    eps: Hyperparam = 1e-8,
    initial_scale: float = 0.0,
    *,
    eps_root: Hyperparam = 0.0,
    use_accelerated_op: bool = False,
) -> GradientTransformation:
    r"""Divide each gradient by the root of its average square.

    .. math::
        \nu_t = d\,\nu_{t-1} + (1 - d)\,g_t^2, \qquad
        u_t = \frac{g_t}{\sqrt{\nu_t + \epsilon_r} + \epsilon}

    Args:
        decay: Decay :math:`d` of the average, in ``[0, 1)``.
        eps: :math:`\epsilon \ge 0`, added to the root.
        initial_scale: Start value of :math:`\nu`: a number >= 0.
        eps_root: :math:`\epsilon_r \ge 0`, added under the root.
        use_accelerated_op: Run the kernel that an installed package offers; see
            :func:`kernels_status`.

    State:
        ``nu``: like ``params``.

    Differentiable:
        In everything, twice; at :math:`\nu_t = 0` the derivative in :math:`g_t` is the limit.

    Raises:
        ImportError: ``use_accelerated_op=True`` and no kernels are installed.
        TypeError: A hyperparameter is no number, schedule, tensor or tree of such.
        ValueError: A hyperparameter outside its range.

    Differs:
        optax adds its ``eps`` under the root: pass it as ``eps_root`` with ``eps=0``.

    Example:
        >>> import torch
        >>> tx = scale_by_rms(decay=0.75)
        >>> tx.update([torch.full((1,), 3.0)], tx.init([torch.zeros(1)]))[0]
        [tensor([2.])]

    Reference:
        Hinton, 2012, "Neural networks for machine learning", lecture 6e.
    """
    who = "scale_by_rms"
    _check_rms(who, decay, eps, initial_scale, eps_root)
    check_kernels(who, use_accelerated_op, who)
    return GradientTransformation(
        _rms_init,
        _rms_update,
        {"decay": decay, "eps": eps, "eps_root": eps_root},
        {"initial_scale": initial_scale, "use_accelerated_op": use_accelerated_op},
        name=who,
    )


@numbers_only("initial_scale")
def scale_by_stddev(
    decay: Hyperparam = 0.9,
    eps: Hyperparam = 1e-8,
    initial_scale: float = 0.0,
    *,
    eps_root: Hyperparam = 0.0,
    use_accelerated_op: bool = False,
) -> GradientTransformation:
    r"""Divide each gradient by its running standard deviation.

    .. math::
        \mu_t = d\,\mu_{t-1} + (1 - d)\,g_t, \quad \nu_t = d\,\nu_{t-1} + (1 - d)\,g_t^2, \quad
        u_t = \frac{g_t}{\sqrt{\nu_t - \mu_t^2 + \epsilon_r} + \epsilon}

    Args:
        decay: Decay :math:`d` of both averages, in ``[0, 1)``.
        eps: :math:`\epsilon \ge 0`, added to the root.
        initial_scale: Start value of :math:`\nu`: a number >= 0.
        eps_root: :math:`\epsilon_r \ge 0`, added under the root.
        use_accelerated_op: Run the kernel that an installed package offers; see
            :func:`kernels_status`.

    State:
        ``mu``, ``nu``: like ``params``.

    Differentiable:
        In everything, twice. A variance that rounding makes negative counts as 0, and there the
        root's derivative is 0.

    Raises:
        ImportError: ``use_accelerated_op=True`` and no kernels are installed.
        TypeError: A hyperparameter is no number, schedule, tensor or tree of such.
        ValueError: A hyperparameter outside its range.

    Example:
        >>> import torch
        >>> tx = scale_by_stddev(decay=0.5)
        >>> tx.update([torch.full((1,), 3.0)], tx.init([torch.zeros(1)]))[0]
        [tensor([2.])]

    Reference:
        Graves, 2013, arXiv:1308.0850, equations 38-41 without momentum.
    """
    who = "scale_by_stddev"
    _check_rms(who, decay, eps, initial_scale, eps_root)
    check_kernels(who, use_accelerated_op, who)
    return GradientTransformation(
        _stddev_init,
        _stddev_update,
        {"decay": decay, "eps": eps, "eps_root": eps_root},
        {"initial_scale": initial_scale, "use_accelerated_op": use_accelerated_op},
        name=who,
    )


@numbers_only("initial_scale")
def rmsprop(
    lr: Hyperparam = 1e-2,
    alpha: Hyperparam = 0.99,
    eps: Hyperparam = 1e-8,
    weight_decay: Hyperparam = 0.0,
    momentum: Hyperparam = 0.0,
    centered: bool = False,
    *,
    initial_scale: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    use_accelerated_op: bool = False,
) -> GradientTransformation:
    r"""RMSProp: :func:`scale_by_rms` (or :func:`scale_by_stddev`), momentum, learning rate.

    Args:
        lr: Learning rate >= 0.
        alpha: Decay of the second moment, in ``[0, 1)``.
        eps: Added to the root, >= 0.
        weight_decay: L2 penalty >= 0; needs ``params`` in ``update``.
        momentum: Decay of the momentum of the scaled gradients; the number 0 keeps none.
        centered: Divide by the standard deviation instead.
        initial_scale: Start value of the second moment: a number >= 0.
        nesterov: Nesterov momentum.
        maximize: Ascend instead of descend.
        use_accelerated_op: Run the kernel that an installed package offers; see
            :func:`kernels_status`.

    State:
        That of its parts, inside the tuple of a :func:`chain`.

    Differentiable:
        In the gradients, the parameters and every tensor hyperparameter, twice.

    Raises:
        ImportError: ``use_accelerated_op=True`` and no kernels are installed.
        TypeError: A hyperparameter is no number, schedule, tensor or tree of such.
        ValueError: A hyperparameter outside its range.

    Example:
        >>> import torch
        >>> opt = rmsprop(lr=0.1, alpha=0.75)
        >>> opt.update([torch.full((1,), 3.0)], opt.init([torch.zeros(1)]))[0]
        [tensor([-0.2000])]

    Reference:
        Hinton, 2012, lecture 6e. Equals ``torch.optim.RMSprop``.
    """
    check_range("rmsprop", "lr", lr, 0.0)
    check_range("rmsprop", "alpha", alpha, 0.0, 1.0, open_high=True)
    check_range("rmsprop", "momentum", momentum, 0.0)
    check_range("rmsprop", "weight_decay", weight_decay, 0.0)
    check_flag("rmsprop", "centered", centered)
    check_flag("rmsprop", "nesterov", nesterov)
    by_root = scale_by_stddev if centered else scale_by_rms
    momenta = [] if is_zero(momentum) else ["trace"]
    check_kernels("rmsprop", use_accelerated_op, by_root.__name__, *momenta)
    accelerated = {"use_accelerated_op": use_accelerated_op}
    return chain(
        *uphill("rmsprop", maximize),
        *([] if is_zero(weight_decay) else [link("rmsprop", add_decayed_weights, weight_decay)]),
        link("rmsprop", by_root, alpha, eps, initial_scale, **accelerated),
        *([link("rmsprop", trace, momentum, nesterov=nesterov, **accelerated)] if momenta else []),
        scale_by_learning_rate(lr),
    ).named("rmsprop")


ROWS = (
    OptimizerRow(
        rmsprop,
        "RMSprop",
        {"nu": "square_avg", "mu": "grad_avg", "trace": "momentum_buffer"},
        also=("RMSProp",),
    ),
)


def _check_rms(who: str, decay: Any, eps: Any, initial_scale: Any, eps_root: Any) -> None:
    check_range(who, "decay", decay, 0.0, 1.0, open_high=True)
    check_range(who, "eps", eps, 0.0)
    check_number(who, "initial_scale", initial_scale, 0.0)
    check_range(who, "eps_root", eps_root, 0.0)


def divided_by_root(
    grad: torch.Tensor, square: torch.Tensor, eps: Any, eps_root: Any, inplace: bool
) -> torch.Tensor:
    r""":math:`g / (\sqrt{s + \epsilon_r} + \epsilon)`."""
    if not is_zero(eps_root):
        square = square + fit(eps_root, square)
    return quotient(grad, root_plus(square, eps, inplace))


def _rms_init(params: Tree, *, initial_scale: float, **_: Any) -> ScaleByRmsState:
    return ScaleByRmsState(full_like("scale_by_rms", params, initial_scale))


@defers
def _rms_update(
    updates: Tree,
    state: ScaleByRmsState,
    params: Tree,
    *,
    inplace: bool,
    decay: Any,
    eps: Any,
    eps_root: Any,
    initial_scale: float,
    use_accelerated_op: bool,
) -> tuple[Tree, ScaleByRmsState]:
    def formula(g: torch.Tensor, nu: torch.Tensor, *, decay: Any, eps: Any, eps_root: Any) -> Any:
        nu = ema_square(nu, g, decay, inplace)
        return divided_by_root(g, nu, eps, eps_root, inplace), nu

    hyperparams = {"decay": decay, "eps": eps, "eps_root": eps_root}
    kernel = kernel_for("scale_by_rms", use_accelerated_op)
    updates, nu = leafwise(
        "scale_by_rms", formula, updates, state.nu, inplace=inplace, kernel=kernel, **hyperparams
    )
    return updates, ScaleByRmsState(nu)


def _stddev_init(params: Tree, *, initial_scale: float, **_: Any) -> ScaleByRStdDevState:
    who = "scale_by_stddev"
    return ScaleByRStdDevState(zeros_like(who, params), full_like(who, params, initial_scale))


@defers
def _stddev_update(
    updates: Tree,
    state: ScaleByRStdDevState,
    params: Tree,
    *,
    inplace: bool,
    decay: Any,
    eps: Any,
    eps_root: Any,
    initial_scale: float,
    use_accelerated_op: bool,
) -> tuple[Tree, ScaleByRStdDevState]:
    def formula(
        g: torch.Tensor, mu: torch.Tensor, nu: torch.Tensor, *, decay: Any, eps: Any, eps_root: Any
    ) -> Any:
        mu = ema(mu, g, decay, inplace)
        nu = ema_square(nu, g, decay, inplace)
        variance = nu.addcmul(mu, mu, value=-1).clamp_min(0.0)  # rounding may leave less
        return divided_by_root(g, variance, eps, eps_root, inplace), mu, nu

    hyperparams = {"decay": decay, "eps": eps, "eps_root": eps_root}
    kernel = kernel_for("scale_by_stddev", use_accelerated_op)
    updates, mu, nu = leafwise(
        "scale_by_stddev", formula, updates, *state, inplace=inplace, kernel=kernel, **hyperparams
    )
    return updates, ScaleByRStdDevState(mu, nu)
