# SPDX-License-Identifier: Apache-2.0
"""Steps scaled by sums of squares or norms, as textbooks write them."""

from __future__ import annotations

import torch
from torch import Tensor

from optcore.testing.reference._gradient import Gradient, signed


def rmsprop(
    param: Tensor,
    grad: Gradient,
    steps: int,
    lr: float = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
    *,
    initial_scale: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
) -> Tensor:
    """Hinton, 2012; ``centered`` divides by the standard deviation."""
    v = torch.full_like(param, initial_scale)
    mean, buffer = torch.zeros_like(param), torch.zeros_like(param)
    for step in range(steps):
        g = signed(grad(param, step), maximize) + weight_decay * param
        v, mean = alpha * v + (1 - alpha) * g**2, alpha * mean + (1 - alpha) * g
        u = g / ((v - mean**2 if centered else v).sqrt() + eps)
        buffer = momentum * buffer + u
        param = param - lr * (u + momentum * buffer if nesterov else buffer)
    return param


def adagrad(
    param: Tensor,
    grad: Gradient,
    steps: int,
    lr: float = 1e-2,
    lr_decay: float = 0.0,
    weight_decay: float = 0.0,
    initial_accumulator_value: float = 0.0,
    eps: float = 1e-10,
    *,
    maximize: bool = False,
) -> Tensor:
    """Duchi et al., 2011."""
    total = torch.full_like(param, initial_accumulator_value)
    for step in range(steps):
        g = signed(grad(param, step), maximize) + weight_decay * param
        total = total + g**2
        param = param - lr / (1 + step * lr_decay) * g / (total.sqrt() + eps)
    return param


def adadelta(
    param: Tensor,
    grad: Gradient,
    steps: int,
    lr: float = 1.0,
    rho: float = 0.9,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    *,
    maximize: bool = False,
) -> Tensor:
    """Zeiler, 2012, Algorithm 1."""
    squares, moves = torch.zeros_like(param), torch.zeros_like(param)
    for step in range(steps):
        g = signed(grad(param, step), maximize) + weight_decay * param
        squares = rho * squares + (1 - rho) * g**2
        u = ((moves + eps) / (squares + eps)).sqrt() * g
        moves = rho * moves + (1 - rho) * u**2
        param = param - lr * u
    return param


def adafactor(
    param: Tensor,
    grad: Gradient,
    steps: int,
    lr: float = 1e-2,
    beta2_decay: float = -0.8,
    eps: tuple[float | None, float] = (None, 1e-3),
    d: float = 1.0,
    weight_decay: float = 0.0,
    *,
    maximize: bool = False,
) -> Tensor:
    """Shazeer and Stern, 2018, Algorithms 4 (matrices) and 5 (others)."""
    tiny = torch.finfo(param.dtype).eps if eps[0] is None else eps[0]
    v = row = col = 0.0
    for step in range(steps):
        g = signed(grad(param, step), maximize)
        keep = 1 - (step + 1.0) ** beta2_decay
        if param.ndim > 1:
            row = keep * row + (1 - keep) * (g**2).mean(-1, keepdim=True)
            col = keep * col + (1 - keep) * (g**2).mean(-2, keepdim=True)
            v = row * col / row.mean(-2, keepdim=True).clamp(min=tiny)
        else:
            v = keep * v + (1 - keep) * g**2
        u = g / v.clamp(min=tiny**2).sqrt()
        scale = (param**2).mean().sqrt().clamp(min=eps[1]) * min(lr, (step + 1) ** -0.5)
        u = u / ((u**2).mean().sqrt() / d).clamp(min=1.0)
        param = param - scale * u - lr * weight_decay * param
    return param


def muon(
    param: Tensor,
    grad: Gradient,
    steps: int,
    lr: float = 1e-3,
    weight_decay: float = 0.1,
    momentum: float = 0.95,
    nesterov: bool = True,
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
    eps: float = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: str | None = None,
    *,
    ns_dtype: None = None,
    maximize: bool = False,
) -> Tensor:
    """Jordan et al., 2024, with the Newton-Schulz iteration in the precision of the parameter."""
    a, b, c = ns_coefficients
    rows, columns = param.shape
    factor = 0.2 * max(rows, columns) ** 0.5
    if adjust_lr_fn != "match_rms_adamw":
        factor = max(1.0, rows / columns) ** 0.5
    buffer = torch.zeros_like(param)
    for step in range(steps):
        g = signed(grad(param, step), maximize)
        buffer = momentum * buffer + (1 - momentum) * g
        x = momentum * buffer + (1 - momentum) * g if nesterov else buffer
        x = x / x.norm().clamp(min=eps)
        for _ in range(ns_steps):
            gram = x @ x.T if rows <= columns else x.T @ x
            poly = b * gram + c * gram @ gram
            x = a * x + (poly @ x if rows <= columns else x @ poly)
        param = param - lr * (factor * x + weight_decay * param)
    return param


def lamb(
    param: Tensor,
    grad: Gradient,
    steps: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    *,
    eps_root: float = 0.0,
    maximize: bool = False,
) -> Tensor:
    """You et al., 2020, Algorithm 2."""
    b1, b2 = betas
    m, v = torch.zeros_like(param), torch.zeros_like(param)
    for step in range(steps):
        g = signed(grad(param, step), maximize)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        m_hat, v_hat = m / (1 - b1 ** (step + 1)), v / (1 - b2 ** (step + 1))
        u = m_hat / ((v_hat + eps_root).sqrt() + eps) + weight_decay * param
        param = param - lr * u * _trust(param, u)
    return param


def lars(
    param: Tensor,
    grad: Gradient,
    steps: int,
    lr: float = 1e-3,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    trust_coefficient: float = 1e-3,
    eps: float = 0.0,
    maximize: bool = False,
) -> Tensor:
    """You et al., 2017, Algorithm 1, with the learning rate inside the momentum."""
    buffer = torch.zeros_like(param)
    for step in range(steps):
        u = signed(grad(param, step), maximize) + weight_decay * param
        u = lr * u * _trust(param, u, trust_coefficient, eps)
        buffer = momentum * buffer + u
        param = param - (u + momentum * buffer if nesterov else buffer)
    return param


def sm3(
    param: Tensor,
    grad: Gradient,
    steps: int,
    lr: float = 1e-3,
    momentum: float = 0.9,
    *,
    maximize: bool = False,
) -> Tensor:
    """Anil et al., 2019, SM3-II, covered by the slices along each axis."""
    m, covers = torch.zeros_like(param), [torch.zeros_like(param)] * param.ndim
    for step in range(steps):
        g = signed(grad(param, step), maximize)
        v = torch.stack(covers).amin(0) + g**2
        axes = [
            [other for other in range(param.ndim) if other != axis] for axis in range(param.ndim)
        ]
        covers = [v.amax(others, keepdim=True).expand_as(v) if others else v for others in axes]
        m = momentum * m + (1 - momentum) * g / (v + 1e-8).sqrt()
        param = param - lr * m
    return param


def _trust(param: Tensor, update: Tensor, coefficient: float = 1.0, eps: float = 0.0) -> Tensor:
    """Norm of the parameter over that of the step; 1 if either is 0."""
    sizes = param.norm().item(), update.norm().item()
    if 0.0 in sizes:
        return torch.ones_like(param.norm())
    return coefficient * param.norm() / (update.norm() + eps)
