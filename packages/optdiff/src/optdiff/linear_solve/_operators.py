# SPDX-License-Identifier: Apache-2.0
"""Linear operators: on the leaves of trees, made of the tensors they hold, and on flat vectors.

A *factory* makes the product ``leaves -> leaves`` of an operator's tensors. That form can be
differentiated in the tensors, batched and transposed, and what is expensive (a linearization) is
done once per solve, when the product is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch

import treeops
from optcore import describe
from optdiff._explicit import Rebuild
from optdiff._implicit_rule import Leaves
from optdiff._trees import NAMESPACE, Tree

MatVec: TypeAlias = Callable[[Leaves], Leaves]
Factory: TypeAlias = Callable[[Leaves], MatVec]
Vector: TypeAlias = Callable[[torch.Tensor], torch.Tensor]  # a product on one flat vector
Shapes: TypeAlias = tuple[torch.Size, ...]


@dataclass(frozen=True)
class LeafOperator:
    """A function of trees as a factory; its image is checked."""

    who: str
    what: str
    rebuild: Rebuild
    spec: Any
    shapes: Shapes

    def __call__(self, tensors: Leaves) -> MatVec:
        function = self.rebuild(tensors)

        def matvec(v: Leaves) -> Leaves:
            with torch.enable_grad():  # the function may differentiate something inside
                image = function(treeops.tree_unflatten(self.spec, v))
            return like(self.who, f"the image of {self.what}", self.spec, self.shapes, image)

        return matvec


@dataclass(frozen=True)
class Ridge:
    """An operator plus a multiple of the identity."""

    factory: Factory
    ridge: float

    def __call__(self, tensors: Leaves) -> MatVec:
        matvec = self.factory(tensors)

        def shifted(v: Leaves) -> Leaves:
            return tuple(
                image + self.ridge * part for image, part in zip(matvec(v), v, strict=True)
            )

        return shifted


class Zeros(NamedTuple):
    """Recipe for zeros: a tensor kept in a factory would be a batched one outside its vmap."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    @staticmethod
    def like(leaves: Leaves) -> tuple[Zeros, ...]:
        """One for each leaf."""
        return tuple(Zeros(leaf.shape, leaf.dtype, leaf.device) for leaf in leaves)

    def make(self) -> torch.Tensor:
        """The zeros."""
        return torch.zeros(self.shape, dtype=self.dtype, device=self.device)


@dataclass(frozen=True)
class Transposed:
    """The transposed operator, by differentiating the product."""

    factory: Factory
    domain: tuple[Zeros, ...]

    def __call__(self, tensors: Leaves) -> MatVec:
        matvec = self.factory(tensors)

        def image(*v: torch.Tensor) -> Leaves:
            result = matvec(v)
            if not any(part.requires_grad for part in result):
                raise ValueError(
                    "linear_solve: expected an operator that torch can transpose, got one whose "
                    "image has no derivative in its argument; a call of torch.autograd.grad in it "
                    "needs create_graph=True, a symmetric operator solve_cg"
                )
            return result

        with torch.enable_grad():
            _, pull = torch.func.vjp(image, *(zeros.make() for zeros in self.domain))
        return pull


@dataclass(frozen=True)
class Normal:
    """``A^T A``."""

    factory: Factory
    domain: tuple[Zeros, ...]

    def __call__(self, tensors: Leaves) -> MatVec:
        matvec = self.factory(tensors)
        transposed = Transposed(self.factory, self.domain)(tensors)
        return lambda v: transposed(matvec(v))


class Flat:
    """Leaves of a tree as one vector, and back."""

    def __init__(self, leaves: Leaves) -> None:
        self._shapes = shapes(leaves)
        self._sizes = [leaf.numel() for leaf in leaves]
        self._dtypes = [leaf.dtype for leaf in leaves]
        dtype = leaves[0].dtype
        for leaf in leaves[1:]:
            dtype = torch.promote_types(dtype, leaf.dtype)
        self._dtype = dtype

    def ravel(self, leaves: Leaves) -> torch.Tensor:
        """One vector in the widest dtype."""
        return torch.cat([leaf.reshape(-1).to(self._dtype) for leaf in leaves])

    def unravel(self, vector: torch.Tensor) -> Leaves:
        """The leaves in their own dtypes."""
        parts = vector.split(self._sizes)
        return tuple(
            part.reshape(shape).to(dtype)
            for part, shape, dtype in zip(parts, self._shapes, self._dtypes, strict=True)
        )

    def operator(self, matvec: MatVec) -> Vector:
        """A product on vectors; numbers only."""

        def flat(vector: torch.Tensor) -> torch.Tensor:
            return self.ravel(matvec(self.unravel(vector))).detach()

        return flat


def linearize(function: Callable[..., Leaves], at: Leaves) -> MatVec:
    """Products of the Jacobian with tangents, by reverse mode twice.

    Forward mode would save work, but fails inside functions that call torch.autograd.grad.
    """
    with torch.enable_grad():
        out, pull = torch.func.vjp(function, *at)
        zeros = tuple(torch.zeros_like(part) for part in out)
        _, push_ = torch.func.vjp(lambda *u: pull(u), *zeros)
    return push_


def shapes(leaves: Leaves) -> Shapes:
    """Shape of each leaf."""
    return tuple(leaf.shape for leaf in leaves)


def like(who: str, what: str, spec: Any, expected: Shapes, tree: Tree) -> Leaves:
    """Leaves of a tree that must be like the unknowns."""
    leaves, found = treeops.tree_flatten(tree, namespace=NAMESPACE)
    if found != spec:
        raise ValueError(
            f"{who}: expected {what} to have the structure {spec}, got {found}; give it the same "
            "containers and keys"
        )
    for index, (leaf, shape) in enumerate(zip(leaves, expected, strict=True)):
        if not isinstance(leaf, torch.Tensor) or leaf.shape != shape:
            raise ValueError(
                f"{who}: expected {what} to have the shape {list(shape)}, got "
                f"{describe(leaf)}{at_path(tree, index)}; give it the shapes of the unknowns"
            )
    return tuple(leaves)


def check_unknowns(who: str, what: str, leaves: Sequence[Any], tree: Tree = None) -> Leaves:
    """Refuse what no linear system has on its right side."""
    if not leaves:
        raise ValueError(f"{who}: expected {what} to hold at least one tensor, got none")
    for index, leaf in enumerate(leaves):
        if not isinstance(leaf, torch.Tensor) or not leaf.is_floating_point():
            raise TypeError(
                f"{who}: expected {what} to hold real floating tensors, got {describe(leaf)}"
                f"{at_path(tree, index)}"
            )
        if leaf.device != leaves[0].device:
            raise ValueError(
                f"{who}: expected {what} on one device, got {leaves[0].device} and {leaf.device}"
            )
    return tuple(leaves)


def as_product(who: str, what: str, operator: Any, spec: Any, b: Leaves) -> Callable[[Tree], Tree]:
    """A function of trees for a function, a matrix, or a tree of matrices."""
    if callable(operator):
        return operator
    leaves, found = treeops.tree_flatten(operator, namespace=NAMESPACE)
    if found != spec:
        raise ValueError(
            f"{who}: expected {what} to be a function, a matrix, or a tree of matrices with the "
            f"structure {spec}, got {found}; to couple the leaves, pass a function of such trees"
        )
    for index, (leaf, part) in enumerate(zip(leaves, b, strict=True)):
        if not isinstance(leaf, torch.Tensor):
            raise TypeError(
                f"{who}: expected {what} to be a function, a matrix or a tree of matrices, got "
                f"{describe(leaf)}{at_path(operator, index)}"
            )
        if leaf.shape != part.shape[:1] * 2:
            raise ValueError(
                f"{who}: expected {what} of shape {list(part.shape[:1] * 2)} for a right side of "
                f"shape {list(part.shape)}, got {describe(leaf)}{at_path(operator, index)}; for "
                "another product, pass it as a function"
            )
        if leaf.dtype != part.dtype:
            raise TypeError(
                f"{who}: expected {what} in the precision of the right side, {describe(part)}, got "
                f"{describe(leaf)}{at_path(operator, index)}; convert one of them"
            )
    return partial(_tree_product, operator)


def _tree_product(matrices: Tree, v: Tree) -> Tree:
    return treeops.tree_map(_product, matrices, v, namespace=NAMESPACE)


def _product(matrix: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return matrix @ v if matrix.ndim else matrix * v


def at_path(tree: Tree, index: int, *, none_is_leaf: bool = False) -> str:
    """``, at ['enc'][0]`` for a leaf of a container."""
    accessors = treeops.tree_accessors(tree, namespace=NAMESPACE, none_is_leaf=none_is_leaf)
    path = accessors[index].codify("") if index < len(accessors) else ""
    return f", at {path}" if path else ""
