# SPDX-License-Identifier: Apache-2.0
"""What the checks run: parameters, a smooth field of gradients, a few steps, comparisons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from optcore._apply import apply_updates
from optcore._transform import GradientTransformation
from optcore._tree import (
    Tree,
    describe,
    map_tensors,
    path_to,
    tree_flatten,
    tree_leaves,
    tree_structure,
)
from optcore.testing._case import Case

TENSOR = torch.float64


def draw(case: Case, shapes: Sequence[tuple[int, ...]], offset: int = 0) -> list[Tensor]:
    """Parameters of these shapes, seeded by the case."""
    generator = torch.Generator("cpu").manual_seed(case.seed + offset)
    drawn = [torch.randn(s, generator=generator, dtype=TENSOR, device="cpu") for s in shapes]
    return [tensor.to(case.device) for tensor in drawn]  # the same numbers on every device


def hyperparameter(case: Case, value: float | list[float]) -> Tensor:
    """A number as a tensor."""
    return torch.tensor(value, dtype=TENSOR, device=case.device)


def start(case: Case) -> dict[str, Tensor]:
    """The parameters that every case takes: a matrix ``w`` and a vector ``b``."""
    shapes = {"w": (3, 2), "b": (1, 4) if case.matrices else (2,)}
    return dict(zip(shapes, draw(case, list(shapes.values())), strict=True))


def field(param: Tensor, step: int, scale: Any = 1.0) -> Tensor:
    """A gradient that is a smooth function of its parameter, and not zero."""
    slope = torch.linspace(0.5, 1.5, param.numel(), dtype=TENSOR, device="cpu")
    slope = slope.reshape(param.shape).to(param.device, param.dtype)
    return (param * slope).sin() * (1 + 0.5 * step) + 0.3 * scale * slope * (-1) ** step


def gradients(params: dict[str, Tensor], step: int, scale: Any = 1.0) -> dict[str, Tensor]:
    """:func:`field` for each parameter."""
    return {name: field(param, step, scale) for name, param in params.items()}


def unroll(
    tx: GradientTransformation,
    params: dict[str, Tensor],
    steps: int = 3,
    *,
    inplace: bool | None = False,
    overwrite: bool = False,
    scale: Any = 1.0,
) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """The updates of some steps, and the last parameters: ``params`` itself with ``overwrite``."""
    state = tx.init(params)
    seen = []
    for step in range(steps):
        grads = gradients(params, step, scale)
        updates, state = tx.update(grads, state, params, inplace=inplace)
        seen.append(map_tensors(Tensor.clone, updates) if overwrite else updates)
        params = apply_updates(params, updates, inplace=overwrite)
    return seen, params


def summary(
    case: Case,
    leaves: Sequence[Tensor],
    values: Sequence[Any],
    *,
    steps: int = 3,
    inplace: bool | None = None,
    scale: Any = 1.0,
) -> Tensor:
    """Two numbers that depend on every update: what the derivatives are taken of."""
    params = dict(zip("wb", leaves, strict=True))
    updates, last = unroll(case.build(values), params, steps, inplace=inplace, scale=scale)
    total = sum((u.sin() * (1 + k)).sum() for k, step in enumerate(updates) for u in step.values())
    return torch.stack([total, sum(p.cos().sum() for p in last.values())])


def leaves_at(tree: Tree) -> Iterator[tuple[str, Any]]:
    """Path and leaf, None included."""
    for index, leaf in enumerate(tree_leaves(tree)):
        yield path_to(tree, index), leaf


def compare(
    case: Case, check: str, found: Tree, expected: Tree, what: str, rtol: float, atol: float = 1e-13
) -> None:
    """Raise unless two trees have one structure and close tensors; None equals None."""
    if tree_structure(found) != tree_structure(expected):
        raise case.fail(check, f"{what} of the same structure", "another structure")
    for (path, ours), theirs in zip(leaves_at(found), tree_leaves(expected), strict=True):
        if not (isinstance(ours, Tensor) and isinstance(theirs, Tensor)):
            if ours is not theirs and ours != theirs:
                got = f"{describe(ours)} for {describe(theirs)}"
                raise case.fail(check, f"{what} to be equal", got, path)
        elif ours.shape != theirs.shape:
            got = f"{describe(ours)} for {describe(theirs)}"
            raise case.fail(check, f"{what} of one shape", got, path)
        elif ours.numel() and not torch.allclose(
            ours.double(), theirs.double(), rtol, atol, equal_nan=True
        ):
            error = (ours.double() - theirs.double()).abs().max().item()
            raise case.fail(check, f"{what} to be equal", f"a difference of {error:.2g}", path)


def snapshot(tree: Tree) -> list[Any]:
    """Copies of the tensors of a tree, to see later whether one was overwritten."""
    return [t.detach().clone() if isinstance(t, Tensor) else t for t in tree_flatten(tree)[0]]


def changed(tree: Tree, before: list[Any]) -> str | None:
    """Path of what differs from its snapshot, None if nothing does."""
    if len(tree_leaves(tree)) != len(before):
        return "the root"
    for (path, leaf), old in zip(leaves_at(tree), before, strict=True):
        if isinstance(leaf, Tensor) and not torch.equal(leaf, old):
            return path
    return None
