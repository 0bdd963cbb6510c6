# SPDX-License-Identifier: Apache-2.0
"""Adan: Adam with Nesterov momentum of gradient differences."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from optcore._chain import chain, link
from optcore._deferred import defers
from optcore._hyperparams import Hyperparam, check_range, check_triple, is_zero
from optcore._leafwise import (
    Tick,
    add_scaled,
    counts_like,
    ema,
    ema_square,
    fit,
    leafwise,
    quotient,
    root_plus,
    zeros_like,
)
from optcore._moment_rules import bias_correction
from optcore._rows import OptimizerRow
from optcore._scaling import scale_by_learning_rate, uphill
from optcore._transform import GradientTransformation
from optcore._tree import Tree
from optcore._weight_decay import add_decayed_weights


class ScaleByAdanState(NamedTuple):
    """Moments kept by :func:`scale_by_adan`; every field is a tree like the parameters."""

    t: Tree  # i64[]: updates that this leaf had
    m: Tree  # decayed average of gradients
    v: Tree  # decayed average of gradient differences
    n: Tree  # decayed average of squared look-ahead gradients
    g: Tree  # the last gradient


def scale_by_adan(
    b1: Hyperparam = 0.98,
    b2: Hyperparam = 0.92,
    b3: Hyperparam = 0.99,
    eps: Hyperparam = 1e-8,
    eps_root: Hyperparam = 0.0,
) -> GradientTransformation:
    r"""Scale by moments of the gradient and of its differences :math:`d_t = g_t - g_{t-1}`.

    With :math:`d_1 = 0`, and a hat for the bias correction :math:`1 / (1 - b_i^t)`:

    .. math::
        m_t &= b_1 m_{t-1} + (1 - b_1)\,g_t, \qquad v_t = b_2 v_{t-1} + (1 - b_2)\,d_t \\
        n_t &= b_3 n_{t-1} + (1 - b_3)\,(g_t + (1 - b_2)\,d_t)^2 \\
        u_t &= \frac{\hat m_t + (1 - b_2)\,\hat v_t}{\sqrt{\hat n_t + \epsilon_r} + \epsilon}

    Args:
        b1: Decay of the first moment, in ``[0, 1)``.
        b2: Decay of the differences, in ``[0, 1)``.
        b3: Decay of the second moment, in ``[0, 1)``.
        eps: :math:`\epsilon \ge 0`, added to the root.
        eps_root: :math:`\epsilon_r \ge 0`, added under the root.

    State:
        ``t``, ``m``, ``v``, ``n``, ``g``: like ``params``, start at zero.

    Differentiable:
        In everything, twice; where the second moment is 0 its root has derivative 0.

    Raises:
        ValueError: A hyperparameter outside its range.

    Example:
        >>> import torch
        >>> tx = scale_by_adan()
        >>> tx.update([torch.full((1,), 3.0)], tx.init([torch.zeros(1)]))[0]
        [tensor([1.])]

    Reference:
        Xie et al., 2022, arXiv:2208.06677, Algorithm 1.
    """
    who = "scale_by_adan"
    for name, value in (("b1", b1), ("b2", b2), ("b3", b3)):
        check_range(who, name, value, 0.0, 1.0, open_high=True)
    check_range(who, "eps", eps, 0.0)
    check_range(who, "eps_root", eps_root, 0.0)
    hyperparams = {"b1": b1, "b2": b2, "b3": b3, "eps": eps, "eps_root": eps_root}
    return GradientTransformation(_adan_init, _adan_update, hyperparams, name=who)


def adan(
    lr: Hyperparam = 1e-3,
    betas: tuple[Hyperparam, Hyperparam, Hyperparam] = (0.98, 0.92, 0.99),
    eps: Hyperparam = 1e-8,
    weight_decay: Hyperparam = 0.0,
    *,
    eps_root: Hyperparam = 1e-8,
    maximize: bool = False,
) -> GradientTransformation:
    """Adan: :func:`scale_by_adan`, decoupled decay, learning rate; equals ``optax.adan``.

    Args:
        lr: Learning rate >= 0.
        betas: ``(b1, b2, b3)``, each in ``[0, 1)``.
        eps: Added to the root, >= 0.
        weight_decay: Decoupled rate >= 0; needs ``params`` in ``update``.
        eps_root: Added under the root, >= 0.
        maximize: Ascend instead of descend.

    Raises:
        TypeError: ``betas`` is not a triple.
        ValueError: A hyperparameter outside its range.

    Example:
        >>> import torch
        >>> opt = adan(lr=0.1)
        >>> opt.update([torch.full((1,), 3.0)], opt.init([torch.zeros(1)]))[0]
        [tensor([-0.1000])]

    Reference:
        Xie et al., 2022, arXiv:2208.06677, Algorithm 1.
    """
    check_range("adan", "lr", lr, 0.0)
    check_range("adan", "weight_decay", weight_decay, 0.0)
    return chain(
        *uphill("adan", maximize),
        link("adan", scale_by_adan, *check_triple("adan", "betas", betas), eps, eps_root),
        *([] if is_zero(weight_decay) else [link("adan", add_decayed_weights, weight_decay)]),
        scale_by_learning_rate(lr),
    ).named("adan")


ROWS = (OptimizerRow(adan, "Adan", {"t": "step"}),)


def _adan_init(params: Tree, **_: Any) -> ScaleByAdanState:
    moments = (zeros_like("scale_by_adan", params) for _ in range(4))
    return ScaleByAdanState(counts_like(params), *moments)


@defers
def _adan_update(
    updates: Tree,
    state: ScaleByAdanState,
    params: Tree,
    *,
    inplace: bool,
    **hyperparams: Any,
) -> tuple[Tree, ScaleByAdanState]:
    def formula(
        g: torch.Tensor,
        m: torch.Tensor,
        v: torch.Tensor,
        n: torch.Tensor,
        last: torch.Tensor,
        *,
        tick: Tick,
        b1: Any,
        b2: Any,
        b3: Any,
        eps: Any,
        eps_root: Any,
    ) -> Any:
        difference = (g - last) * fit(tick.derive(_after_first), g)
        m = ema(m, g, b1, inplace)
        v = ema(v, difference, b2, inplace)
        n = ema_square(n, add_scaled(g, difference, 1 - b2), b3, inplace)
        c1, c2, c3 = (tick.derive(bias_correction, b) for b in (b1, b2, b3))
        direction = m * fit(1 / c1, m) + v * fit((1 - b2) / c2, v)
        square = n * fit(1 / c3, n)
        square = square if is_zero(eps_root) else square + fit(eps_root, n)
        return quotient(direction, root_plus(square, eps, inplace)), m, v, n, g.clone()

    updates, *moments, count = leafwise(
        "scale_by_adan",
        formula,
        updates,
        *state[1:],
        counts=state.t,
        inplace=inplace,
        **hyperparams,
    )
    return updates, ScaleByAdanState(count, *moments)


def _after_first(count: torch.Tensor) -> torch.Tensor:
    return (count > 1).to(torch.float64)
