# SPDX-License-Identifier: Apache-2.0
"""Averaged stochastic gradient descent."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from optcore._chain import chain, link
from optcore._hyperparams import Hyperparam, check_range, is_zero
from optcore._leafwise import Tick, counts_like, fit, leafwise, zeros_like
from optcore._rows import OptimizerRow
from optcore._scaling import uphill
from optcore._transform import GradientTransformation
from optcore._tree import Tree, tree_map
from optcore._weight_decay import add_decayed_weights


class ScaleByAsgdState(NamedTuple):
    """Memory of :func:`scale_by_asgd`; every field is a tree like the parameters."""

    count: Tree  # i64[]: updates that this leaf had
    eta: Tree  # f64[]: rate of the next step; 0 before the first, whose rate is lr
    ax: Tree  # average of the parameters


def scale_by_asgd(
    lr: Hyperparam = 1e-2,
    lambd: Hyperparam = 1e-4,
    alpha: Hyperparam = 0.75,
    t0: Hyperparam = 1e6,
) -> GradientTransformation:
    r"""Take a decaying gradient step and average the parameters it leads to.

    .. math::
        \eta_1 = \eta, \quad
        \eta_{t+1} = \frac{\eta}{(1 + \lambda\,\eta\,t)^{\alpha}}, \quad
        u_t = -\eta_t\,(g_t + \lambda\,\theta), \quad
        \bar\theta_t = \bar\theta_{t-1} + \frac{\theta + u_t - \bar\theta_{t-1}}
            {\max(1, t - 1 - t_0)}

    Args:
        lr: Learning rate :math:`\eta \ge 0`. A change of it counts one step late, as in
            torch.optim: a step ends by fixing the rate of the next one.
        lambd: Decay :math:`\lambda \ge 0`.
        alpha: Power of the decay of the learning rate.
        t0: Step from which parameters are averaged.

    State:
        ``ax``: the average, like ``params``, starts at zero. ``eta``: rate of the next step.
        ``count``: updates.

    Differentiable:
        In everything, twice.

    Raises:
        ValueError: A hyperparameter outside its range; ``update`` was given no ``params``.

    Example:
        >>> import torch
        >>> tx = scale_by_asgd(lr=0.1, lambd=0.0)
        >>> params = [torch.ones(1)]
        >>> tx.update([torch.full((1,), 3.0)], tx.init(params), params)[0]
        [tensor([-0.3000])]

    Reference:
        Polyak and Juditsky, 1992, in the form of ``torch.optim.ASGD``.
    """
    who = "scale_by_asgd"
    check_range(who, "lr", lr, 0.0)
    check_range(who, "lambd", lambd, 0.0)
    check_range(who, "alpha", alpha)
    check_range(who, "t0", t0)
    hyperparams = {"lr": lr, "lambd": lambd, "alpha": alpha, "t0": t0}
    return GradientTransformation(
        _asgd_init, _asgd_update, hyperparams, name=who, needs_params=True
    )


def asgd(
    lr: Hyperparam = 1e-2,
    lambd: Hyperparam = 1e-4,
    alpha: Hyperparam = 0.75,
    t0: Hyperparam = 1e6,
    weight_decay: Hyperparam = 0.0,
    *,
    maximize: bool = False,
) -> GradientTransformation:
    """Averaged gradient descent: :func:`scale_by_asgd`; equals ``torch.optim.ASGD``.

    Args:
        lr: Learning rate >= 0.
        lambd: Decay >= 0.
        alpha: Power of the decay of the learning rate.
        t0: Step from which parameters are averaged.
        weight_decay: L2 penalty >= 0.
        maximize: Ascend instead of descend.

    Raises:
        ValueError: A hyperparameter outside its range; ``update`` was given no ``params``.

    Example:
        >>> import torch
        >>> opt = asgd(lr=0.1, lambd=0.0)
        >>> params = [torch.ones(1)]
        >>> opt.update([torch.full((1,), 3.0)], opt.init(params), params)[0]
        [tensor([-0.3000])]

    Reference:
        Polyak and Juditsky, 1992.
    """
    check_range("asgd", "weight_decay", weight_decay, 0.0)
    return chain(
        *uphill("asgd", maximize),
        *([] if is_zero(weight_decay) else [link("asgd", add_decayed_weights, weight_decay)]),
        link("asgd", scale_by_asgd, lr, lambd, alpha, t0),
    ).named("asgd")


ROWS = (OptimizerRow(asgd, "ASGD", {"count": "step", "eta": "eta", "ax": "ax"}),)


def _asgd_init(params: Tree, **_: Any) -> ScaleByAsgdState:
    ax = zeros_like("scale_by_asgd", params)
    unset = torch.zeros((), dtype=torch.float64)
    eta = tree_map(lambda p: None if p is None else unset, params)
    return ScaleByAsgdState(counts_like(params), eta, ax)


def _asgd_update(
    updates: Tree,
    state: ScaleByAsgdState,
    params: Tree,
    *,
    inplace: bool,
    lr: Any,
    lambd: Any,
    alpha: Any,
    t0: Any,
) -> tuple[Tree, ScaleByAsgdState]:
    def formula(
        g: torch.Tensor,
        eta: torch.Tensor,
        ax: torch.Tensor,
        param: torch.Tensor,
        *,
        tick: Tick,
        lr: Any,
        lambd: Any,
        alpha: Any,
        t0: Any,
    ) -> Any:
        eta, following = tick.derive(_rates, eta, lr, lambd, alpha)
        weight = tick.derive(_averaging_weight, t0)
        step = (g + param * fit(lambd, param)) * fit(-eta, param)
        return step, following, ax + (param + step - ax) * fit(weight, ax)

    updates, eta, ax, count = leafwise(
        "scale_by_asgd",
        formula,
        updates,
        state.eta,
        state.ax,
        counts=state.count,
        params=params,
        lr=lr,
        lambd=lambd,
        alpha=alpha,
        t0=t0,
    )
    return updates, ScaleByAsgdState(count, eta, ax)


def _rates(
    count: torch.Tensor, eta: torch.Tensor, lr: Any, lambd: Any, alpha: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The rates of this step and of the next one."""
    now = torch.where(count > 1, eta, lr)
    return now, lr / (1 + lambd * lr * count) ** alpha


def _averaging_weight(count: torch.Tensor, t0: Any) -> torch.Tensor:
    return 1 / (count - 1 - t0).clamp_min(1.0)
