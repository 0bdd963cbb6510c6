# SPDX-License-Identifier: Apache-2.0
"""Rprop: steps whose size follows the sign of successive gradients."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from optcore._chain import chain, link
from optcore._hyperparams import Hyperparam, check_pair, check_range, is_number, is_scheduled
from optcore._leafwise import at_least, at_most, fit, full_like, leafwise, zeros_like
from optcore._rows import OptimizerRow
from optcore._scaling import scale, uphill
from optcore._transform import GradientTransformation
from optcore._tree import Tree


class ScaleByRpropState(NamedTuple):
    """Memory of :func:`scale_by_rprop`; both are trees like the parameters."""

    prev: Tree  # the last gradient, 0 where it turned
    step_size: Tree  # of each coordinate


def scale_by_rprop(
    lr: Hyperparam = 1e-2,
    etas: tuple[Hyperparam, Hyperparam] = (0.5, 1.2),
    step_sizes: tuple[Hyperparam, Hyperparam] = (1e-6, 50.0),
) -> GradientTransformation:
    r"""Replace each gradient by a step of adaptive size in the direction of its sign.

    A coordinate's size :math:`\Delta` grows by :math:`\eta_+` while the sign of its gradient stays,
    and shrinks by :math:`\eta_-` when it turns; that step is skipped:

    .. math::
        u_t = \Delta_t \operatorname{sign}(g_t) \,[g_t\,g_{t-1} \ge 0]

    Args:
        lr: Size of the first steps, >= 0: a start value, so no schedule.
        etas: :math:`(\eta_-, \eta_+)` with :math:`0 < \eta_- < 1 < \eta_+`.
        step_sizes: Smallest and largest :math:`\Delta`.

    State:
        ``prev``, ``step_size``: like ``params``.

    Differentiable:
        In ``lr``, ``etas`` and ``step_sizes``, twice. In the gradients the derivative is zero
        almost everywhere, and taken as zero everywhere.

    Raises:
        TypeError: ``lr`` is a schedule, or something no hyperparameter.
        ValueError: A hyperparameter outside its range.

    Differs:
        optax takes the last step back where the gradient turns.

    Example:
        >>> import torch
        >>> tx = scale_by_rprop(lr=0.1)
        >>> tx.update([torch.tensor([3.0, -2.0])], tx.init([torch.zeros(2)]))[0]
        [tensor([ 0.1000, -0.1000])]

    Reference:
        Riedmiller and Braun, 1993, "A direct adaptive method for faster backpropagation learning",
        in the form of ``torch.optim.Rprop``.
    """
    who = "scale_by_rprop"
    check_range(who, "lr", lr, 0.0)
    if is_scheduled(lr):
        raise TypeError(
            f"{who}: expected lr as a number, tensor or tree of such, got a schedule; it is "
            "the size of the first steps only"
        )
    down, up = check_pair(who, "etas", etas)
    if (is_number(down) and not 0.0 < down < 1.0) or (is_number(up) and not up > 1.0):
        raise ValueError(f"{who}: expected etas with 0 < etas[0] < 1 < etas[1], got {tuple(etas)}")
    check_range(who, "etas[0]", down, 0.0, 1.0)
    check_range(who, "etas[1]", up, 1.0)
    low, high = check_pair(who, "step_sizes", step_sizes)
    check_range(who, "step_sizes[0]", low, 0.0)
    if not (is_number(high) and high == math.inf):
        check_range(who, "step_sizes[1]", high, 0.0)
    if is_number(low) and is_number(high) and low > high:
        raise ValueError(
            f"{who}: expected step_sizes with 0 <= low <= high, got {tuple(step_sizes)}"
        )
    hyperparams = {"lr": lr, "shrink": down, "grow": up, "smallest": low, "largest": high}
    return GradientTransformation(_rprop_init, _rprop_update, hyperparams, name=who)


def rprop(
    lr: Hyperparam = 1e-2,
    etas: tuple[Hyperparam, Hyperparam] = (0.5, 1.2),
    step_sizes: tuple[Hyperparam, Hyperparam] = (1e-6, 50.0),
    *,
    maximize: bool = False,
) -> GradientTransformation:
    """Rprop: :func:`scale_by_rprop`, downhill; equals ``torch.optim.Rprop``.

    Args:
        lr: Size of the first steps, >= 0: a start value, so no schedule.
        etas: Factors by which a step shrinks and grows.
        step_sizes: Smallest and largest step.
        maximize: Ascend instead of descend.

    Raises:
        TypeError: ``lr`` is a schedule, or something no hyperparameter.
        ValueError: A hyperparameter outside its range.

    Example:
        >>> import torch
        >>> opt = rprop(lr=0.1)
        >>> opt.update([torch.full((1,), 3.0)], opt.init([torch.zeros(1)]))[0]
        [tensor([-0.1000])]

    Reference:
        Riedmiller and Braun, 1993.
    """
    return chain(
        *uphill("rprop", maximize),
        link("rprop", scale_by_rprop, lr, etas, step_sizes),
        scale(-1.0),
    ).named("rprop")


ROWS = (OptimizerRow(rprop, "Rprop", {"prev": "prev", "step_size": "step_size"}),)


def _rprop_init(params: Tree, *, lr: Any, **_: Any) -> ScaleByRpropState:
    who = "scale_by_rprop"
    return ScaleByRpropState(zeros_like(who, params), full_like(who, params, lr))


def _rprop_update(
    updates: Tree,
    state: ScaleByRpropState,
    params: Tree,
    *,
    inplace: bool,
    lr: Any,
    **hyperparams: Any,
) -> tuple[Tree, ScaleByRpropState]:
    def formula(
        g: torch.Tensor,
        prev: torch.Tensor,
        size: torch.Tensor,
        *,
        shrink: Any,
        grow: Any,
        smallest: Any,
        largest: Any,
    ) -> Any:
        g = g.to(prev.dtype)
        turned = g * prev
        kept = torch.ones_like(size)
        factor = torch.where(turned < 0, fit(shrink, size), kept)
        factor = torch.where(turned > 0, fit(grow, size), factor)
        size = at_most(at_least(size * factor, smallest), largest)
        g = torch.where(turned < 0, torch.zeros_like(g), g)
        return g.sign() * size, g, size

    updates, prev, size = leafwise("scale_by_rprop", formula, updates, *state, **hyperparams)
    return updates, ScaleByRpropState(prev, size)
