# SPDX-License-Identifier: Apache-2.0
"""Rprop: steps whose size follows the sign of successive gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from optcore._chain import chain
from optcore._hyperparams import check_range
from optcore._leafwise import full_like, leafwise, zeros_like
from optcore._rows import OptimizerRow
from optcore._scaling import scale
from optcore._transform import GradientTransformation
from optcore._tree import Tree


class ScaleByRpropState(NamedTuple):
    """Memory of :func:`scale_by_rprop`; both are trees like the parameters."""

    prev: Tree  # the last gradient, 0 where it turned
    step_size: Tree  # of each coordinate


def scale_by_rprop(
    lr: float = 1e-2,
    etas: tuple[float, float] = (0.5, 1.2),
    step_sizes: tuple[float, float] = (1e-6, 50.0),
) -> GradientTransformation:
    r"""Replace each gradient by a step of adaptive size in the direction of its sign.

    A coordinate's size :math:`\Delta` grows by :math:`\eta_+` while the sign of its gradient stays,
    and shrinks by :math:`\eta_-` when it turns; that step is skipped:

    .. math::
        u_t = \Delta_t \operatorname{sign}(g_t) \,[g_t\,g_{t-1} \ge 0]

    Args:
        lr: Size of the first steps, > 0.
        etas: :math:`(\eta_-, \eta_+)` with :math:`0 < \eta_- < 1 < \eta_+`.
        step_sizes: Smallest and largest :math:`\Delta`.

    State:
        ``prev``, ``step_size``: like ``params``.

    Differentiable:
        The derivative is zero almost everywhere, and taken as zero everywhere.

    Raises:
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
    if not (0.0 < etas[0] < 1.0 < etas[1]):
        raise ValueError(f"{who}: expected etas with 0 < etas[0] < 1 < etas[1], got {etas}")
    if not (0.0 <= step_sizes[0] <= step_sizes[1]):
        raise ValueError(f"{who}: expected step_sizes with 0 <= low <= high, got {step_sizes}")
    static = {"lr": lr, "etas": tuple(etas), "step_sizes": tuple(step_sizes)}
    return GradientTransformation(_rprop_init, _rprop_update, static=static, name=who)


def rprop(
    lr: float = 1e-2,
    etas: tuple[float, float] = (0.5, 1.2),
    step_sizes: tuple[float, float] = (1e-6, 50.0),
    *,
    maximize: bool = False,
) -> GradientTransformation:
    """Rprop: :func:`scale_by_rprop`, downhill; equals ``torch.optim.Rprop``.

    Args:
        lr: Size of the first steps, >= 0.
        etas: Factors by which a step shrinks and grows.
        step_sizes: Smallest and largest step.
        maximize: Ascend instead of descend.

    Raises:
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
        *([scale(-1.0)] if maximize else []),
        scale_by_rprop(lr, etas, step_sizes),
        scale(-1.0),
    ).named("rprop")


ROWS = (OptimizerRow(rprop, "Rprop", {"prev": "prev", "step_size": "step_size"}),)


def _rprop_init(params: Tree, *, lr: float, **_: Any) -> ScaleByRpropState:
    who = "scale_by_rprop"
    return ScaleByRpropState(zeros_like(who, params), full_like(who, params, lr))


def _rprop_update(
    updates: Tree,
    state: ScaleByRpropState,
    params: Tree,
    *,
    inplace: bool,
    lr: float,
    etas: tuple[float, float],
    step_sizes: tuple[float, float],
) -> tuple[Tree, ScaleByRpropState]:
    def formula(g: torch.Tensor, prev: torch.Tensor, size: torch.Tensor) -> Any:
        g = g.to(prev.dtype)
        turned = g * prev
        factor = torch.where(turned > 0, etas[1], torch.where(turned < 0, etas[0], 1.0))
        size = (size * factor.to(size.dtype)).clamp(*step_sizes)
        g = torch.where(turned < 0, torch.zeros_like(g), g)
        return g.sign() * size, g, size

    updates, prev, size = leafwise("scale_by_rprop", formula, updates, *state)
    return updates, ScaleByRpropState(prev, size)
