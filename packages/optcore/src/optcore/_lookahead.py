# SPDX-License-Identifier: Apache-2.0
"""Lookahead: slow parameters that follow the fast ones of another optimizer."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch

from optcore._choice import check_int, cond
from optcore._hyperparams import Hyperparam, check_range
from optcore._leafwise import ema, leafwise
from optcore._masking import check_transformation
from optcore._transform import GradientTransformation, new_count
from optcore._tree import Tree, tree_map


class LookaheadParams(NamedTuple):
    """A pair of parameters, for those who want to hold the slow ones themselves.

    Gradients are taken at ``fast``; ``slow`` is for evaluation. Gradients for such a pair are
    ``LookaheadParams(fast=grads, slow=None)``.
    """

    fast: Tree
    slow: Tree

    @classmethod
    def init_synced(cls, params: Tree) -> LookaheadParams:
        """The pair with the same values twice; the slow ones are differentiable clones."""
        return cls(fast=params, slow=_clones(params))


class LookaheadState(NamedTuple):
    """State of :func:`lookahead`."""

    fast_state: Tree  # of the fast optimizer
    steps_since_sync: torch.Tensor  # i64[]
    slow: Tree  # the slow parameters, () where the caller holds them


def lookahead(
    fast_optimizer: GradientTransformation,
    sync_period: int,
    slow_step_size: Hyperparam,
    reset_state: bool = False,
) -> GradientTransformation:
    r"""Every k steps, step back: from slow parameters part of the way to the fast ones.

    With :math:`u_t` the update of the fast optimizer, after steps :math:`t = k, 2k, \ldots`:

    .. math::
        \phi &\leftarrow \phi + \alpha\,(\theta_t + u_t - \phi) \\
        \theta_{t+1} &= \phi

    and :math:`\theta_{t+1} = \theta_t + u_t` in the other steps.

    Args:
        fast_optimizer: The optimizer of the fast parameters :math:`\theta`.
        sync_period: Fast steps :math:`k \ge 1` for each slow one.
        slow_step_size: The part :math:`\alpha` of the way, in ``[0, 1]``.
        reset_state: Start the fast optimizer afresh at each slow step.

    State:
        ``fast_state``, ``steps_since_sync`` and ``slow``: clones of the parameters, which are the
        slow ones :math:`\phi` after every update. A period starts from the parameters as they are
        given then, so that the slow ones carry their graph in a differentiable run.

    Differentiable:
        In the gradients, the parameters and a tensor ``slow_step_size``, and as the optimizer.

    Raises:
        TypeError: ``fast_optimizer`` is no transformation, ``sync_period`` no int, or
            ``slow_step_size`` no hyperparameter.
        ValueError: ``sync_period`` or ``slow_step_size`` out of range.

    Differs:
        optax always wants :class:`LookaheadParams`, and gradients of the fast ones alone. Here
        plain parameters do, as for any other optimizer; with a pair, gradients are a pair too
        (``slow=None``), updates are a pair, and nothing is kept in the state.

    Example:
        >>> import torch
        >>> import optcore
        >>> tx = lookahead(optcore.sgd(lr=1.0), sync_period=2, slow_step_size=0.5)
        >>> params = [torch.tensor([10.0])]
        >>> state = tx.init(params)
        >>> for _ in range(2):
        ...     updates, state = tx.update([torch.tensor([1.0])], state, params)
        ...     params = optcore.apply_updates(params, updates)
        >>> params  # 10 - 1 - 1 = 8, and half of the way back
        [tensor([9.])]

    Reference:
        Zhang et al., 2019, arXiv:1907.08610, Algorithm 1.
    """
    who = "lookahead"
    check_transformation(who, fast_optimizer)
    check_int(who, "sync_period", sync_period, 1)
    check_range(who, "slow_step_size", slow_step_size, 0.0, 1.0)
    return GradientTransformation(
        _lookahead_init,
        _lookahead_update,
        {"slow_step_size": slow_step_size},
        {
            "fast_optimizer": fast_optimizer,
            "sync_period": sync_period,
            "reset_state": reset_state,
        },
        name=who,
        needs_params=True,
    )


def _lookahead_init(
    params: Tree, *, fast_optimizer: GradientTransformation, **_: Any
) -> LookaheadState:
    if isinstance(params, LookaheadParams):
        return LookaheadState(fast_optimizer.init(params.fast), new_count(), ())
    with torch.no_grad():  # a period starts with the parameters given then: these carry no graph
        slow = _clones(params)
    return LookaheadState(fast_optimizer.init(params), new_count(), slow)


def _lookahead_update(
    updates: Tree,
    state: LookaheadState,
    params: Tree,
    *,
    inplace: bool,
    slow_step_size: Any,
    fast_optimizer: GradientTransformation,
    sync_period: int,
    reset_state: bool,
    **extra: Any,
) -> tuple[Tree, LookaheadState]:
    who = "lookahead"
    pair = isinstance(params, LookaheadParams)
    if pair:
        fast, slow = params
        updates = updates.fast if isinstance(updates, LookaheadParams) else updates
    else:
        fast = params
        first = state.steps_since_sync == 0
        slow = cond(who, first, fast, lambda p, _: _clones(p), lambda: state.slow, inplace)
    updates, fast_state = fast_optimizer.apply(updates, state.fast_state, fast, inplace, extra)
    last = state.steps_since_sync + 1 >= sync_period

    def synchronize(updates: Tree, inplace: bool) -> tuple[Tree, Tree]:
        overwrite = inplace and not pair  # a pair's slow ones are parameters, not state
        formula = partial(_stepped_back, inplace=overwrite)
        return leafwise(
            who, formula, updates, slow, params=fast, inplace=overwrite, alpha=slow_step_size
        )

    moved, new_slow = cond(who, last, updates, synchronize, lambda: (updates, slow), inplace)
    if reset_state:
        fast_state = cond(
            who, last, (), lambda *_: fast_optimizer.init(fast), lambda: fast_state, inplace
        )
    steps = (state.steps_since_sync + 1) * ~last
    if not pair:
        return moved, LookaheadState(fast_state, steps, new_slow)
    slow_updates = tree_map(lambda u, n, s: None if u is None else n - s, updates, new_slow, slow)
    return LookaheadParams(moved, slow_updates), LookaheadState(fast_state, steps, ())


def _stepped_back(
    update: Any, slow: Any, fast: Any, *, alpha: Any, inplace: bool
) -> tuple[Any, Any]:
    slow = ema(slow, fast + update, 1 - alpha, inplace)
    return slow + fast * -1, slow


def _clones(params: Tree) -> Tree:
    return tree_map(lambda p: None if p is None else p.clone(), params)
