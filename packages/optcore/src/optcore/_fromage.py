# SPDX-License-Identifier: Apache-2.0
"""Fromage: steps as long, layer by layer, as a fraction of the parameters."""

from __future__ import annotations

from typing import Any

import torch

from optcore._chain import chain, link
from optcore._hyperparams import Hyperparam, check_range
from optcore._leafwise import fit, leafwise
from optcore._param_scaling import scale_by_trust_ratio
from optcore._rows import OptimizerRow
from optcore._scaling import uphill
from optcore._transform import EmptyState, GradientTransformation, stateless_init
from optcore._tree import Tree


def fromage(
    lr: Hyperparam = 1e-2, min_norm: Hyperparam = 1e-6, *, maximize: bool = False
) -> GradientTransformation:
    r"""Fromage: a step of relative length :math:`\eta` in each leaf, then a contraction.

    With :math:`u_t` of :func:`scale_by_trust_ratio`, which is as long as :math:`\theta`:

    .. math::
        \theta' = \frac{\theta - \eta\,u_t}{\sqrt{1 + \eta^2}}

    Args:
        lr: Relative step :math:`\eta \ge 0`.
        min_norm: Lower bound >= 0 of both norms in the ratio.
        maximize: Ascend instead of descend.

    State:
        None of its own; counts where a hyperparameter is a schedule.

    Differentiable:
        In the gradients, the parameters and tensor hyperparameters, twice. A norm below
        ``min_norm`` counts as constant; with ``min_norm=0`` the derivative at a norm of 0 is that
        of the identity, see :func:`scale_by_trust_ratio`.

    Raises:
        TypeError: A hyperparameter is no number, schedule, tensor or tree of such.
        ValueError: A hyperparameter outside its range; ``update`` was given no ``params``.

    Differs:
        optax has no default for ``lr``; this one is the paper's.

    Example:
        >>> import torch
        >>> opt = fromage(lr=0.75)
        >>> params = [torch.tensor([2.0])]
        >>> opt.update([torch.tensor([5.0])], opt.init(params), params)[0]
        [tensor([-1.6000])]

    Reference:
        Bernstein et al., 2020, arXiv:2002.03432, Algorithm 1. Equals ``optax.fromage``.
    """
    check_range("fromage", "lr", lr, 0.0)
    step = GradientTransformation(
        stateless_init, _contracted_update, {"lr": lr}, name="fromage", needs_params=True
    )
    return chain(
        *uphill("fromage", maximize), link("fromage", scale_by_trust_ratio, min_norm), step
    ).named("fromage")


ROWS = (OptimizerRow(fromage, "Fromage"),)


def _contracted_update(
    updates: Tree, state: EmptyState, params: Tree, *, inplace: bool, lr: Any
) -> tuple[Tree, EmptyState]:
    (updates,) = leafwise("fromage", _contracted, updates, params=params, lr=lr)
    return updates, state


def _contracted(u: torch.Tensor, param: torch.Tensor, *, lr: Any) -> torch.Tensor:
    length = (1 + lr * lr) ** 0.5
    shrink = lr * lr / (length * (length + 1))  # 1 - 1 / length, without its cancellation
    return -(u * fit(lr / length, u) + param * fit(shrink, param))
