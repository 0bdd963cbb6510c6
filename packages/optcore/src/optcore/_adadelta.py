# SPDX-License-Identifier: Apache-2.0
"""Adadelta: scaling by the ratio of past updates to past gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from optcore._chain import chain, link
from optcore._deferred import defers
from optcore._hyperparams import Hyperparam, check_range, is_zero
from optcore._leafwise import (
    ema_square,
    fit,
    leafwise,
    safe_sqrt,
    zeros_like,
)
from optcore._rows import OptimizerRow
from optcore._scaling import scale_by_learning_rate, uphill
from optcore._transform import GradientTransformation
from optcore._tree import Tree
from optcore._weight_decay import add_decayed_weights


class ScaleByAdadeltaState(NamedTuple):
    """Averages kept by :func:`scale_by_adadelta`; both are trees like the parameters."""

    e_g: Tree  # decayed average of squared gradients
    e_x: Tree  # decayed average of squared updates


def scale_by_adadelta(rho: Hyperparam = 0.9, eps: Hyperparam = 1e-6) -> GradientTransformation:
    r"""Scale each gradient by the ratio of past updates to past gradients.

    .. math::
        E_t[g^2] &= \rho\,E_{t-1}[g^2] + (1 - \rho)\,g_t^2 \\
        u_t &= \frac{\sqrt{E_{t-1}[u^2] + \epsilon}}{\sqrt{E_t[g^2] + \epsilon}}\,g_t \\
        E_t[u^2] &= \rho\,E_{t-1}[u^2] + (1 - \rho)\,u_t^2

    Args:
        rho: Decay of both averages, in ``[0, 1)``.
        eps: :math:`\epsilon > 0` under both roots.

    State:
        ``e_g``, ``e_x``: like ``params``, start at zero.

    Differentiable:
        In everything, twice.

    Raises:
        TypeError: A hyperparameter is no number, schedule, tensor or tree of such.
        ValueError: A hyperparameter outside its range.

    Example:
        >>> import torch
        >>> tx = scale_by_adadelta(rho=0.0, eps=1.0)
        >>> tx.update([torch.zeros(1)], tx.init([torch.zeros(1)]))[0]
        [tensor([0.])]

    Reference:
        Zeiler, 2012, arXiv:1212.5701, Algorithm 1.
    """
    who = "scale_by_adadelta"
    check_range(who, "rho", rho, 0.0, 1.0, open_high=True)
    check_range(who, "eps", eps, 0.0)
    return GradientTransformation(
        _adadelta_init, _adadelta_update, {"rho": rho, "eps": eps}, name=who
    )


def adadelta(
    lr: Hyperparam = 1.0,
    rho: Hyperparam = 0.9,
    eps: Hyperparam = 1e-6,
    weight_decay: Hyperparam = 0.0,
    *,
    maximize: bool = False,
) -> GradientTransformation:
    r"""Adadelta: :func:`scale_by_adadelta` and a learning rate.

    Args:
        lr: Learning rate >= 0.
        rho: Decay of both averages, in ``[0, 1)``.
        eps: Under both roots, >= 0.
        weight_decay: L2 penalty >= 0; needs ``params`` in ``update``.
        maximize: Ascend instead of descend.

    State:
        That of :func:`scale_by_adadelta`, inside the tuple of a :func:`chain`.

    Differentiable:
        In the gradients, the parameters and every tensor hyperparameter, twice.

    Raises:
        TypeError: A hyperparameter is no number, schedule, tensor or tree of such.
        ValueError: A hyperparameter outside its range.

    Example:
        >>> import torch
        >>> opt = adadelta(rho=0.0, eps=1.0)
        >>> opt.update([torch.zeros(1)], opt.init([torch.zeros(1)]))[0]
        [tensor([-0.])]

    Reference:
        Zeiler, 2012, arXiv:1212.5701, Algorithm 1. Equals ``torch.optim.Adadelta``.
    """
    check_range("adadelta", "lr", lr, 0.0)
    check_range("adadelta", "weight_decay", weight_decay, 0.0)
    return chain(
        *uphill("adadelta", maximize),
        *([] if is_zero(weight_decay) else [link("adadelta", add_decayed_weights, weight_decay)]),
        link("adadelta", scale_by_adadelta, rho, eps),
        scale_by_learning_rate(lr),
    ).named("adadelta")


ROWS = (
    OptimizerRow(
        adadelta, "Adadelta", {"e_g": "square_avg", "e_x": "acc_delta"}, also=("AdaDelta",)
    ),
)


def _adadelta_init(params: Tree, **_: Any) -> ScaleByAdadeltaState:
    who = "scale_by_adadelta"
    return ScaleByAdadeltaState(zeros_like(who, params), zeros_like(who, params))


@defers
def _adadelta_update(
    updates: Tree,
    state: ScaleByAdadeltaState,
    params: Tree,
    *,
    inplace: bool,
    rho: Any,
    eps: Any,
) -> tuple[Tree, ScaleByAdadeltaState]:
    def formula(
        g: torch.Tensor, e_g: torch.Tensor, e_x: torch.Tensor, *, rho: Any, eps: Any
    ) -> Any:
        e_g = ema_square(e_g, g, rho, inplace)
        step = safe_sqrt(e_x + fit(eps, e_x), inplace) / safe_sqrt(e_g + fit(eps, e_g), inplace) * g
        return step, e_g, ema_square(e_x, step, rho, inplace)

    updates, e_g, e_x = leafwise(
        "scale_by_adadelta", formula, updates, *state, inplace=inplace, rho=rho, eps=eps
    )
    return updates, ScaleByAdadeltaState(e_g, e_x)
