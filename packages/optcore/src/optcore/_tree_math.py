# SPDX-License-Identifier: Apache-2.0
"""Arithmetic on trees: leaf by leaf, on trees of one structure. ``None`` is no leaf here."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import torch

import treeops
from optcore._tree import NAMESPACE, Tree, describe

_map = partial(treeops.tree_map, namespace=NAMESPACE)


def acc_add(*args: Any) -> Any:
    """Sum of the arguments, from left to right.

    Example:
        >>> acc_add(1, 2, 3)
        6
    """
    return _accumulate("acc_add", operator.add, args)


def acc_mul(*args: Any) -> Any:
    """Product of the arguments, from left to right.

    Example:
        >>> acc_mul(2, 3, 4)
        24
    """
    return _accumulate("acc_mul", operator.mul, args)


def acc_matmul(*args: Any) -> Any:
    """Matrix product of the arguments, from left to right.

    Example:
        >>> acc_matmul(torch.ones(1, 2), torch.ones(2, 3), torch.ones(3))
        tensor([6.])
    """
    return _accumulate("acc_matmul", operator.matmul, args)


def _accumulate(who: str, operation: Callable[[Any, Any], Any], args: tuple[Any, ...]) -> Any:
    if not args:
        raise TypeError(f"{who}: expected at least one argument, got none")
    return reduce(operation, args)


def _leafwise(who: str, operation: Callable[..., Any], *trees: Tree) -> Tree:
    if not trees:
        raise TypeError(f"{who}: expected at least one tree, got none")
    try:
        return _map(operation, *trees)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{who}: {error}") from error


def tree_pos(tree: Tree) -> Tree:
    """``+x`` of every leaf.

    Example:
        >>> tree_pos({"a": 1})
        {'a': 1}
    """
    return _leafwise("tree_pos", operator.pos, tree)


def tree_neg(tree: Tree) -> Tree:
    """``-x`` of every leaf.

    Example:
        >>> tree_neg({"a": 1})
        {'a': -1}
    """
    return _leafwise("tree_neg", operator.neg, tree)


def tree_add(*trees: Tree) -> Tree:
    """Sum of trees.

    Args:
        trees: One or more trees of one structure.

    Raises:
        TypeError: No tree at all.
        ValueError: Different structures.

    Example:
        >>> tree_add({"a": 1}, {"a": 2}, {"a": 3})
        {'a': 6}
    """
    return _leafwise("tree_add", acc_add, *trees)


def tree_sub(minuend_tree: Tree, subtrahend_tree: Tree) -> Tree:
    """Difference of two trees.

    Raises:
        ValueError: Different structures.

    Example:
        >>> tree_sub({"a": 3}, {"a": 1})
        {'a': 2}
    """
    return _leafwise("tree_sub", operator.sub, minuend_tree, subtrahend_tree)


def tree_mul(*trees: Tree) -> Tree:
    """Product of trees, leaf by leaf.

    Args:
        trees: One or more trees of one structure.

    Raises:
        TypeError: No tree at all.
        ValueError: Different structures.

    Example:
        >>> tree_mul({"a": 2}, {"a": 3}, {"a": 4})
        {'a': 24}
    """
    return _leafwise("tree_mul", acc_mul, *trees)


def tree_matmul(*trees: Tree) -> Tree:
    """Matrix product of trees, leaf by leaf.

    Args:
        trees: One or more trees of one structure.

    Raises:
        TypeError: No tree at all.
        ValueError: Different structures.

    Example:
        >>> tree_matmul([torch.eye(2)], [torch.tensor([1.0, 2.0])])
        [tensor([1., 2.])]
    """
    return _leafwise("tree_matmul", acc_matmul, *trees)


def tree_scalar_mul(scalar: float | torch.Tensor, multiplicand_tree: Tree) -> Tree:
    """A tree times a number.

    Args:
        scalar: A number or a tensor ``()``.
        multiplicand_tree: The tree.

    Differentiable:
        In the tree and in a tensor ``scalar``.

    Example:
        >>> tree_scalar_mul(2, {"a": 3})
        {'a': 6}
    """
    return _leafwise("tree_scalar_mul", lambda x: scalar * x, multiplicand_tree)


def tree_add_scalar_mul(
    tree_x: Tree, tree_y: Tree, alpha: float | torch.Tensor | None = None
) -> Tree:
    r"""``x + alpha * y`` of every pair of leaves.

    Args:
        tree_x: The first tree.
        tree_y: The second, of the same structure.
        alpha: A number or a tensor ``()``; None means 1.

    Differentiable:
        In both trees and in a tensor ``alpha``.

    Raises:
        ValueError: Different structures.

    Example:
        >>> tree_add_scalar_mul({"a": 1}, {"a": 2}, 10)
        {'a': 21}
    """
    if alpha is None:
        return _leafwise("tree_add_scalar_mul", operator.add, tree_x, tree_y)
    return _leafwise("tree_add_scalar_mul", lambda x, y: x + alpha * y, tree_x, tree_y)


def tree_sub_scalar_mul(
    tree_x: Tree, tree_y: Tree, alpha: float | torch.Tensor | None = None
) -> Tree:
    r"""``x - alpha * y`` of every pair of leaves.

    Args:
        tree_x: The first tree.
        tree_y: The second, of the same structure.
        alpha: A number or a tensor ``()``; None means 1.

    Differentiable:
        In both trees and in a tensor ``alpha``.

    Raises:
        ValueError: Different structures.

    Example:
        >>> tree_sub_scalar_mul({"a": 1}, {"a": 2}, 10)
        {'a': -19}
    """
    if alpha is None:
        return _leafwise("tree_sub_scalar_mul", operator.sub, tree_x, tree_y)
    return _leafwise("tree_sub_scalar_mul", lambda x, y: x - alpha * y, tree_x, tree_y)


def tree_truediv(dividend_tree: Tree, divisor_tree: Tree) -> Tree:
    """Quotient of two trees, leaf by leaf.

    Raises:
        ValueError: Different structures.

    Example:
        >>> tree_truediv({"a": 3}, {"a": 2})
        {'a': 1.5}
    """
    return _leafwise("tree_truediv", operator.truediv, dividend_tree, divisor_tree)


def tree_vdot_real(tree_x: Tree, tree_y: Tree) -> torch.Tensor:
    r"""Real part of the inner product: :math:`\operatorname{Re} \sum_i \bar x_i y_i`.

    Args:
        tree_x: A tree of tensors.
        tree_y: Another, of the same structure and shapes.

    Returns:
        A tensor ``()``, on the device of the first leaf; 0 for trees without leaves.

    Differentiable:
        In both trees.

    Raises:
        TypeError: A leaf that is no tensor.
        ValueError: Different structures or shapes.

    Example:
        >>> tree_vdot_real([torch.tensor([1.0, 2.0])], [torch.tensor([3.0, 4.0])])
        tensor(11.)
    """
    products = treeops.tree_leaves(_leafwise("tree_vdot_real", _vdot_real, tree_x, tree_y))
    if not products:
        return torch.zeros(())
    return acc_add(*(product.to(products[0].device) for product in products))


def _vdot_real(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    for leaf in (x, y):
        if not isinstance(leaf, torch.Tensor):
            raise TypeError(f"expected tensors, got a {describe(leaf)} leaf")
    if x.shape != y.shape:
        raise ValueError(f"expected leaves of one shape, got {describe(x)} and {describe(y)}")
    product = (x.conj() * y).sum()
    return product.real if product.is_complex() else product


def tree_flatten_as_tuple(
    tree: Tree,
    is_leaf: Callable[[Any], bool] | None = None,
    *,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> tuple[tuple[Any, ...], treeops.PyTreeSpec]:
    """``treeops.tree_flatten`` with the leaves in a tuple.

    Args:
        tree: The tree.
        is_leaf: Whether to stop at a node.
        none_is_leaf: Whether None is a leaf.
        namespace: Where custom node types are looked up.

    Example:
        >>> tree_flatten_as_tuple({"b": 2, "a": 1})[0]
        (1, 2)
    """
    leaves, spec = treeops.tree_flatten(
        tree, is_leaf, none_is_leaf=none_is_leaf, namespace=namespace
    )
    return tuple(leaves), spec


def tree_wait(future_tree: Tree) -> Tree:
    """Wait for every future in a tree of ``torch.futures.Future``.

    Returns:
        The tree of their values.

    Raises:
        TypeError: A leaf that is no future.

    Example:
        >>> future = torch.futures.Future()
        >>> future.set_result(3)
        >>> tree_wait({"a": future})
        {'a': 3}
    """
    futures, spec = treeops.tree_flatten(future_tree, namespace=NAMESPACE)
    for future in futures:
        if not isinstance(future, torch.futures.Future):
            raise TypeError(
                f"tree_wait: expected a tree of torch futures, got a {describe(future)} leaf"
            )
    return spec.unflatten(torch.futures.wait_all(futures))
