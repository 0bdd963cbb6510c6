# SPDX-License-Identifier: Apache-2.0
"""Steps of equal size: sign descent, Lion and signum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from optcore._chain import chain, link
from optcore._deferred import defers
from optcore._hyperparams import Hyperparam, check_betas, check_range, is_zero
from optcore._kernels import check_kernels, kernel_for
from optcore._leafwise import ema, leafwise, zeros_like
from optcore._rows import OptimizerRow
from optcore._scaling import scale_by_learning_rate, uphill
from optcore._transform import EmptyState, GradientTransformation, stateless_init
from optcore._tree import Tree
from optcore._weight_decay import add_decayed_weights


class ScaleByLionState(NamedTuple):
    """Momentum kept by :func:`scale_by_lion`."""

    mu: Tree  # like params: decayed average of gradients


def scale_by_lion(
    b1: Hyperparam = 0.9, b2: Hyperparam = 0.99, *, use_accelerated_op: bool = False
) -> GradientTransformation:
    r"""Replace each gradient by the sign of an interpolated momentum.

    For every leaf with gradient :math:`g_t`:

    .. math::
        u_t &= \operatorname{sign}\bigl(b_1\,\mu_{t-1} + (1 - b_1)\,g_t\bigr) \\
        \mu_t &= b_2\,\mu_{t-1} + (1 - b_2)\,g_t

    Args:
        b1: Weight of the old momentum in the step direction, in ``[0, 1)``.
        b2: Decay of the stored momentum, in ``[0, 1)``.
        use_accelerated_op: Run the kernel that an installed package offers; see
            :func:`kernels_status`.

    State:
        ``mu``: like ``params``, starts at zero.

    Differentiable:
        No gradient reaches :math:`g_t` through :math:`u_t`: the derivative of sign is zero almost
        everywhere.

    Raises:
        ImportError: ``use_accelerated_op=True`` and no kernels are installed.
        TypeError: A hyperparameter is no number, schedule, tensor or tree of such.
        ValueError: ``b1`` or ``b2`` outside ``[0, 1)``.

    Example:
        >>> import torch
        >>> tx = scale_by_lion()
        >>> tx.update([torch.tensor([3.0, -0.1])], tx.init([torch.zeros(2)]))[0]
        [tensor([ 1., -1.])]

    Reference:
        Chen et al., 2023, arXiv:2302.06675, Algorithm 2.
    """
    check_range("scale_by_lion", "b1", b1, 0.0, 1.0, open_high=True)
    check_range("scale_by_lion", "b2", b2, 0.0, 1.0, open_high=True)
    check_kernels("scale_by_lion", use_accelerated_op, "scale_by_lion")
    return GradientTransformation(
        _lion_init,
        _lion_update,
        {"b1": b1, "b2": b2},
        {"use_accelerated_op": use_accelerated_op},
        name="scale_by_lion",
    )


def scale_by_sign() -> GradientTransformation:
    r"""Replace each gradient by its sign: :math:`u = \operatorname{sign}(g)`.

    Differentiable:
        The derivative is zero almost everywhere, and taken as zero everywhere.

    Example:
        >>> import torch
        >>> tx = scale_by_sign()
        >>> tx.update([torch.tensor([3.0, -0.1])], tx.init([torch.zeros(2)]))[0]
        [tensor([ 1., -1.])]

    Reference:
        Bernstein et al., 2018, arXiv:1802.04434, Algorithm 1.
    """
    return GradientTransformation(stateless_init, _sign_update, name="scale_by_sign")


def lion(
    lr: Hyperparam = 1e-3,
    betas: tuple[Hyperparam, Hyperparam] = (0.9, 0.99),
    weight_decay: Hyperparam = 1e-3,
    *,
    mask: Tree | Callable[[Tree], Tree] | None = None,
    maximize: bool = False,
    use_accelerated_op: bool = False,
) -> GradientTransformation:
    r"""Lion: :math:`\theta' = \theta - \eta\,(u_t + \lambda\,\theta)`, see :func:`scale_by_lion`.

    Args:
        lr: Learning rate :math:`\eta \ge 0`.
        betas: ``(b1, b2)`` of :func:`scale_by_lion`, each in ``[0, 1)``.
        weight_decay: Decoupled rate :math:`\lambda \ge 0`; needs ``params`` in ``update``.
        mask: Which parameters decay; see :func:`add_decayed_weights`.
        maximize: Ascend instead of descend (the decay still shrinks).
        use_accelerated_op: Run the kernel that an installed package offers; see
            :func:`kernels_status`.

    State:
        That of :func:`scale_by_lion`, inside the tuple of a :func:`chain`.

    Differentiable:
        In the parameters, ``lr`` and ``weight_decay``; not in the gradients.

    Raises:
        ImportError: ``use_accelerated_op=True`` and no kernels are installed.
        TypeError: A hyperparameter is no number, schedule, tensor or tree of such.
        ValueError: A hyperparameter outside its range.

    Example:
        >>> import torch
        >>> opt = lion(lr=0.1, weight_decay=0.0)
        >>> opt.update([torch.full((1,), 3.0)], opt.init([torch.zeros(1)]))[0]
        [tensor([-0.1000])]

    Reference:
        Chen et al., 2023, arXiv:2302.06675, Algorithm 2. Equals ``optax.lion``.
    """
    check_range("lion", "lr", lr, 0.0)
    check_range("lion", "weight_decay", weight_decay, 0.0)
    b1, b2 = check_betas("lion", betas)
    check_kernels("lion", use_accelerated_op, "scale_by_lion")
    return chain(
        *uphill("lion", maximize),
        link("lion", scale_by_lion, b1, b2, use_accelerated_op=use_accelerated_op),
        *([] if is_zero(weight_decay) else [link("lion", add_decayed_weights, weight_decay, mask)]),
        scale_by_learning_rate(lr),
    ).named("lion")


def sign_sgd(lr: Hyperparam = 1e-3, *, maximize: bool = False) -> GradientTransformation:
    r"""Sign descent: :math:`\theta' = \theta - \eta\,\operatorname{sign}(g_t)`.

    Args:
        lr: Learning rate :math:`\eta \ge 0`.
        maximize: Ascend instead of descend.

    Differentiable:
        In the parameters and ``lr``; not in the gradients.

    Raises:
        ValueError: ``lr`` is negative or not finite.

    Example:
        >>> import torch
        >>> opt = sign_sgd(lr=0.1)
        >>> opt.update([torch.full((1,), 3.0)], opt.init([torch.zeros(1)]))[0]
        [tensor([-0.1000])]

    Reference:
        Bernstein et al., 2018, arXiv:1802.04434, Algorithm 1. Equals ``optax.sign_sgd``.
    """
    check_range("sign_sgd", "lr", lr, 0.0)
    return chain(*uphill("sign_sgd", maximize), scale_by_sign(), scale_by_learning_rate(lr)).named(
        "sign_sgd"
    )


def signum(
    lr: Hyperparam = 1e-3, momentum: Hyperparam = 0.9, *, maximize: bool = False
) -> GradientTransformation:
    r"""Sign descent along a momentum: :math:`\theta' = \theta - \eta\,\operatorname{sign}(\mu_t)`.

    With :math:`\mu_t = d\,\mu_{t-1} + (1 - d)\,g_t`: Lion whose two decays are one.

    Args:
        lr: Learning rate :math:`\eta \ge 0`.
        momentum: Decay :math:`d`, in ``[0, 1)``.
        maximize: Ascend instead of descend.

    State:
        That of :func:`scale_by_lion`, inside the tuple of a :func:`chain`.

    Differentiable:
        In the parameters and ``lr``; not in the gradients.

    Raises:
        ValueError: A hyperparameter outside its range.

    Example:
        >>> import torch
        >>> opt = signum(lr=0.1)
        >>> opt.update([torch.full((1,), 3.0)], opt.init([torch.zeros(1)]))[0]
        [tensor([-0.1000])]

    Reference:
        Bernstein et al., 2018, arXiv:1802.04434, Algorithm 2.
    """
    check_range("signum", "lr", lr, 0.0)
    check_range("signum", "momentum", momentum, 0.0, 1.0, open_high=True)
    return chain(
        *uphill("signum", maximize),
        link("signum", scale_by_lion, momentum, momentum),
        scale_by_learning_rate(lr),
    ).named("signum")


ROWS = (
    OptimizerRow(lion, "Lion", {"mu": "exp_avg"}),
    OptimizerRow(sign_sgd, "SignSGD"),
    OptimizerRow(signum, "Signum", {"mu": "momentum_buffer"}),
)


def _lion_init(params: Tree, **_: Any) -> ScaleByLionState:
    return ScaleByLionState(zeros_like("scale_by_lion", params))


@defers
def _lion_update(
    updates: Tree,
    state: ScaleByLionState,
    params: Tree,
    *,
    inplace: bool,
    b1: Any,
    b2: Any,
    use_accelerated_op: bool,
) -> tuple[Tree, ScaleByLionState]:
    def formula(g: torch.Tensor, mu: torch.Tensor, *, b1: Any, b2: Any) -> Any:
        g = g if g.dtype == mu.dtype else g.to(mu.dtype)
        direction = ema(mu, g, b1, False)  # a new tensor, so that in place its sign may replace it
        direction = direction.sign_() if inplace else direction.sign()
        return direction, ema(mu, g, b2, inplace)

    kernel = kernel_for("scale_by_lion", use_accelerated_op)
    updates, mu = leafwise(
        "scale_by_lion", formula, updates, state.mu, inplace=inplace, kernel=kernel, b1=b1, b2=b2
    )
    return updates, ScaleByLionState(mu)


@defers
def _sign_update(
    updates: Tree, state: EmptyState, params: Tree, *, inplace: bool
) -> tuple[Tree, EmptyState]:
    (updates,) = leafwise("scale_by_sign", _sign, updates, inplace=inplace)
    return updates, state


def _sign(grad: torch.Tensor) -> torch.Tensor:
    return grad.sign()
