# SPDX-License-Identifier: Apache-2.0
"""Gradient descent and AdamW under schedule-free averaging."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from optcore._chain import link
from optcore._choice import check_int
from optcore._hyperparams import Hyperparam, check_betas, check_range, is_scheduled
from optcore._leafwise import Tick, ema_square
from optcore._moment_rules import adam_step, descend, with_moments
from optcore._momentum import sgd
from optcore._rows import OptimizerRow
from optcore._schedule_free import check_interpolation, schedule_free
from optcore._transform import GradientTransformation
from optcore._tree import Tree, tree_map
from optcore._warmup import warmup_constant_schedule


class CorrectedRmsState(NamedTuple):
    """A count and a second moment; both are trees like the parameters."""

    count: Tree  # i64[]: updates that this leaf had
    nu: Tree  # decayed average of squared gradients


def schedule_free_sgd(
    lr: Hyperparam = 1.0,
    b1: Hyperparam = 0.9,
    weight_decay: Hyperparam = 0.0,
    *,
    warmup_steps: int = 0,
    weight_lr_power: Hyperparam = 2.0,
    state_dtype: torch.dtype | None = None,
    maximize: bool = False,
) -> GradientTransformation:
    """Gradient descent under :func:`schedule_free`.

    Args:
        lr: Learning rate >= 0; with ``warmup_steps`` what it rises to, which is no schedule.
        b1: As in :func:`schedule_free`, in ``(0, 1]``.
        weight_decay: L2 penalty >= 0, at the parameters.
        warmup_steps: Updates >= 0 in which the learning rate rises from 0.
        weight_lr_power: As in :func:`schedule_free`, >= 0.
        state_dtype: dtype of ``z``; None means that of the parameter.
        maximize: Ascend instead of descend.

    State:
        That of :func:`schedule_free`, inside a ``ScheduleState`` if anything is scheduled.

    Differentiable:
        In the gradients, the parameters and tensor hyperparameters, twice.

    Raises:
        TypeError: A hyperparameter is no number, schedule, tensor or tree of such.
        ValueError: A hyperparameter outside its range; ``update`` was given no ``params``.

    Example:
        >>> import torch
        >>> opt = schedule_free_sgd(lr=0.1)
        >>> params = [torch.zeros(1)]
        >>> opt.update([torch.full((1,), 3.0)], opt.init(params), params)[0]
        [tensor([-0.3000])]

    Reference:
        Defazio et al., 2024, arXiv:2405.15682, Algorithm 1 without its second moment. Equals
        ``optax.contrib.schedule_free_sgd``.
    """
    who = "schedule_free_sgd"
    check_interpolation(who, "b1", b1)
    lr = _warmed_up(who, lr, warmup_steps)
    base = link(who, sgd, lr, weight_decay=weight_decay, maximize=maximize).named(who)
    return link(who, schedule_free, base, lr, b1, weight_lr_power, state_dtype).named(who)


def schedule_free_adamw(
    lr: Hyperparam = 2.5e-3,
    betas: tuple[Hyperparam, Hyperparam] = (0.9, 0.999),
    eps: Hyperparam = 1e-8,
    weight_decay: Hyperparam = 0.0,
    *,
    warmup_steps: int = 0,
    weight_lr_power: Hyperparam = 2.0,
    state_dtype: torch.dtype | None = None,
    mask: Tree | Callable[[Tree], Tree] | None = None,
    maximize: bool = False,
) -> GradientTransformation:
    """AdamW without its first moment under :func:`schedule_free`.

    Args:
        lr: Learning rate >= 0; with ``warmup_steps`` what it rises to, which is no schedule.
        betas: ``b1`` of :func:`schedule_free`, in ``(0, 1]``, and the decay of the second moment,
            in ``[0, 1)``.
        eps: Added to the root, >= 0.
        weight_decay: Decoupled rate >= 0, at the parameters.
        warmup_steps: Updates >= 0 in which the learning rate rises from 0.
        weight_lr_power: As in :func:`schedule_free`, >= 0.
        state_dtype: dtype of ``z``; None means that of the parameter.
        mask: Which parameters decay; see :func:`add_decayed_weights`.
        maximize: Ascend instead of descend (the decay still shrinks).

    State:
        That of :func:`schedule_free`, inside a ``ScheduleState`` if anything is scheduled; the
        base optimizer keeps a count and a second moment.

    Differentiable:
        In the gradients, the parameters and tensor hyperparameters, twice; at zero gradients as
        :func:`scale_by_adam`.

    Raises:
        TypeError: A hyperparameter is no number, schedule, tensor or tree of such.
        ValueError: A hyperparameter outside its range; ``update`` was given no ``params``.

    Example:
        >>> import torch
        >>> opt = schedule_free_adamw(lr=0.1)
        >>> params = [torch.zeros(1)]
        >>> opt.update([torch.full((1,), 3.0)], opt.init(params), params)[0]
        [tensor([-0.1000])]

    Reference:
        Defazio et al., 2024, arXiv:2405.15682, Algorithm 1. Equals
        ``optax.contrib.schedule_free_adamw``.
    """
    who = "schedule_free_adamw"
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        check_betas(who, betas)
    check_interpolation(who, "betas[0]", betas[0])
    check_range(who, "betas[1]", betas[1], 0.0, 1.0, open_high=True)
    lr = _warmed_up(who, lr, warmup_steps)
    rule = with_moments(who, _corrected_rms, state=CorrectedRmsState, b2=betas[1], eps=eps)
    base = descend(who, rule, lr, weight_decay, maximize, decoupled=True, mask=mask)
    return link(who, schedule_free, base, lr, betas[0], weight_lr_power, state_dtype).named(who)


# names without their path, which a warm-up lengthens; both counts advance together, and "step" is
# what torch.optim does not cast when it loads
_TORCH_KEYS = {
    **{name: name for name in ("b1", "weight_sum", "max_lr", "z")},
    "step_count": "step",
    "count": "step",
    "nu": "exp_avg_sq",
}

ROWS = (
    OptimizerRow(schedule_free_sgd, "ScheduleFreeSGD", _TORCH_KEYS),
    OptimizerRow(schedule_free_adamw, "ScheduleFreeAdamW", _TORCH_KEYS),
)


def _warmed_up(who: str, lr: Hyperparam, warmup_steps: int) -> Hyperparam:
    check_range(who, "lr", lr, 0.0)
    check_int(who, "warmup_steps", warmup_steps, 0)
    if not warmup_steps:
        return lr
    if is_scheduled(lr):
        raise TypeError(
            f"{who}: expected lr as a number or tensor with warmup_steps={warmup_steps}, got a "
            "schedule; let it warm up by itself"
        )
    return tree_map(lambda leaf: warmup_constant_schedule(0.0, leaf, warmup_steps), lr)


def _corrected_rms(g: Any, nu: Any, *, tick: Tick, inplace: bool, b2: Any, eps: Any) -> Any:
    nu = ema_square(nu, g, b2, inplace)
    return adam_step(g, nu, tick, inplace, 0.0, b2, eps, 0.0), nu
