# SPDX-License-Identifier: Apache-2.0
"""Gradient descent, signs and averages, as textbooks write them."""

from __future__ import annotations

import torch
from torch import Tensor

from optcore.testing.reference._gradient import Gradient, signed


def sgd(
    param: Tensor,
    grad: Gradient,
    steps: int,
    lr: float = 1e-3,
    *,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
) -> Tensor:
    """Gradient descent, with momentum that starts at the first gradient."""
    buffer = None
    for step in range(steps):
        g = signed(grad(param, step), maximize) + weight_decay * param
        buffer = g if buffer is None else momentum * buffer + (1 - dampening) * g
        param = param - lr * (g + momentum * buffer if nesterov else buffer)
    return param


def rprop(
    param: Tensor,
    grad: Gradient,
    steps: int,
    lr: float = 1e-2,
    etas: tuple[float, float] = (0.5, 1.2),
    step_sizes: tuple[float, float] = (1e-6, 50.0),
    *,
    maximize: bool = False,
) -> Tensor:
    """Riedmiller and Braun, 1993, which skips the step where the gradient turns."""
    before, size = torch.zeros_like(param), torch.full_like(param, lr)
    for step in range(steps):
        g = signed(grad(param, step), maximize)
        same = (g * before).sign()
        grown, shrunk = (same > 0).to(param), (same < 0).to(param)
        factor = 1 + grown * (etas[1] - 1) + shrunk * (etas[0] - 1)
        size = (size * factor).clamp(*step_sizes)
        before = g * (same >= 0)
        param = param - before.sign() * size
    return param


def asgd(
    param: Tensor,
    grad: Gradient,
    steps: int,
    lr: float = 1e-2,
    lambd: float = 1e-4,
    alpha: float = 0.75,
    t0: float = 1e6,
    weight_decay: float = 0.0,
    *,
    maximize: bool = False,
) -> Tensor:
    """Polyak and Juditsky, 1992, before averaging: steps that shrink, and a decay.

    ``t0`` decides on the average only, which no step depends on.
    """
    for step in range(steps):
        g = signed(grad(param, step), maximize) + weight_decay * param
        rate = lr / (1 + lambd * lr * step) ** alpha
        param = param - rate * (g + lambd * param)
    return param


def lion(
    param: Tensor,
    grad: Gradient,
    steps: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 1e-3,
    *,
    maximize: bool = False,
) -> Tensor:
    """Chen et al., 2023, Algorithm 2."""
    b1, b2 = betas
    m = torch.zeros_like(param)
    for step in range(steps):
        g = signed(grad(param, step), maximize)
        u = (b1 * m + (1 - b1) * g).sign()
        m = b2 * m + (1 - b2) * g
        param = param - lr * (u + weight_decay * param)
    return param


def fromage(
    param: Tensor,
    grad: Gradient,
    steps: int,
    lr: float = 1e-2,
    min_norm: float = 1e-6,
    *,
    maximize: bool = False,
) -> Tensor:
    """Bernstein et al., 2020, Algorithm 1, with a lower bound of both norms."""
    for step in range(steps):
        g = signed(grad(param, step), maximize)
        u = g * param.norm().clamp(min=min_norm) / g.norm().clamp(min=min_norm)
        param = (param - lr * u) / (1 + lr**2) ** 0.5
    return param


def schedule_free_sgd(
    param: Tensor,
    grad: Gradient,
    steps: int,
    lr: float = 1.0,
    b1: float = 0.9,
    weight_decay: float = 0.0,
    *,
    warmup_steps: int = 0,
    weight_lr_power: float = 2.0,
    maximize: bool = False,
) -> Tensor:
    """Defazio et al., 2024, Algorithm 1, without a second moment: returns its y."""

    def move(y: Tensor, step: int) -> Tensor:
        return signed(grad(y, step), maximize) + weight_decay * y

    return _schedule_free(param, move, steps, lr, b1, warmup_steps, weight_lr_power)


def schedule_free_adamw(
    param: Tensor,
    grad: Gradient,
    steps: int,
    lr: float = 2.5e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    *,
    warmup_steps: int = 0,
    weight_lr_power: float = 2.0,
    maximize: bool = False,
) -> Tensor:
    """Defazio et al., 2024, Algorithm 1: returns its y."""
    v = torch.zeros_like(param)

    def move(y: Tensor, step: int) -> Tensor:
        nonlocal v
        g = signed(grad(y, step), maximize)
        v = betas[1] * v + (1 - betas[1]) * g**2
        return g / ((v / (1 - betas[1] ** (step + 1))).sqrt() + eps) + weight_decay * y

    return _schedule_free(param, move, steps, lr, betas[0], warmup_steps, weight_lr_power)


def _schedule_free(
    param: Tensor, move: Gradient, steps: int, lr: float, b1: float, warmup: int, power: float
) -> Tensor:
    x = y = z = param
    total = 0.0
    for step in range(steps):
        rate, following = (lr * min(t / warmup, 1) if warmup else lr for t in (step, step + 1))
        z = z - rate * move(y, step)
        weight = following**power
        total = total + weight
        x = x + weight / total * (z - x)
        y = b1 * x + (1 - b1) * z
    return y


def sign_sgd(
    param: Tensor, grad: Gradient, steps: int, lr: float = 1e-3, *, maximize: bool = False
) -> Tensor:
    """Bernstein et al., 2018, Algorithm 1."""
    for step in range(steps):
        param = param - lr * signed(grad(param, step), maximize).sign()
    return param


def signum(
    param: Tensor,
    grad: Gradient,
    steps: int,
    lr: float = 1e-3,
    momentum: float = 0.9,
    *,
    maximize: bool = False,
) -> Tensor:
    """Bernstein et al., 2018, Algorithm 2."""
    m = torch.zeros_like(param)
    for step in range(steps):
        m = momentum * m + (1 - momentum) * signed(grad(param, step), maximize)
        param = param - lr * m.sign()
    return param
