# SPDX-License-Identifier: Apache-2.0
"""AdEMAMix: Adam with a second, much slower average of gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from optcore._chain import link
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
from optcore._moment_rules import bias_correction, descend
from optcore._rows import OptimizerRow
from optcore._transform import GradientTransformation
from optcore._tree import Tree


class ScaleByAdemamixState(NamedTuple):
    """Moments kept by :func:`scale_by_ademamix`; every field is a tree like the parameters."""

    count: Tree  # i64[]: updates that this leaf had
    m1: Tree  # fast average of gradients
    m2: Tree  # slow average of gradients
    nu: Tree  # decayed average of squared gradients


def scale_by_ademamix(
    b1: Hyperparam = 0.9,
    b2: Hyperparam = 0.999,
    b3: Hyperparam = 0.9999,
    alpha: Hyperparam = 6.0,
    eps: Hyperparam = 1e-8,
    eps_root: Hyperparam = 0.0,
) -> GradientTransformation:
    r"""Scale by a mixture of a fast and a slow average of gradients.

    .. math::
        m^1_t &= b_1 m^1_{t-1} + (1 - b_1)\,g_t, \qquad m^2_t = b_3 m^2_{t-1} + (1 - b_3)\,g_t \\
        \nu_t &= b_2 \nu_{t-1} + (1 - b_2)\,g_t^2 \\
        u_t &= \frac{m^1_t / (1 - b_1^t) + \alpha\,m^2_t}
            {\sqrt{\nu_t / (1 - b_2^t) + \epsilon_r} + \epsilon}

    Args:
        b1: Decay of the fast average, in ``[0, 1)``.
        b2: Decay of the second moment, in ``[0, 1)``.
        b3: Decay of the slow average, in ``[0, 1)``; the paper warms it up: a schedule.
        alpha: Weight of the slow average, >= 0; the paper warms it up too.
        eps: :math:`\epsilon \ge 0`, added to the root.
        eps_root: :math:`\epsilon_r \ge 0`, added under the root.

    State:
        ``count``, ``m1``, ``m2``, ``nu``: like ``params``, start at zero. The slow average has no
        bias correction.

    Differentiable:
        In everything, twice; where the second moment is 0 its root has derivative 0.

    Raises:
        TypeError: A hyperparameter is no number, schedule, tensor or tree of such.
        ValueError: A hyperparameter outside its range.

    Example:
        >>> import torch
        >>> tx = scale_by_ademamix(alpha=0.0)
        >>> tx.update([torch.full((1,), 3.0)], tx.init([torch.zeros(1)]))[0]
        [tensor([1.])]

    Reference:
        Pagliardini et al., 2024, arXiv:2409.03137, Algorithm 1.
    """
    who = "scale_by_ademamix"
    for name, value in (("b1", b1), ("b2", b2), ("b3", b3)):
        check_range(who, name, value, 0.0, 1.0, open_high=True)
    for name, value in (("alpha", alpha), ("eps", eps), ("eps_root", eps_root)):
        check_range(who, name, value, 0.0)
    hyperparams = {"b1": b1, "b2": b2, "b3": b3, "alpha": alpha, "eps": eps, "eps_root": eps_root}
    return GradientTransformation(_ademamix_init, _ademamix_update, hyperparams, name=who)


def ademamix(
    lr: Hyperparam = 1e-3,
    betas: tuple[Hyperparam, Hyperparam, Hyperparam] = (0.9, 0.999, 0.9999),
    eps: Hyperparam = 1e-8,
    weight_decay: Hyperparam = 0.0,
    *,
    alpha: Hyperparam = 5.0,
    eps_root: Hyperparam = 0.0,
    mask: Tree | Callable[[Tree], Tree] | None = None,
    maximize: bool = False,
) -> GradientTransformation:
    """AdEMAMix: :func:`scale_by_ademamix`, decoupled decay, learning rate.

    Args:
        lr: Learning rate >= 0.
        betas: ``(b1, b2, b3)``, each in ``[0, 1)``.
        eps: Added to the root, >= 0.
        weight_decay: Decoupled rate >= 0; needs ``params`` in ``update``.
        alpha: Weight of the slow average, >= 0.
        eps_root: Added under the root, >= 0.
        mask: Which parameters decay; see :func:`add_decayed_weights`.
        maximize: Ascend instead of descend.

    State:
        That of :func:`scale_by_ademamix`, inside the tuple of a :func:`chain`.

    Differentiable:
        In everything, twice; see :func:`scale_by_ademamix`.

    Raises:
        TypeError: ``betas`` is not a triple.
        ValueError: A hyperparameter outside its range.

    Example:
        >>> import torch
        >>> opt = ademamix(lr=0.1, alpha=0.0)
        >>> opt.update([torch.full((1,), 3.0)], opt.init([torch.zeros(1)]))[0]
        [tensor([-0.1000])]

    Reference:
        Pagliardini et al., 2024, arXiv:2409.03137, Algorithm 1. Equals ``optax.contrib.ademamix``.
    """
    rule = link(
        "ademamix",
        scale_by_ademamix,
        *check_triple("ademamix", "betas", betas),
        alpha,
        eps,
        eps_root,
    )
    return descend("ademamix", rule, lr, weight_decay, maximize, decoupled=True, mask=mask)


ROWS = (
    OptimizerRow(
        ademamix,
        "AdEMAMix",
        {"count": "step", "m1": "exp_avg", "m2": "exp_avg_slow", "nu": "exp_avg_sq"},
    ),
)


def _ademamix_init(params: Tree, **_: Any) -> ScaleByAdemamixState:
    moments = (zeros_like("scale_by_ademamix", params) for _ in range(3))
    return ScaleByAdemamixState(counts_like(params), *moments)


@defers
def _ademamix_update(
    updates: Tree,
    state: ScaleByAdemamixState,
    params: Tree,
    *,
    inplace: bool,
    **hyperparams: Any,
) -> tuple[Tree, ScaleByAdemamixState]:
    def formula(
        g: Any,
        m1: Any,
        m2: Any,
        nu: Any,
        *,
        tick: Tick,
        b1: Any,
        b2: Any,
        b3: Any,
        alpha: Any,
        eps: Any,
        eps_root: Any,
    ) -> Any:
        m1, m2 = ema(m1, g, b1, inplace), ema(m2, g, b3, inplace)
        nu = ema_square(nu, g, b2, inplace)
        first, second = tick.derive(bias_correction, b1), tick.derive(bias_correction, b2)
        direction = add_scaled(m1 * fit(1 / first, m1), m2, alpha)
        square = nu * fit(1 / second, nu)
        square = square if is_zero(eps_root) else square + fit(eps_root, nu)
        return quotient(direction, root_plus(square, eps, inplace)), m1, m2, nu

    updates, *moments, count = leafwise(
        "scale_by_ademamix",
        formula,
        updates,
        *state[1:],
        counts=state.count,
        inplace=inplace,
        **hyperparams,
    )
    return updates, ScaleByAdemamixState(count, *moments)
