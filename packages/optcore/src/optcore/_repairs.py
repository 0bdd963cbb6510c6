# SPDX-License-Identifier: Apache-2.0
"""Transformations that replace what must not reach the parameters."""

from __future__ import annotations

from numbers import Real
from typing import NamedTuple

import torch

from optcore._leafwise import check_gradient, leafwise
from optcore._transform import EmptyState, GradientTransformation, stateless_init
from optcore._tree import Tree, describe, flatten_like, tree_flatten, tree_map, tree_unflatten


class ZeroNansState(NamedTuple):
    """What :func:`zero_nans` saw."""

    found_nan: Tree  # bool[]: whether the leaf's last gradient had a NaN


def zero_nans() -> GradientTransformation:
    r"""Replace NaN by 0.

    State:
        ``found_nan``: like ``params``, one bool tensor ``()`` a leaf: whether its last gradient had
        a NaN.

    Differentiable:
        In the updates; no gradient passes where a NaN was.

    Example:
        >>> tx = zero_nans()
        >>> grads = [torch.tensor([float("nan"), 2.0])]
        >>> updates, state = tx.update(grads, tx.init(grads))
        >>> updates, state.found_nan
        ([tensor([0., 2.])], [tensor(True)])
    """
    return GradientTransformation(_zero_nans_init, _zero_nans_update, name="zero_nans")


def _zero_nans_init(params: Tree) -> ZeroNansState:
    def none_yet(param: torch.Tensor | None) -> torch.Tensor | None:
        if param is None:
            return None
        check_gradient("zero_nans", param)
        return torch.zeros((), dtype=torch.bool, device=param.device)

    return ZeroNansState(tree_map(none_yet, params))


def _zero_nans_update(
    updates: Tree, state: ZeroNansState, params: Tree, *, inplace: bool
) -> tuple[Tree, ZeroNansState]:
    (repaired,) = leafwise("zero_nans", without_nan, updates)
    grads, spec = tree_flatten(updates)
    before = flatten_like("zero_nans", "state differs from updates", spec, state.found_nan)
    found = [
        old if grad is None else grad.isnan().any() for grad, old in zip(grads, before, strict=True)
    ]
    return repaired, ZeroNansState(tree_unflatten(spec, found))


def without_nan(grad: torch.Tensor) -> torch.Tensor:
    """0 for NaN."""
    return torch.where(grad.isnan(), 0.0, grad)


def nan_to_num(
    nan: float = 0.0, posinf: float | None = None, neginf: float | None = None
) -> GradientTransformation:
    r"""Replace NaN and infinities by numbers, as :func:`torch.nan_to_num` does.

    Args:
        nan: For NaN.
        posinf: For positive infinity; None means the largest number of the dtype.
        neginf: For negative infinity; None means the smallest.

    Differentiable:
        In the updates; no gradient passes where something was replaced.

    Raises:
        TypeError: An argument is no number.

    Example:
        >>> tx = nan_to_num(nan=0.0, posinf=9.0)
        >>> grads = [torch.tensor([float("nan"), float("inf"), 2.0])]
        >>> tx.update(grads, tx.init(grads))[0]
        [tensor([0., 9., 2.])]
    """
    replacements = check_replacements("nan_to_num", nan, posinf, neginf)
    return GradientTransformation(
        stateless_init, _nan_to_num_update, static=replacements, name="nan_to_num"
    )


def check_replacements(
    who: str, nan: float, posinf: float | None, neginf: float | None
) -> dict[str, float | None]:
    """The arguments of :func:`torch.nan_to_num`, if they are such."""
    values = {"nan": nan, "posinf": posinf, "neginf": neginf}
    for name, value in values.items():
        optional = name != "nan"
        if isinstance(value, bool) or not (isinstance(value, Real) or (optional and value is None)):
            raise TypeError(
                f"{who}: expected {name} as a number{' or None' if optional else ''}, "
                f"got {describe(value)}"
            )
    return values


def _nan_to_num_update(
    updates: Tree,
    state: EmptyState,
    params: Tree,
    *,
    inplace: bool,
    nan: float,
    posinf: float | None,
    neginf: float | None,
) -> tuple[Tree, EmptyState]:
    def replaced(grad: torch.Tensor) -> torch.Tensor:
        return torch.nan_to_num(grad, nan=nan, posinf=posinf, neginf=neginf)

    return leafwise("nan_to_num", replaced, updates)[0], state


def keep_params_nonnegative() -> GradientTransformation:
    r"""Let no parameter fall below zero: :math:`u = -\theta` where :math:`\theta + g < 0`.

    Put it last in a chain, and start from parameters that are not negative.

    Differentiable:
        In the updates and the parameters.

    Raises:
        ValueError: ``update`` was given no ``params``.

    Example:
        >>> tx = keep_params_nonnegative()
        >>> params = [torch.tensor([1.0, 1.0])]
        >>> tx.update([torch.tensor([-3.0, -0.5])], tx.init(params), params)[0]
        [tensor([-1.0000, -0.5000])]
    """
    return GradientTransformation(
        stateless_init, _nonnegative_update, name="keep_params_nonnegative", needs_params=True
    )


def _nonnegative_update(
    updates: Tree, state: EmptyState, params: Tree, *, inplace: bool
) -> tuple[Tree, EmptyState]:
    (updates,) = leafwise("keep_params_nonnegative", _bounded, updates, params=params)
    return updates, state


def _bounded(grad: torch.Tensor, param: torch.Tensor) -> torch.Tensor:
    return torch.where(param + grad < 0, -param.to(grad.dtype), grad)
