# SPDX-License-Identifier: Apache-2.0
"""Shampoo and SOAP of vectors and matrices, as their papers write them."""

from __future__ import annotations

import torch
from torch import Tensor

from optcore.testing.reference._gradient import Gradient, signed


def shampoo(
    param: Tensor,
    grad: Gradient,
    steps: int,
    lr: float = 1e-1,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    eps: float = 1e-4,
    *,
    decay: float = 1.0,
    update_interval: int = 1,
    maximize: bool = False,
) -> Tensor:
    """Gupta et al., 2018, Algorithm 1, and for vectors its case of one axis."""
    shape, buffer = param.shape, torch.zeros_like(param)
    left = torch.zeros(shape[0], shape[0], dtype=param.dtype)
    right = torch.zeros(shape[-1], shape[-1], dtype=param.dtype)
    for step in range(steps):
        g = signed(grad(param, step), maximize) + weight_decay * param
        matrix = g.reshape(shape[0], -1)
        left = decay * left + matrix @ matrix.T
        right = decay * right + matrix.T @ matrix if param.ndim == 2 else right
        if step % update_interval == 0:
            first = _power(left, eps, -0.25 if param.ndim == 2 else -0.5)
            second = _power(right, eps, -0.25)
        u = (first @ matrix @ second if param.ndim == 2 else first @ matrix).reshape(shape)
        buffer = momentum * buffer + u
        param = param - lr * buffer
    return param


def soap(
    param: Tensor,
    grad: Gradient,
    steps: int,
    lr: float = 3e-3,
    betas: tuple[float, float] = (0.95, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    *,
    shampoo_beta: float = 0.95,
    precondition_frequency: int = 10,
    maximize: bool = False,
) -> Tensor:
    """Vyas et al., 2024, Algorithms 3 and 4; for vectors Adam."""
    b1, b2 = betas
    m, v = torch.zeros_like(param), torch.zeros_like(param)
    for step in range(steps):
        g = signed(grad(param, step), maximize)
        decayed = lr * weight_decay * param
        if step == 0 and param.ndim == 2:  # nothing moves before there is a basis
            left, right = (1 - shampoo_beta) * g @ g.T, (1 - shampoo_beta) * g.T @ g
            q_left, q_right = (torch.linalg.eigh(sums)[1].flip(1) for sums in (left, right))
        if step > 0:
            turned = q_left.T @ g @ q_right if param.ndim == 2 else g
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * turned**2
            top = q_left.T @ m @ q_right if param.ndim == 2 else m
            u = top / (1 - b1**step) / ((v / (1 - b2**step)).sqrt() + eps)
            param = param - lr * (q_left @ u @ q_right.T if param.ndim == 2 else u)
            if param.ndim == 2:
                left = shampoo_beta * left + (1 - shampoo_beta) * g @ g.T
                right = shampoo_beta * right + (1 - shampoo_beta) * g.T @ g
                if step % precondition_frequency == 0:
                    rows, columns = _falling(left, q_left), _falling(right, q_right)
                    q_left = torch.linalg.qr(left @ q_left[:, rows])[0]
                    q_right = torch.linalg.qr(right @ q_right[:, columns])[0]
                    v = v[rows][:, columns]
        param = param - decayed
    return param


def _falling(sums: Tensor, basis: Tensor) -> Tensor:
    return (basis.T @ sums @ basis).diagonal().argsort(descending=True)


def _power(matrix: Tensor, eps: float, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix + eps * torch.eye(len(matrix), dtype=matrix.dtype))
    return vectors @ torch.diag(values**exponent) @ vectors.T
