# SPDX-License-Identifier: Apache-2.0
"""Polyak's step: as long as the gap to the smallest value of the objective says."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch

from optcore._chain import chain, link
from optcore._declared import declares
from optcore._hyperparams import Hyperparam, check_flag, check_range, check_single
from optcore._leafwise import check_like_params
from optcore._momentum import sgd
from optcore._norms import multiply, total_norm
from optcore._rows import OptimizerRow
from optcore._transform import EmptyState, GradientTransformation, stateless_init
from optcore._tree import Tree, describe

_VARIANTS = ("sps", "sps+")


def scale_by_polyak(
    f_min: Hyperparam = 0.0,
    max_learning_rate: Hyperparam = 1.0,
    eps: Hyperparam = 0.0,
    variant: str = "sps",
    *,
    maximize: bool = False,
) -> GradientTransformation:
    r"""Scale all updates together by Polyak's step size.

    With :math:`f` the value of the objective at the parameters, the extra argument ``value`` of
    ``update``:

    .. math::
        u = \gamma\,g, \qquad
        \gamma = \min\left(\frac{f - f^*}{\lVert g \rVert^2 + \epsilon},\ \gamma_{\max}\right)

    Args:
        f_min: :math:`f^*`, the smallest value; 0 where a model can fit all data.
        max_learning_rate: :math:`\gamma_{\max} \ge 0`.
        eps: :math:`\epsilon \ge 0`.
        variant: ``"sps"``, or ``"sps+"``, which stays where it is below ``f_min``.
        maximize: The gap is :math:`f^* - f`, for gradients of :math:`-f`; ``f_min`` is the largest
            value then.

    Differentiable:
        In the updates, ``value`` and tensor hyperparameters, twice. Where
        :math:`\lVert g \rVert^2 + \epsilon` is below the machine epsilon of float64 no step is
        taken, and derivatives are 0.

    Raises:
        TypeError: A hyperparameter is no number, schedule or tensor; in ``update``, no ``value`` or
            one that is no real scalar.
        ValueError: A hyperparameter outside its range, or another variant; in ``update``, a
            gradient of another shape than its parameter.

    Example:
        >>> tx = scale_by_polyak()
        >>> tx.update([torch.tensor([2.0])], tx.init([torch.ones(1)]), value=1.0)[0]
        [tensor([0.5000])]

    Reference:
        Loizou et al., 2021, arXiv:2002.10542, equation 3; ``"sps+"``: Garrigos et al., 2023,
        arXiv:2307.14528.
    """
    who = "scale_by_polyak"
    check_single(who, "f_min", f_min)
    check_single(who, "max_learning_rate", max_learning_rate, 0.0)
    check_single(who, "eps", eps, 0.0)
    if variant not in _VARIANTS:
        raise ValueError(f"{who}: expected variant in {_VARIANTS}, got {variant!r}")
    check_flag(who, "maximize", maximize)
    hyperparams = {"f_min": f_min, "max_learning_rate": max_learning_rate, "eps": eps}
    static = {"variant": variant, "maximize": maximize}
    return GradientTransformation(stateless_init, _polyak_update, hyperparams, static, name=who)


def polyak_sgd(
    lr: Hyperparam = 1.0,
    max_lr: Hyperparam = 1.0,
    f_min: Hyperparam = 0.0,
    eps: Hyperparam = 0.0,
    *,
    variant: str = "sps",
    maximize: bool = False,
) -> GradientTransformation:
    """Gradient descent with Polyak's step size: :func:`sgd`, :func:`scale_by_polyak`.

    ``update`` wants the extra argument ``value``: the loss at the parameters. The class takes it
    from the closure, or as ``step(value=loss)``, and all parameters in one group.

    Args:
        lr: A factor >= 0 of the gradients before the step size is found; 1 but for schedules.
        max_lr: Largest step size >= 0.
        f_min: Smallest value of the objective; the largest if it is maximized.
        eps: Added to the squared norm, >= 0.
        variant: See :func:`scale_by_polyak`.
        maximize: Ascend instead of descend.

    Differentiable:
        As :func:`scale_by_polyak`, and in ``lr``.

    Raises:
        TypeError: A hyperparameter is no number, schedule or tensor; in ``update``, no ``value``.
        ValueError: A hyperparameter outside its range, or another variant.

    Differs:
        optax calls ``lr`` ``scaling`` and ``max_lr`` ``max_learning_rate``. To a class without
        state ``torch.distributed.checkpoint.state_dict.set_optimizer_state_dict`` gives a step
        without a loss, which is refused: use ``load_state_dict``.

    Example:
        >>> opt = polyak_sgd()
        >>> params = [torch.tensor([2.0])]  # of f(x) = x ** 2 / 2
        >>> opt.update([torch.tensor([2.0])], opt.init(params), params, value=2.0)[0]
        [tensor([-1.])]

    Reference:
        Loizou et al., 2021, arXiv:2002.10542, equation 3. Equals ``optax.polyak_sgd``.
    """
    check_range("polyak_sgd", "lr", lr, 0.0)
    check_single("polyak_sgd", "max_lr", max_lr, 0.0)
    rule = link("polyak_sgd", scale_by_polyak, f_min, max_lr, eps, variant, maximize=maximize)
    return chain(link("polyak_sgd", sgd, lr=lr, maximize=maximize), rule).named("polyak_sgd")


ROWS = (OptimizerRow(polyak_sgd, "PolyakSGD"),)


def _check_extra(extra: Mapping[str, Any]) -> None:
    checked_value("scale_by_polyak", extra.get("value"))


@declares(_check_extra)
def _polyak_update(
    updates: Tree,
    state: EmptyState,
    params: Tree,
    *,
    inplace: bool,
    f_min: Any,
    max_learning_rate: Any,
    eps: Any,
    variant: str,
    maximize: bool,
    value: Any = None,
    **extra: Any,
) -> tuple[Tree, EmptyState]:
    who = "scale_by_polyak"
    value = checked_value(who, value)
    check_like_params(who, updates, params)
    square = total_norm(who, updates, 2.0, inplace).square()
    gap = value.to(square.device, square.dtype) - f_min
    gap = -gap if maximize else gap
    if variant == "sps+":
        gap = gap.clamp_min(0.0)
    divisor = square + eps
    still = divisor <= torch.finfo(torch.float64).eps
    ratio = gap / torch.where(still, 1.0, divisor)
    most = torch.as_tensor(max_learning_rate, dtype=ratio.dtype, device=ratio.device)
    step = torch.where(still, 0.0, torch.minimum(ratio, most))
    return multiply(who, updates, step), state


def checked_value(who: str, value: Any) -> torch.Tensor:
    """The extra argument ``value`` as a tensor.

    Raises:
        TypeError: It is missing, or no real scalar.
    """
    if value is None:
        raise TypeError(
            f"{who}: expected value=, got None; call update(updates, state, params, value=loss), "
            "or step(value=loss) of a class"
        )
    if isinstance(value, Real) and not isinstance(value, bool):  # NumPy's scalars too
        return torch.tensor(float(value), dtype=torch.float64)
    tensor = isinstance(value, torch.Tensor) and not value.dtype.is_complex
    if not tensor or value.numel() != 1 or value.dtype == torch.bool:
        raise TypeError(f"{who}: expected value= as a real scalar, got {describe(value)}")
    value = value.reshape(())
    return value if value.dtype.is_floating_point else value.to(torch.float64)
