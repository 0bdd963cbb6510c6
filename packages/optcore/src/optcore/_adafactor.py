# SPDX-License-Identifier: Apache-2.0
"""Adafactor: a second moment kept as the outer product of its row and column means."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from optcore._chain import chain, link
from optcore._hyperparams import Hyperparam, check_pair, check_range, is_zero
from optcore._leafwise import Tick, at_least, counts_like, ema, fit, leafwise, safe_sqrt, zeros_like
from optcore._rows import OptimizerRow
from optcore._scaling import uphill
from optcore._transform import GradientTransformation
from optcore._tree import Tree, tree_map


class ScaleByAdafactorState(NamedTuple):
    """Moments of :func:`scale_by_adafactor`; every field is a tree like the parameters.

    A matrix (or stack of matrices) has row and column means, anything else a full moment; what a
    parameter does not have is None.
    """

    count: Tree  # i64[]: updates that this leaf had
    row_var: Tree  # (..., m, 1): means of squares over the columns
    col_var: Tree  # (..., 1, n): means of squares over the rows
    variance: Tree  # like the parameter


def scale_by_adafactor(
    lr: Hyperparam = 1e-2,
    beta2_decay: Hyperparam = -0.8,
    eps: tuple[Hyperparam | None, Hyperparam] = (None, 1e-3),
    d: Hyperparam = 1.0,
    weight_decay: Hyperparam = 0.0,
) -> GradientTransformation:
    r"""Take Adafactor's whole step, downhill.

    With :math:`w_t = t^{\beta}`, row means :math:`R`, column means :math:`C` of
    :math:`g_t^2` averaged as :math:`R_t = R_{t-1} + w_t (\cdot - R_{t-1})`:

    .. math::
        V_t &= R_t C_t / \operatorname{mean}(R_t), \qquad
            U_t = g_t / \sqrt{\max(V_t, \epsilon_1^2)} \\
        u_t &= -\max(\epsilon_2, \operatorname{rms}(\theta))\,\min(\eta, 1 / \sqrt t)\;
            \frac{U_t}{\max(1, \operatorname{rms}(U_t) / d)} - \eta\,\lambda\,\theta

    Args:
        lr: Largest relative step :math:`\eta \ge 0`.
        beta2_decay: :math:`\beta \le 0`.
        eps: :math:`(\epsilon_1, \epsilon_2)`; None is the machine epsilon of the parameter.
        d: Largest root mean square of a step before it is clipped, > 0.
        weight_decay: Decoupled rate :math:`\lambda \ge 0`.

    State:
        ``row_var``, ``col_var`` or ``variance``; start at zero.

    Differentiable:
        In everything, twice, where no maximum or minimum changes sides.

    Raises:
        ValueError: A hyperparameter outside its range; ``update`` was given no ``params``.

    Example:
        >>> import torch
        >>> tx = scale_by_adafactor(lr=0.1)
        >>> params = [torch.ones(2, 2)]
        >>> tx.update([torch.full((2, 2), 3.0)], tx.init(params), params)[0]
        [tensor([[-0.1000, -0.1000],
                [-0.1000, -0.1000]])]

    Reference:
        Shazeer and Stern, 2018, arXiv:1804.04235, Algorithm 4, in the form of
        ``torch.optim.Adafactor``.
    """
    who = "scale_by_adafactor"
    check_range(who, "lr", lr, 0.0)
    check_range(who, "beta2_decay", beta2_decay, high=0.0)
    eps1, eps2 = check_pair(who, "eps", eps)
    if eps1 is not None:
        check_range(who, "eps[0]", eps1, 0.0)
    check_range(who, "eps[1]", eps2, 0.0)
    check_range(who, "d", d, 1e-12)
    check_range(who, "weight_decay", weight_decay, 0.0)
    return GradientTransformation(
        _adafactor_init,
        _adafactor_update,
        {
            "lr": lr,
            "beta2_decay": beta2_decay,
            **({} if eps1 is None else {"eps1": eps1}),
            "eps2": eps2,
            "d": d,
            "weight_decay": weight_decay,
        },
        name=who,
        needs_params=True,
    )


def adafactor(
    lr: Hyperparam = 1e-2,
    beta2_decay: Hyperparam = -0.8,
    eps: tuple[Hyperparam | None, Hyperparam] = (None, 1e-3),
    d: Hyperparam = 1.0,
    weight_decay: Hyperparam = 0.0,
    *,
    maximize: bool = False,
) -> GradientTransformation:
    """Adafactor: :func:`scale_by_adafactor`; equals ``torch.optim.Adafactor``.

    Args:
        lr: Largest relative step >= 0.
        beta2_decay: Power by which the second moment forgets, <= 0.
        eps: Smallest root of the second moment and of the parameter's scale.
        d: Clipping threshold of a step, > 0.
        weight_decay: Decoupled rate >= 0.
        maximize: Ascend instead of descend.

    Raises:
        ValueError: A hyperparameter outside its range; ``update`` was given no ``params``.

    Example:
        >>> import torch
        >>> opt = adafactor(lr=0.1)
        >>> params = [torch.ones(2)]
        >>> opt.update([torch.full((2,), 3.0)], opt.init(params), params)[0]
        [tensor([-0.1000, -0.1000])]

    Reference:
        Shazeer and Stern, 2018, arXiv:1804.04235, Algorithm 4.
    """
    return chain(
        *uphill("adafactor", maximize),
        link("adafactor", scale_by_adafactor, lr, beta2_decay, eps, d, weight_decay),
    ).named("adafactor")


_TORCH_KEYS = {
    "count": "step",
    "row_var": "row_var",
    "col_var": "col_var",
    "variance": "variance",
}

ROWS = (
    OptimizerRow(adafactor, "Adafactor", _TORCH_KEYS, optional=("row_var", "col_var", "variance")),
)


def _adafactor_init(params: Tree, **_: Any) -> ScaleByAdafactorState:
    zeros = zeros_like("scale_by_adafactor", params)

    def each(row: Any, vector: Any) -> Tree:
        return tree_map(lambda z: None if z is None else row(z) if z.ndim > 1 else vector(z), zeros)

    return ScaleByAdafactorState(
        counts_like(params),
        each(lambda z: z.new_zeros((*z.shape[:-1], 1)), lambda z: None),
        each(lambda z: z.new_zeros((*z.shape[:-2], 1, z.shape[-1])), lambda z: None),
        each(lambda z: None, lambda z: z),
    )


def _adafactor_update(
    updates: Tree,
    state: ScaleByAdafactorState,
    params: Tree,
    *,
    inplace: bool,
    **hyperparams: Any,
) -> tuple[Tree, ScaleByAdafactorState]:
    def formula(
        g: torch.Tensor,
        row: torch.Tensor | None,
        col: torch.Tensor | None,
        variance: torch.Tensor | None,
        param: torch.Tensor,
        *,
        tick: Tick,
        lr: Any,
        beta2_decay: Any,
        eps2: Any,
        d: Any,
        weight_decay: Any,
        eps1: Any = None,
    ) -> Any:
        if param.numel() == 0:  # nothing to take the mean of
            return g, row, col, variance
        tiny = torch.finfo(param.dtype).eps if eps1 is None else eps1
        keep = tick.derive(_kept, beta2_decay)
        square = g * g
        if row is None or col is None:
            variance = estimate = ema(variance, square, keep, inplace)
        else:
            row = ema(row, square.mean(-1, keepdim=True), keep, inplace)
            col = ema(col, square.mean(-2, keepdim=True), keep, inplace)
            estimate = row @ col / at_least(row.mean(-2, keepdim=True), tiny)
        direction = g * at_least(estimate, tiny * tiny).rsqrt()
        size = at_least(safe_sqrt(param.square().mean()), eps2)
        relative = size * fit(tick.derive(_relative_step, lr), size)
        step = direction * (-relative / (_rms(direction) / fit(d, size)).clamp_min(1.0))
        if not is_zero(weight_decay):
            step = step - param * fit(lr * weight_decay, param)
        return step, row, col, variance

    updates, *moments, count = leafwise(
        "scale_by_adafactor",
        formula,
        updates,
        *state[1:],
        counts=state.count,
        params=params,
        **hyperparams,
    )
    return updates, ScaleByAdafactorState(count, *moments)


def _rms(tensor: torch.Tensor) -> torch.Tensor:
    return safe_sqrt(tensor.square().mean())


def _kept(count: torch.Tensor, beta2_decay: Any) -> torch.Tensor:
    return 1 - count**beta2_decay


def _relative_step(count: torch.Tensor, lr: Any) -> torch.Tensor:
    return torch.minimum(torch.as_tensor(lr, dtype=torch.float64), count.rsqrt())
