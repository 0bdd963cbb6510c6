# SPDX-License-Identifier: Apache-2.0
"""Optimism, mixtures of averages and dual averaging, as textbooks write them."""

from __future__ import annotations

import torch
from torch import Tensor

from optcore.testing.reference._gradient import Gradient, signed


def noisy_sgd(
    param: Tensor,
    grad: Gradient,
    steps: int,
    lr: float = 1e-3,
    eta: float = 0.0,
    gamma: float = 0.55,
    seed: int = 0,
    *,
    maximize: bool = False,
) -> Tensor:
    """Neelakantan et al., 2015, with the noise left out: ``eta`` must be 0."""
    if eta != 0:
        raise ValueError(f"noisy_sgd: expected eta=0, got {eta}; noise has no formula")
    for step in range(steps):
        param = param - lr * signed(grad(param, step), maximize)
    return param


def optimistic_gradient_descent(
    param: Tensor,
    grad: Gradient,
    steps: int,
    lr: float = 1e-3,
    alpha: float = 1.0,
    beta: float = 1.0,
    *,
    maximize: bool = False,
) -> Tensor:
    """Mokhtari et al., 2020, OGDA."""
    last = None
    for step in range(steps):
        g = signed(grad(param, step), maximize)
        last = g if last is None else last
        param = param - lr * ((alpha + beta) * g - beta * last)
        last = g
    return param


def optimistic_adam(
    param: Tensor,
    grad: Gradient,
    steps: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    nesterov: bool = True,
    maximize: bool = False,
) -> Tensor:
    """Daskalakis et al., 2018, Algorithm 1, around Adam or Nesterov Adam."""
    b1, b2 = betas
    m, v, last = torch.zeros_like(param), torch.zeros_like(param), None
    for step in range(steps):
        t = step + 1
        g = signed(grad(param, step), maximize)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        top = m / (1 - b1**t)
        if nesterov:
            top = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        u = top / ((v / (1 - b2**t)).sqrt() + eps)
        last = u if last is None else last
        param = param - lr * ((alpha + beta) * u - beta * last)
        last = u
    return param


def ademamix(
    param: Tensor,
    grad: Gradient,
    steps: int,
    lr: float = 1e-3,
    betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    *,
    alpha: float = 5.0,
    eps_root: float = 0.0,
    maximize: bool = False,
) -> Tensor:
    """Pagliardini et al., 2024, Algorithm 1."""
    b1, b2, b3 = betas
    fast, slow, v = (torch.zeros_like(param) for _ in range(3))
    for step in range(steps):
        t = step + 1
        g = signed(grad(param, step), maximize)
        fast, slow = b1 * fast + (1 - b1) * g, b3 * slow + (1 - b3) * g
        v = b2 * v + (1 - b2) * g**2
        u = (fast / (1 - b1**t) + alpha * slow) / ((v / (1 - b2**t) + eps_root).sqrt() + eps)
        param = param - lr * (u + weight_decay * param)
    return param


def adopt(
    param: Tensor,
    grad: Gradient,
    steps: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.9999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    maximize: bool = False,
) -> Tensor:
    """Taniguchi et al., 2024, Algorithm 2."""
    b1, b2 = betas
    m = torch.zeros_like(param)
    for step in range(steps):
        g = signed(grad(param, step), maximize)
        if step == 0:
            v, u = g**2, torch.zeros_like(param)
        else:
            c = g / v.sqrt().clamp(min=eps)
            c = c.clamp(-(step**0.25), step**0.25) if use_clipping else c
            m, v = b1 * m + (1 - b1) * c, b2 * v + (1 - b2) * g**2
            u = b1 * m + (1 - b1) * c if nesterov else m
        param = param - lr * (u + weight_decay * param)
    return param


def madgrad(
    param: Tensor,
    grad: Gradient,
    steps: int,
    lr: float = 1e-2,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    eps: float = 1e-6,
    *,
    maximize: bool = False,
) -> Tensor:
    """Defazio and Jelassi, 2021, Algorithm 1."""
    start, s, v = param, torch.zeros_like(param), torch.zeros_like(param)
    for step in range(steps):
        g = signed(grad(param, step), maximize) + weight_decay * param
        weight = (lr + eps) * (step + 1) ** 0.5
        s, v = s + weight * g, v + weight * g**2
        z = start - s / (v ** (1 / 3) + eps)
        param = momentum * param + (1 - momentum) * z
    return param
