# SPDX-License-Identifier: Apache-2.0
"""Gradient descent, with and without momentum."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from optcore._chain import chain, link
from optcore._deferred import defers
from optcore._hyperparams import Hyperparam, check_flag, check_range, is_zero
from optcore._kernels import check_kernels, kernel_for
from optcore._leafwise import (
    Tick,
    add_scaled,
    counts_like,
    fit,
    leafwise,
    scaled,
    zeros_like,
)
from optcore._rows import OptimizerRow
from optcore._scaling import learning_rate_link, uphill
from optcore._transform import GradientTransformation
from optcore._tree import Tree
from optcore._weight_decay import add_decayed_weights


class TraceState(NamedTuple):
    """Momentum kept by :func:`trace`; every field is a tree like the parameters."""

    trace: Tree  # decayed sum of gradients
    count: Tree  # i64[]: updates that this leaf had; () without dampening, which alone needs it


def trace(
    decay: Hyperparam = 0.9,
    dampening: Hyperparam = 0.0,
    nesterov: bool = False,
    *,
    moment_requires_grad: bool = False,
    use_accelerated_op: bool = False,
) -> GradientTransformation:
    r"""Accumulate gradients into a momentum.

    For every leaf with gradient :math:`g_t`:

    .. math::
        b_1 &= d\,b_0 + g_1, \qquad b_t = d\,b_{t-1} + (1 - \tau)\,g_t \quad (t > 1) \\
        u_t &= b_t \quad\text{or, with Nesterov,}\quad g_t + d\,b_t

    Args:
        decay: Decay :math:`d` of the momentum, >= 0; above 1 it grows.
        dampening: :math:`\tau`; the first gradient enters undamped, as in torch.optim.
        nesterov: Look one step ahead.
        moment_requires_grad: Start the momentum as leaves that require grad, to learn it.
        use_accelerated_op: Run the kernel that an installed package offers; see
            :func:`kernels_status`.

    State:
        ``trace``: like ``params``, starts at zero. ``count``: only with dampening.

    Differentiable:
        In everything; linear in the gradients.

    Raises:
        ImportError: ``use_accelerated_op=True`` and no kernels are installed.
        TypeError: A hyperparameter is no number, schedule, tensor or tree of such.
        ValueError: A hyperparameter outside its range.

    Example:
        >>> import torch
        >>> tx = trace(0.5)
        >>> state = tx.init([torch.zeros(1)])
        >>> _, state = tx.update([torch.ones(1)], state)
        >>> tx.update([torch.ones(1)], state)[0]
        [tensor([1.5000])]

    Reference:
        Sutskever et al., 2013, "On the importance of initialization and momentum in deep
        learning", equations 1-4, in the form of ``torch.optim.SGD``.
    """
    check_flag("trace", "nesterov", nesterov)
    check_range("trace", "decay", decay, 0.0)
    check_range("trace", "dampening", dampening)
    check_flag("trace", "moment_requires_grad", moment_requires_grad)
    check_kernels("trace", use_accelerated_op, "trace")
    return GradientTransformation(
        _trace_init,
        _trace_update,
        {"decay": decay, "dampening": dampening},
        {
            "nesterov": nesterov,
            "moment_requires_grad": moment_requires_grad,
            "use_accelerated_op": use_accelerated_op,
        },
        name="trace",
    )


def sgd(
    lr: Hyperparam = 1e-3,
    *,
    momentum: Hyperparam = 0.0,
    dampening: Hyperparam = 0.0,
    weight_decay: Hyperparam = 0.0,
    nesterov: bool = False,
    moment_requires_grad: bool = False,
    maximize: bool = False,
    use_accelerated_op: bool = False,
) -> GradientTransformation:
    r"""Stochastic gradient descent: :math:`\theta' = \theta - \eta\,u_t`.

    :math:`u_t` is :math:`g_t + \lambda\,\theta`, through :func:`trace` if there is momentum.

    Args:
        lr: Learning rate :math:`\eta \ge 0`.
        momentum: Decay of the momentum >= 0; the number 0 keeps none.
        dampening: Weight taken from every gradient but the first.
        weight_decay: L2 penalty :math:`\lambda \ge 0`; needs ``params`` in ``update``.
        nesterov: Nesterov momentum; needs a momentum and no dampening.
        moment_requires_grad: Start the momentum as leaves that require grad.
        maximize: Ascend instead of descend.
        use_accelerated_op: Run the kernel that an installed package offers; see
            :func:`kernels_status`. Without momentum it is one of whole steps: ``update`` alone is a
            multiplication and stays torch's, and so is ``step`` where another transformation
            holds this one (``chain(clip, sgd)``, ``masked``, ``multi_steps``,
            ``inject_hyperparams``) or a parameter stands at two leaves.

    State:
        That of :func:`trace` inside the tuple of a :func:`chain`, if there is momentum.

    Differentiable:
        In the gradients, the parameters and every tensor hyperparameter.

    Raises:
        ImportError: ``use_accelerated_op=True`` and no kernels are installed.
        NotImplementedError: In ``step`` and the class, ``use_accelerated_op=True`` without
            momentum where ``lr`` or ``weight_decay`` has a value per parameter or element.
        TypeError: A hyperparameter is no number, schedule, tensor or tree of such.
        ValueError: A hyperparameter outside its range, or Nesterov without momentum.

    Example:
        >>> import torch
        >>> opt = sgd(lr=0.1, momentum=0.9)
        >>> params = {"w": torch.tensor([1.0])}
        >>> opt.update({"w": torch.tensor([2.0])}, opt.init(params))[0]
        {'w': tensor([-0.2000])}

    Reference:
        Equals ``torch.optim.SGD``.
    """
    check_range("sgd", "lr", lr, 0.0)
    check_range("sgd", "momentum", momentum, 0.0)
    check_range("sgd", "dampening", dampening)
    check_range("sgd", "weight_decay", weight_decay, 0.0)
    check_flag("sgd", "nesterov", nesterov)
    check_flag("sgd", "moment_requires_grad", moment_requires_grad)
    plain = is_zero(momentum)
    check_kernels("sgd", use_accelerated_op, "step" if plain else "trace")
    if nesterov and (plain or not is_zero(dampening)):
        raise ValueError(
            "sgd: expected a momentum and no dampening with nesterov=True, "
            f"got momentum={_brief(momentum)}, dampening={_brief(dampening)}"
        )
    options = {
        "moment_requires_grad": moment_requires_grad,
        "use_accelerated_op": use_accelerated_op,
    }
    return chain(
        *uphill("sgd", maximize),
        *([] if is_zero(weight_decay) else [link("sgd", add_decayed_weights, weight_decay)]),
        *([] if plain else [link("sgd", trace, momentum, dampening, nesterov, **options)]),
        learning_rate_link(lr, use_accelerated_op and plain),
    ).named("sgd")


_TORCH_KEYS = {"trace": "momentum_buffer", "count": "step"}

ROWS = (
    # a buffer in a checkpoint of torch.optim has seen its first, undamped gradient
    OptimizerRow(sgd, "SGD", _TORCH_KEYS, implied={"step": 1}),
)


def _brief(value: Any) -> str:
    return str(value) if isinstance(value, (int, float)) else type(value).__name__


def _trace_init(
    params: Tree, *, dampening: Any, moment_requires_grad: bool, **_: Any
) -> TraceState:
    return TraceState(
        trace=zeros_like("trace", params, requires_grad=moment_requires_grad),
        count=() if is_zero(dampening) else counts_like(params),
    )


@defers
def _trace_update(
    updates: Tree,
    state: TraceState,
    params: Tree,
    *,
    inplace: bool,
    decay: Any,
    dampening: Any,
    nesterov: bool,
    moment_requires_grad: bool,
    use_accelerated_op: bool,
) -> tuple[Tree, TraceState]:
    def accumulate(g: torch.Tensor, old: torch.Tensor, share: Any, decay: Any) -> Any:
        buffer = _decayed_sum(old, g, decay, share, inplace)
        if nesterov:
            return add_scaled(g, buffer, decay), buffer
        # an update outlives the buffer
        return (scaled(buffer, 1.0) if inplace else buffer), buffer

    def plain(g: torch.Tensor, old: torch.Tensor, *, decay: Any) -> Any:
        return accumulate(g, old, None, decay)

    def damped(
        g: torch.Tensor, old: torch.Tensor, *, tick: Tick, decay: Any, dampening: Any
    ) -> Any:
        return accumulate(g, old, tick.derive(_share, dampening), decay)

    kernel = kernel_for("trace", use_accelerated_op, nesterov=nesterov)
    if isinstance(state.count, tuple) and not state.count:
        updates, buffers = leafwise(
            "trace", plain, updates, state.trace, inplace=inplace, kernel=kernel, decay=decay
        )
        return updates, TraceState(buffers, ())
    updates, buffers, counts = leafwise(
        "trace",
        damped,
        updates,
        state.trace,
        counts=state.count,
        inplace=inplace,
        kernel=kernel,
        decay=decay,
        dampening=dampening,
    )
    return updates, TraceState(buffers, counts)


def _share(count: torch.Tensor, dampening: Any) -> torch.Tensor:
    """What of a gradient enters the momentum: all of the first one."""
    return torch.where(count > 1, 1.0 - dampening, torch.ones_like(count))


def _decayed_sum(
    old: torch.Tensor, new: torch.Tensor, decay: Any, share: Any, inplace: bool
) -> Any:
    new = new if new.dtype == old.dtype else new.to(old.dtype)
    if share is not None:
        new = new * fit(share, new)
    if inplace:
        return old.mul_(fit(decay, old)).add_(new)
    return add_scaled(new, old, decay)
