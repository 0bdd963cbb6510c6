# SPDX-License-Identifier: Apache-2.0
"""Accumulating the gradients of several steps before a transformation sees them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from optcore._choice import as_flag, check_int, cond
from optcore._leafwise import add_scaled, fit, leafwise, zeros_like
from optcore._masking import check_transformation, zeros
from optcore._scaling import identity
from optcore._transform import GradientTransformation, new_count
from optcore._tree import Tree, describe, tree_map


class MultiStepsState(NamedTuple):
    """State of :func:`multi_steps`."""

    mini_step: torch.Tensor  # i64[]: gradients accumulated since the last emission
    gradient_step: torch.Tensor  # i64[]: emissions
    inner_opt_state: Tree
    acc_grads: Tree  # like params: what has been accumulated
    skip_state: Tree = ()  # what ``should_skip_update_fn`` last reported


def multi_steps(
    inner: GradientTransformation,
    every_k_schedule: int | Callable[[torch.Tensor], int | torch.Tensor],
    use_grad_mean: bool = True,
    should_skip_update_fn: Callable[..., tuple[torch.Tensor, Tree]] | None = None,
    *,
    accumulator_dtype: torch.dtype | None = None,
) -> GradientTransformation:
    r"""Accumulate gradients and let ``inner`` see them in every k-th step only.

    In the other steps updates are zero and the state of ``inner`` stays. In steps
    :math:`1, \dots, k` of a window:

    .. math::
        a_i = a_{i-1} + g_i / k, \qquad u_k = \mathrm{inner}(a_k), \qquad u_i = 0 \quad (i < k)

    Args:
        inner: The transformation.
        every_k_schedule: The window :math:`k \ge 1`, or a function that gives it from the number
            of emissions so far, an int64 tensor ``()``.
        use_grad_mean: False leaves out the division by :math:`k`.
        should_skip_update_fn: ``(updates, gradient_step, params) -> (skip, report)``: where
            ``skip``, a bool tensor ``()``, is True the gradient is ignored as if ``update`` had
            not been called. :func:`skip_not_finite` and :func:`skip_large_updates` are such.
        accumulator_dtype: Of the accumulated gradients; None takes that of the parameters.

    State:
        ``mini_step``, ``gradient_step``, ``inner_opt_state``, ``acc_grads`` (starts at zero) and
        ``skip_state`` (the last report).

    Differentiable:
        In every accumulated gradient and as ``inner``; a skipped gradient has derivative zero.

    Raises:
        TypeError: ``inner`` is no transformation, ``every_k_schedule`` neither int nor function,
            ``should_skip_update_fn`` not callable, or (in ``update``) what it returns not a pair.
        ValueError: A window below 1.

    Differs:
        optax keeps the running mean of the window; here the mean builds up as with
        ``(loss / k).backward()``. The emitted gradient is the same. A leaf that has no gradient
        when the others are emitted waits, with what it has accumulated, for the next emission.
        Gradients accumulate in the dtype of their parameters unless told otherwise, in optax in
        float32.

    Example:
        >>> import torch
        >>> import optcore
        >>> tx = multi_steps(optcore.sgd(lr=1.0), every_k_schedule=2)
        >>> first, state = tx.update([torch.tensor([2.0])], tx.init([torch.ones(1)]))
        >>> second, state = tx.update([torch.tensor([6.0])], state)
        >>> first, second
        ([tensor([0.])], [tensor([-4.])])
    """
    who = "multi_steps"
    check_transformation(who, inner)
    if not callable(every_k_schedule):
        check_int(who, "every_k_schedule", every_k_schedule, 1)
    if should_skip_update_fn is not None and not callable(should_skip_update_fn):
        raise TypeError(
            f"{who}: expected should_skip_update_fn as a function, "
            f"got {describe(should_skip_update_fn)}"
        )
    return GradientTransformation(
        _multi_init,
        _multi_update,
        static={
            "inner": inner,
            "every_k_schedule": every_k_schedule,
            "use_grad_mean": use_grad_mean,
            "should_skip_update_fn": should_skip_update_fn,
            "accumulator_dtype": accumulator_dtype,
        },
        name=who,
        needs_params=inner.needs_params,
    )


def has_updated(state: MultiStepsState) -> torch.Tensor:
    """Whether the update that made this state emitted.

    Args:
        state: Of :func:`multi_steps`.

    Returns:
        A bool tensor ``()``.

    Example:
        >>> import torch
        >>> import optcore
        >>> tx = multi_steps(optcore.sgd(lr=1.0), every_k_schedule=1)
        >>> before = tx.init([torch.ones(1)])
        >>> _, after = tx.update([torch.ones(1)], before)
        >>> has_updated(before), has_updated(after)
        (tensor(False), tensor(True))
    """
    return (state.mini_step == 0) & (state.gradient_step > 0)


class MultiSteps:
    """:func:`multi_steps` as an object with the methods of ``optax.MultiSteps``.

    Args:
        opt: The transformation.
        every_k_schedule: See :func:`multi_steps`.
        use_grad_mean: See :func:`multi_steps`.
        should_skip_update_fn: See :func:`multi_steps`.
        accumulator_dtype: See :func:`multi_steps`.

    Example:
        >>> import torch
        >>> import optcore
        >>> steps = MultiSteps(optcore.sgd(lr=1.0), every_k_schedule=2)
        >>> _, state = steps.update([torch.ones(1)], steps.init([torch.ones(1)]))
        >>> steps.has_updated(state)
        tensor(False)
    """

    def __init__(
        self,
        opt: GradientTransformation,
        every_k_schedule: int | Callable[[torch.Tensor], int | torch.Tensor],
        use_grad_mean: bool = True,
        should_skip_update_fn: Callable[..., tuple[torch.Tensor, Tree]] | None = None,
        accumulator_dtype: torch.dtype | None = None,
    ) -> None:
        self.inner_opt = opt
        self._transformation = multi_steps(
            opt,
            every_k_schedule,
            use_grad_mean,
            should_skip_update_fn,
            accumulator_dtype=accumulator_dtype,
        )
        self.init = self._transformation.init
        self.update = self._transformation.update

    def gradient_transformation(self) -> GradientTransformation:
        """The transformation, to be chained with others."""
        return self._transformation

    def has_updated(self, state: MultiStepsState) -> torch.Tensor:
        """Whether the update that made this state emitted."""
        return has_updated(state)


def apply_every(k: int = 1) -> GradientTransformation:
    """Emit the sum of k updates in every k-th step, and zeros in the others.

    Meant for the end of a chain: what stands before it sees every gradient.

    Args:
        k: How many updates to sum, >= 1.

    State:
        That of :func:`multi_steps`.

    Differentiable:
        In every accumulated update.

    Raises:
        TypeError: ``k`` is no int.
        ValueError: ``k`` is below 1.

    Example:
        >>> import torch
        >>> tx = apply_every(2)
        >>> first, state = tx.update([torch.tensor([2.0])], tx.init([torch.ones(1)]))
        >>> second, state = tx.update([torch.tensor([6.0])], state)
        >>> first, second
        ([tensor([0.])], [tensor([8.])])
    """
    check_int("apply_every", "k", k, 1)
    return multi_steps(identity(), k, use_grad_mean=False).named("apply_every")


def _multi_init(
    params: Tree,
    *,
    inner: GradientTransformation,
    should_skip_update_fn: Callable[..., Any] | None,
    accumulator_dtype: torch.dtype | None,
    **_: Any,
) -> MultiStepsState:
    start = zeros_like("multi_steps", params)
    step = new_count()
    report: Tree = ()
    if should_skip_update_fn is not None:
        _, report = _skip(should_skip_update_fn, start, step, params)
    if accumulator_dtype is not None:
        start = tree_map(lambda a: None if a is None else a.to(accumulator_dtype), start)
    return MultiStepsState(new_count(), step, inner.init(params), start, report)


def _multi_update(
    updates: Tree,
    state: MultiStepsState,
    params: Tree,
    *,
    inplace: bool,
    inner: GradientTransformation,
    every_k_schedule: int | Callable[..., Any],
    use_grad_mean: bool,
    should_skip_update_fn: Callable[..., Any] | None,
    accumulator_dtype: torch.dtype | None,
    **extra: Any,
) -> tuple[Tree, MultiStepsState]:
    who = "multi_steps"
    window = every_k_schedule
    if callable(window):
        window = window(state.gradient_step)
    share = _reciprocal(window) if use_grad_mean else 1.0
    last = state.mini_step + 1 >= window

    def emit(accumulated: Tree, inplace: bool) -> tuple[Tree, Tree, Tree]:
        whole = tree_map(lambda g, a: None if g is None else a.to(g.dtype), updates, accumulated)
        new, inner_state = inner.apply(whole, state.inner_opt_state, params, inplace, extra)
        # new zeros: the emitted updates may be the accumulated tensors themselves
        rest = tree_map(lambda g, a: a if g is None else torch.zeros_like(a), updates, accumulated)
        return new, inner_state, rest

    def mini_step(grads: Tree, inplace: bool) -> tuple[Tree, MultiStepsState]:
        formula = partial(_accumulated, inplace=inplace)
        _, accumulated = leafwise(
            who, formula, grads, state.acc_grads, inplace=inplace, share=share
        )

        def wait() -> tuple[Tree, Tree, Tree]:
            return zeros(grads), state.inner_opt_state, accumulated

        new, inner_state, rest = cond(who, last, accumulated, emit, wait, inplace)
        step, emissions = (state.mini_step + 1) * ~last, state.gradient_step + last
        return new, MultiStepsState(step, emissions, inner_state, rest, ())

    def skip() -> tuple[Tree, MultiStepsState]:
        return zeros(updates), state._replace(skip_state=())

    if should_skip_update_fn is None:
        return mini_step(updates, inplace)
    flag, report = _skip(should_skip_update_fn, updates, state.gradient_step, params)
    updates, state = cond(who, ~flag, updates, mini_step, skip, inplace)
    return updates, state._replace(skip_state=report)


def _accumulated(g: Any, accumulated: Any, *, share: Any, inplace: bool) -> tuple[Any, Any]:
    g = g if g.dtype == accumulated.dtype else g.to(accumulated.dtype)
    if inplace:
        new = accumulated.add_(g * fit(share, g))
    else:
        new = add_scaled(accumulated, g, share)
    return new, new


def _reciprocal(window: int | torch.Tensor) -> float | torch.Tensor:
    return window.double().reciprocal() if isinstance(window, torch.Tensor) else 1.0 / window


def _skip(
    should_skip_update_fn: Callable[..., Any], updates: Tree, step: torch.Tensor, params: Tree
) -> tuple[torch.Tensor, Tree]:
    answer = should_skip_update_fn(updates, step, params)
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise TypeError(
            "multi_steps: expected should_skip_update_fn to return a pair (skip, report), "
            f"got {describe(answer)}"
        )
    return as_flag("multi_steps", "should_skip_update_fn", answer[0]), answer[1]
