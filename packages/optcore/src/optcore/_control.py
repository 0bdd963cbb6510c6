# SPDX-License-Identifier: Apache-2.0
"""Transformations that decide at every step whether another one runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from optcore._choice import as_flag, check_int, cond, gradients, total
from optcore._masking import check_transformation, zeros
from optcore._transform import GradientTransformation, new_count
from optcore._tree import Tree, describe


class ApplyIfFiniteState(NamedTuple):
    """State of :func:`apply_if_finite`."""

    notfinite_count: torch.Tensor  # i64[]: bad updates in a row
    last_finite: torch.Tensor  # bool[]: whether the last one was good
    total_notfinite: torch.Tensor  # i64[]: bad updates ever
    inner_state: Tree


class ConditionallyTransformState(NamedTuple):
    """State of :func:`conditionally_transform`."""

    inner_state: Tree
    step: torch.Tensor  # i64[]: updates so far, transformed or not


class ConditionallyMaskState(NamedTuple):
    """State of :func:`conditionally_mask`."""

    step: torch.Tensor  # i64[]: updates so far, transformed or not
    inner_state: Tree


def apply_if_finite(
    inner: GradientTransformation, max_consecutive_errors: int
) -> GradientTransformation:
    """Ignore gradients with an infinity or a NaN: zero updates, state of ``inner`` as it was.

    Args:
        inner: The transformation to protect.
        max_consecutive_errors: Bad gradients in a row to ignore, >= 0; the next one is let through,
            so that a run that has failed is seen to fail.

    State:
        ``notfinite_count``, ``last_finite``, ``total_notfinite`` and ``inner_state``. No value is
        read back from an accelerator.

    Differentiable:
        As ``inner``; an ignored gradient has derivative zero, even through NaN.

    Raises:
        TypeError: ``inner`` is no transformation or the limit no int.
        ValueError: The limit is negative.

    Example:
        >>> import torch
        >>> import optcore
        >>> tx = apply_if_finite(optcore.scale(-1.0), max_consecutive_errors=3)
        >>> updates, state = tx.update([torch.tensor([1.0, torch.nan])], tx.init([torch.ones(2)]))
        >>> updates, state.notfinite_count
        ([tensor([0., 0.])], tensor(1))
    """
    who = "apply_if_finite"
    check_transformation(who, inner)
    check_int(who, "max_consecutive_errors", max_consecutive_errors, 0)
    return GradientTransformation(
        _finite_init,
        _finite_update,
        static={"inner": inner, "max_consecutive_errors": max_consecutive_errors},
        name=who,
        needs_params=inner.needs_params,
    )


def conditionally_transform(
    inner: GradientTransformation,
    should_transform_fn: Callable[..., torch.Tensor | bool],
    forward_extra_args: bool = False,
) -> GradientTransformation:
    """Transform only in some steps; in the others updates and state pass as they are.

    Args:
        inner: The transformation.
        should_transform_fn: ``step -> bool``; ``step`` is an int64 tensor ``()`` of the updates so
            far, and the result a bool or a bool tensor ``()``.
        forward_extra_args: Also hand it the extra arguments of ``update``.

    State:
        ``inner_state``, and ``step``, which counts every update.

    Differentiable:
        As ``inner`` where it runs, the identity elsewhere.

    Raises:
        TypeError: ``inner`` is no transformation, ``should_transform_fn`` not callable, or (in
            ``update``) what it returns no bool.

    Example:
        >>> import torch
        >>> import optcore
        >>> tx = conditionally_transform(optcore.scale(9.0), lambda step: step >= 1)
        >>> first, state = tx.update([torch.ones(1)], tx.init([torch.ones(1)]))
        >>> second, state = tx.update([torch.ones(1)], state)
        >>> first, second
        ([tensor([1.])], [tensor([9.])])
    """
    return _conditional(
        "conditionally_transform",
        _transform_init,
        _transform_update,
        inner,
        should_transform_fn,
        forward_extra_args,
    )


def conditionally_mask(
    inner: GradientTransformation,
    should_transform_fn: Callable[..., torch.Tensor | bool],
    forward_extra_args: bool = False,
) -> GradientTransformation:
    """Transform only in some steps; in the others updates are zero and the state stays.

    Args:
        inner: The transformation.
        should_transform_fn: As in :func:`conditionally_transform`.
        forward_extra_args: Also hand it the extra arguments of ``update``.

    State:
        ``inner_state``, and ``step``, which counts every update.

    Differentiable:
        As ``inner`` where it runs; the derivative is zero elsewhere.

    Raises:
        TypeError: ``inner`` is no transformation, ``should_transform_fn`` not callable, or (in
            ``update``) what it returns no bool.

    Example:
        >>> import torch
        >>> import optcore
        >>> tx = conditionally_mask(optcore.scale(9.0), lambda step: step >= 1)
        >>> first, state = tx.update([torch.ones(1)], tx.init([torch.ones(1)]))
        >>> second, state = tx.update([torch.ones(1)], state)
        >>> first, second
        ([tensor([0.])], [tensor([9.])])
    """
    return _conditional(
        "conditionally_mask",
        _mask_init,
        _mask_update,
        inner,
        should_transform_fn,
        forward_extra_args,
    )


def skip_not_finite(
    updates: Tree, gradient_step: torch.Tensor, params: Tree
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Whether some update is infinite or NaN; a ``should_skip_update_fn`` of ``multi_steps``.

    Args:
        updates: Tree of tensors and None.
        gradient_step: Not used.
        params: Not used.

    Returns:
        A bool tensor ``()``, and ``{"should_skip": the same, "num_not_finite": how many}``.

    Example:
        >>> import torch
        >>> skip_not_finite([torch.tensor([1.0, torch.inf])], torch.tensor(0), None)[0]
        tensor(True)
    """
    bad = total((~torch.isfinite(u)).sum() for u in gradients("skip_not_finite", updates))
    should_skip = bad > 0
    return should_skip, {"should_skip": should_skip, "num_not_finite": bad}


def skip_large_updates(
    updates: Tree,
    gradient_step: torch.Tensor,
    params: Tree,
    max_squared_norm: float | torch.Tensor,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Whether the updates are too large; a ``should_skip_update_fn`` of ``multi_steps``.

    Give it its limit with ``functools.partial(skip_large_updates, max_squared_norm=...)``.

    Args:
        updates: Tree of tensors and None.
        gradient_step: Not used.
        params: Not used.
        max_squared_norm: Limit of the squared norm of all updates together, exclusive.

    Returns:
        A bool tensor ``()``, True also for NaN, and ``{"should_skip": the same, "norm_squared":
        the squared norm}``.

    Example:
        >>> import torch
        >>> skip_large_updates([torch.tensor([3.0, 4.0])], torch.tensor(0), None, 24.0)[0]
        tensor(True)
    """
    norm_squared = total(u.square().sum() for u in gradients("skip_large_updates", updates))
    should_skip = ~(norm_squared < max_squared_norm)
    return should_skip, {"should_skip": should_skip, "norm_squared": norm_squared}


def _conditional(
    who: str,
    init: Callable[..., Tree],
    update: Callable[..., tuple[Tree, Tree]],
    inner: GradientTransformation,
    should_transform_fn: Callable[..., Any],
    forward_extra_args: bool,
) -> GradientTransformation:
    check_transformation(who, inner)
    if not callable(should_transform_fn):
        raise TypeError(
            f"{who}: expected should_transform_fn as a function step -> bool, "
            f"got {describe(should_transform_fn)}"
        )
    return GradientTransformation(
        init,
        update,
        static={
            "inner": inner,
            "should_transform_fn": should_transform_fn,
            "forward_extra_args": forward_extra_args,
        },
        name=who,
        needs_params=inner.needs_params,
    )


def _finite_init(
    params: Tree, *, inner: GradientTransformation, max_consecutive_errors: int
) -> ApplyIfFiniteState:
    return ApplyIfFiniteState(new_count(), torch.tensor(True), new_count(), inner.init(params))


def _finite_update(
    updates: Tree,
    state: ApplyIfFiniteState,
    params: Tree,
    *,
    inplace: bool,
    inner: GradientTransformation,
    max_consecutive_errors: int,
    **extra: Any,
) -> tuple[Tree, ApplyIfFiniteState]:
    who = "apply_if_finite"
    bad, _ = skip_not_finite(updates, state.total_notfinite, params)
    count = torch.where(bad, state.notfinite_count + 1, 0)

    def take(updates: Tree, inplace: bool) -> tuple[Tree, Tree]:
        return inner.apply(updates, state.inner_state, params, inplace, extra)

    def leave() -> tuple[Tree, Tree]:
        return zeros(updates), state.inner_state

    accepted = ~bad | (count > max_consecutive_errors)
    updates, inner_state = cond(who, accepted, updates, take, leave, inplace)
    return updates, ApplyIfFiniteState(count, ~bad, state.total_notfinite + bad, inner_state)


def _transform_init(
    params: Tree, *, inner: GradientTransformation, **_: Any
) -> ConditionallyTransformState:
    return ConditionallyTransformState(inner.init(params), new_count())


def _transform_update(
    updates: Tree,
    state: ConditionallyTransformState,
    params: Tree,
    *,
    inplace: bool,
    **extra: Any,
) -> tuple[Tree, ConditionallyTransformState]:
    who = "conditionally_transform"
    new, inner_state = _if_asked(who, updates, updates, state, params, inplace, **extra)
    return new, ConditionallyTransformState(inner_state, state.step + 1)


def _mask_init(params: Tree, *, inner: GradientTransformation, **_: Any) -> ConditionallyMaskState:
    return ConditionallyMaskState(new_count(), inner.init(params))


def _mask_update(
    updates: Tree,
    state: ConditionallyMaskState,
    params: Tree,
    *,
    inplace: bool,
    **extra: Any,
) -> tuple[Tree, ConditionallyMaskState]:
    who, none = "conditionally_mask", zeros(updates)
    new, inner_state = _if_asked(who, none, updates, state, params, inplace, **extra)
    return new, ConditionallyMaskState(state.step + 1, inner_state)


def _if_asked(
    who: str,
    otherwise: Tree,
    updates: Tree,
    state: ConditionallyTransformState | ConditionallyMaskState,
    params: Tree,
    inplace: bool,
    /,
    *,
    inner: GradientTransformation,
    should_transform_fn: Callable[..., Any],
    forward_extra_args: bool,
    **extra: Any,
) -> tuple[Tree, Tree]:
    """What ``inner`` makes of updates and state if this step is one of those asked for."""
    shown = extra if forward_extra_args else {}
    flag = as_flag(who, "should_transform_fn", should_transform_fn(state.step, **shown))

    def take(updates: Tree, inplace: bool) -> tuple[Tree, Tree]:
        return inner.apply(updates, state.inner_state, params, inplace, extra)

    return cond(who, flag, updates, take, lambda: (otherwise, state.inner_state), inplace)
