# SPDX-License-Identifier: Apache-2.0
"""Adam: exponential moving averages of the gradient and of its square."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from optcore._chain import link
from optcore._hyperparams import Hyperparam, check_betas, check_flag
from optcore._kernels import check_kernels
from optcore._leafwise import Tick, ema, ema_square
from optcore._moment_rules import adam_step, descend, with_moments
from optcore._rows import OptimizerRow
from optcore._transform import GradientTransformation
from optcore._tree import Tree


def scale_by_adam(
    b1: Hyperparam = 0.9,
    b2: Hyperparam = 0.999,
    eps: Hyperparam = 1e-8,
    eps_root: Hyperparam = 0.0,
    *,
    moment_requires_grad: bool = False,
    use_accelerated_op: bool = False,
) -> GradientTransformation:
    r"""Scale each gradient by the moments of its history.

    For every leaf with gradient :math:`g_t`:

    .. math::
        \mu_t &= b_1 \mu_{t-1} + (1 - b_1)\,g_t \\
        \nu_t &= b_2 \nu_{t-1} + (1 - b_2)\,g_t^2 \\
        u_t &= \frac{\mu_t / (1 - b_1^t)}{\sqrt{\nu_t / (1 - b_2^t) + \epsilon_r} + \epsilon}

    Args:
        b1: Decay of the first moment, in ``[0, 1)``.
        b2: Decay of the second moment, in ``[0, 1)``.
        eps: :math:`\epsilon \ge 0`, added to the root.
        eps_root: :math:`\epsilon_r \ge 0`, added under the root.
        moment_requires_grad: Start the moments as leaves that require grad, to learn them.
        use_accelerated_op: Run the kernel that an installed package offers; see
            :func:`kernels_status`.

    State:
        ``count``, ``mu`` and ``nu``: like ``params``, start at zero. The bias correction is
        computed in float64 whatever the dtype of the parameters.

    Differentiable:
        In everything, twice. Where :math:`\nu_t = 0` the derivative in :math:`g_t` is the limit
        and the one in :math:`\nu_{t-1}` is 0.

    Raises:
        ImportError: ``use_accelerated_op=True`` and no kernels are installed.
        TypeError: A hyperparameter is no number, schedule, tensor or tree of such.
        ValueError: A hyperparameter outside its range.

    Example:
        >>> import torch
        >>> tx = scale_by_adam()
        >>> state = tx.init([torch.zeros(1)])
        >>> tx.update([torch.full((1,), 3.0)], state)[0]
        [tensor([1.])]

    Reference:
        Kingma and Ba, 2015, arXiv:1412.6980, Algorithm 1.
    """
    check_flag("scale_by_adam", "moment_requires_grad", moment_requires_grad)
    return with_moments(
        "scale_by_adam",
        _adam,
        requires_grad=moment_requires_grad,
        use_accelerated_op=use_accelerated_op,
        b1=b1,
        b2=b2,
        eps=eps,
        eps_root=eps_root,
    )


def adam(
    lr: Hyperparam = 1e-3,
    betas: tuple[Hyperparam, Hyperparam] = (0.9, 0.999),
    eps: Hyperparam = 1e-8,
    weight_decay: Hyperparam = 0.0,
    *,
    eps_root: Hyperparam = 0.0,
    moment_requires_grad: bool = False,
    maximize: bool = False,
    use_accelerated_op: bool = False,
) -> GradientTransformation:
    r"""Adam: :math:`\theta' = \theta - \eta\,u_t` with :math:`u_t` of :func:`scale_by_adam`.

    Args:
        lr: Learning rate :math:`\eta \ge 0`.
        betas: Decays ``(b1, b2)`` of the two moments, each in ``[0, 1)``.
        eps: Added to the root, >= 0.
        weight_decay: L2 penalty >= 0, added to the gradient: needs ``params`` in ``update``.
        eps_root: Added under the root, >= 0. A positive value helps second-order derivatives.
        moment_requires_grad: Start the moments as leaves that require grad.
        maximize: Ascend instead of descend.
        use_accelerated_op: Run the kernel that an installed package offers; see
            :func:`kernels_status`.

    State:
        That of :func:`scale_by_adam`, inside the tuple of a :func:`chain`.

    Differentiable:
        In the gradients, the parameters and every tensor hyperparameter, twice; see
        :func:`scale_by_adam` for zero gradients.

    Raises:
        ImportError: ``use_accelerated_op=True`` and no kernels are installed.
        TypeError: A hyperparameter is no number, schedule, tensor or tree of such.
        ValueError: A hyperparameter outside its range.

    Example:
        >>> import torch
        >>> opt = adam(lr=0.1)
        >>> params = {"w": torch.tensor([1.0])}
        >>> state = opt.init(params)
        >>> updates, state = opt.update({"w": torch.tensor([2.0])}, state)
        >>> updates
        {'w': tensor([-0.1000])}

    Reference:
        Kingma and Ba, 2015, arXiv:1412.6980, Algorithm 1. Equals ``torch.optim.Adam``.
    """
    b1, b2 = check_betas("adam", betas)
    check_kernels("adam", use_accelerated_op, "scale_by_adam")
    rule = link(
        "adam",
        scale_by_adam,
        b1,
        b2,
        eps,
        eps_root,
        moment_requires_grad=moment_requires_grad,
        use_accelerated_op=use_accelerated_op,
    )
    return descend("adam", rule, lr, weight_decay, maximize)


def adamw(
    lr: Hyperparam = 1e-3,
    betas: tuple[Hyperparam, Hyperparam] = (0.9, 0.999),
    eps: Hyperparam = 1e-8,
    weight_decay: Hyperparam = 0.01,
    *,
    eps_root: Hyperparam = 0.0,
    mask: Tree | Callable[[Tree], Tree] | None = None,
    moment_requires_grad: bool = False,
    maximize: bool = False,
    use_accelerated_op: bool = False,
) -> GradientTransformation:
    r"""Adam with decoupled weight decay: :math:`\theta' = \theta - \eta\,(u_t + \lambda\,\theta)`.

    Args:
        lr: Learning rate :math:`\eta \ge 0`.
        betas: Decays ``(b1, b2)`` of the two moments, each in ``[0, 1)``.
        eps: Added to the root, >= 0.
        weight_decay: Rate :math:`\lambda \ge 0`; needs ``params`` in ``update`` unless it is 0.
        eps_root: Added under the root, >= 0.
        mask: Which parameters decay; see :func:`add_decayed_weights`.
        moment_requires_grad: Start the moments as leaves that require grad.
        maximize: Ascend instead of descend (the decay still shrinks).
        use_accelerated_op: Run the kernel that an installed package offers; see
            :func:`kernels_status`.

    State:
        That of :func:`scale_by_adam`, inside the tuple of a :func:`chain`.

    Differentiable:
        In the gradients, the parameters and every tensor hyperparameter, twice.

    Raises:
        ImportError: ``use_accelerated_op=True`` and no kernels are installed.
        TypeError: A hyperparameter is no number, schedule, tensor or tree of such.
        ValueError: A hyperparameter outside its range.

    Example:
        >>> import torch
        >>> opt = adamw(lr=0.1, weight_decay=0.5)
        >>> params = {"w": torch.tensor([1.0])}
        >>> updates, _ = opt.update({"w": torch.tensor([2.0])}, opt.init(params), params)
        >>> updates
        {'w': tensor([-0.1500])}

    Reference:
        Loshchilov and Hutter, 2019, arXiv:1711.05101, Algorithm 2. Equals ``torch.optim.AdamW``.
    """
    b1, b2 = check_betas("adamw", betas)
    check_kernels("adamw", use_accelerated_op, "scale_by_adam")
    rule = link(
        "adamw",
        scale_by_adam,
        b1,
        b2,
        eps,
        eps_root,
        moment_requires_grad=moment_requires_grad,
        use_accelerated_op=use_accelerated_op,
    )
    return descend("adamw", rule, lr, weight_decay, maximize, decoupled=True, mask=mask)


_TORCH_KEYS = {"count": "step", "mu": "exp_avg", "nu": "exp_avg_sq"}

ROWS = (OptimizerRow(adam, "Adam", _TORCH_KEYS), OptimizerRow(adamw, "AdamW", _TORCH_KEYS))


def _adam(
    g: Any,
    mu: Any,
    nu: Any,
    *,
    tick: Tick,
    inplace: bool,
    b1: Any,
    b2: Any,
    eps: Any,
    eps_root: Any,
) -> Any:
    mu = ema(mu, g, b1, inplace)
    nu = ema_square(nu, g, b2, inplace)
    return adam_step(mu, nu, tick, inplace, b1, b2, eps, eps_root), mu, nu
