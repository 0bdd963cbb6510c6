# SPDX-License-Identifier: Apache-2.0
"""Sharpness-aware minimization: gradients from where the loss nearby is worst."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from optcore._anchor import anchored, clones
from optcore._apply import apply_updates
from optcore._choice import check_int, cond
from optcore._hyperparams import check_flag
from optcore._leafwise import leafwise
from optcore._masking import check_transformation
from optcore._transform import GradientTransformation, new_count
from optcore._tree import Tree, flatten_like, tree_flatten, tree_map, tree_unflatten


class SAMState(NamedTuple):
    """State of :func:`sam`."""

    steps_since_sync: torch.Tensor  # i64[]
    opt_state: Tree
    adv_state: Tree
    cache: Tree  # the parameters that a round started from; () in opaque mode


def sam(
    optimizer: GradientTransformation,
    adv_optimizer: GradientTransformation,
    sync_period: int = 2,
    reset_state: bool = True,
    opaque_mode: bool = False,
) -> GradientTransformation:
    r"""Climb to where the loss is worse, and descend from the start with the gradient found there.

    In a round of :math:`k` gradients, from :math:`\theta`, with :math:`v` the updates of
    ``adv_optimizer`` and :math:`u` those of ``optimizer``:

    .. math::
        \hat\theta_0 = \theta, \qquad
        \hat\theta_{i+1} = \hat\theta_i - v(\nabla L(\hat\theta_i)), \qquad
        \theta' = \theta + u(\nabla L(\hat\theta_{k-1}))

    The paper has :math:`k = 2` and ``adv_optimizer = chain(normalize(), sgd(lr=rho))``.

    Args:
        optimizer: Takes the steps downhill.
        adv_optimizer: Its steps are taken uphill.
        sync_period: :math:`k \ge 1`, gradients for each step downhill.
        reset_state: Start ``adv_optimizer`` afresh in each round.
        opaque_mode: Take the whole round in one ``update``, which then wants the extra argument
            ``grad_fn(params, i) -> gradients`` for those after the first. Without it the updates of
            :math:`k - 1` calls lead uphill, and that of the next one back and downhill: evaluate
            the model only after that.

    State:
        ``steps_since_sync``, the states of both, and ``cache``: clones of the parameters.

    Differentiable:
        As both optimizers, through all gradients and parameters.

    Raises:
        TypeError: One of the optimizers is no transformation, ``sync_period`` no int; in
            ``update``, ``grad_fn`` missing in opaque mode.
        ValueError: ``sync_period`` below 1; ``update`` was given no ``params``.

    Differs:
        With ``sync_period=1`` optax goes on from the parameters of the round before.

    Example:
        >>> import optcore
        >>> uphill = optcore.chain(optcore.normalize(), optcore.sgd(lr=0.5))
        >>> tx = sam(optcore.sgd(lr=0.1), uphill)
        >>> params = [torch.tensor([1.0])]
        >>> state = tx.init(params)
        >>> for _ in range(2):  # of f(x) = x ** 2: up to 1.5, where the gradient is 3
        ...     updates, state = tx.update([2 * params[0]], state, params)
        ...     params = optcore.apply_updates(params, updates)
        >>> params
        [tensor([0.7000])]

    Reference:
        Foret et al., 2021, arXiv:2010.01412, Algorithm 1. Equals ``optax.contrib.sam``.
    """
    who = "sam"
    check_transformation(who, optimizer)
    check_transformation(who, adv_optimizer)
    check_int(who, "sync_period", sync_period, 1)
    check_flag(who, "reset_state", reset_state)
    check_flag(who, "opaque_mode", opaque_mode)
    static = {
        "optimizer": optimizer,
        "adv_optimizer": adv_optimizer,
        "sync_period": sync_period,
        "reset_state": reset_state,
    }
    update = _opaque_update if opaque_mode else _sam_update
    init = _opaque_init if opaque_mode else _sam_init
    return GradientTransformation(init, update, static=static, name=who, needs_params=True)


def _opaque_init(
    params: Tree,
    *,
    optimizer: GradientTransformation,
    adv_optimizer: GradientTransformation,
    **_: Any,
) -> SAMState:
    return SAMState(new_count(), optimizer.init(params), adv_optimizer.init(params), ())


def _sam_init(params: Tree, **static: Any) -> SAMState:
    return _opaque_init(params, **static)._replace(cache=clones("sam", params))


def _sam_update(
    updates: Tree,
    state: SAMState,
    params: Tree,
    *,
    inplace: bool,
    optimizer: GradientTransformation,
    adv_optimizer: GradientTransformation,
    sync_period: int,
    reset_state: bool,
    **extra: Any,
) -> tuple[Tree, SAMState]:
    first, last = state.steps_since_sync == 0, state.steps_since_sync == sync_period - 1
    leaves, spec = tree_flatten(params)
    kept = flatten_like("sam", "state differs from params", spec, state.cache)
    leafwise("sam", _unchanged, updates, params=params)  # refuses before anything changes
    pairs = zip(leaves, kept, strict=True)
    cache = tree_unflatten(
        spec, [old if p is None else anchored(first, p, old, inplace) for p, old in pairs]
    )

    def down(updates: Tree, inplace: bool) -> tuple[Tree, Tree, Tree]:
        steps, opt_state = optimizer.apply(updates, state.opt_state, cache, inplace, extra)
        steps, _ = leafwise("sam", _from_start, steps, cache, params=params)
        fresh = adv_optimizer.init(params) if reset_state else state.adv_state
        return steps, opt_state, fresh

    def up() -> tuple[Tree, Tree, Tree]:
        steps, adv_state = adv_optimizer.apply(updates, state.adv_state, params, False, extra)
        return _negated(steps), state.opt_state, adv_state

    steps, opt_state, adv_state = cond("sam", last, updates, down, up, inplace)
    count = (state.steps_since_sync + 1) % sync_period
    return steps, SAMState(count, opt_state, adv_state, cache)


def _opaque_update(
    updates: Tree,
    state: SAMState,
    params: Tree,
    *,
    inplace: bool,
    optimizer: GradientTransformation,
    adv_optimizer: GradientTransformation,
    sync_period: int,
    reset_state: bool,
    grad_fn: Callable[[Tree, int], Tree] | None = None,
    **extra: Any,
) -> tuple[Tree, SAMState]:
    if not callable(grad_fn):
        raise TypeError(
            "sam: expected grad_fn= with opaque_mode=True, got None; call update(updates, state, "
            "params, grad_fn=lambda params, i: ...)"
        )
    adv_state, at = state.adv_state, params
    for index in range(sync_period - 1):
        steps, adv_state = adv_optimizer.apply(updates, adv_state, at, False, extra)
        at = apply_updates(at, _negated(steps), inplace=False)
        with torch.enable_grad():
            updates = grad_fn(at, index)
    if reset_state:
        adv_state = adv_optimizer.init(params)
    updates, opt_state = optimizer.apply(updates, state.opt_state, params, inplace, extra)
    return updates, SAMState(new_count(), opt_state, adv_state, ())


def _unchanged(update: torch.Tensor, param: torch.Tensor) -> torch.Tensor:
    return update


def _from_start(update: Any, start: Any, param: Any) -> Any:
    return start - param + update, start


def _negated(updates: Tree) -> Tree:
    return tree_map(lambda u: None if u is None else -u, updates)
