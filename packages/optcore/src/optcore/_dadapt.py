# SPDX-License-Identifier: Apache-2.0
"""D-adaptation: AdamW that finds its learning rate from how far the parameters have travelled."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from optcore._anchor import anchored, clones
from optcore._chain import chain
from optcore._choice import total
from optcore._hyperparams import (
    Hyperparam,
    check_betas,
    check_flag,
    check_number,
    check_range,
    check_single,
    is_zero,
    numbers_only,
)
from optcore._leafwise import ema, ema_square, fit, leafwise, safe_sqrt, zeros_like
from optcore._moment_rules import bias_correction
from optcore._rows import OptimizerRow
from optcore._scaling import uphill
from optcore._transform import GradientTransformation, new_count
from optcore._tree import Tree, tree_leaves


class DAdaptAdamWState(NamedTuple):
    """State of :func:`dadapt_adamw`; moments and sums are trees like the parameters."""

    exp_avg: Tree  # decayed average of gradients, each times its rate
    exp_avg_sq: Tree  # decayed average of squared gradients
    grad_sum: Tree  # decayed sum of gradients, each times its rate
    estim_lr: torch.Tensor  # f64[]: the estimate of the distance to the solution
    numerator_weighted: torch.Tensor  # f64[]
    count: torch.Tensor  # i64[]: updates so far


class ProdigyState(NamedTuple):
    """State of :func:`prodigy`; moments, sums and ``params0`` are trees like the parameters."""

    exp_avg: Tree  # decayed average of gradients, each times the estimate then
    exp_avg_sq: Tree  # decayed average of their squares
    grad_sum: Tree  # decayed sum of gradients, weighted
    params0: Tree  # the parameters of the first update
    estim_lr: torch.Tensor  # f64[]: the estimate of the distance to the solution
    numerator_weighted: torch.Tensor  # f64[]
    count: torch.Tensor  # i64[]: updates so far


@numbers_only("estim_lr0")
def dadapt_adamw(
    lr: Hyperparam = 1.0,
    betas: tuple[Hyperparam, Hyperparam] = (0.9, 0.999),
    eps: Hyperparam = 1e-8,
    weight_decay: Hyperparam = 0.0,
    *,
    estim_lr0: float = 1e-6,
    maximize: bool = False,
) -> GradientTransformation:
    r"""AdamW that estimates its own learning rate :math:`d`.

    With :math:`\lambda_t = d_t\,\eta \sqrt{1 - b_2^t} / (1 - b_1^t)`, :math:`q = \sqrt{b_2}`, and
    sums over all parameters:

    .. math::
        r_t &= q\,r_{t-1} + (1 - q)\,\lambda_t
            \Bigl\langle g_t, \frac{s_{t-1}}{\sqrt{\nu_{t-1}} + \epsilon}\Bigr\rangle \\
        \mu_t &= b_1 \mu_{t-1} + (1 - b_1)\,\lambda_t g_t, \qquad
        \nu_t = b_2 \nu_{t-1} + (1 - b_2)\,g_t^2 \\
        s_t &= q\,s_{t-1} + (1 - q)\,\lambda_t g_t, \qquad
        d_{t+1} = \max\Bigl(d_t, \frac{r_t}{(1 - q) \lVert s_t \rVert_1}\Bigr) \\
        u_t &= -\frac{\mu_t}{\sqrt{\nu_t} + \epsilon} - \lambda\,\lambda_t\,\theta_t

    Args:
        lr: A factor :math:`\eta \ge 0` of the estimated rate; leave it at 1, or give a schedule.
        betas: ``(b1, b2)``, each in ``[0, 1)``.
        eps: :math:`\epsilon \ge 0`, added to the root.
        weight_decay: Decoupled rate :math:`\lambda \ge 0`.
        estim_lr0: The first estimate, a number > 0 that is too small.
        maximize: Ascend instead of descend.

    State:
        ``exp_avg``, ``exp_avg_sq``, ``grad_sum``: like ``params``, start at zero; ``estim_lr``,
        ``numerator_weighted``, ``count``: one for all parameters, in float64. In a class each
        parameter group has its own estimate.

    Differentiable:
        In everything, twice, where the maximum does not change sides; while all gradients are zero
        the estimate stays.

    Raises:
        TypeError: A hyperparameter is no number, schedule or tensor; a tree, but for ``eps`` and
            ``weight_decay``.
        ValueError: A hyperparameter outside its range; ``update`` was given no ``params``.

    Differs:
        optax computes the estimate in the dtype of the parameters, and makes NaN of gradients that
        are all zero.

    Example:
        >>> opt = dadapt_adamw()
        >>> params = [torch.ones(1)]
        >>> updates, state = opt.update([torch.ones(1)], opt.init(params), params)
        >>> state[0].estim_lr
        tensor(1.0000e-06, dtype=torch.float64)

    Reference:
        Defazio and Mishchenko, 2023, arXiv:2301.07733, Algorithm 5. Equals
        ``optax.contrib.dadapt_adamw``.
    """
    who = "dadapt_adamw"
    hyperparams = _checked(who, lr, betas, eps, weight_decay, estim_lr0)
    rule = GradientTransformation(
        _dadapt_init,
        _dadapt_update,
        hyperparams,
        {"estim_lr0": estim_lr0},
        name=who,
        needs_params=True,
    )
    return chain(*uphill(who, maximize), rule).named(who)


@numbers_only("estim_lr0")
def prodigy(
    lr: Hyperparam = 1.0,
    betas: tuple[Hyperparam, Hyperparam] = (0.9, 0.999),
    eps: Hyperparam = 1e-8,
    weight_decay: Hyperparam = 0.0,
    *,
    beta3: Hyperparam | None = None,
    estim_lr0: float = 1e-6,
    estim_lr_coef: Hyperparam = 1.0,
    safeguard_warmup: bool = False,
    maximize: bool = False,
) -> GradientTransformation:
    r"""AdamW that estimates its own learning rate :math:`d`, faster than :func:`dadapt_adamw`.

    With :math:`\lambda_t = d_t\,\eta \sqrt{1 - b_2^t} / (1 - b_1^t)` and sums over all parameters:

    .. math::
        r_t &= b_3\,r_{t-1} + \tfrac{d_t}{d_0}\,\lambda_t\,\langle g_t, \theta_0 - \theta_t\rangle,
        \qquad s_t = b_3\,s_{t-1} + \tfrac{d_t}{d_0}\,\lambda_t\,g_t \\
        \mu_t &= b_1 \mu_{t-1} + (1 - b_1)\,d_t g_t, \qquad
        \nu_t = b_2 \nu_{t-1} + (1 - b_2)\,d_t^2 g_t^2 \\
        d_{t+1} &= \max\Bigl(d_t, c\,\frac{r_t}{\lVert s_t \rVert_1}\Bigr) \\
        u_t &= -\lambda_t \frac{\mu_t}{\sqrt{\nu_t} + d_{t+1} \epsilon}
            - \lambda\,\lambda_t\,\theta_t

    Args:
        lr: A factor :math:`\eta \ge 0` of the estimated rate; leave it at 1, or give a schedule.
        betas: ``(b1, b2)``, each in ``[0, 1)``.
        eps: :math:`\epsilon \ge 0`, added to the root times the estimate.
        weight_decay: Decoupled rate :math:`\lambda \ge 0`.
        beta3: :math:`b_3` in ``[0, 1)``; None means :math:`\sqrt{b_2}`.
        estim_lr0: The first estimate :math:`d_0`, a number > 0 that is too small.
        estim_lr_coef: :math:`c \ge 0`; 0.5 or 2 if the estimate comes out too large or too small.
        safeguard_warmup: Put :math:`d_t` for :math:`\lambda_t` into :math:`s_t`: the estimate stays
            lower while a schedule warms up.
        maximize: Ascend instead of descend.

    State:
        ``exp_avg``, ``exp_avg_sq``, ``grad_sum``: like ``params``, start at zero; ``params0``: a
        clone of the parameters of the first update; ``estim_lr``, ``numerator_weighted``,
        ``count``: one for all parameters, in float64. In a class each parameter group has its own
        estimate. Float16 cannot hold :math:`\nu_t` while the estimate is small.

    Differentiable:
        As :func:`dadapt_adamw`.

    Raises:
        TypeError: A hyperparameter is no number, schedule or tensor; a tree, but for ``eps`` and
            ``weight_decay``.
        ValueError: A hyperparameter outside its range; ``update`` was given no ``params``.

    Differs:
        From optax as :func:`dadapt_adamw` does.

    Example:
        >>> opt = prodigy()
        >>> params = [torch.ones(1)]
        >>> updates, state = opt.update([torch.ones(1)], opt.init(params), params)
        >>> state[0].estim_lr
        tensor(1.0000e-06, dtype=torch.float64)

    Reference:
        Mishchenko and Defazio, 2024, arXiv:2306.06101, Algorithm 4. Equals
        ``optax.contrib.prodigy``.
    """
    who = "prodigy"
    check_flag(who, "safeguard_warmup", safeguard_warmup)
    check_single(who, "estim_lr_coef", estim_lr_coef, 0.0)
    hyperparams = _checked(who, lr, betas, eps, weight_decay, estim_lr0)
    if beta3 is not None:
        check_single(who, "beta3", beta3, 0.0, 1.0, open_high=True)
        hyperparams["beta3"] = beta3
    rule = GradientTransformation(
        _prodigy_init,
        _prodigy_update,
        {**hyperparams, "estim_lr_coef": estim_lr_coef},
        {"estim_lr0": estim_lr0, "safeguard_warmup": safeguard_warmup},
        name=who,
        needs_params=True,
    )
    return chain(*uphill(who, maximize), rule).named(who)


ROWS = (OptimizerRow(dadapt_adamw, "DAdaptAdamW"), OptimizerRow(prodigy, "Prodigy"))


def _checked(
    who: str, lr: Any, betas: Any, eps: Any, weight_decay: Any, estim_lr0: float
) -> dict[str, Hyperparam]:
    check_single(who, "lr", lr, 0.0)
    b1, b2 = check_betas(who, betas)
    check_single(who, "betas[0]", b1)
    check_single(who, "betas[1]", b2)
    check_range(who, "eps", eps, 0.0)
    check_range(who, "weight_decay", weight_decay, 0.0)
    check_number(who, "estim_lr0", estim_lr0)
    if not estim_lr0 > 0:
        raise ValueError(f"{who}: expected estim_lr0 > 0, got {estim_lr0}")
    return {"lr": lr, "b1": b1, "b2": b2, "eps": eps, "weight_decay": weight_decay}


def _scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _dadapt_init(params: Tree, *, estim_lr0: float, **_: Any) -> DAdaptAdamWState:
    trees = (zeros_like("dadapt_adamw", params) for _ in range(3))
    return DAdaptAdamWState(*trees, _scalar(estim_lr0), _scalar(0.0), new_count())


def _prodigy_init(params: Tree, *, estim_lr0: float, **_: Any) -> ProdigyState:
    who = "prodigy"
    trees = (zeros_like(who, params) for _ in range(3))
    start = clones(who, params)
    return ProdigyState(*trees, start, _scalar(estim_lr0), _scalar(0.0), new_count())


def _dadapt_update(
    updates: Tree,
    state: DAdaptAdamWState,
    params: Tree,
    *,
    inplace: bool,
    lr: Any,
    b1: Any,
    b2: Any,
    eps: Any,
    weight_decay: Any,
    estim_lr0: float,
) -> tuple[Tree, DAdaptAdamWState]:
    who, root = "dadapt_adamw", b2**0.5
    rate = _rate(state, lr, b1, b2)

    def along(g: Any, s: Any, v: Any, param: Any, *, eps: Any) -> Any:
        return _dot(g, s / (safe_sqrt(v) + fit(eps, v))), s, v

    def moments(g: Any, m: Any, v: Any, s: Any, param: Any) -> Any:
        moved = g * fit(rate, g)
        m, v = ema(m, moved, b1, inplace), ema_square(v, g, b2, inplace)
        return g, m, v, ema(s, moved, root, inplace)

    def step(g: Any, m: Any, v: Any, param: Any, *, eps: Any, weight_decay: Any) -> Any:
        step = -m / (safe_sqrt(v) + fit(eps, v))
        return _decayed(step, param, rate, weight_decay), m, v

    given = state.grad_sum, state.exp_avg_sq
    dots, *_ = leafwise(who, along, updates, *given, params=params, eps=eps)
    numerator = root * state.numerator_weighted + (1 - root) * rate * _sum(dots)
    _, m, v, s = leafwise(
        who, moments, updates, state.exp_avg, state.exp_avg_sq, state.grad_sum, params=params
    )
    estimate = _larger(state.estim_lr, numerator, (1 - root) * _size(s))
    updates, *_ = leafwise(
        who, step, updates, m, v, params=params, eps=eps, weight_decay=weight_decay
    )
    return updates, DAdaptAdamWState(m, v, s, estimate, numerator, state.count + 1)


def _prodigy_update(
    updates: Tree,
    state: ProdigyState,
    params: Tree,
    *,
    inplace: bool,
    lr: Any,
    b1: Any,
    b2: Any,
    eps: Any,
    weight_decay: Any,
    estim_lr_coef: Any,
    estim_lr0: float,
    safeguard_warmup: bool,
    beta3: Any = None,
) -> tuple[Tree, ProdigyState]:
    who, old = "prodigy", state.estim_lr
    decay = b2**0.5 if beta3 is None else beta3
    rate, first = _rate(state, lr, b1, b2), state.count == 0
    weight = old / estim_lr0 * (old if safeguard_warmup else rate)

    def travelled(g: Any, start: Any, param: Any) -> Any:
        start = anchored(first, param, start, inplace)
        return _dot(g, start - param), start

    def moments(g: Any, m: Any, v: Any, s: Any, param: Any) -> Any:
        scaled = g * fit(old, g)
        m, v = ema(m, scaled, b1, inplace), ema_square(v, scaled, b2, inplace)
        term = g * fit(weight, g)
        s = s.mul_(fit(decay, s)).add_(term) if inplace else s * fit(decay, s) + term
        return g, m, v, s

    def step(g: Any, m: Any, v: Any, param: Any, *, eps: Any, weight_decay: Any) -> Any:
        floor = fit(estimate, v) * fit(eps, v)
        step = m * fit(-rate, m) / (safe_sqrt(v) + floor)
        return _decayed(step, param, rate, weight_decay), m, v

    dots, start = leafwise(who, travelled, updates, state.params0, params=params)
    numerator = decay * state.numerator_weighted + old / estim_lr0 * rate * _sum(dots)
    _, m, v, s = leafwise(
        who, moments, updates, state.exp_avg, state.exp_avg_sq, state.grad_sum, params=params
    )
    estimate = _larger(old, estim_lr_coef * numerator, _size(s))
    updates, *_ = leafwise(
        who, step, updates, m, v, params=params, eps=eps, weight_decay=weight_decay
    )
    return updates, ProdigyState(m, v, s, start, estimate, numerator, state.count + 1)


def _rate(state: DAdaptAdamWState | ProdigyState, lr: Any, b1: Any, b2: Any) -> torch.Tensor:
    """The estimate times ``lr`` and Adam's bias corrections."""
    count = (state.count + 1).to(torch.float64)
    return state.estim_lr * lr * bias_correction(count, b2) ** 0.5 / bias_correction(count, b1)


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum(dtype=torch.float64)


def _sum(dots: Tree) -> torch.Tensor:
    return total(dot for dot in tree_leaves(dots) if dot is not None)


def _size(sums: Tree) -> torch.Tensor:
    return total(
        leaf.abs().sum(dtype=torch.float64) for leaf in tree_leaves(sums) if leaf is not None
    )


def _larger(old: torch.Tensor, numerator: Any, denominator: torch.Tensor) -> torch.Tensor:
    """The larger of two estimates; the old one where there was no gradient yet."""
    none = denominator == 0
    found = numerator / torch.where(none, 1.0, denominator)
    return torch.maximum(old, torch.where(none, 0.0, found))


def _decayed(step: torch.Tensor, param: torch.Tensor, rate: Any, weight_decay: Any) -> torch.Tensor:
    if not is_zero(weight_decay):
        step = step - param * (fit(rate, param) * fit(weight_decay, param))
    return step.to(param.dtype)
