# SPDX-License-Identifier: Apache-2.0
"""Averages of updates over time."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from optcore import _leafwise
from optcore._hyperparams import Hyperparam, check_range
from optcore._leafwise import Tick, counts_like, fit, leafwise, zeros_like
from optcore._transform import GradientTransformation
from optcore._tree import Tree, tree_map


class EmaState(NamedTuple):
    """Average kept by :func:`ema`; every field is a tree like the parameters."""

    count: Tree  # i64[]: updates that this leaf had
    ema: Tree  # decayed average of updates


def ema(
    decay: Hyperparam, debias: bool = True, accumulator_dtype: torch.dtype | None = None
) -> GradientTransformation:
    r"""Replace updates by their exponential moving average.

    .. math::
        a_t = d\,a_{t-1} + (1 - d)\,g_t, \qquad u_t = \frac{a_t}{1 - d^t}

    Args:
        decay: :math:`d`, in ``[0, 1)``.
        debias: Divide by :math:`1 - d^t` as above; without it :math:`u_t = a_t`.
        accumulator_dtype: Keep the average in this dtype; None means the parameter's.

    State:
        ``count`` and ``ema``: like ``params``, start at zero.

    Differentiable:
        In the updates (linear), the state and a tensor ``decay``.

    Raises:
        TypeError: ``decay`` is not a hyperparameter, ``accumulator_dtype`` no floating dtype.
        ValueError: ``decay`` outside ``[0, 1)``.

    Example:
        >>> tx = ema(0.9)
        >>> tx.update([torch.ones(1)], tx.init([torch.zeros(1)]))[0]
        [tensor([1.])]
    """
    check_range("ema", "decay", decay, 0.0, 1.0, open_high=True)
    if accumulator_dtype is not None and not (
        isinstance(accumulator_dtype, torch.dtype) and accumulator_dtype.is_floating_point
    ):
        raise TypeError(
            f"ema: expected accumulator_dtype as a floating torch.dtype, got {accumulator_dtype}"
        )
    return GradientTransformation(
        _ema_init,
        _ema_update,
        {"decay": decay},
        {"debias": debias, "accumulator_dtype": accumulator_dtype},
        name="ema",
    )


def _ema_init(
    params: Tree, *, decay: Any, debias: bool, accumulator_dtype: torch.dtype | None
) -> EmaState:
    buffers = zeros_like("ema", params)
    if accumulator_dtype is not None:
        buffers = tree_map(lambda b: None if b is None else b.to(accumulator_dtype), buffers)
    return EmaState(counts_like(params), buffers)


def _ema_update(
    updates: Tree,
    state: EmaState,
    params: Tree,
    *,
    inplace: bool,
    decay: Any,
    debias: bool,
    accumulator_dtype: torch.dtype | None,
) -> tuple[Tree, EmaState]:
    def formula(g: torch.Tensor, old: torch.Tensor, *, tick: Tick, decay: Any) -> Any:
        wide = torch.promote_types(g.dtype, old.dtype)
        mean = _leafwise.ema(old.to(wide), g, decay, inplace)
        if debias:
            update = mean / fit(tick.derive(_correction, decay), mean)
        else:
            update = mean.clone() if inplace else mean  # an update outlives the buffer
        return update.to(g.dtype), mean.to(old.dtype)

    updates, buffers, counts = leafwise(
        "ema", formula, updates, state.ema, counts=state.count, inplace=inplace, decay=decay
    )
    return updates, EmaState(counts, buffers)


def _correction(count: torch.Tensor, decay: Any) -> torch.Tensor:
    decay = decay.to(torch.float64) if isinstance(decay, torch.Tensor) else decay
    return 1 - torch.pow(decay, count)
