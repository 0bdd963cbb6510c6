# SPDX-License-Identifier: Apache-2.0
"""Shampoo: each axis of a gradient preconditioned by a root of its own second moment."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from optcore._chain import chain, link
from optcore._choice import check_int
from optcore._hyperparams import Hyperparam, check_range, is_zero
from optcore._leafwise import Tick, counts_like, fit, leafwise, zeros_like
from optcore._matrix_root import inverse_root
from optcore._modes import under_transform
from optcore._momentum import trace
from optcore._rows import OptimizerRow
from optcore._scaling import scale_by_learning_rate, uphill
from optcore._transform import GradientTransformation
from optcore._tree import (
    Tree,
    describe,
    flatten_like,
    path_to,
    tree_flatten,
    tree_leaves,
    tree_map,
)
from optcore._weight_decay import add_decayed_weights


class ScaleByShampooState(NamedTuple):
    """State of :func:`scale_by_shampoo`; for each parameter lists of one entry per axis."""

    count: Tree  # i64[]: updates that this leaf had
    statistics: Tree  # (n, n): sums of second moments; (n,) for an axis that is too long
    roots: Tree  # alike: their inverse roots


def scale_by_shampoo(
    eps: Hyperparam = 1e-4,
    decay: Hyperparam = 1.0,
    update_interval: int = 1,
    max_size: int = 1024,
) -> GradientTransformation:
    r"""Multiply a gradient along each of its :math:`k` axes by an inverse root.

    With :math:`G^{(i)}` the gradient as a matrix of axis :math:`i` by all others, and
    :math:`\times_i` the product along that axis:

    .. math::
        H^i_t &= d\,H^i_{t-1} + G^{(i)}_t G^{(i)\top}_t \\
        u_t &= G_t \times_1 (H^1_t + \epsilon I)^{-1/2k} \cdots
            \times_k (H^k_t + \epsilon I)^{-1/2k}

    Args:
        eps: :math:`\epsilon > 0`, what the sums start from.
        decay: :math:`d` in ``[0, 1]``; 1 sums up as the paper does.
        update_interval: Updates after which roots are computed anew, >= 1; the first one always
            does.
        max_size: Of a longer axis only the diagonal of :math:`H` is kept. A vector has one axis:
            up to this length it is preconditioned by a full matrix.

    State:
        ``count``; ``statistics`` and ``roots``: for each parameter a list with a matrix ``(n, n)``
        (or a vector ``(n,)``) for each axis, in float64 for half precision, where rounding leaves
        small eigenvalues beside large ones. In float32 those below about 1e-7 of the largest are
        lost: constant gradients of rank 1 and entries of 100, ``(64, 64)``, gave updates 14% off
        after 20 steps, random ones less than 0.1%.

    Differentiable:
        In everything, twice, through the roots too; compiled, not where eigenvalues coincide.

    Raises:
        TypeError: A hyperparameter is no number, schedule, tensor or tree of such.
        ValueError: A hyperparameter outside its range; in ``update``, ``eps`` with axes for a
            parameter, or a gradient of another shape than its parameter.

    Example:
        >>> tx = scale_by_shampoo(eps=1e-6)
        >>> params = [torch.zeros(2, 2)]
        >>> grad = torch.diag(torch.tensor([3.0, 4.0]))
        >>> tx.update([grad], tx.init(params))[0][0].round(decimals=3)
        tensor([[1., 0.],
                [0., 1.]])

    Reference:
        Gupta et al., 2018, arXiv:1802.09568, Algorithm 2.
    """
    who = "scale_by_shampoo"
    check_range(who, "eps", eps, 0.0, open_low=True)
    check_range(who, "decay", decay, 0.0, 1.0)
    check_int(who, "update_interval", update_interval, 1)
    check_int(who, "max_size", max_size, 1)
    return GradientTransformation(
        _shampoo_init,
        _shampoo_update,
        {"eps": eps, "decay": decay},
        {"update_interval": update_interval, "max_size": max_size},
        name=who,
    )


def shampoo(
    lr: Hyperparam = 1e-1,
    momentum: Hyperparam = 0.0,
    weight_decay: Hyperparam = 0.0,
    eps: Hyperparam = 1e-4,
    *,
    decay: Hyperparam = 1.0,
    update_interval: int = 1,
    max_size: int = 1024,
    maximize: bool = False,
) -> GradientTransformation:
    """Shampoo: L2 penalty, :func:`scale_by_shampoo`, momentum, learning rate.

    Args:
        lr: Learning rate >= 0.
        momentum: Decay of a sum of steps, >= 0; the number 0 keeps none.
        weight_decay: L2 penalty >= 0; needs ``params`` in ``update``.
        eps: What the second moments start from, > 0.
        decay: Of the second moments, in ``[0, 1]``.
        update_interval: Updates after which roots are computed anew, >= 1.
        max_size: Longest axis that has a matrix.
        maximize: Ascend instead of descend.

    State:
        Those of :func:`scale_by_shampoo` and, with momentum, :func:`trace`, inside the tuple of a
        :func:`chain`.

    Differentiable:
        As :func:`scale_by_shampoo`, and in ``lr``, ``momentum`` and ``weight_decay``.

    Raises:
        TypeError: A hyperparameter is no number, schedule, tensor or tree of such.
        ValueError: A hyperparameter outside its range.

    Example:
        >>> opt = shampoo(lr=0.1, eps=1e-6)
        >>> params = [torch.zeros(1, 1)]
        >>> opt.update([torch.full((1, 1), 3.0)], opt.init(params))[0]
        [tensor([[-0.1000]])]

    Reference:
        Gupta et al., 2018, arXiv:1802.09568, Algorithm 2.
    """
    who = "shampoo"
    check_range(who, "lr", lr, 0.0)
    check_range(who, "weight_decay", weight_decay, 0.0)
    check_range(who, "momentum", momentum, 0.0)
    return chain(
        *uphill(who, maximize),
        *([] if is_zero(weight_decay) else [link(who, add_decayed_weights, weight_decay)]),
        link(who, scale_by_shampoo, eps, decay, update_interval, max_size),
        *([] if is_zero(momentum) else [link(who, trace, momentum)]),
        scale_by_learning_rate(lr),
    ).named(who)


ROWS = (OptimizerRow(shampoo, "Shampoo", {"count": "step", "trace": "momentum_buffer"}),)


def second_moment(grad: torch.Tensor, axis: int) -> torch.Tensor:
    """The gradient as a matrix of one axis by all others, times its transpose."""
    matrix = grad.movedim(axis, 0).reshape(grad.shape[axis], -1)
    return matrix @ matrix.mT


def along_axes(grad: torch.Tensor, matrices: list[torch.Tensor | None]) -> torch.Tensor:
    """The product with a matrix along each axis; None is the identity, a vector a diagonal."""
    for matrix in matrices:  # each turn takes the first axis and puts it last
        if matrix is None:
            grad = grad.movedim(0, -1)
        elif matrix.ndim == 1:
            grad = (grad.movedim(0, -1)) * matrix
        else:
            grad = torch.tensordot(grad, matrix, ([0], [0]))
    return grad


def _shampoo_init(
    params: Tree, *, update_interval: int, max_size: int, **_: Any
) -> ScaleByShampooState:
    zeros = zeros_like("scale_by_shampoo", params)

    def per_axis(buffer: torch.Tensor | None) -> list[torch.Tensor] | None:
        if buffer is None:
            return None
        shapes = [(n,) if n > max_size else (n, n) for n in buffer.shape or (1,)]
        # the eigenvalues of what half precision rounds off are below the rounding of float32
        dtype = torch.float32 if buffer.dtype == torch.float32 else torch.float64
        return [buffer.new_zeros(shape, dtype=dtype) for shape in shapes]

    return ScaleByShampooState(
        counts_like(params), tree_map(per_axis, zeros), tree_map(per_axis, zeros)
    )


def _shampoo_update(
    updates: Tree,
    state: ScaleByShampooState,
    params: Tree,
    *,
    inplace: bool,
    update_interval: int,
    max_size: int,
    **hyperparams: Any,
) -> tuple[Tree, ScaleByShampooState]:
    def formula(
        g: torch.Tensor,
        statistics: list[torch.Tensor],
        roots: list[torch.Tensor],
        *,
        tick: Tick,
        eps: Any,
        decay: Any,
    ) -> Any:
        if not g.numel():
            return g, statistics, roots
        own = g.to(statistics[0].dtype).reshape(g.shape or (1,))
        new = [
            old * fit(decay, old) + (second_moment(own, i) if old.ndim == 2 else _squares(own, i))
            for i, old in enumerate(statistics)
        ]
        due = (tick.count - 1) % update_interval == 0
        roots = _renewed(due, new, roots, eps) if update_interval > 1 else _roots(new, eps)
        return along_axes(own, roots).reshape(g.shape).to(g.dtype), new, roots

    _check_axes(updates, state.statistics)
    _check_start(hyperparams["eps"])
    updates, statistics, roots, count = leafwise(  # leaf by leaf: what it keeps are lists
        "scale_by_shampoo",
        formula,
        updates,
        state.statistics,
        state.roots,
        counts=state.count,
        **hyperparams,
    )
    return updates, ScaleByShampooState(count, statistics, roots)


def _check_axes(updates: Tree, statistics: Tree) -> None:
    """Refuse a gradient of another shape than what belongs to its parameter."""
    grads, spec = tree_flatten(updates)
    kept = flatten_like("scale_by_shampoo", "state differs from updates", spec, statistics)
    for index, (grad, own) in enumerate(zip(grads, kept, strict=True)):
        if isinstance(grad, torch.Tensor) and own is not None:
            shape = [sums.shape[0] for sums in own]
            if [*(grad.shape or (1,))] != shape:
                raise ValueError(
                    f"scale_by_shampoo: expected a gradient of the parameter's shape {shape}, got "
                    f"{describe(grad)}, at {path_to(updates, index)}"
                )


def _check_start(eps: Any) -> None:
    """Refuse what has axes: a matrix starts from one multiple of the identity."""
    for value in tree_leaves(eps):
        if isinstance(value, torch.Tensor) and value.ndim:
            raise ValueError(
                f"scale_by_shampoo: expected eps as one value for a parameter, got "
                f"{describe(value)}; give a number, a tensor () or a tree of such"
            )


def _squares(grad: torch.Tensor, axis: int) -> torch.Tensor:
    """The diagonal of :func:`second_moment`."""
    return grad.movedim(axis, 0).reshape(grad.shape[axis], -1).square().sum(1)


def _roots(statistics: list[torch.Tensor], eps: Any) -> list[torch.Tensor]:
    power = 2 * len(statistics)
    return [_root(sums, eps, power) for sums in statistics]


def _root(sums: torch.Tensor, eps: Any, power: int) -> torch.Tensor:
    if sums.ndim == 1:
        return (sums + fit(eps, sums)).pow(-1.0 / power)
    return inverse_root(sums, torch.as_tensor(eps, dtype=sums.dtype, device=sums.device), power)


def _renewed(
    due: torch.Tensor, statistics: list[torch.Tensor], roots: list[torch.Tensor], eps: Any
) -> list[torch.Tensor]:
    if not under_transform():
        return _roots(statistics, eps) if due else roots
    fresh = _roots(statistics, eps)
    return [torch.where(due, new, old) for new, old in zip(fresh, roots, strict=True)]
