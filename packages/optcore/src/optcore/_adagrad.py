# SPDX-License-Identifier: Apache-2.0
"""Adagrad: scaling by the sum of all squares so far."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from optcore._chain import chain, link
from optcore._deferred import defers
from optcore._hyperparams import Hyperparam, check_number, check_range, is_zero, numbers_only
from optcore._kernels import check_kernels, kernel_for
from optcore._leafwise import (
    Tick,
    counts_like,
    full_like,
    leafwise,
    scaled,
    takes_numbers,
)
from optcore._rmsprop import divided_by_root
from optcore._rows import OptimizerRow
from optcore._scaling import scale_by_learning_rate, uphill
from optcore._transform import GradientTransformation
from optcore._tree import Tree
from optcore._weight_decay import add_decayed_weights


class ScaleByRssState(NamedTuple):
    """Sum kept by :func:`scale_by_rss`; both are trees like the parameters."""

    count: (
        Tree  # i64[]: updates that this leaf had; kept without lr_decay too, which may be set later
    )
    sum_of_squares: Tree  # of all gradients


@numbers_only("initial_accumulator_value")
def scale_by_rss(
    initial_accumulator_value: float = 0.0,
    eps: Hyperparam = 1e-10,
    *,
    eps_root: Hyperparam = 0.0,
    lr_decay: Hyperparam = 0.0,
    use_accelerated_op: bool = False,
) -> GradientTransformation:
    r"""Divide each gradient by the root of the sum of all squares so far.

    .. math::
        s_t = s_{t-1} + g_t^2, \qquad
        u_t = \frac{1}{1 + (t - 1)\,\delta} \, \frac{g_t}{\sqrt{s_t + \epsilon_r} + \epsilon}

    Args:
        initial_accumulator_value: Start value of :math:`s`: a number >= 0.
        eps: :math:`\epsilon \ge 0`, added to the root.
        eps_root: :math:`\epsilon_r \ge 0`, added under the root.
        lr_decay: :math:`\delta \ge 0`.
        use_accelerated_op: Run the kernel that an installed package offers; see
            :func:`kernels_status`.

    State:
        ``sum_of_squares``: like ``params``. ``count``: updates that a leaf had.

    Differentiable:
        In everything, twice; at :math:`s_t = 0` the derivative in :math:`g_t` is the limit.

    Raises:
        ImportError: ``use_accelerated_op=True`` and no kernels are installed.
        TypeError: A hyperparameter is no number, schedule, tensor or tree of such.
        ValueError: A hyperparameter outside its range.

    Differs:
        optax adds its ``eps`` under the root and starts at 0.1: pass ``eps_root=1e-7, eps=0`` and
        ``initial_accumulator_value=0.1``.

    Example:
        >>> import torch
        >>> tx = scale_by_rss()
        >>> tx.update([torch.full((1,), 3.0)], tx.init([torch.zeros(1)]))[0]
        [tensor([1.])]

    Reference:
        Duchi, Hazan and Singer, 2011, JMLR 12, Figure 1 with diagonal matrices.
    """
    who = "scale_by_rss"
    check_number(who, "initial_accumulator_value", initial_accumulator_value, 0.0)
    check_range(who, "eps", eps, 0.0)
    check_range(who, "eps_root", eps_root, 0.0)
    check_range(who, "lr_decay", lr_decay, 0.0)
    check_kernels(who, use_accelerated_op, who)
    return GradientTransformation(
        _rss_init,
        _rss_update,
        {"eps": eps, "eps_root": eps_root, "lr_decay": lr_decay},
        {
            "initial_accumulator_value": initial_accumulator_value,
            "use_accelerated_op": use_accelerated_op,
        },
        name=who,
    )


@numbers_only("initial_accumulator_value")
def adagrad(
    lr: Hyperparam = 1e-2,
    lr_decay: Hyperparam = 0.0,
    weight_decay: Hyperparam = 0.0,
    initial_accumulator_value: float = 0.0,
    eps: Hyperparam = 1e-10,
    *,
    maximize: bool = False,
    use_accelerated_op: bool = False,
) -> GradientTransformation:
    r"""Adagrad: :func:`scale_by_rss` and a learning rate.

    Args:
        lr: Learning rate >= 0.
        lr_decay: :math:`\delta` of :func:`scale_by_rss`, >= 0.
        weight_decay: L2 penalty >= 0; needs ``params`` in ``update``.
        initial_accumulator_value: Start value of the sum: a number >= 0.
        eps: Added to the root, >= 0.
        maximize: Ascend instead of descend.
        use_accelerated_op: Run the kernel that an installed package offers; see
            :func:`kernels_status`.

    State:
        That of :func:`scale_by_rss`, inside the tuple of a :func:`chain`.

    Differentiable:
        In the gradients, the parameters and every tensor hyperparameter, twice.

    Raises:
        ImportError: ``use_accelerated_op=True`` and no kernels are installed.
        TypeError: A hyperparameter is no number, schedule, tensor or tree of such.
        ValueError: A hyperparameter outside its range.

    Differs:
        optax's ``adagrad`` has ``eps`` under the root; build it from :func:`scale_by_rss`.

    Example:
        >>> import torch
        >>> opt = adagrad(lr=0.1)
        >>> opt.update([torch.full((1,), 3.0)], opt.init([torch.zeros(1)]))[0]
        [tensor([-0.1000])]

    Reference:
        Duchi, Hazan and Singer, 2011, JMLR 12. Equals ``torch.optim.Adagrad``.
    """
    check_range("adagrad", "lr", lr, 0.0)
    check_range("adagrad", "weight_decay", weight_decay, 0.0)
    check_kernels("adagrad", use_accelerated_op, "scale_by_rss")
    rule = link(
        "adagrad",
        scale_by_rss,
        initial_accumulator_value,
        eps,
        lr_decay=lr_decay,
        use_accelerated_op=use_accelerated_op,
    )
    return chain(
        *uphill("adagrad", maximize),
        *([] if is_zero(weight_decay) else [link("adagrad", add_decayed_weights, weight_decay)]),
        rule,
        scale_by_learning_rate(lr),
    ).named("adagrad")


ROWS = (
    OptimizerRow(adagrad, "Adagrad", {"sum_of_squares": "sum", "count": "step"}, also=("AdaGrad",)),
)


def _rss_init(params: Tree, *, initial_accumulator_value: float, **_: Any) -> ScaleByRssState:
    return ScaleByRssState(
        count=counts_like(params),
        sum_of_squares=full_like("scale_by_rss", params, initial_accumulator_value),
    )


@defers
def _rss_update(
    updates: Tree,
    state: ScaleByRssState,
    params: Tree,
    *,
    inplace: bool,
    eps: Any,
    eps_root: Any,
    lr_decay: Any,
    initial_accumulator_value: float,
    use_accelerated_op: bool,
) -> tuple[Tree, ScaleByRssState]:
    def rule(
        g: torch.Tensor, total: torch.Tensor, *, tick: Tick, eps: Any, eps_root: Any, lr_decay: Any
    ) -> Any:
        new = g if g.dtype == total.dtype else g.to(total.dtype)
        total = total.addcmul_(new, new, value=1) if inplace else total + new * new
        update = divided_by_root(new, total, eps, eps_root, inplace)
        if not is_zero(lr_decay):
            update = scaled(update, tick.derive(_inverse_decay, lr_decay))
        return update, total

    updates, total, count = leafwise(
        "scale_by_rss",
        rule,
        updates,
        state.sum_of_squares,
        counts=state.count,
        inplace=inplace,
        kernel=kernel_for("scale_by_rss", use_accelerated_op),
        eps=eps,
        eps_root=eps_root,
        lr_decay=lr_decay,
    )
    return updates, ScaleByRssState(count, total)


@takes_numbers
def _inverse_decay(count: Any, lr_decay: Any) -> Any:
    return 1 / (1 + (count - 1) * lr_decay)
