# SPDX-License-Identifier: Apache-2.0
"""Inverse roots of positive matrices, with derivatives where eigenvalues coincide too."""

from __future__ import annotations

from typing import Any

import torch


def inverse_root(matrix: torch.Tensor, start: torch.Tensor, power: int) -> torch.Tensor:
    r""":math:`X = A^{-1/p}` of :math:`A = H + \epsilon I`, :math:`H \succeq 0`, ``(n, n)``.

    :math:`H` is decomposed alone: rounding errors grow with its norm, and an :math:`\epsilon` below
    them would be lost in the sum. An eigenvalue that comes out negative is 0.

    The derivative of an eigendecomposition is infinite where two eigenvalues are equal, that of the
    root is not: it solves :math:`\sum_{k<p} X^k\,dX\,X^{p-1-k} = -X^p\,dA\,X^p`, whose matrix is
    diagonal and positive in the eigenbasis. Compiled, it is the decomposition, with its derivative.
    """
    if not matrix.numel():
        return matrix
    if torch.compiler.is_compiling():
        return _by_eigenvalues(matrix, start, power)
    return _InverseRoot.apply(matrix, start, power)


def _by_eigenvalues(matrix: torch.Tensor, start: torch.Tensor, power: int) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    values = values.clamp_min(0.0) + start
    return (vectors * values.pow(-1.0 / power).unsqueeze(-2)) @ vectors.mT


class _InverseRoot(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: torch.Tensor, start: torch.Tensor, power: int) -> torch.Tensor:
        return _by_eigenvalues(matrix, start, power)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: torch.Tensor) -> None:
        ctx.power = inputs[2]
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, cotangent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        (root,) = ctx.saved_tensors
        inverse = torch.linalg.matrix_power(root, ctx.power)
        solved = _Solve.apply(root, (cotangent + cotangent.mT) / 2, ctx.power)
        slope = -inverse @ solved @ inverse
        return slope, slope.diagonal().sum(), None

    @staticmethod
    def jvp(ctx: Any, tangent: Any, start_tangent: Any, _: None) -> torch.Tensor:
        (root,) = ctx.saved_tensors
        inverse = torch.linalg.matrix_power(root, ctx.power)
        moved = torch.zeros_like(root) if tangent is None else (tangent + tangent.mT) / 2
        if start_tangent is not None:
            moved = moved + start_tangent * torch.eye(root.shape[-1]).to(root)
        change = -inverse @ moved @ inverse
        return _Solve.apply(root, change, ctx.power)


def _products(root: torch.Tensor, change: torch.Tensor, power: int) -> torch.Tensor:
    r""":math:`\sum_{k<p} X^k D X^{p-1-k}`: what a change of the root does to its p-th power."""
    total, right = change, root
    for _ in range(power - 1):
        total, right = root @ total + change @ right, right @ root
    return total


class _Solve(torch.autograd.Function):
    """The change of the root that makes a given change of its power; linear and self-adjoint."""

    generate_vmap_rule = True

    @staticmethod
    def forward(root: torch.Tensor, target: torch.Tensor, power: int) -> torch.Tensor:
        values, vectors = torch.linalg.eigh(root)
        rows, columns = values.unsqueeze(-1), values.unsqueeze(-2)
        divisor = sum(rows**k * columns ** (power - 1 - k) for k in range(power))
        return vectors @ ((vectors.mT @ target @ vectors) / divisor) @ vectors.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: torch.Tensor) -> None:
        ctx.power = inputs[2]
        ctx.save_for_backward(inputs[0], output)
        ctx.save_for_forward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, cotangent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        root, solution = ctx.saved_tensors
        target = _Solve.apply(root, (cotangent + cotangent.mT) / 2, ctx.power)
        # derivative of _products in the root, times target: each root in each product
        slope = torch.zeros_like(root)
        powers = [torch.linalg.matrix_power(root, k) for k in range(ctx.power)]
        for k in range(ctx.power):
            for before in range(k):  # root^before . root . root^(k - 1 - before) left of solution
                left, right = powers[before], powers[k - 1 - before]
                rest = right @ solution @ powers[ctx.power - 1 - k]
                slope = slope + left.mT @ target @ rest.mT
            for after in range(ctx.power - 1 - k):
                left = powers[k] @ solution @ powers[after]
                slope = slope + left.mT @ target @ powers[ctx.power - 2 - k - after].mT
        slope = -(slope + slope.mT) / 2
        return slope, target, None

    @staticmethod
    def jvp(ctx: Any, root_tangent: Any, target_tangent: Any, _: None) -> torch.Tensor:
        root, solution = ctx.saved_tensors
        change = torch.zeros_like(solution) if target_tangent is None else target_tangent
        if root_tangent is not None:
            moved = _derivative_of_products(root, root_tangent, solution, ctx.power)
            change = change - moved
        return _Solve.apply(root, change, ctx.power)


def _derivative_of_products(
    root: torch.Tensor, tangent: torch.Tensor, change: torch.Tensor, power: int
) -> torch.Tensor:
    total, right = change, root
    total_dot, right_dot = torch.zeros_like(change), tangent
    for _ in range(power - 1):
        total_dot = tangent @ total + root @ total_dot + change @ right_dot
        total = root @ total + change @ right
        right, right_dot = right @ root, right_dot @ root + right @ tangent
    return total_dot
