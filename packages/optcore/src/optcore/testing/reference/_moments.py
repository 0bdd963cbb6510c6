# SPDX-License-Identifier: Apache-2.0
"""Adam and its relatives, as textbooks write them."""

from __future__ import annotations

import torch
from torch import Tensor

from optcore.testing.reference._gradient import Gradient, signed


def adam(
    param: Tensor,
    grad: Gradient,
    steps: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    *,
    eps_root: float = 0.0,
    decoupled: bool = False,
    maximize: bool = False,
) -> Tensor:
    """Kingma and Ba, 2015, Algorithm 1; ``decoupled`` makes it Loshchilov and Hutter's AdamW."""
    b1, b2 = betas
    m, v = torch.zeros_like(param), torch.zeros_like(param)
    for step in range(steps):
        g = signed(grad(param, step), maximize)
        g = g if decoupled else g + weight_decay * param
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        m_hat, v_hat = m / (1 - b1 ** (step + 1)), v / (1 - b2 ** (step + 1))
        u = m_hat / ((v_hat + eps_root).sqrt() + eps)
        param = param - lr * (u + weight_decay * param if decoupled else u)
    return param


def adamw(
    param: Tensor, grad: Gradient, steps: int, *, weight_decay: float = 0.01, **options: float
) -> Tensor:
    """Loshchilov and Hutter, 2019, Algorithm 2."""
    return adam(param, grad, steps, weight_decay=weight_decay, decoupled=True, **options)


def adamax(
    param: Tensor,
    grad: Gradient,
    steps: int,
    lr: float = 2e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    *,
    decoupled: bool = False,
    maximize: bool = False,
) -> Tensor:
    """Kingma and Ba, 2015, Algorithm 2, with ``eps`` beside the absolute gradient."""
    b1, b2 = betas
    m, u = torch.zeros_like(param), torch.zeros_like(param)
    for step in range(steps):
        g = signed(grad(param, step), maximize)
        g = g if decoupled else g + weight_decay * param
        m, u = b1 * m + (1 - b1) * g, torch.maximum(b2 * u, g.abs() + eps)
        decay = lr * weight_decay * param if decoupled else 0.0
        param = param - lr / (1 - b1 ** (step + 1)) * m / u - decay
    return param


def adamaxw(
    param: Tensor, grad: Gradient, steps: int, *, weight_decay: float = 1e-4, **options: float
) -> Tensor:
    """The same with the decay of Loshchilov and Hutter, 2019."""
    return adamax(param, grad, steps, weight_decay=weight_decay, decoupled=True, **options)


def amsgrad(
    param: Tensor,
    grad: Gradient,
    steps: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    *,
    eps_root: float = 0.0,
    correct_max: bool = False,
    maximize: bool = False,
) -> Tensor:
    """Reddi et al., 2018: the largest second moment so far, corrected after or before the max."""
    b1, b2 = betas
    m, v, top = (torch.zeros_like(param) for _ in range(3))
    for step in range(steps):
        g = signed(grad(param, step), maximize) + weight_decay * param
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        c1, c2 = 1 - b1 ** (step + 1), 1 - b2 ** (step + 1)
        top = torch.maximum(top, v / c2 if correct_max else v)
        root = ((top if correct_max else top / c2) + eps_root).sqrt()
        param = param - lr * (m / c1) / (root + eps)
    return param


def nadam(
    param: Tensor,
    grad: Gradient,
    steps: int,
    lr: float = 2e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum_decay: float = 4e-3,
    decoupled_weight_decay: bool = False,
    *,
    constant_momentum: bool = False,
    maximize: bool = False,
) -> Tensor:
    """Dozat, 2016, Algorithm 8, with its schedule of the momentum or without."""
    b1, b2 = betas
    m, v, product = torch.zeros_like(param), torch.zeros_like(param), 1.0

    def momentum(t: int) -> float:
        return b1 if constant_momentum else b1 * (1 - 0.5 * 0.96 ** (t * momentum_decay))

    for step in range(steps):
        g = signed(grad(param, step), maximize)
        if decoupled_weight_decay:
            param = param * (1 - lr * weight_decay)
        else:
            g = g + weight_decay * param
        now, ahead = momentum(step + 1), momentum(step + 2)
        product = product * now
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        m_hat = ahead * m / (1 - product * ahead) + (1 - now) * g / (1 - product)
        param = param - lr * m_hat / ((v / (1 - b2 ** (step + 1))).sqrt() + eps)
    return param


def nadamw(
    param: Tensor, grad: Gradient, steps: int, *, weight_decay: float = 1e-4, **options: float
) -> Tensor:
    """Dozat, 2016, without the schedule, with the decay of Loshchilov and Hutter, 2019."""
    fixed = {"decoupled_weight_decay": True, "constant_momentum": True}
    return nadam(param, grad, steps, weight_decay=weight_decay, **fixed, **options)


def radam(
    param: Tensor,
    grad: Gradient,
    steps: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    *,
    correct_eps: bool = False,
    maximize: bool = False,
) -> Tensor:
    """Liu et al., 2020, Algorithm 2; ``eps`` before or after the bias correction."""
    b1, b2 = betas
    m, v, rho_inf = torch.zeros_like(param), torch.zeros_like(param), 2 / (1 - b2) - 1
    for step in range(steps):
        t = step + 1
        g = signed(grad(param, step), maximize)
        if decoupled_weight_decay:
            param = param * (1 - lr * weight_decay)
        else:
            g = g + weight_decay * param
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        u, correction = m / (1 - b1**t), 1 - b2**t
        rho = rho_inf - 2 * t * b2**t / correction
        if rho > 5:
            top, bottom = (rho - 4) * (rho - 2) * rho_inf, (rho_inf - 4) * (rho_inf - 2) * rho
            rectified = u * (top / bottom) ** 0.5
            if correct_eps:
                u = rectified / ((v / correction).sqrt() + eps)
            else:
                u = rectified * correction**0.5 / (v.sqrt() + eps)
        param = param - lr * u
    return param


def adabelief(
    param: Tensor,
    grad: Gradient,
    steps: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-16,
    weight_decay: float = 0.0,
    *,
    eps_root: float = 1e-16,
    maximize: bool = False,
) -> Tensor:
    """Zhuang et al., 2020, Algorithm 2, with separate constants."""
    b1, b2 = betas
    m, s = torch.zeros_like(param), torch.zeros_like(param)
    for step in range(steps):
        g = signed(grad(param, step), maximize) + weight_decay * param
        m = b1 * m + (1 - b1) * g
        s = b2 * s + (1 - b2) * (g - m) ** 2 + eps_root
        m_hat, s_hat = m / (1 - b1 ** (step + 1)), s / (1 - b2 ** (step + 1))
        param = param - lr * m_hat / (s_hat.sqrt() + eps)
    return param


def yogi(
    param: Tensor,
    grad: Gradient,
    steps: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-3,
    weight_decay: float = 0.0,
    *,
    initial_accumulator_value: float = 1e-6,
    maximize: bool = False,
) -> Tensor:
    """Zaheer et al., 2018, Algorithm 2, with bias correction."""
    b1, b2 = betas
    m = v = torch.full_like(param, initial_accumulator_value)
    for step in range(steps):
        g = signed(grad(param, step), maximize) + weight_decay * param
        m, v = b1 * m + (1 - b1) * g, v - (1 - b2) * (v - g**2).sign() * g**2
        m_hat, v_hat = m / (1 - b1 ** (step + 1)), v / (1 - b2 ** (step + 1))
        param = param - lr * m_hat / (v_hat.sqrt() + eps)
    return param


def adan(
    param: Tensor,
    grad: Gradient,
    steps: int,
    lr: float = 1e-3,
    betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    *,
    eps_root: float = 1e-8,
    maximize: bool = False,
) -> Tensor:
    """Xie et al., 2022, Algorithm 1, with bias correction and decoupled decay of the step."""
    b1, b2, b3 = betas
    m, d, n, before = (torch.zeros_like(param) for _ in range(4))
    for step in range(steps):
        t = step + 1
        g = signed(grad(param, step), maximize)
        change = torch.zeros_like(g) if step == 0 else g - before
        m, d = b1 * m + (1 - b1) * g, b2 * d + (1 - b2) * change
        n, before = b3 * n + (1 - b3) * (g + (1 - b2) * change) ** 2, g
        top = m / (1 - b1**t) + (1 - b2) * d / (1 - b2**t)
        u = top / ((n / (1 - b3**t) + eps_root).sqrt() + eps)
        param = param - lr * (u + weight_decay * param)
    return param


def novograd(
    param: Tensor,
    grad: Gradient,
    steps: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.25),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    *,
    eps_root: float = 0.0,
    maximize: bool = False,
) -> Tensor:
    """Ginsburg et al., 2019, Algorithm 1: one second moment for the whole tensor."""
    b1, b2 = betas
    m, v = torch.zeros_like(param), None
    for step in range(steps):
        g = signed(grad(param, step), maximize)
        square = (g**2).sum()
        v = square if v is None else b2 * v + (1 - b2) * square
        m = b1 * m + g / ((v + eps_root).sqrt() + eps) + weight_decay * param
        param = param - lr * m
    return param
