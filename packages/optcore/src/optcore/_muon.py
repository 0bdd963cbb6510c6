# SPDX-License-Identifier: Apache-2.0
"""Muon: momentum, orthogonalised."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from optcore._chain import chain, link
from optcore._hyperparams import (
    Hyperparam,
    check_flag,
    check_number,
    check_range,
    is_zero,
    numbers_only,
)
from optcore._leafwise import ema, leafwise, zeros_like
from optcore._norms import block_norm
from optcore._rows import OptimizerRow
from optcore._scaling import scale_by_learning_rate, uphill
from optcore._transform import GradientTransformation
from optcore._tree import Tree, describe, tree_leaves
from optcore._weight_decay import add_decayed_weights

_ADJUSTMENTS = (None, "original", "match_rms_adamw")


class ScaleByMuonState(NamedTuple):
    """Momentum kept by :func:`scale_by_muon`."""

    momentum: Tree  # like params: decayed average of gradients


@numbers_only("ns_coefficients", "eps", "ns_steps")
def scale_by_muon(
    momentum: Hyperparam = 0.95,
    nesterov: bool = True,
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
    eps: float = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: str | None = None,
    *,
    ns_dtype: torch.dtype | None = torch.bfloat16,
) -> GradientTransformation:
    r"""Replace each gradient matrix by its momentum, orthogonalised.

    With :math:`B_t = d\,B_{t-1} + (1 - d)\,G_t` and :math:`X_0` the look-ahead momentum
    :math:`(1 - d)\,G_t + d\,B_t` (or :math:`B_t`) over its Frobenius norm, Newton-Schulz steps
    drive every singular value towards 1:

    .. math::
        X_{k+1} = a\,X_k + (b\,A_k + c\,A_k^2)\,X_k, \qquad A_k = X_k X_k^\top

    The step is scaled by :math:`\sqrt{\max(1, m / n)}` for an ``(m, n)`` matrix.

    Args:
        momentum: Decay :math:`d` of the momentum, in ``[0, 1)``.
        nesterov: Look one step ahead.
        ns_coefficients: :math:`(a, b, c)`: numbers.
        eps: Smallest norm to divide by: a number >= 0.
        ns_steps: Newton-Schulz steps.
        adjust_lr_fn: None or ``"original"`` for the scale above, ``"match_rms_adamw"`` for
            :math:`0.2 \sqrt{\max(m, n)}`.
        ns_dtype: In which the iteration runs; None for that of the gradient.

    State:
        ``momentum``: like ``params``, starts at zero.

    Differentiable:
        In the gradients and ``momentum``, twice; at a zero matrix the derivative is that of a
        division by ``eps``.

    Raises:
        ValueError: A hyperparameter outside its range; in ``init``, a parameter that is no matrix.

    Example:
        >>> import torch
        >>> tx = scale_by_muon(ns_steps=30, ns_coefficients=(1.5, -0.5, 0.0), ns_dtype=None)
        >>> params = [torch.zeros(2, 2)]
        >>> tx.update([torch.diag(torch.tensor([3.0, 4.0]))], tx.init(params))[0][0].round()
        tensor([[1., 0.],
                [0., 1.]])

    Reference:
        Jordan et al., 2024, "Muon: an optimizer for hidden layers in neural networks".
    """
    who = "scale_by_muon"
    check_range(who, "momentum", momentum, 0.0, 1.0, open_high=True)
    check_flag(who, "nesterov", nesterov)
    check_number(who, "eps", eps, 0.0)
    if not isinstance(ns_coefficients, (tuple, list)):
        raise TypeError(f"{who}: expected 3 ns_coefficients, got {describe(ns_coefficients)}")
    if len(ns_coefficients) != 3:
        raise ValueError(f"{who}: expected 3 ns_coefficients, got {len(ns_coefficients)}")
    for index, value in enumerate(ns_coefficients):
        check_number(who, f"ns_coefficients[{index}]", value)
    check_number(who, "ns_steps", ns_steps)
    if ns_steps < 0:
        raise ValueError(f"{who}: expected ns_steps >= 0, got {ns_steps}")
    if adjust_lr_fn not in _ADJUSTMENTS:
        raise ValueError(f"{who}: expected adjust_lr_fn in {_ADJUSTMENTS}, got {adjust_lr_fn!r}")
    static = {
        "nesterov": nesterov,
        "ns_coefficients": tuple(ns_coefficients),
        "eps": eps,
        "ns_steps": ns_steps,
        "adjust_lr_fn": adjust_lr_fn,
        "ns_dtype": ns_dtype,
    }
    return GradientTransformation(
        _muon_init, _muon_update, {"momentum": momentum}, static, name=who
    )


@numbers_only("ns_coefficients", "eps", "ns_steps")
def muon(
    lr: Hyperparam = 1e-3,
    weight_decay: Hyperparam = 0.1,
    momentum: Hyperparam = 0.95,
    nesterov: bool = True,
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
    eps: float = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: str | None = None,
    *,
    ns_dtype: torch.dtype | None = torch.bfloat16,
    maximize: bool = False,
) -> GradientTransformation:
    """Muon: :func:`scale_by_muon`, decoupled decay, learning rate; equals ``torch.optim.Muon``.

    Every parameter must be a matrix: give biases and embeddings another optimizer.

    Args:
        lr: Learning rate >= 0.
        weight_decay: Decoupled rate >= 0; needs ``params`` in ``update``.
        momentum: Decay of the momentum, in ``[0, 1)``.
        nesterov: Look one step ahead.
        ns_coefficients: Of the Newton-Schulz step: numbers.
        eps: Smallest norm to divide by: a number >= 0.
        ns_steps: Newton-Schulz steps.
        adjust_lr_fn: How the step depends on the shape; see :func:`scale_by_muon`.
        ns_dtype: In which the iteration runs; None for that of the gradient.
        maximize: Ascend instead of descend.

    Raises:
        ValueError: A hyperparameter outside its range; in ``init``, a parameter that is no matrix.

    Example:
        >>> import torch
        >>> opt = muon(lr=0.1, weight_decay=0.0, ns_coefficients=(1.5, -0.5, 0.0), ns_steps=30)
        >>> params = [torch.zeros(1, 1)]
        >>> opt.update([torch.full((1, 1), 3.0)], opt.init(params))[0]
        [tensor([[-0.1000]])]

    Reference:
        Jordan et al., 2024, "Muon: an optimizer for hidden layers in neural networks".
    """
    check_range("muon", "lr", lr, 0.0)
    check_range("muon", "weight_decay", weight_decay, 0.0)
    return chain(
        *uphill("muon", maximize),
        link(
            "muon",
            scale_by_muon,
            momentum,
            nesterov,
            ns_coefficients,
            eps,
            ns_steps,
            adjust_lr_fn,
            ns_dtype=ns_dtype,
        ),
        *([] if is_zero(weight_decay) else [link("muon", add_decayed_weights, weight_decay)]),
        scale_by_learning_rate(lr),
    ).named("muon")


ROWS = (OptimizerRow(muon, "Muon", {"momentum": "momentum_buffer"}),)


def _muon_init(params: Tree, **_: Any) -> ScaleByMuonState:
    for param in tree_leaves(params):
        if isinstance(param, torch.Tensor) and param.ndim != 2:
            raise ValueError(
                f"scale_by_muon: expected matrices, got {describe(param)}; give parameters of "
                "other shapes another optimizer"
            )
    return ScaleByMuonState(zeros_like("scale_by_muon", params))


def _muon_update(
    updates: Tree,
    state: ScaleByMuonState,
    params: Tree,
    *,
    inplace: bool,
    momentum: Any,
    nesterov: bool,
    adjust_lr_fn: str | None,
    **hyperparams: Any,
) -> tuple[Tree, ScaleByMuonState]:
    def formula(g: torch.Tensor, buffer: torch.Tensor, *, momentum: Any) -> Any:
        g = g.to(buffer.dtype)
        buffer = ema(buffer, g, momentum, inplace)
        ahead = ema(g, buffer, 1 - momentum, False) if nesterov else buffer
        direction = _orthogonalized(ahead, **hyperparams).to(g.dtype)
        return direction * _adjustment(adjust_lr_fn, g.shape), buffer

    updates, buffer = leafwise("scale_by_muon", formula, updates, state.momentum, momentum=momentum)
    return updates, ScaleByMuonState(buffer)


def _orthogonalized(
    matrix: torch.Tensor,
    ns_coefficients: tuple[float, float, float],
    eps: float,
    ns_steps: int,
    ns_dtype: torch.dtype | None,
) -> torch.Tensor:
    a, b, c = ns_coefficients
    x = matrix if ns_dtype is None else matrix.to(ns_dtype)
    tall = x.shape[0] > x.shape[1]
    x = x.mT if tall else x
    x = x / block_norm(x).to(x.dtype).clamp_min(eps)
    for _ in range(ns_steps):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _adjustment(name: str | None, shape: torch.Size) -> float:
    if name == "match_rms_adamw":
        return 0.2 * math.sqrt(max(shape))
    return math.sqrt(max(1.0, shape[0] / max(shape[1], 1)))
