# SPDX-License-Identifier: Apache-2.0
"""SM3: a second moment kept as one vector per axis of the parameter."""

from __future__ import annotations

from functools import reduce
from numbers import Real
from typing import Any, NamedTuple

import torch

from optcore._chain import chain, link
from optcore._hyperparams import Hyperparam, check_range
from optcore._leafwise import ema, fit, leafwise, safe_sqrt, zeros_like
from optcore._rows import OptimizerRow
from optcore._scaling import scale_by_learning_rate, uphill
from optcore._transform import GradientTransformation
from optcore._tree import Tree, tree_map


class ScaleBySM3State(NamedTuple):
    """Accumulators and momentum of :func:`scale_by_sm3`; both are trees like the parameters."""

    mu: Tree  # for each parameter a list of one (1, ..., n, ..., 1) per axis: maxima over the rest
    momentum: Tree  # decayed average of the scaled gradients


def scale_by_sm3(
    b1: Hyperparam = 0.9, b2: Hyperparam = 1.0, eps: Hyperparam = 1e-8
) -> GradientTransformation:
    r"""Scale each gradient by the smallest of the accumulators that cover it.

    For the element at :math:`i = (i_1, \ldots, i_k)` of a tensor with :math:`k` axes, and with
    :math:`w = 1 - b_2`, or 1 where :math:`b_2 = 1`:

    .. math::
        \nu_t(i) &= b_2 \min_r \mu^r_{t-1}(i_r) + w\,g_t(i)^2 \\
        \mu^r_t(j) &= \max_{i : i_r = j} \nu_t(i) \\
        u_t &= b_1\,u_{t-1} + (1 - b_1)\,g_t / \sqrt{\nu_t + \epsilon}

    Args:
        b1: Decay of the momentum, in ``[0, 1)``.
        b2: Decay of the accumulators, in ``[0, 1]``; 1 sums squares as the paper does.
        eps: :math:`\epsilon \ge 0`, added under the root; 0 takes 0/0 as 0.

    State:
        ``mu``: a vector for each axis of a parameter, starts at zero. ``momentum``: like
        ``params``.

    Differentiable:
        In everything, twice, where no minimum or maximum changes sides; among equals the
        derivative is shared out. At :math:`\nu_t = 0` the derivative in :math:`g_t` is the limit.

    Raises:
        TypeError: A hyperparameter is no number, schedule, tensor or tree of such.
        ValueError: A hyperparameter outside its range.

    Differs:
        optax refuses parameters without axes; here they have one accumulator. Its state calls the
        momentum ``nu``.

    Example:
        >>> import torch
        >>> tx = scale_by_sm3(b1=0.0)
        >>> state = tx.init([torch.zeros(2, 2)])
        >>> _, state = tx.update([torch.tensor([[3.0, 0.0], [0.0, 4.0]])], state)
        >>> [axis.flatten() for axis in state.mu[0]]
        [tensor([ 9., 16.]), tensor([ 9., 16.])]

    Reference:
        Anil et al., 2019, arXiv:1901.11150, Algorithm SM3-II, where the sets of the cover are the
        slices along each axis.
    """
    who = "scale_by_sm3"
    check_range(who, "b1", b1, 0.0, 1.0, open_high=True)
    check_range(who, "b2", b2, 0.0, 1.0)
    check_range(who, "eps", eps, 0.0)
    return GradientTransformation(
        _sm3_init, _sm3_update, {"b1": b1, "b2": b2, "eps": eps}, name=who
    )


def sm3(
    lr: Hyperparam = 1e-3, momentum: Hyperparam = 0.9, *, maximize: bool = False
) -> GradientTransformation:
    """SM3: :func:`scale_by_sm3` and a learning rate.

    Args:
        lr: Learning rate >= 0.
        momentum: Decay of the momentum, in ``[0, 1)``.
        maximize: Ascend instead of descend.

    State:
        That of :func:`scale_by_sm3`, inside the tuple of a :func:`chain`.

    Differentiable:
        As :func:`scale_by_sm3`, and in ``lr``.

    Raises:
        TypeError: A hyperparameter is no number, schedule, tensor or tree of such.
        ValueError: A hyperparameter outside its range.

    Differs:
        optax has no default for ``lr`` and takes no schedule.

    Example:
        >>> import torch
        >>> opt = sm3(lr=0.1)
        >>> opt.update([torch.full((1,), 3.0)], opt.init([torch.zeros(1)]))[0]
        [tensor([-0.0100])]

    Reference:
        Anil et al., 2019, arXiv:1901.11150, Algorithm SM3-II. Equals ``optax.sm3``.
    """
    check_range("sm3", "lr", lr, 0.0)
    check_range("sm3", "momentum", momentum, 0.0, 1.0, open_high=True)
    return chain(
        *uphill("sm3", maximize), link("sm3", scale_by_sm3, momentum), scale_by_learning_rate(lr)
    ).named("sm3")


ROWS = (OptimizerRow(sm3, "SM3", {"mu": "accumulators", "momentum": "momentum_buffer"}),)


def _sm3_init(params: Tree, **_: Any) -> ScaleBySM3State:
    momentum = zeros_like("scale_by_sm3", params)
    return ScaleBySM3State(
        tree_map(lambda m: None if m is None else _maxima(m), momentum), momentum
    )


def _sm3_update(
    updates: Tree,
    state: ScaleBySM3State,
    params: Tree,
    *,
    inplace: bool,
    b1: Any,
    b2: Any,
    eps: Any,
) -> tuple[Tree, ScaleBySM3State]:
    updates, momentum, mu = leafwise(
        "scale_by_sm3", _sm3, updates, state.momentum, state.mu, b1=b1, b2=b2, eps=eps
    )
    return updates, ScaleBySM3State(mu, momentum)


def _sm3(
    g: torch.Tensor, momentum: torch.Tensor, mu: list[torch.Tensor], *, b1: Any, b2: Any, eps: Any
) -> Any:
    g = g if g.dtype == momentum.dtype else g.to(momentum.dtype)
    covered = reduce(torch.minimum, mu)
    square = g * g * fit(_weight_of_square(b2), g) + covered * fit(b2, covered)
    momentum = ema(momentum, g / safe_sqrt(square + fit(eps, square)), b1, inplace=False)
    return momentum, momentum, _maxima(square)


def _weight_of_square(b2: Any) -> Any:
    if isinstance(b2, Real):
        return 1.0 if b2 == 1 else 1.0 - b2
    return torch.where(b2 == 1, 1.0, 1.0 - b2)


def _maxima(x: torch.Tensor) -> list[torch.Tensor]:
    """For each axis the maxima over the others, of as many dimensions as ``x``."""
    if x.ndim < 2:
        return [x.clone()]
    if not x.numel():  # there is no maximum, and nothing to scale by it
        return [x.sum(others, keepdim=True) for others in _others(x.ndim)]
    return [x.amax(others, keepdim=True) for others in _others(x.ndim)]


def _others(ndim: int) -> list[list[int]]:
    return [[other for other in range(ndim) if other != axis] for axis in range(ndim)]
