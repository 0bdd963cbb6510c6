# SPDX-License-Identifier: Apache-2.0
"""Running one formula over the leaves of a tree, and the leaf operations formulas are made of.

Every leaf operation exists once and takes the mode: out of place it is differentiable, in place it
overwrites its first argument (a state buffer) and is called without a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from optcore._hyperparams import Hyperparam, per_leaf
from optcore._tree import Tree, describe, flatten_like, tree_flatten, tree_map, tree_unflatten


def leafwise(
    who: str,
    formula: Callable[..., Any],
    updates: Tree,
    *states: Tree,
    params: Tree = None,
    **hyperparams: Hyperparam,
) -> tuple[Tree, ...]:
    """Apply ``formula(g, *buffers[, p], **hyperparams) -> (update, *buffers)`` to every leaf.

    Leaves whose gradient is None keep their buffers. A hyperparameter that is a prefix tree gives
    each leaf its own value.

    Args:
        who: Name for errors.
        formula: The leaf rule; with no ``states`` it returns the update alone.
        updates: Tree of gradients.
        states: Trees like ``updates``.
        params: Tree like ``updates``, handed to the formula after the buffers unless None.
        hyperparams: Handed to the formula by name.

    Returns:
        The new updates, then each new state; shaped like ``updates``.
    """
    grads, spec = tree_flatten(updates)
    for grad in grads:  # all of them, before a formula overwrites the first buffer
        if grad is not None:
            check_gradient(who, grad)
    columns = [flatten_like(who, "state differs from updates", spec, state) for state in states]
    if params is not None:
        columns.append(flatten_like(who, "params differ from updates", spec, params))
    trees = {}
    for name, value in hyperparams.items():
        values = per_leaf(who, name, value, updates)
        if values is not None:
            trees[name] = values
    width = 1 + len(states)
    outputs: list[list[Any]] = [[] for _ in range(width)]
    for index, (grad, *buffers) in enumerate(zip(grads, *columns, strict=True)):
        if grad is None:
            row = (None, *buffers[: width - 1])
        else:
            own = {name: values[index] for name, values in trees.items()}
            row = formula(grad, *buffers, **({**hyperparams, **own} if own else hyperparams))
            row = row if width > 1 else (row,)
        for output, value in zip(outputs, row, strict=True):
            output.append(value)
    return tuple(tree_unflatten(spec, output) for output in outputs)


def check_gradient(who: str, grad: Any) -> None:
    """Refuse what the formulas would treat wrongly: no tensor, sparse, complex, integers."""
    if not isinstance(grad, torch.Tensor):
        raise TypeError(f"{who}: expected a tree of tensors and None, got a {describe(grad)} leaf")
    if grad.layout is not torch.strided:
        raise TypeError(f"{who}: expected dense gradients, got {grad.layout}; call .to_dense()")
    if not grad.dtype.is_floating_point:
        raise TypeError(f"{who}: expected real floating gradients, got {describe(grad)}")


def zeros_like(who: str, params: Tree, *, requires_grad: bool = False) -> Tree:
    """A buffer of zeros per parameter.

    Raises:
        TypeError: A leaf that is not a dense, real, floating tensor.
    """

    def zeros(param: Any) -> Any:
        if param is None:
            return None
        if not isinstance(param, torch.Tensor) or not param.dtype.is_floating_point:
            raise TypeError(f"{who}: expected real floating parameters, got {describe(param)}")
        buffer = torch.zeros_like(param)
        return buffer.requires_grad_() if requires_grad else buffer

    return tree_map(zeros, params)


def counts_like(params: Tree) -> Tree:
    """A step count per parameter: one tensor that all share until a gradient is missing."""
    shared = torch.zeros((), dtype=torch.int64)
    return tree_map(lambda p: None if p is None else shared, params)


class Ticks:
    """Advances counts during one update: leaves that share a count go on sharing it.

    ``derive(count)`` is computed once per distinct count, in float64 and on the CPU: powers of the
    decay rates need more precision than float32 parameters have.
    """

    def __init__(self) -> None:
        self._next: dict[int, torch.Tensor] = {}
        self._derived: dict[tuple[Any, ...], Any] = {}

    def advance(self, count: torch.Tensor) -> torch.Tensor:
        """The count after this update."""
        if id(count) not in self._next:
            self._next[id(count)] = count + 1
        return self._next[id(count)]

    def derive(self, count: torch.Tensor, fn: Callable[..., Any], *arguments: Any) -> Any:
        """``fn(count as float64, *arguments)``, remembered."""
        key = (id(count), fn, *map(id, arguments))
        if key not in self._derived:
            self._derived[key] = fn(count.to(torch.float64), *arguments)
        return self._derived[key]


def fit(value: Any, like: torch.Tensor) -> Any:
    """A hyperparameter ready for arithmetic with ``like``: one with axes must not promote it."""
    if isinstance(value, torch.Tensor) and (value.ndim or value.device != like.device):
        if not value.ndim and value.device.type == "cpu":
            return value  # a CPU scalar mixes with any device without waiting
        return value.to(like.device, like.dtype)
    return value


def ema(old: torch.Tensor, new: torch.Tensor, decay: Any, inplace: bool) -> torch.Tensor:
    r""":math:`d\,\text{old} + (1 - d)\,\text{new}`."""
    new = new if new.dtype == old.dtype else new.to(old.dtype)
    if isinstance(decay, torch.Tensor):
        weight = (1 - decay).to(old.device, old.dtype)
    else:
        weight = 1 - decay
    return old.lerp_(new, weight) if inplace else torch.lerp(old, new, weight)


def ema_square(old: torch.Tensor, new: torch.Tensor, decay: Any, inplace: bool) -> torch.Tensor:
    r""":math:`d\,\text{old} + (1 - d)\,\text{new}^2`."""
    new = new if new.dtype == old.dtype else new.to(old.dtype)
    if isinstance(decay, torch.Tensor):
        decay = fit(decay, old)
        return torch.addcmul(old * decay, new, new * (1 - decay), out=old if inplace else None)
    if inplace:
        return old.mul_(decay).addcmul_(new, new, value=1 - decay)
    return torch.addcmul(old * decay, new, new, value=1 - decay)


def add_scaled(base: torch.Tensor, term: torch.Tensor, scale: Any) -> torch.Tensor:
    r""":math:`\text{base} + s\,\text{term}`."""
    if isinstance(scale, torch.Tensor):
        return base + fit(scale, term) * term
    return torch.add(base, term, alpha=scale)


# Below the floor a square root is held constant: its derivative is 0 there, also to second order.
# The floors' roots vanish beside any eps that the dtype can tell from 0.
_FLOOR = {
    torch.float64: 1e-200,
    torch.float32: 1e-30,
    torch.bfloat16: 1e-30,
    torch.float16: 6e-8,
}


def safe_sqrt(square: torch.Tensor) -> torch.Tensor:
    r""":math:`\sqrt{x}` whose first and second derivative at 0 are 0.

    Behind a second moment this makes the derivative at an exactly zero gradient its limit, where
    the plain square root gives :math:`0 \cdot \infty`.
    """
    return square.clamp_min(_FLOOR[square.dtype]).sqrt()
