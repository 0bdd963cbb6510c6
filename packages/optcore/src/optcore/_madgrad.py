# SPDX-License-Identifier: Apache-2.0
"""MADGRAD: dual averaging scaled by the cube root of a sum of squares."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from optcore._anchor import anchored, clones
from optcore._chain import chain, link
from optcore._hyperparams import Hyperparam, check_range, is_zero
from optcore._leafwise import Tick, counts_like, fit, leafwise, zeros_like
from optcore._rows import OptimizerRow
from optcore._scaling import uphill
from optcore._transform import GradientTransformation
from optcore._tree import Tree
from optcore._weight_decay import add_decayed_weights


class ScaleByMadgradState(NamedTuple):
    """Sums kept by :func:`scale_by_madgrad`; every field is a tree like the parameters."""

    count: Tree  # i64[]: updates that this leaf had
    grad_sum_sq: Tree  # weighted sum of squared gradients
    s: Tree  # weighted sum of gradients
    x0: Tree  # the parameters of the first update


def scale_by_madgrad(
    lr: Hyperparam = 1e-2, momentum: Hyperparam = 0.9, eps: Hyperparam = 1e-6
) -> GradientTransformation:
    r"""Take MADGRAD's whole step, downhill.

    With :math:`\lambda_t = (\eta + \epsilon) \sqrt t`, :math:`t = 1, 2, \ldots`:

    .. math::
        s_t &= s_{t-1} + \lambda_t g_t, \qquad \nu_t = \nu_{t-1} + \lambda_t g_t^2 \\
        z_t &= \theta_0 - \frac{s_t}{\sqrt[3]{\nu_t} + \epsilon} \\
        u_t &= (1 - c)\,(z_t - \theta_t)

    Args:
        lr: Learning rate :math:`\eta \ge 0`.
        momentum: Weight :math:`c` of the old parameters, in ``[0, 1)``.
        eps: :math:`\epsilon`, added to the cube root and to ``lr``; > 0 unless no gradient is
            ever zero.

    State:
        ``count``, ``grad_sum_sq``, ``s``: like ``params``, start at zero. ``x0``: a clone of the
        parameters of the first update.

    Differentiable:
        In everything, twice; where the sum of squares is 0 its root has derivative 0, which makes
        the derivative in :math:`g_t` the limit.

    Raises:
        TypeError: A hyperparameter is no number, schedule, tensor or tree of such.
        ValueError: A hyperparameter outside its range; ``update`` was given no ``params``.

    Example:
        >>> tx = scale_by_madgrad(lr=1.0, momentum=0.0, eps=0.0)
        >>> params = [torch.ones(1)]
        >>> tx.update([torch.full((1,), 8.0)], tx.init(params), params)[0]  # 8 / 64 ** (1 / 3)
        [tensor([-2.])]

    Reference:
        Defazio and Jelassi, 2021, arXiv:2101.11075, Algorithm 1.
    """
    who = "scale_by_madgrad"
    check_range(who, "lr", lr, 0.0)
    check_range(who, "momentum", momentum, 0.0, 1.0, open_high=True)
    check_range(who, "eps", eps, 0.0)
    return GradientTransformation(
        _madgrad_init,
        _madgrad_update,
        {"lr": lr, "momentum": momentum, "eps": eps},
        name=who,
        needs_params=True,
    )


def madgrad(
    lr: Hyperparam = 1e-2,
    momentum: Hyperparam = 0.9,
    weight_decay: Hyperparam = 0.0,
    eps: Hyperparam = 1e-6,
    *,
    maximize: bool = False,
) -> GradientTransformation:
    """MADGRAD: L2 penalty and :func:`scale_by_madgrad`.

    Args:
        lr: Learning rate >= 0.
        momentum: Weight of the old parameters, in ``[0, 1)``.
        weight_decay: L2 penalty >= 0; best left at 0 or very small.
        eps: Added to the cube root and to ``lr``, >= 0.
        maximize: Ascend instead of descend.

    State:
        That of :func:`scale_by_madgrad`, inside the tuple of a :func:`chain`.

    Differentiable:
        As :func:`scale_by_madgrad`.

    Raises:
        TypeError: A hyperparameter is no number, schedule, tensor or tree of such.
        ValueError: A hyperparameter outside its range; ``update`` was given no ``params``.

    Example:
        >>> opt = madgrad(lr=1.0, momentum=0.0, eps=0.0)
        >>> params = [torch.ones(1)]
        >>> opt.update([torch.full((1,), 8.0)], opt.init(params), params)[0]
        [tensor([-2.])]

    Reference:
        Defazio and Jelassi, 2021, arXiv:2101.11075, Algorithm 1. Equals ``optax.contrib.madgrad``.
    """
    who = "madgrad"
    check_range(who, "weight_decay", weight_decay, 0.0)
    return chain(
        *uphill(who, maximize),
        *([] if is_zero(weight_decay) else [link(who, add_decayed_weights, weight_decay)]),
        link(who, scale_by_madgrad, lr, momentum, eps),
    ).named(who)


ROWS = (OptimizerRow(madgrad, "MADGRAD", {"count": "step"}),)


def _madgrad_init(params: Tree, **_: Any) -> ScaleByMadgradState:
    who = "scale_by_madgrad"
    zeros = zeros_like(who, params), zeros_like(who, params)
    return ScaleByMadgradState(counts_like(params), *zeros, clones(who, params))


def _madgrad_update(
    updates: Tree,
    state: ScaleByMadgradState,
    params: Tree,
    *,
    inplace: bool,
    **hyperparams: Any,
) -> tuple[Tree, ScaleByMadgradState]:
    def formula(
        g: torch.Tensor,
        squares: torch.Tensor,
        s: torch.Tensor,
        x0: torch.Tensor,
        param: torch.Tensor,
        *,
        tick: Tick,
        lr: Any,
        momentum: Any,
        eps: Any,
    ) -> Any:
        g = g if g.dtype == s.dtype else g.to(s.dtype)
        x0 = anchored(tick.count == 1, param, x0, inplace)
        weight = fit((lr + eps) * tick.derive(_root), g)
        if inplace:
            s, squares = s.add_(g * weight), squares.add_(g * g * weight)
        else:
            s, squares = s + g * weight, squares + g * g * weight
        z = x0 - s / (_cube_root(squares) + fit(eps, s))
        return ((z - param) * fit(1 - momentum, z)).to(param.dtype), squares, s, x0

    updates, *sums, count = leafwise(  # leaf by leaf: lists know no cube root
        "scale_by_madgrad",
        formula,
        updates,
        *state[1:],
        counts=state.count,
        params=params,
        **hyperparams,
    )
    return updates, ScaleByMadgradState(count, *sums)


def _root(count: torch.Tensor) -> torch.Tensor:
    return count.sqrt()


def _cube_root(square: torch.Tensor) -> torch.Tensor:
    """The cube root of what is not negative, with derivative 0 at 0."""
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square) ** (1 / 3))
