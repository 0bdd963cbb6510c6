# SPDX-License-Identifier: Apache-2.0
"""SOAP: Adam in the slowly turning eigenbasis of Shampoo's preconditioner."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from optcore._chain import link
from optcore._choice import check_int
from optcore._hyperparams import Hyperparam, check_betas, check_range
from optcore._leafwise import (
    Tick,
    counts_like,
    ema,
    ema_square,
    fit,
    leafwise,
    safe_sqrt,
    zeros_like,
)
from optcore._modes import under_transform
from optcore._moment_rules import bias_correction, check_moments, descend
from optcore._rows import OptimizerRow
from optcore._shampoo import along_axes, second_moment
from optcore._transform import GradientTransformation
from optcore._tree import Tree, tree_map


class ScaleBySoapState(NamedTuple):
    """State of :func:`scale_by_soap`; ``statistics`` and ``bases`` are lists, an entry per axis."""

    count: Tree  # i64[]: updates that this leaf had
    mu: Tree  # decayed average of gradients
    nu: Tree  # decayed average of squared gradients, in the eigenbasis
    statistics: Tree  # (n, n): decayed average of second moments; None for what is not turned
    bases: Tree  # (n, n): its eigenvectors, the columns; None alike


def scale_by_soap(
    b1: Hyperparam = 0.95,
    b2: Hyperparam = 0.95,
    eps: Hyperparam = 1e-8,
    shampoo_beta: Hyperparam = 0.95,
    precondition_frequency: int = 10,
    max_size: int = 1024,
) -> GradientTransformation:
    r"""Scale as Adam does, in the eigenbasis of the second moment of each axis.

    For a matrix, with :math:`Q_L, Q_R` from the update before:

    .. math::
        \mu_t &= b_1 \mu_{t-1} + (1 - b_1)\,G_t, \qquad
        \nu_t = b_2 \nu_{t-1} + (1 - b_2)\,(Q_L^\top G_t Q_R)^2 \\
        u_t &= Q_L \left(\frac{Q_L^\top \mu_t Q_R / (1 - b_1^t)}
            {\sqrt{\nu_t / (1 - b_2^t)} + \epsilon}\right) Q_R^\top \\
        L_t &= b_s L_{t-1} + (1 - b_s)\,G_t G_t^\top, \qquad
        R_t = b_s R_{t-1} + (1 - b_s)\,G_t^\top G_t

    Every ``precondition_frequency`` updates :math:`Q \leftarrow \operatorname{QR}(L_t Q)`, one step
    of power iteration, its columns (and :math:`\nu` with them) in the order of falling
    :math:`Q^\top L_t Q`. The first update is 0: it makes :math:`L_0, R_0` and their eigenvectors.
    Tensors of more axes have one basis for each; vectors get plain Adam.

    Args:
        b1: Decay of the momentum, in ``[0, 1)``.
        b2: Decay of the second moment, in ``[0, 1)``.
        eps: :math:`\epsilon \ge 0`, added to the root.
        shampoo_beta: :math:`b_s` in ``[0, 1)``.
        precondition_frequency: Updates between two steps of the power iteration, >= 1.
        max_size: Longer axes are not turned.

    State:
        ``count``, ``mu``, ``nu``: like ``params``, start at zero; ``statistics`` and ``bases``: for
        each parameter a list with a matrix ``(n, n)`` or None for each axis.

    Differentiable:
        In the gradients, ``b1``, ``b2`` and ``eps``, the bases taken as constants: eigenvectors
        have no derivative where eigenvalues coincide. So it is not that of the whole step.

    Raises:
        TypeError: A hyperparameter is no number, schedule, tensor or tree of such.
        ValueError: A hyperparameter outside its range.

    Example:
        >>> tx = scale_by_soap(b1=0.0)
        >>> params = [torch.zeros(2, 2)]
        >>> grad = torch.diag(torch.tensor([3.0, 4.0]))
        >>> first, state = tx.update([grad], tx.init(params))
        >>> first[0].abs().sum(), tx.update([grad], state)[0][0].round(decimals=3)
        (tensor(0.), tensor([[1., 0.],
                [0., 1.]]))

    Reference:
        Vyas et al., 2024, arXiv:2409.11321, Algorithms 3 and 4, with Adam's bias correction and the
        order of the authors' code.
    """
    who = "scale_by_soap"
    check_moments(who, b1=b1, b2=b2, eps=eps)
    check_range(who, "shampoo_beta", shampoo_beta, 0.0, 1.0, open_high=True)
    check_int(who, "precondition_frequency", precondition_frequency, 1)
    check_int(who, "max_size", max_size, 1)
    return GradientTransformation(
        _soap_init,
        _soap_update,
        {"b1": b1, "b2": b2, "eps": eps, "shampoo_beta": shampoo_beta},
        {"precondition_frequency": precondition_frequency, "max_size": max_size},
        name=who,
    )


def soap(
    lr: Hyperparam = 3e-3,
    betas: tuple[Hyperparam, Hyperparam] = (0.95, 0.95),
    eps: Hyperparam = 1e-8,
    weight_decay: Hyperparam = 0.01,
    *,
    shampoo_beta: Hyperparam = 0.95,
    precondition_frequency: int = 10,
    max_size: int = 1024,
    maximize: bool = False,
) -> GradientTransformation:
    """SOAP: :func:`scale_by_soap`, decoupled decay, learning rate.

    The first update, which makes the bases, is the decay alone.

    Args:
        lr: Learning rate >= 0.
        betas: ``(b1, b2)``, each in ``[0, 1)``.
        eps: Added to the root, >= 0.
        weight_decay: Decoupled rate >= 0; needs ``params`` in ``update``.
        shampoo_beta: Decay of the second moments of axes, in ``[0, 1)``.
        precondition_frequency: Updates between two turns of the basis, >= 1.
        max_size: Longest axis that is turned.
        maximize: Ascend instead of descend.

    State:
        That of :func:`scale_by_soap`, inside the tuple of a :func:`chain`.

    Differentiable:
        In the gradients and all hyperparameters but ``shampoo_beta``, the bases taken as constants:
        so it is not the derivative of the whole step. See :func:`scale_by_soap`.

    Raises:
        TypeError: A hyperparameter is no number, schedule, tensor or tree of such.
        ValueError: A hyperparameter outside its range.

    Example:
        >>> opt = soap(lr=0.1, weight_decay=0.0)
        >>> params = [torch.zeros(1, 1)]
        >>> _, state = opt.update([torch.full((1, 1), 3.0)], opt.init(params))
        >>> opt.update([torch.full((1, 1), 3.0)], state)[0]
        [tensor([[-0.1000]])]

    Reference:
        Vyas et al., 2024, arXiv:2409.11321, Algorithms 3 and 4.
    """
    b1, b2 = check_betas("soap", betas)
    rule = link("soap", scale_by_soap, b1, b2, eps, shampoo_beta, precondition_frequency, max_size)
    return descend("soap", rule, lr, weight_decay, maximize, decoupled=True)


ROWS = (OptimizerRow(soap, "SOAP", {"count": "step", "mu": "exp_avg", "nu": "exp_avg_sq"}),)


def _soap_init(
    params: Tree, *, precondition_frequency: int, max_size: int, **_: Any
) -> ScaleBySoapState:
    zeros = zeros_like("scale_by_soap", params)

    def per_axis(buffer: torch.Tensor | None) -> list[torch.Tensor | None] | None:
        if buffer is None:
            return None
        turned = buffer.ndim > 1
        return [buffer.new_zeros(n, n) if turned and n <= max_size else None for n in buffer.shape]

    return ScaleBySoapState(
        counts_like(params),
        zeros,
        zeros_like("scale_by_soap", params),
        tree_map(per_axis, zeros),
        tree_map(per_axis, zeros),
    )


def _soap_update(
    updates: Tree,
    state: ScaleBySoapState,
    params: Tree,
    *,
    inplace: bool,
    precondition_frequency: int,
    max_size: int,
    **hyperparams: Any,
) -> tuple[Tree, ScaleBySoapState]:
    frequency = precondition_frequency

    def formula(
        g: torch.Tensor,
        mu: torch.Tensor,
        nu: torch.Tensor,
        statistics: list[torch.Tensor | None],
        bases: list[torch.Tensor | None],
        *,
        tick: Tick,
        b1: Any,
        b2: Any,
        eps: Any,
        shampoo_beta: Any,
    ) -> Any:
        if not g.numel():
            return g, mu, nu, statistics, bases
        own = g.to(mu.dtype)
        moved = fit(tick.derive(_after_first), own)  # 0 in the first update
        mu = ema(mu, own * moved, b1, inplace)
        turned = along_axes(own, bases)
        nu = ema_square(nu, turned * moved, b2, inplace)
        first, second = tick.derive(_correction, b1), tick.derive(_correction, b2)
        root = safe_sqrt(nu * fit(1 / second, nu)) + fit(eps, nu) + (1 - moved)  # 0 / 0 at first
        step = along_axes(mu, bases) * fit(1 / first, mu) / root
        back = [None if q is None else q.mT for q in bases]
        update = along_axes(step, back).to(g.dtype) * fit(moved, g)
        fixed = own.detach()
        statistics = [
            None if old is None else ema(old, second_moment(fixed, axis), shampoo_beta, False)
            for axis, old in enumerate(statistics)
        ]
        new: list[torch.Tensor | None] = []
        for axis, (old, kept) in enumerate(zip(statistics, bases, strict=True)):
            basis, order = (None, None) if old is None else _turned(tick, old, kept, frequency)
            new.append(basis)
            nu = nu if order is None else nu.index_select(axis, order)
        return update, mu, nu, statistics, new

    updates, *rest, count = leafwise(  # leaf by leaf: what it keeps are lists
        "scale_by_soap", formula, updates, *state[1:], counts=state.count, **hyperparams
    )
    return updates, ScaleBySoapState(count, *rest)


def _turned(
    tick: Tick, statistics: torch.Tensor, basis: torch.Tensor, frequency: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The next basis: eigenvectors at first, then a step of power iteration now and then.

    And in what order its columns now stand: of falling eigenvalues, as QR assumes them.
    """
    statistics, basis = statistics.detach(), basis.detach()
    first, due = tick.count == 1, (tick.count - 1) % frequency == 0
    if not under_transform():
        if first or not due:
            return _eigenvectors(statistics) if first else basis, None
        order = _falling(statistics, basis)
        return _power_step(statistics, basis, order), order
    order = _falling(statistics, basis)
    later = torch.where(due, _power_step(statistics, basis, order), basis)
    unchanged = torch.arange(basis.shape[-1], device=basis.device)
    order = torch.where(due, order, unchanged)  # at first too, where nu is still zero
    return torch.where(first, _eigenvectors(statistics), later), order


def _eigenvectors(statistics: torch.Tensor) -> torch.Tensor:
    wide = statistics if statistics.dtype == torch.float64 else statistics.float()
    return torch.linalg.eigh(wide).eigenvectors.flip(-1).to(statistics.dtype)


def _falling(statistics: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    estimates = ((statistics @ basis) * basis).sum(0)
    return estimates.argsort(descending=True, stable=True)


def _power_step(statistics: torch.Tensor, basis: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    product = statistics @ basis.index_select(-1, order)
    wide = product if product.dtype == torch.float64 else product.float()
    return torch.linalg.qr(wide).Q.to(basis.dtype)


def _after_first(count: torch.Tensor) -> torch.Tensor:
    return (count > 1).to(torch.float64)


def _correction(count: torch.Tensor, decay: Any) -> torch.Tensor:
    """Adam's, of the updates that moved something; the first one did not."""
    return bias_correction((count - 1).clamp_min(1.0), decay)
