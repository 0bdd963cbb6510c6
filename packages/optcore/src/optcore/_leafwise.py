# SPDX-License-Identifier: Apache-2.0
"""Running one formula over the leaves of a tree, and the leaf operations formulas are made of.

Every leaf operation exists once and takes the mode: out of place it is differentiable, in place it
overwrites its first argument (a state buffer) and is called without a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from optcore._deferred import Deferred, Rule, settled
from optcore._hyperparams import Hyperparam, check_broadcast, is_number, per_leaf
from optcore._kernel_rules import KernelRule
from optcore._kernels import Kernel
from optcore._modes import under_transform
from optcore._tensorlist import TensorList
from optcore._tree import (
    Tree,
    describe,
    flatten_like,
    path_to,
    tree_flatten,
    tree_map,
    tree_unflatten,
)


def leafwise(
    who: str,
    formula: Callable[..., Any],
    updates: Tree,
    *states: Tree,
    counts: Tree = None,
    params: Tree = None,
    inplace: bool = False,
    kernel: Kernel | None = None,
    **hyperparams: Hyperparam,
) -> tuple[Tree, ...]:
    """Apply ``formula(g, *buffers[, p][, tick], **hyperparams) -> (update, *buffers)``.

    It is applied to every leaf or, in place, to many at once as a :class:`TensorList`. Leaves whose
    gradient is None keep their buffers and their count. A hyperparameter that is a prefix tree
    gives each leaf its own value.

    Args:
        who: Name for errors.
        formula: The leaf rule; with no ``states`` it returns the update alone.
        updates: Tree of gradients, or :class:`Deferred` ones: then the formula is noted only.
        states: Trees like ``updates``.
        counts: Tree of step counts; they advance by one, and the formula gets a :class:`Tick`.
        params: Tree like ``updates``, handed to the formula after the buffers unless None.
        inplace: Whether the buffers are overwritten, by the formula or with what it returns.
        kernel: Runs in the place of the formula; not for formulas that take ``params``.
        hyperparams: Handed to the formula by name.

    Returns:
        The new updates, each new state, and the new counts if there are any; shaped like
        ``updates``.
    """
    overwrite = inplace and not under_transform()
    if kernel is not None and not overwrite:
        updates = settled(updates)
    deferred = updates if isinstance(updates, Deferred) else Deferred(updates)
    grads, spec = deferred.grads, deferred.spec
    columns = [flatten_like(who, "state differs from updates", spec, state) for state in states]
    if params is not None:
        columns.append(flatten_like(who, "params differ from updates", spec, params))
    ticks = None
    if counts is not None:
        old = flatten_like(who, "state differs from updates", spec, counts)
        ticks = ticks_of(who, old, grads, not under_transform(), overwrite and kernel is not None)
    trees = {}
    for name, value in hyperparams.items():
        values = None if type(value) is float else per_leaf(who, name, value, deferred.tree)
        if values is not None:
            trees[name] = values
    # everything is checked before a formula overwrites the first buffer
    _check_leaves(who, deferred, columns[-1 if params is not None else 0 :][:1], hyperparams, trees)
    rule = Rule(formula, columns, len(states), ticks, hyperparams, trees)
    taken = None
    if kernel is not None:
        taken = KernelRule(kernel, columns, ticks, hyperparams, trees, deferred.tree)
    new_counts: tuple[Tree, ...] = ()
    if ticks is not None:
        moved = [c if t is None else t.count for c, t in zip(old, ticks, strict=True)]
        new_counts = (tree_unflatten(spec, moved),)
    if overwrite:
        if taken is None:
            rule.read()
            deferred.rules.append(rule)
        else:
            deferred.note(taken)
        return (updates if updates is deferred else deferred.settled(), *states, *new_counts)
    outputs: list[list[Any]] = [[None] * len(grads), *map(list, columns[: len(states)])]
    if taken is not None:
        outputs = taken.differentiable(grads)
        grads = []  # nothing is left for the formula
    for index, grad in enumerate(grads):
        if grad is not None:
            rows = [column[index] for column in columns]
            results = formula(grad, *rows, **rule.arguments(index))
            results = results if states else (results,)
            for output, value in zip(outputs, results, strict=True):
                output[index] = value
    return (*(tree_unflatten(spec, output) for output in outputs), *new_counts)


def _check_leaves(
    who: str,
    deferred: Deferred,
    like: Sequence[Sequence[Any]],
    hyperparams: Mapping[str, Any],
    trees: Mapping[str, Sequence[Any]],
) -> None:
    if not deferred.rules:  # what a formula makes of a gradient need not be looked at
        for grad in deferred.grads:
            if grad is not None:
                check_gradient(who, grad)
    for column in like:
        check_shapes(who, deferred.grads, column, deferred.tree)
    for name, hyperparam in hyperparams.items():
        if name in trees or isinstance(hyperparam, torch.Tensor):
            values = trees.get(name, [hyperparam] * len(deferred.grads))
            for index, (grad, value) in enumerate(zip(deferred.grads, values, strict=True)):
                if grad is not None and isinstance(value, torch.Tensor) and value.ndim:
                    check_broadcast(who, value, grad, deferred.tree, index)


def check_shapes(who: str, grads: Sequence[Any], like: Sequence[Any], tree: Tree) -> None:
    """Refuse a gradient of another shape than what belongs to its parameter."""
    for index, (grad, own) in enumerate(zip(grads, like, strict=True)):
        if grad is not None and isinstance(own, torch.Tensor) and own.shape != grad.shape:
            raise ValueError(
                f"{who}: expected a gradient like its parameter {describe(own)}, got "
                f"{describe(grad)}, at {path_to(tree, index)}"
            )


def check_like_params(who: str, updates: Tree, params: Tree) -> None:
    """Refuse a gradient of another shape than its parameter, where parameters are given."""
    if params is not None:
        grads, spec = tree_flatten(updates)
        like = flatten_like(who, "params differ from updates", spec, params)
        check_shapes(who, grads, like, updates)


def check_gradient(who: str, grad: Any, what: str = "gradients") -> None:
    """Refuse what the formulas would treat wrongly: no tensor, sparse, complex, integers."""
    if not isinstance(grad, torch.Tensor):
        raise TypeError(f"{who}: expected a tree of tensors and None, got a {describe(grad)} leaf")
    if grad.layout is not torch.strided:
        raise TypeError(f"{who}: expected dense {what}, got {grad.layout}; call .to_dense()")
    if not grad.dtype.is_floating_point:
        raise TypeError(f"{who}: expected real floating {what}, got {describe(grad)}")


def zeros_like(who: str, params: Tree, *, requires_grad: bool = False) -> Tree:
    """A buffer of zeros per parameter.

    Raises:
        TypeError: A leaf that is not a dense, real, floating tensor.
    """
    return full_like(who, params, 0.0, requires_grad=requires_grad)


def full_like(who: str, params: Tree, value: Hyperparam, *, requires_grad: bool = False) -> Tree:
    """A buffer per parameter, filled with a number, a tensor or what a prefix tree gives it.

    A tensor keeps its graph.

    Raises:
        TypeError: A leaf that is not a dense, real, floating tensor.
    """

    def full(param: Any, value: Any) -> Any:
        if param is None:
            return None
        if not isinstance(param, torch.Tensor) or not param.dtype.is_floating_point:
            raise TypeError(f"{who}: expected real floating parameters, got {describe(param)}")
        if isinstance(value, torch.Tensor):
            return torch.zeros_like(param) + value.to(param.device, param.dtype)
        buffer = torch.full_like(param, value)
        return buffer.requires_grad_() if requires_grad else buffer

    values = None if is_number(value) else per_leaf(who, "start value", value, params)
    if values is None:
        return tree_map(lambda param: full(param, value), params)
    leaves, spec = tree_flatten(params)
    return tree_unflatten(spec, [full(*pair) for pair in zip(leaves, values, strict=True)])


def counts_like(params: Tree) -> Tree:
    """A step count per parameter: one tensor that all share until a gradient is missing."""
    shared = torch.zeros((), dtype=torch.int64)
    return tree_map(lambda p: None if p is None else shared, params)


class Tick:
    """A step count after this update, and what formulas derive from it.

    A value is derived once for all leaves that share the count, in float64 and on the CPU: powers
    of the decay rates need more precision than float32 parameters have.
    """

    def __init__(
        self, before: torch.Tensor, readable: bool = False, overwrite: bool = False
    ) -> None:
        # what is on a GPU may be part of a captured graph, which advances the tensor it saw
        self.waits = overwrite and before.is_cuda
        self.count = before if self.waits else before + 1
        self._readable = readable and before.is_cpu
        self._derived: dict[tuple[Any, ...], Any] = {}

    def begin(self) -> None:
        """Count the first update, where that had to wait for it to be taken."""
        if self.waits:
            self.advance()

    def advance(self) -> None:
        """One update more, counted in the same tensor."""
        self.count.add_(1)
        self._derived.clear()

    def derive(self, fn: Callable[..., Any], *arguments: Any) -> Any:
        """``fn(count as float64, *arguments)``, remembered.

        Outside of transforms a function that :func:`takes_numbers` gets the count as one, if its
        arguments are numbers too.
        """
        key = (fn, *arguments)
        if key not in self._derived:
            number = self._readable and getattr(fn, "takes_numbers", False)
            if number and all(map(is_number, arguments)):
                self._derived[key] = fn(float(self.count), *arguments)
            else:
                self._derived[key] = fn(self.count.to(torch.float64), *arguments)
        return self._derived[key]


def takes_numbers(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a function for :meth:`Tick.derive`: numbers will do, and cost less than tensors."""
    fn.takes_numbers = True  # type: ignore[attr-defined]
    return fn


def ticks_of(
    who: str,
    counts: Sequence[torch.Tensor | None],
    grads: Sequence[Any],
    readable: bool = False,
    overwrite: bool = False,
) -> list[Tick | None]:
    """One tick per distinct count of leaves with a gradient, so that they go on sharing it.

    With ``overwrite`` a count on a GPU stays the same tensor, unless a leaf without a gradient has
    it too; who takes the step calls ``begin``.

    Raises:
        RuntimeError: Such a count while a CUDA graph is captured.
    """
    resting: set[torch.Tensor] = set()  # hashed by identity; no compiler knows id()
    if overwrite and any(grad is None for grad in grads):
        pairs = zip(counts, grads, strict=True)
        resting = {c for c, grad in pairs if grad is None and c is not None and c.is_cuda}
    distinct: dict[torch.Tensor, Tick] = {}
    ticks: list[Tick | None] = []
    last = tick = None
    for count, grad in zip(counts, grads, strict=True):
        if count is None or grad is None:
            ticks.append(None)
            continue
        if count is not last:
            last = count
            if count not in distinct:
                before = parted(who, count) if count in resting else count
                distinct[count] = Tick(before, readable, overwrite)
            tick = distinct[count]
        ticks.append(tick)
    return ticks


def parted(who: str, count: torch.Tensor) -> torch.Tensor:
    """A copy of a count on a GPU for leaves that move while others that share it do not.

    Raises:
        RuntimeError: A CUDA graph is captured, which would copy it at every replay.
    """
    with torch.cuda.device(count.device):
        capturing = torch.cuda.is_current_stream_capturing()
    if capturing:
        raise RuntimeError(
            f"{who}: expected a step count of their own for the parameters that a captured CUDA "
            "graph moves, got one that others share; take such a step before the capture"
        )
    return count.clone()


def fit(value: Any, like: torch.Tensor) -> Any:
    """A hyperparameter ready for arithmetic with ``like``: one with axes must not promote it."""
    if not isinstance(value, torch.Tensor):
        return value
    if value.ndim or not like.ndim or value.device != like.device:
        if not value.ndim and like.ndim and value.device.type == "cpu":
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
    return old.lerp_(new, weight) if inplace else old.lerp(new, weight)


def ema_square(old: torch.Tensor, new: torch.Tensor, decay: Any, inplace: bool) -> torch.Tensor:
    r""":math:`d\,\text{old} + (1 - d)\,\text{new}^2`."""
    new = new if new.dtype == old.dtype else new.to(old.dtype)
    if isinstance(decay, torch.Tensor):
        decay = fit(decay, old)
        return torch.addcmul(old * decay, new, new * (1 - decay), out=old if inplace else None)
    if inplace:
        return old.mul_(decay).addcmul_(new, new, value=1 - decay)
    return torch.addcmul(old * decay, new, new, value=1 - decay)


def at_least(value: torch.Tensor, low: Any) -> torch.Tensor:
    r""":math:`\max(x, l)`."""
    return value.clamp_min(low.to(value) if isinstance(low, torch.Tensor) else low)


def at_most(value: torch.Tensor, high: Any) -> torch.Tensor:
    r""":math:`\min(x, h)`."""
    return value.clamp_max(high.to(value) if isinstance(high, torch.Tensor) else high)


def add_scaled(base: torch.Tensor, term: torch.Tensor, scale: Any) -> torch.Tensor:
    r""":math:`\text{base} + s\,\text{term}`."""
    if isinstance(scale, torch.Tensor):
        return base + fit(scale, term) * term
    return base.add(term, alpha=scale)


# The smallest square whose root has a derivative: below, the root is held constant.
_FLOOR = {
    torch.float64: torch.finfo(torch.float64).tiny,
    torch.float32: torch.finfo(torch.float32).tiny,
    torch.bfloat16: torch.finfo(torch.bfloat16).tiny,
    torch.float16: torch.finfo(torch.float16).smallest_normal * torch.finfo(torch.float16).eps,
}


def scaled(value: Any, factor: Any) -> Any:
    r""":math:`s\,x`, for the last line of a formula: ``value`` may be read late."""
    if isinstance(value, TensorList):
        return value.times(factor)
    return value * fit(factor, value)


def plus(value: Any, term: Any, scale: Any) -> Any:
    r""":math:`x + s\,y`, for the last line of a formula: ``value`` may be overwritten."""
    return (
        value.plus(term, scale) if isinstance(value, TensorList) else add_scaled(value, term, scale)
    )


def quotient(value: Any, divisor: Any) -> Any:
    r""":math:`x / y`, for the last line of a formula: both may be read late."""
    return value.over(divisor) if isinstance(value, TensorList) else value / divisor


def root_plus(square: Any, term: Any, inplace: bool = False) -> Any:
    r""":math:`\sqrt{x} + \epsilon` with :func:`safe_sqrt`."""
    root = safe_sqrt(square, inplace)
    return root.add_(fit(term, square)) if inplace else root + fit(term, square)


def safe_sqrt(square: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    r""":math:`\sqrt{x}` whose first and second derivative at 0 are 0.

    Behind a second moment this makes the derivative at an exactly zero gradient its limit, where
    the plain square root gives :math:`0 \cdot \infty`. In place nothing is differentiated, and it
    is the plain square root.
    """
    return square.sqrt() if inplace else square.clamp_min(_FLOOR[square.dtype]).sqrt()
