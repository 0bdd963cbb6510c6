# SPDX-License-Identifier: Apache-2.0
"""Optimism: steps that count on the next gradient to change as the last one did."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from optcore._adam import scale_by_adam
from optcore._chain import chain, link
from optcore._deferred import defers
from optcore._hyperparams import Hyperparam, check_betas, check_flag, check_range
from optcore._leafwise import Tick, add_scaled, counts_like, fit, leafwise, zeros_like
from optcore._nadam import scale_by_nadam
from optcore._rows import OptimizerRow
from optcore._scaling import scale_by_learning_rate, uphill
from optcore._transform import GradientTransformation
from optcore._tree import Tree


class ScaleByOptimisticGradientState(NamedTuple):
    """What :func:`scale_by_optimistic_gradient` keeps; both are trees like the parameters."""

    count: Tree  # i64[]: updates that this leaf had
    previous_gradient: Tree


def scale_by_optimistic_gradient(
    alpha: Hyperparam = 1.0, beta: Hyperparam = 1.0
) -> GradientTransformation:
    r"""Add to each gradient its change since the last one.

    .. math::
        u_1 = \alpha\,g_1, \qquad u_t = \alpha\,g_t + \beta\,(g_t - g_{t-1}) \quad (t > 1)

    Args:
        alpha: Weight :math:`\alpha` of the gradient.
        beta: Weight :math:`\beta` of its change, the optimism.

    State:
        ``previous_gradient``: like ``params``, starts at zero; ``count``.

    Differentiable:
        In everything; linear in the gradients.

    Raises:
        TypeError: A hyperparameter is no number, schedule, tensor or tree of such.
        ValueError: A hyperparameter that is not finite.

    Example:
        >>> import torch
        >>> tx = scale_by_optimistic_gradient()
        >>> _, state = tx.update([torch.ones(1)], tx.init([torch.zeros(1)]))
        >>> tx.update([torch.full((1,), 3.0)], state)[0]  # 3 + (3 - 1)
        [tensor([5.])]

    Reference:
        Mokhtari et al., 2020, arXiv:1901.08511 (OGDA).
    """
    who = "scale_by_optimistic_gradient"
    check_range(who, "alpha", alpha)
    check_range(who, "beta", beta)
    return GradientTransformation(
        _optimistic_init, _optimistic_update, {"alpha": alpha, "beta": beta}, name=who
    )


def optimistic_gradient_descent(
    lr: Hyperparam = 1e-3,
    alpha: Hyperparam = 1.0,
    beta: Hyperparam = 1.0,
    *,
    maximize: bool = False,
) -> GradientTransformation:
    """Optimistic gradient descent: :func:`scale_by_optimistic_gradient` and a learning rate.

    It converges on bilinear games, where gradient descent and ascent circle.

    Args:
        lr: Learning rate >= 0.
        alpha: Weight of the gradient.
        beta: Weight of its change.
        maximize: Ascend instead of descend.

    State:
        That of :func:`scale_by_optimistic_gradient`, inside the tuple of a :func:`chain`.

    Differentiable:
        In everything.

    Raises:
        TypeError: A hyperparameter is no number, schedule, tensor or tree of such.
        ValueError: A hyperparameter outside its range.

    Example:
        >>> import torch
        >>> opt = optimistic_gradient_descent(lr=0.1)
        >>> opt.update([torch.ones(1)], opt.init([torch.zeros(1)]))[0]
        [tensor([-0.1000])]

    Reference:
        Mokhtari et al., 2020, arXiv:1901.08511 (OGDA). Equals
        ``optax.optimistic_gradient_descent``.
    """
    who = "optimistic_gradient_descent"
    check_range(who, "lr", lr, 0.0)
    return chain(
        *uphill(who, maximize),
        link(who, scale_by_optimistic_gradient, alpha, beta),
        scale_by_learning_rate(lr),
    ).named(who)


def optimistic_adam(
    lr: Hyperparam = 1e-3,
    betas: tuple[Hyperparam, Hyperparam] = (0.9, 0.999),
    eps: Hyperparam = 1e-8,
    *,
    alpha: Hyperparam = 1.0,
    beta: Hyperparam = 1.0,
    nesterov: bool = True,
    maximize: bool = False,
) -> GradientTransformation:
    """Adam's direction, made optimistic by :func:`scale_by_optimistic_gradient`.

    Args:
        lr: Learning rate >= 0.
        betas: ``(b1, b2)``, each in ``[0, 1)``.
        eps: Added to the root, >= 0.
        alpha: Weight of the direction.
        beta: Weight of its change.
        nesterov: The direction of :func:`nadamw` instead of that of :func:`adam`.
        maximize: Ascend instead of descend.

    State:
        Those of the direction's rule and of :func:`scale_by_optimistic_gradient`, inside the tuple
        of a :func:`chain`.

    Differentiable:
        As :func:`scale_by_adam`, and in ``lr``, ``alpha`` and ``beta``.

    Raises:
        TypeError: A hyperparameter is no number, schedule, tensor or tree of such.
        ValueError: A hyperparameter outside its range.

    Differs:
        This is ``optax.optimistic_adam_v2``. What optax calls ``optimistic_adam`` has the learning
        rate in the place of ``alpha``: ``beta`` is then its ``optimism / learning_rate``.

    Example:
        >>> import torch
        >>> opt = optimistic_adam(lr=0.1, nesterov=False)
        >>> opt.update([torch.full((1,), 3.0)], opt.init([torch.zeros(1)]))[0]
        [tensor([-0.1000])]

    Reference:
        Daskalakis et al., 2018, arXiv:1711.00141, Algorithm 1.
    """
    who = "optimistic_adam"
    b1, b2 = check_betas(who, betas)
    check_range(who, "lr", lr, 0.0)
    check_flag(who, "nesterov", nesterov)
    if nesterov:
        rule = link(who, scale_by_nadam, b1, b2, eps, constant_momentum=True)
    else:
        rule = link(who, scale_by_adam, b1, b2, eps)
    return chain(
        *uphill(who, maximize),
        rule,
        link(who, scale_by_optimistic_gradient, alpha, beta),
        scale_by_learning_rate(lr),
    ).named(who)


ROWS = (
    OptimizerRow(optimistic_gradient_descent, "OptimisticGradientDescent"),
    OptimizerRow(optimistic_adam, "OptimisticAdam"),
)


def _optimistic_init(params: Tree, **_: Any) -> ScaleByOptimisticGradientState:
    zeros = zeros_like("scale_by_optimistic_gradient", params)
    return ScaleByOptimisticGradientState(counts_like(params), zeros)


@defers
def _optimistic_update(
    updates: Tree,
    state: ScaleByOptimisticGradientState,
    params: Tree,
    *,
    inplace: bool,
    **hyperparams: Any,
) -> tuple[Tree, ScaleByOptimisticGradientState]:
    updates, previous, count = leafwise(
        "scale_by_optimistic_gradient",
        _optimistic,
        updates,
        state.previous_gradient,
        counts=state.count,
        inplace=inplace,
        **hyperparams,
    )
    return updates, ScaleByOptimisticGradientState(count, previous)


def _optimistic(g: Any, last: Any, *, tick: Tick, alpha: Any, beta: Any) -> Any:
    change = (g - last) * fit(tick.derive(_after_first), g)
    return add_scaled(g * fit(alpha, g), change, beta), g.clone()


def _after_first(count: torch.Tensor) -> torch.Tensor:
    return (count > 1).to(torch.float64)
