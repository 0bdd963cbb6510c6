# SPDX-License-Identifier: Apache-2.0
"""ADOPT: Adam whose second moment does not know the gradient that it scales."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from optcore._chain import link
from optcore._hyperparams import Hyperparam, check_betas, check_flag, check_range
from optcore._leafwise import (
    Tick,
    at_least,
    counts_like,
    ema,
    ema_square,
    leafwise,
    safe_sqrt,
    zeros_like,
)
from optcore._moment_rules import ScaleByAdamState, check_moments, descend
from optcore._rows import OptimizerRow
from optcore._transform import GradientTransformation
from optcore._tree import Tree, describe


def scale_by_adopt(
    b1: Hyperparam = 0.9,
    b2: Hyperparam = 0.9999,
    eps: Hyperparam = 1e-6,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: Callable[[torch.Tensor], torch.Tensor | float] | None = None,
) -> GradientTransformation:
    r"""Scale each gradient by the second moment of those before it, then average.

    From the second update on, :math:`t = 1, 2, \ldots`; the first one only sets
    :math:`\nu_0 = g_0^2` and moves nothing:

    .. math::
        c_t &= \operatorname{clip}\left(\frac{g_t}{\max(\sqrt{\nu_{t-1}}, \epsilon)},
            \pm\,t^{1/4}\right) \\
        \mu_t &= b_1 \mu_{t-1} + (1 - b_1)\,c_t, \qquad u_t = \mu_t \\
        \nu_t &= b_2 \nu_{t-1} + (1 - b_2)\,g_t^2

    Args:
        b1: Decay of the first moment, in ``[0, 1)``.
        b2: Decay of the second moment, in ``[0, 1)``.
        eps: :math:`\epsilon \ge 0`, the smallest root to divide by; 0 divides by zero where a
            gradient was zero.
        nesterov: Average :math:`c_t` in once more for the update.
        use_clipping: False leaves the clipping out, as the first version of the paper does.
        clip_value_fn: The bound as a function of :math:`t`, a float64 tensor ``()``; None means
            :math:`t^{1/4}`.

    State:
        ``count``, ``mu`` and ``nu``: like ``params``, start at zero.

    Differentiable:
        In everything, twice, where nothing is clipped; where the second moment is 0 its root has
        derivative 0.

    Raises:
        TypeError: A hyperparameter is no number, schedule, tensor or tree of such, or
            ``clip_value_fn`` not callable.
        ValueError: A hyperparameter outside its range.

    Example:
        >>> tx = scale_by_adopt(b1=0.0)
        >>> first, state = tx.update([torch.full((1,), 4.0)], tx.init([torch.zeros(1)]))
        >>> first, tx.update([torch.full((1,), 2.0)], state)[0]
        ([tensor([0.])], [tensor([0.5000])])

    Reference:
        Taniguchi et al., 2024, arXiv:2411.02853, Algorithm 2.
    """
    who = "scale_by_adopt"
    check_moments(who, b1=b1, b2=b2, eps=eps)
    check_flag(who, "nesterov", nesterov)
    check_flag(who, "use_clipping", use_clipping)
    if clip_value_fn is not None and not callable(clip_value_fn):
        raise TypeError(
            f"{who}: expected clip_value_fn as a function count -> bound, got "
            f"{describe(clip_value_fn)}"
        )
    return GradientTransformation(
        _adopt_init,
        _adopt_update,
        {"b1": b1, "b2": b2, "eps": eps},
        {"nesterov": nesterov, "use_clipping": use_clipping, "clip_value_fn": clip_value_fn},
        name=who,
    )


def adopt(
    lr: Hyperparam = 1e-3,
    betas: tuple[Hyperparam, Hyperparam] = (0.9, 0.9999),
    eps: Hyperparam = 1e-6,
    weight_decay: Hyperparam = 0.0,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: Callable[[torch.Tensor], torch.Tensor | float] | None = None,
    mask: Tree | Callable[[Tree], Tree] | None = None,
    maximize: bool = False,
) -> GradientTransformation:
    """ADOPT: :func:`scale_by_adopt`, decoupled decay, learning rate.

    Args:
        lr: Learning rate >= 0.
        betas: ``(b1, b2)``, each in ``[0, 1)``.
        eps: Smallest root to divide by, >= 0.
        weight_decay: Decoupled rate >= 0; needs ``params`` in ``update``.
        nesterov: See :func:`scale_by_adopt`.
        use_clipping: Bound the scaled gradients.
        clip_value_fn: The bound as a function of the count; None is the paper's.
        mask: Which parameters decay; see :func:`add_decayed_weights`.
        maximize: Ascend instead of descend.

    State:
        That of :func:`scale_by_adopt`, inside the tuple of a :func:`chain`.

    Differentiable:
        As :func:`scale_by_adopt`, and in ``lr`` and ``weight_decay``.

    Raises:
        TypeError: A hyperparameter is no number, schedule, tensor or tree of such.
        ValueError: A hyperparameter outside its range.

    Differs:
        optax has no weight decay here.

    Example:
        >>> opt = adopt(lr=0.1, betas=(0.0, 0.9))
        >>> _, state = opt.update([torch.full((1,), 4.0)], opt.init([torch.zeros(1)]))
        >>> opt.update([torch.full((1,), 2.0)], state)[0]
        [tensor([-0.0500])]

    Reference:
        Taniguchi et al., 2024, arXiv:2411.02853, Algorithm 2. Equals ``optax.contrib.adopt``.
    """
    check_range("adopt", "lr", lr, 0.0)
    b1, b2 = check_betas("adopt", betas)
    rule = link(
        "adopt",
        scale_by_adopt,
        b1,
        b2,
        eps,
        nesterov=nesterov,
        use_clipping=use_clipping,
        clip_value_fn=clip_value_fn,
    )
    return descend("adopt", rule, lr, weight_decay, maximize, decoupled=True, mask=mask)


ROWS = (OptimizerRow(adopt, "ADOPT", {"count": "step", "mu": "exp_avg", "nu": "exp_avg_sq"}),)


def _adopt_init(params: Tree, **_: Any) -> ScaleByAdamState:
    moments = (zeros_like("scale_by_adopt", params) for _ in range(2))
    return ScaleByAdamState(counts_like(params), *moments)


def _adopt_update(
    updates: Tree,
    state: ScaleByAdamState,
    params: Tree,
    *,
    inplace: bool,
    nesterov: bool,
    use_clipping: bool,
    clip_value_fn: Callable[..., Any] | None,
    **hyperparams: Any,
) -> tuple[Tree, ScaleByAdamState]:
    bound = partial(_bound, clip_value_fn or _fourth_root) if use_clipping else None
    formula = partial(_adopt, inplace=inplace, nesterov=nesterov, bound_at=bound)
    updates, mu, nu, count = leafwise(  # leaf by leaf: lists know no clamping from above
        "scale_by_adopt", formula, updates, state.mu, state.nu, counts=state.count, **hyperparams
    )
    return updates, ScaleByAdamState(count, mu, nu)


def _adopt(
    g: torch.Tensor,
    mu: torch.Tensor,
    nu: torch.Tensor,
    *,
    tick: Tick,
    inplace: bool,
    nesterov: bool,
    bound_at: Callable[..., Any] | None,
    b1: Any,
    b2: Any,
    eps: Any,
) -> Any:
    g = g if g.dtype == mu.dtype else g.to(mu.dtype)
    direction = g / at_least(safe_sqrt(nu), eps)
    if bound_at is not None:
        bound = torch.as_tensor(tick.derive(bound_at)).to(g.device, g.dtype)
        direction = direction.clamp(-bound, bound)
    decay = tick.derive(_decay_of_mu, b1)
    nu = ema_square(nu, g, tick.derive(_decay_of_nu, b2), inplace)
    mu = ema(mu, direction, decay, inplace)
    ahead = ema(mu, direction, decay, False) if nesterov else mu
    # an update outlives the moment
    return (ahead.clone() if inplace and ahead is mu else ahead), mu, nu


def _bound(clip_value_fn: Callable[..., Any], count: torch.Tensor) -> Any:
    return clip_value_fn(count - 1)


def _fourth_root(count: torch.Tensor) -> torch.Tensor:
    return count**0.25


def _decay_of_mu(count: torch.Tensor, b1: Any) -> torch.Tensor:
    """The first gradient is not averaged in: there is nothing yet to scale it by."""
    return 1 - (1 - b1) * (count > 1).to(count.dtype)


def _decay_of_nu(count: torch.Tensor, b2: Any) -> torch.Tensor:
    """The first gradient is taken whole."""
    return b2 * (count > 1).to(count.dtype)
