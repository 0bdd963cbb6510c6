# SPDX-License-Identifier: Apache-2.0
"""Hypergradients in forward mode: derivatives travel along with the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch.autograd import forward_ad

from optcore import check_loss
from optdiff._recompute import is_continuous
from optdiff._recording import Recording, Snapshots
from optdiff._repeats import Numbers
from optdiff._steps import Step, cut, refuse_modules, taken_apart
from optdiff._tracking import transform_depth
from optdiff._trees import tree_leaves
from optdiff._uncompiled import uncompiled
from optdiff._unroll import check_count

Tree: TypeAlias = Any
Tangents = list[torch.Tensor | None]


@uncompiled
def forward_hypergradient(
    objective: Callable[..., torch.Tensor],
    step: Callable[..., Tree],
    init: Tree,
    num_steps: int,
    *args: Any,
    argnums: int | Sequence[int] = 0,
) -> tuple[torch.Tensor, Tree]:
    r"""Value and derivative of an objective after a loop, for few hyperparameters.

    With :math:`c_{i+1} = \Phi(c_i, \lambda)` and :math:`Z_0 = 0`:

    .. math::
        Z_{i+1} = \partial_c \Phi(c_i, \lambda)\,Z_i + \partial_\lambda \Phi(c_i, \lambda), \qquad
        \frac{df}{d\lambda} = \partial_c f(c_K, \lambda)\,Z_K + \partial_\lambda f(c_K, \lambda)

    Exact; memory does not grow with the number of steps. Every step runs once for each element of
    the hyperparameters, with the same random numbers and buffers of modules.

    Args:
        objective: ``objective(carry, *args)``, a scalar, of the last carry.
        step: ``step(carry, i, *args) -> carry``, as in :func:`unroll`.
        init: First carry.
        num_steps: :math:`K \ge 0`.
        args: Trees that every step and the objective get.
        argnums: Which of ``args`` are the hyperparameters, trees of floating tensors.

    Returns:
        The value, and the derivative like ``args[argnums]`` (a tuple of such for several). Neither
        carries a graph.

    Raises:
        TypeError: ``objective`` or ``step`` is not callable, a hyperparameter is no floating
            tensor, ``argnums`` is no position, or there is a module in the carry.
        ValueError: No hyperparameter, a position that ``args`` does not have, an objective that is
            not a scalar, or a step that changes the structure of the carry.
        RuntimeError: Inside a torch.func transform, whose derivative would be lost; or a step that
            gives another carry when it is run again.

    Example:
        >>> import torch
        >>> def step(w, i, lr):
        ...     return w - lr * torch.func.grad(lambda w: (w**2).sum())(w)
        >>> value, gradient = forward_hypergradient(
        ...     lambda w, lr: w.sum(), step, torch.tensor([8.0]), 3, torch.tensor(0.25)
        ... )
        >>> value, gradient  # 8 (1 - 2 lr)^3, -48 (1 - 2 lr)^2
        (tensor(1.), tensor(-12.))

    Reference:
        Franceschi, Donini, Frasconi and Pontil, 2017, arXiv:1703.01785, Algorithm 2 (Forward-HG).
    """
    who = "forward_hypergradient"
    for name, function in (("objective", objective), ("step", step)):
        if not callable(function):
            raise TypeError(f"{who}: expected a callable {name}, got {type(function).__name__}")
    check_count(who, "num_steps", num_steps, 0)
    refuse_modules(who, init)
    if transform_depth():
        raise RuntimeError(
            f"{who}: expected no torch.func transform around it, got one; its result has no "
            "derivative, use torch.func.jvp of unroll"
        )
    positions = _positions(who, argnums, len(args))
    for leaf in tree_leaves([args[n] for n in positions]):
        if not isinstance(leaf, torch.Tensor) or not leaf.is_floating_point():
            kind = leaf.dtype if isinstance(leaf, torch.Tensor) else type(leaf).__name__
            raise TypeError(f"{who}: expected floating tensors in args[{argnums}], got {kind}")
    chosen = {id(tensor) for tensor in taken_apart([args[n] for n in positions])[0]}
    hypers = [h for h, tensor in enumerate(taken_apart(args)[0]) if id(tensor) in chosen]
    given, layout = taken_apart(cut(args))
    units = [(h, j) for h in hypers for j in range(given[h].numel())]
    if not units:
        raise ValueError(f"{who}: expected hyperparameters in args[{argnums}], got none")
    body = Step(who, step, init)
    generators = [g for g in tree_leaves((init, args)) if isinstance(g, torch.Generator)]
    snapshots = Snapshots()
    carry = cut(init)
    tangents: list[Tangents] = [[None] * len(taken_apart(init)[0]) for _ in units]
    for i in range(num_steps):
        recording = Recording(who, snapshots, generators)
        moved, numbers = [], None
        for unit, old in zip(units, tangents, strict=True):
            with recording.running(), torch.enable_grad(), forward_ad.dual_level():
                own = [_arg(tensor, _direction(given, unit, h)) for h, tensor in enumerate(given)]
                new, _ = body(_moving(carry, old), i, layout.filled(own))
                after, tangent = _parted(new)
            ends, _ = taken_apart(after)
            numbers = numbers or Numbers.of(ends)
            numbers.check(who, ends, i)
            moved.append(tangent)
        carry, tangents = after, moved
    ends, shape = taken_apart(carry)
    ends = [_leaf(end) if is_continuous(end) else end for end in ends]
    given = [_leaf(tensor) if h in hypers else tensor for h, tensor in enumerate(given)]
    with torch.enable_grad():
        value = objective(shape.filled(ends), *layout.filled(given))
        check_loss(who, value)
        inputs = [tensor for tensor in (*ends, *given) if tensor.requires_grad]
        found = torch.autograd.grad(value, inputs, allow_unused=True)
    grads = {id(tensor): grad for tensor, grad in zip(inputs, found, strict=True)}
    total = [
        torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device) for tensor in given
    ]
    for h in hypers:
        if (direct := grads[id(given[h])]) is not None:
            total[h] += direct
    for (h, j), tangent in zip(units, tangents, strict=True):
        for end, moves in zip(ends, tangent, strict=True):
            if moves is not None and (grad := grads[id(end)]) is not None:
                total[h].view(-1)[j] += (grad.conj() * moves).sum().real
    filled = layout.filled(tensor.detach() for tensor in total)
    result = tuple(filled[n] for n in positions)
    return value.detach(), result[0] if isinstance(argnums, int) else result


def _positions(who: str, argnums: int | Sequence[int], count: int) -> tuple[int, ...]:
    positions = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    for n in positions:
        if not isinstance(n, int) or isinstance(n, bool):
            raise TypeError(f"{who}: expected argnums as positions, got {type(n).__name__}")
        if not 0 <= n < count:
            raise ValueError(f"{who}: expected argnums among {count} args, got {n}")
    return positions


def _moving(carry: Tree, tangents: Tangents) -> Tree:
    points, layout = taken_apart(carry)
    return layout.filled(_dual(p, t) for p, t in zip(points, tangents, strict=True))


def _parted(carry: Tree) -> tuple[Tree, Tangents]:
    """A carry and its tangents, without a graph."""
    points, layout = taken_apart(carry)
    pairs = [forward_ad.unpack_dual(point) for point in points]
    tangents = [None if pair.tangent is None else pair.tangent.detach() for pair in pairs]
    return cut(layout.filled(pair.primal for pair in pairs)), tangents


def _dual(point: torch.Tensor, tangent: torch.Tensor | None) -> torch.Tensor:
    """A point of its own, which the step may overwrite unless it differentiates in it."""
    own = point.detach().clone().requires_grad_(point.requires_grad)
    return own if tangent is None else forward_ad.make_dual(own, tangent)


def _arg(point: torch.Tensor, tangent: torch.Tensor | None) -> torch.Tensor:
    """What the step gets for one of the args, whose memory is the caller's unless it moves."""
    if tangent is None:
        return point.detach().requires_grad_(point.requires_grad)
    return _dual(point, tangent)


def _direction(given: Sequence[torch.Tensor], unit: tuple[int, int], h: int) -> torch.Tensor | None:
    if unit[0] != h:
        return None
    direction = torch.zeros_like(given[h], memory_format=torch.contiguous_format).detach()
    direction.view(-1)[unit[1]] = 1
    return direction


def _leaf(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone().requires_grad_()
