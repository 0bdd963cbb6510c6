# SPDX-License-Identifier: Apache-2.0
"""Schedule-free learning: averaging the iterates instead of decaying the learning rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

import torch

from optcore._anchor import clones, first_or_kept
from optcore._hyperparams import Hyperparam, Schedule, check_range
from optcore._leafwise import Tick, add_scaled, counts_like, fit, leafwise
from optcore._masking import MaskedNode, check_transformation
from optcore._transform import GradientTransformation
from optcore._tree import (
    Tree,
    describe,
    flatten_like,
    path_to,
    tree_flatten,
    tree_leaves,
    tree_map,
    tree_unflatten,
)


class ScheduleFreeState(NamedTuple):
    """State of :func:`schedule_free`; all but the base's is a tree like the parameters.

    What is ``f64[]`` has the axes of the hyperparameters where these have some.
    """

    b1: Tree  # f64[]: of the last update, which the average is recovered with
    weight_sum: Tree  # f64[]: weights of all averaged iterates
    step_count: Tree  # i64[]: updates that this leaf had
    max_lr: Tree  # f64[]: largest learning rate so far
    base_optimizer_state: Tree
    z: Tree  # the base optimizer's iterate


@dataclass(frozen=True)
class _Ahead:
    """A schedule that counts from one: the count of this update, not of those before it."""

    schedule: Schedule

    def __call__(self, count: torch.Tensor) -> Any:
        return self.schedule(count + 1)


def schedule_free(
    base_optimizer: GradientTransformation,
    lr: Hyperparam,
    b1: Hyperparam = 0.9,
    weight_lr_power: Hyperparam = 2.0,
    state_dtype: torch.dtype | None = None,
) -> GradientTransformation:
    r"""Average the iterates of an optimizer, and take gradients near the average.

    With :math:`v_t` the update of the base optimizer at :math:`y_t`, and
    :math:`w_t = (\max_{s \le t} \eta_s)^r`:

    .. math::
        z_{t+1} &= z_t + v_t \\
        x_{t+1} &= (1 - c_t)\,x_t + c_t\,z_{t+1}, \qquad c_t = w_t / \textstyle\sum_{s \le t} w_s \\
        y_{t+1} &= b_1\,x_{t+1} + (1 - b_1)\,z_{t+1}

    The parameters are :math:`y`, where gradients are taken. What has been learned is :math:`x`:
    evaluate at :func:`schedule_free_eval_params`.

    Args:
        base_optimizer: Takes the steps of :math:`z`; it should have no momentum.
        lr: The base optimizer's learning rate :math:`\eta \ge 0`: a number or a warm-up. It only
            weighs the average. A schedule gets the count of the update, from 1 on.
        b1: In ``(0, 1]``; takes the place of the momentum.
        weight_lr_power: :math:`r \ge 0`. The higher, the less of a warm-up enters the average.
        state_dtype: dtype of ``z``; None means that of the parameter.

    State:
        ``z`` starts from the parameters of the first update and is a clone of them. A leaf without
        a gradient keeps all of its state. The weights are computed in float64.

    Differentiable:
        In the gradients, the parameters and tensor hyperparameters, twice, and as the base
        optimizer. Between equal learning rates the derivative of the maximum is shared out.

    Raises:
        TypeError: ``base_optimizer`` is no transformation, or a hyperparameter no number, schedule,
            tensor or tree of such.
        ValueError: A hyperparameter outside its range; ``update`` was given no ``params``.

    Differs:
        In optax all leaves share one weight, and ``b1`` is a constant.

    Example:
        >>> import torch
        >>> import optcore
        >>> tx = schedule_free(optcore.sgd(lr=1.0), lr=1.0, b1=0.5)
        >>> params = [torch.tensor([4.0])]
        >>> state = tx.init(params)
        >>> for _ in range(2):  # z is 3 and 2, x is 3 and 2.5
        ...     updates, state = tx.update([torch.tensor([1.0])], state, params)
        ...     params = optcore.apply_updates(params, updates)
        >>> params, schedule_free_eval_params(state, params)
        ([tensor([2.2500])], [tensor([2.5000])])

    Reference:
        Defazio et al., 2024, arXiv:2405.15682, Algorithm 1 around any optimizer. Equals
        ``optax.contrib.schedule_free``.
    """
    who = "schedule_free"
    check_transformation(who, base_optimizer)
    check_range(who, "lr", lr, 0.0)
    check_interpolation(who, "b1", b1)
    check_range(who, "weight_lr_power", weight_lr_power, 0.0)
    if state_dtype is not None and not (
        isinstance(state_dtype, torch.dtype) and state_dtype.is_floating_point
    ):
        raise TypeError(
            f"{who}: expected state_dtype as a floating torch.dtype or None, got {state_dtype}"
        )
    return GradientTransformation(
        _schedule_free_init,
        _schedule_free_update,
        {
            "lr": tree_map(lambda leaf: _Ahead(leaf) if callable(leaf) else leaf, lr),
            "b1": b1,
            "weight_lr_power": weight_lr_power,
        },
        {"base_optimizer": base_optimizer, "state_dtype": state_dtype},
        name=who,
        needs_params=True,
    )


def schedule_free_eval_params(state: Tree, params: Tree) -> Tree:
    r"""The average :math:`x = z + (y - z) / b_1`, at which to evaluate.

    Args:
        state: Of :func:`schedule_free`, or of a transformation that has exactly one inside.
        params: The parameters :math:`y` after the last update.

    Returns:
        New parameters like ``params``; those that ``state`` masks out, as they are.

    Differentiable:
        In the state and the parameters.

    Raises:
        TypeError: ``state`` holds no state of :func:`schedule_free`, or several.
        ValueError: ``params`` differ in structure or shape from those of the state.

    Differs:
        optax wants the :class:`ScheduleFreeState` itself.

    Example:
        >>> import torch
        >>> import optcore
        >>> tx = schedule_free(optcore.sgd(lr=1.0), lr=1.0, b1=0.5)
        >>> params = [torch.tensor([4.0])]
        >>> schedule_free_eval_params(tx.init(params), params)
        [tensor([4.])]
    """
    return _moved("schedule_free_eval_params", average, state, params)


def schedule_free_train_params(state: Tree, params: Tree) -> Tree:
    r"""The point :math:`y = b_1 x + (1 - b_1) z`, at which training goes on.

    Args:
        state: As in :func:`schedule_free_eval_params`, of which this is the inverse.
        params: The average :math:`x`.

    Returns:
        New parameters like ``params``; those that ``state`` masks out, as they are.

    Differentiable:
        In the state and the parameters.

    Raises:
        TypeError: ``state`` holds no state of :func:`schedule_free`, or several.
        ValueError: ``params`` differ in structure or shape from those of the state.

    Example:
        >>> import torch
        >>> import optcore
        >>> tx = schedule_free(optcore.sgd(lr=1.0), lr=1.0)
        >>> params = [torch.tensor([4.0])]
        >>> x = schedule_free_eval_params(tx.init(params), params)
        >>> schedule_free_train_params(tx.init(params), x)
        [tensor([4.])]
    """
    return _moved("schedule_free_train_params", interpolation, state, params)


def average(y: torch.Tensor, z: torch.Tensor, b1: torch.Tensor) -> torch.Tensor:
    r""":math:`x` with :math:`y = b_1 x + (1 - b_1) z`, in the dtype of :math:`y`."""
    return (y + (z - y) * fit(1 - 1 / b1, z)).to(y.dtype)


def interpolation(x: torch.Tensor, z: torch.Tensor, b1: torch.Tensor) -> torch.Tensor:
    r""":math:`y = b_1 x + (1 - b_1) z`, in the dtype of :math:`x`."""
    return (x + (z - x) * fit(1 - b1, z)).to(x.dtype)


def _moved(who: str, move: Callable[..., torch.Tensor], state: Tree, params: Tree) -> Tree:
    found = [node for node in tree_leaves(state, is_leaf=_is_own_state) if _is_own_state(node)]
    if len(found) != 1:
        raise TypeError(
            f"{who}: expected a state with one ScheduleFreeState inside, got {describe(state)} "
            f"with {len(found)}; pass what the init or update of schedule_free returned"
        )
    leaves, spec = tree_flatten(params)
    zs = flatten_like(who, "state differs from params", spec, found[0].z)
    b1s = flatten_like(who, "state differs from params", spec, found[0].b1)
    moved = []
    for index, (param, z, b1) in enumerate(zip(leaves, zs, b1s, strict=True)):
        if param is None or z is None or isinstance(z, MaskedNode):
            moved.append(param)
            continue
        if param.shape != z.shape:
            raise ValueError(
                f"{who}: expected parameters like those of the state, {describe(z)}, got "
                f"{describe(param)}, at {path_to(params, index)}"
            )
        moved.append(move(param, z, b1))
    return tree_unflatten(spec, moved)


def _is_own_state(node: object) -> bool:
    return isinstance(node, ScheduleFreeState)


def check_interpolation(who: str, name: str, b1: Hyperparam) -> None:
    check_range(who, name, b1, 0.0, 1.0)
    if any(isinstance(leaf, Real) and leaf == 0 for leaf in tree_leaves(b1)):
        raise ValueError(f"{who}: expected {name} in (0, 1], got 0; it could not be undone")


def _schedule_free_init(
    params: Tree,
    *,
    base_optimizer: GradientTransformation,
    state_dtype: torch.dtype | None,
    **_: Any,
) -> ScheduleFreeState:
    def shared(value: float) -> Tree:
        one = torch.tensor(value, dtype=torch.float64)
        return tree_map(lambda z: None if z is None else one, zs)

    zs = clones("schedule_free", params, state_dtype)
    return ScheduleFreeState(
        b1=shared(1.0),  # before the first update the parameters are their own average
        weight_sum=shared(0.0),
        step_count=counts_like(params),
        max_lr=shared(0.0),
        base_optimizer_state=base_optimizer.init(params),
        z=zs,
    )


def _schedule_free_update(
    updates: Tree,
    state: ScheduleFreeState,
    params: Tree,
    *,
    inplace: bool,
    base_optimizer: GradientTransformation,
    state_dtype: torch.dtype | None,
    lr: Any,
    b1: Any,
    weight_lr_power: Any,
    **extra: Any,
) -> tuple[Tree, ScheduleFreeState]:
    def formula(
        step: torch.Tensor,
        z: torch.Tensor,
        max_lr: torch.Tensor,
        weight_sum: torch.Tensor,
        old_b1: torch.Tensor,
        y: torch.Tensor,
        *,
        tick: Tick,
        lr: Any,
        b1: Any,
        weight_lr_power: Any,
    ) -> Any:
        towards, along, *weights = tick.derive(
            _weights, old_b1, weight_sum, max_lr, lr, b1, weight_lr_power
        )
        at = first_or_kept(tick.count == 1, y, z)
        moved = add_scaled(step * fit(along, step), at - y, towards)
        new_z = at.add_(step) if inplace and at is z else (at + step).to(z.dtype)
        return moved.to(y.dtype), new_z, *weights

    updates, base_state = base_optimizer.apply(
        updates, state.base_optimizer_state, params, inplace, extra
    )
    updates, z, max_lr, weight_sum, own_b1, count = leafwise(
        "schedule_free",
        formula,
        updates,
        state.z,
        state.max_lr,
        state.weight_sum,
        state.b1,
        counts=state.step_count,
        params=params,
        lr=lr,
        b1=b1,
        weight_lr_power=weight_lr_power,
    )
    return updates, ScheduleFreeState(own_b1, weight_sum, count, max_lr, base_state, z)


def _weights(
    _: torch.Tensor,
    old_b1: torch.Tensor,
    weight_sum: torch.Tensor,
    max_lr: torch.Tensor,
    lr: Any,
    b1: Any,
    weight_lr_power: Any,
) -> tuple[torch.Tensor, ...]:
    r"""What the new parameters are made of, and the state that this takes, in float64.

    From the equations, with :math:`x_t = z_t + (y_t - z_t) / b_1`, where :math:`b_1` was that of
    the last update: :math:`y_{t+1} - y_t = a\,(z_t - y_t) + s\,v_t`. No small difference of large
    numbers is formed, as recovering :math:`x_t` would.
    """
    max_lr = torch.maximum(_real(max_lr), _real(lr))
    weight = torch.pow(max_lr, weight_lr_power)
    weight_sum = _real(weight_sum) + weight
    empty = weight_sum == 0
    kept = 1 - torch.where(empty, 0.0, weight / torch.where(empty, 1.0, weight_sum))
    b1 = _real(b1)
    return 1 - kept * b1 / _real(old_b1), 1 - kept * b1, max_lr, weight_sum, b1


def _real(value: Any) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        return torch.tensor(value, dtype=torch.float64)
    return value.clone() if value.dtype == torch.float64 else value.to(torch.float64)
