# SPDX-License-Identifier: Apache-2.0
"""Textbook formulas of the optimizers: a plain loop over one tensor, written from the papers.

``reference.adam(param, grad, steps, lr=0.1)`` takes ``steps`` steps from ``param`` with the
gradients ``grad(param, step)``, ``step`` counting from 0, and returns the last parameter. Options
are those of the functional form. Nothing is fast, nothing is shared, everything is out of place:
results carry their graph, so that derivatives can be compared too. Use float64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Gradient = Callable[[Tensor, int], Tensor]


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
        g = _signed(grad(param, step), maximize) + weight_decay * param
        buffer = g if buffer is None else momentum * buffer + (1 - dampening) * g
        param = param - lr * (g + momentum * buffer if nesterov else buffer)
    return param


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
        g = _signed(grad(param, step), maximize)
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
    maximize: bool = False,
) -> Tensor:
    """Kingma and Ba, 2015, Algorithm 2, with ``eps`` beside the absolute gradient."""
    b1, b2 = betas
    m, u = torch.zeros_like(param), torch.zeros_like(param)
    for step in range(steps):
        g = _signed(grad(param, step), maximize) + weight_decay * param
        m, u = b1 * m + (1 - b1) * g, torch.maximum(b2 * u, g.abs() + eps)
        param = param - lr / (1 - b1 ** (step + 1)) * m / u
    return param


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
        g = _signed(grad(param, step), maximize) + weight_decay * param
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
        g = _signed(grad(param, step), maximize)
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
        g = _signed(grad(param, step), maximize)
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
        g = _signed(grad(param, step), maximize) + weight_decay * param
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
        g = _signed(grad(param, step), maximize) + weight_decay * param
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
        g = _signed(grad(param, step), maximize)
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
        g = _signed(grad(param, step), maximize)
        square = (g**2).sum()
        v = square if v is None else b2 * v + (1 - b2) * square
        m = b1 * m + g / ((v + eps_root).sqrt() + eps) + weight_decay * param
        param = param - lr * m
    return param


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
        g = _signed(grad(param, step), maximize) + weight_decay * param
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
        g = _signed(grad(param, step), maximize) + weight_decay * param
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
        g = _signed(grad(param, step), maximize) + weight_decay * param
        squares = rho * squares + (1 - rho) * g**2
        u = ((moves + eps) / (squares + eps)).sqrt() * g
        moves = rho * moves + (1 - rho) * u**2
        param = param - lr * u
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
        g = _signed(grad(param, step), maximize)
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
        g = _signed(grad(param, step), maximize) + weight_decay * param
        rate = lr / (1 + lambd * lr * step) ** alpha
        param = param - rate * (g + lambd * param)
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
        g = _signed(grad(param, step), maximize)
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
        g = _signed(grad(param, step), maximize)
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
        g = _signed(grad(param, step), maximize)
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
        u = _signed(grad(param, step), maximize) + weight_decay * param
        u = lr * u * _trust(param, u, trust_coefficient, eps)
        buffer = momentum * buffer + u
        param = param - (u + momentum * buffer if nesterov else buffer)
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
        g = _signed(grad(param, step), maximize)
        u = (b1 * m + (1 - b1) * g).sign()
        m = b2 * m + (1 - b2) * g
        param = param - lr * (u + weight_decay * param)
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
        g = _signed(grad(param, step), maximize)
        v = torch.stack(covers).amin(0) + g**2
        axes = [
            [other for other in range(param.ndim) if other != axis] for axis in range(param.ndim)
        ]
        covers = [v.amax(others, keepdim=True).expand_as(v) if others else v for others in axes]
        m = momentum * m + (1 - momentum) * g / (v + 1e-8).sqrt()
        param = param - lr * m
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
        g = _signed(grad(param, step), maximize)
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
        return _signed(grad(y, step), maximize) + weight_decay * y

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
        g = _signed(grad(y, step), maximize)
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
        param = param - lr * _signed(grad(param, step), maximize).sign()
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
        m = momentum * m + (1 - momentum) * _signed(grad(param, step), maximize)
        param = param - lr * m.sign()
    return param


def _signed(gradient: Tensor, maximize: bool) -> Tensor:
    return -gradient if maximize else gradient


def _trust(param: Tensor, update: Tensor, coefficient: float = 1.0, eps: float = 0.0) -> Tensor:
    """Norm of the parameter over that of the step; 1 if either is 0."""
    sizes = param.norm().item(), update.norm().item()
    if 0.0 in sizes:
        return torch.ones_like(param.norm())
    return coefficient * param.norm() / (update.norm() + eps)
