# SPDX-License-Identifier: Apache-2.0
"""Transformations that multiply: scale, schedules and learning rates."""

from __future__ import annotations

from typing import Any

import torch

from optcore._deferred import defers
from optcore._hyperparams import Hyperparam, Schedule, check_flag, check_range
from optcore._leafwise import leafwise, scaled
from optcore._transform import EmptyState, GradientTransformation, stateless_init
from optcore._tree import Tree, describe


def identity() -> GradientTransformation:
    """Return the updates as they are.

    Example:
        >>> import torch
        >>> tx = identity()
        >>> tx.update((torch.ones(1),), tx.init((torch.ones(1),)))[0]
        (tensor([1.]),)
    """
    return GradientTransformation(stateless_init, _identity_update, name="identity")


@defers
def _identity_update(
    updates: Tree, state: EmptyState, params: Tree, *, inplace: bool
) -> tuple[Tree, EmptyState]:
    return updates, state


def scale(step_size: Hyperparam) -> GradientTransformation:
    r"""Multiply every update: :math:`u = s\,g`.

    Args:
        step_size: The factor :math:`s`, any finite number.

    Differentiable:
        In the updates and in a tensor ``step_size``.

    Raises:
        TypeError: ``step_size`` is not a hyperparameter.
        ValueError: ``step_size`` is not finite.

    Example:
        >>> import torch
        >>> tx = scale(-0.5)
        >>> tx.update([torch.ones(2)], tx.init([torch.ones(2)]))[0]
        [tensor([-0.5000, -0.5000])]
    """
    check_range("scale", "step_size", step_size)
    return GradientTransformation(
        stateless_init, _scale_update, {"step_size": step_size}, name="scale"
    )


def scale_by_schedule(step_size_fn: Schedule) -> GradientTransformation:
    r"""Multiply every update by a schedule: :math:`u = s(t)\,g` for :math:`t = 0, 1, \ldots`.

    Args:
        step_size_fn: ``count -> factor``; ``count`` is an int64 tensor ``()`` of the updates so
            far, and the factor a number or a tensor.

    State:
        ``count``: updates so far, counted whether or not a leaf had a gradient.

    Differentiable:
        In the updates and through a tensor that the schedule returns.

    Raises:
        TypeError: ``step_size_fn`` is not callable.

    Example:
        >>> import torch
        >>> tx = scale_by_schedule(lambda count: 1.0 / (1 + count))
        >>> state = tx.init([torch.ones(1)])
        >>> _, state = tx.update([torch.ones(1)], state)
        >>> tx.update([torch.ones(1)], state)[0]
        [tensor([0.5000])]
    """
    if not callable(step_size_fn):
        raise TypeError(
            f"scale_by_schedule: expected a function count -> factor, got {describe(step_size_fn)};"
            " use scale for a constant"
        )
    return GradientTransformation(
        stateless_init, _scale_update, {"step_size": step_size_fn}, name="scale_by_schedule"
    )


def scale_by_learning_rate(lr: Hyperparam, *, flip_sign: bool = True) -> GradientTransformation:
    r"""Turn a direction into a step downhill: :math:`u = -\eta\,g`.

    Args:
        lr: Learning rate :math:`\eta \ge 0`.
        flip_sign: False keeps the sign, for updates that already point downhill.

    Differentiable:
        In the updates and in a tensor ``lr``.

    Raises:
        TypeError: ``lr`` is not a hyperparameter.
        ValueError: ``lr`` is negative or not finite.

    Example:
        >>> import torch
        >>> tx = scale_by_learning_rate(0.1)
        >>> tx.update([torch.ones(1)], tx.init([torch.ones(1)]))[0]
        [tensor([-0.1000])]
    """
    check_range("scale_by_learning_rate", "lr", lr, 0.0)
    return _by_learning_rate(lr, flip_sign=flip_sign)


def learning_rate_link(lr: Hyperparam, use_accelerated_op: bool) -> GradientTransformation:
    """The end of a chain; it may say, where no rule does, that a kernel is to take the steps."""
    if not use_accelerated_op:
        return scale_by_learning_rate(lr)
    check_range("scale_by_learning_rate", "lr", lr, 0.0)
    return _by_learning_rate(lr, flip_sign=True, use_accelerated_op=True)


def _by_learning_rate(lr: Hyperparam, **static: bool) -> GradientTransformation:
    name = "scale_by_learning_rate"
    return GradientTransformation(
        stateless_init, _learning_rate_update, {"lr": lr}, static, name=name
    )


def uphill(who: str, maximize: bool) -> list[GradientTransformation]:
    """What comes first in the chain of an optimizer that may maximize."""
    check_flag(who, "maximize", maximize)
    return [scale(-1.0)] if maximize else []


@defers
def _scale_update(
    updates: Tree, state: EmptyState, params: Tree, *, inplace: bool, step_size: Any
) -> tuple[Tree, EmptyState]:
    (updates,) = leafwise("scale", _scaled, updates, inplace=inplace, step_size=step_size)
    return updates, state


@defers
def _learning_rate_update(
    updates: Tree,
    state: EmptyState,
    params: Tree,
    *,
    inplace: bool,
    lr: Any,
    flip_sign: bool,
    use_accelerated_op: bool = False,
) -> tuple[Tree, EmptyState]:
    formula = _downhill if flip_sign else _scaled
    (updates,) = leafwise("scale_by_learning_rate", formula, updates, inplace=inplace, step_size=lr)
    return updates, state


def _scaled(grad: torch.Tensor, *, step_size: Any) -> torch.Tensor:
    return scaled(grad, step_size)


def _downhill(grad: torch.Tensor, *, step_size: Any) -> torch.Tensor:
    return scaled(grad, -step_size)
