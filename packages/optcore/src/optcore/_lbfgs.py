# SPDX-License-Identifier: Apache-2.0
"""L-BFGS: directions from the curvature that the last steps showed."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from optcore._backtracking import scale_by_backtracking_linesearch
from optcore._chain import chain
from optcore._choice import check_int, cond
from optcore._hyperparams import Hyperparam, check_range
from optcore._leafwise import Tick, counts_like, leafwise, zeros_like
from optcore._norms import at_least, total_norm
from optcore._scaling import scale_by_learning_rate
from optcore._transform import GradientTransformation
from optcore._tree import Tree, describe, tree_leaves, tree_map, tree_structure, tree_unflatten
from optcore._two_loop import Pair, inner, two_loop
from optcore._zoom import scale_by_zoom_linesearch

_WHO = "scale_by_lbfgs"


class ScaleByLBFGSState(NamedTuple):
    """Curvature kept by :func:`scale_by_lbfgs`."""

    count: Tree  # i64[]: gradients that this leaf had
    params: Tree  # the last ones seen, copies
    updates: Tree  # the last gradients, copies
    diff_params_memory: tuple[Tree, ...]  # steps, the oldest first; zeros before the first
    diff_updates_memory: tuple[Tree, ...]  # what they changed in the gradients
    weights_memory: torch.Tensor  # f[memory_size]: 1 / (step . change), 0 before the first


def scale_by_lbfgs(
    memory_size: int = 10, scale_init_precond: bool = True
) -> GradientTransformation:
    r"""Multiply gradients by the inverse Hessian that the last steps suggest.

    The update is :math:`P_t g_t` for the matrix that starts with :math:`\gamma_t I` and takes in
    the last pairs :math:`s_j = \theta_{j+1} - \theta_j`, :math:`y_j = g_{j+1} - g_j`:

    .. math::
        P \leftarrow (I - \rho_j s_j y_j^\top)\, P\, (I - \rho_j y_j s_j^\top)
            + \rho_j s_j s_j^\top, \qquad \rho_j = \frac{1}{s_j^\top y_j}

    with :math:`\gamma_t = s^\top y / y^\top y` of the newest pair, before the first pair
    :math:`\min(1, 1/\|g_t\|)`. Pairs with :math:`s^\top y \le 0` (up to rounding: no more than eps
    times :math:`y^\top y`) are left out, so that :math:`P_t` is positive definite.

    Args:
        memory_size: Pairs to keep, >= 1.
        scale_init_precond: Use :math:`\gamma_t` as above; 1 otherwise.

    State:
        ``count``, ``params``, ``updates``: as seen last; ``diff_params_memory``,
        ``diff_updates_memory``: a tuple of ``memory_size`` trees like ``params`` each;
        ``weights_memory``. A leaf without a gradient counts as unchanged in that step's pair.
        With many small parameters, ``flatten(scale_by_lbfgs())`` makes fewer, larger operations.

    Differentiable:
        Twice, in gradients and parameters, also those of earlier steps; whether a pair is left out
        is a decision without a derivative. It may be vmapped.

    Raises:
        TypeError: ``memory_size`` is no int.
        ValueError: ``memory_size`` < 1, or ``update`` was given no ``params``.

    Differs:
        optax keeps pairs of negative curvature, its directions may lead uphill; where the
        parameters did not move it forgets :math:`\gamma`. optax takes the norm in the first
        :math:`\gamma` as constant, here it is differentiated.

    Example:
        >>> import torch
        >>> tx = scale_by_lbfgs()
        >>> x = torch.tensor([1.0])
        >>> _, state = tx.update(4.0 * x, tx.init(x), x)
        >>> x = torch.tensor([2.0])
        >>> tx.update(4.0 * x, state, x)[0]  # Newton's step: the Hessian is 4
        tensor([2.])

    Reference:
        Nocedal and Wright, Numerical Optimization, 2nd edition, Algorithm 7.4 and equation (7.20);
        Liu and Nocedal, 1989, doi:10.1007/BF01589116.
    """
    check_int(_WHO, "memory_size", memory_size, 1)
    return GradientTransformation(
        _lbfgs_init,
        _lbfgs_update,
        static={"memory_size": memory_size, "scale_init_precond": scale_init_precond},
        name=_WHO,
        needs_params=True,
    )


def lbfgs(
    lr: Hyperparam | None = None,
    memory_size: int = 10,
    scale_init_precond: bool = True,
    linesearch: str | GradientTransformation | None = "zoom",
) -> GradientTransformation:
    """L-BFGS: steps of a quasi-Newton method, their length found by a line search.

    ``update`` wants the extra arguments of the line search: ``value``, ``grad`` and ``value_fn``;
    :func:`value_and_grad_from_state` saves the evaluations that the search has already made.

    Args:
        lr: Multiplies the direction before the search; None means 1.
        memory_size: Pairs to keep, >= 1.
        scale_init_precond: As in :func:`scale_by_lbfgs`.
        linesearch: ``"zoom"``: :func:`scale_by_zoom_linesearch` of up to 20 evaluations that
            tries 1 first. ``"backtracking"``: :func:`scale_by_backtracking_linesearch`, likewise,
            with the gradient stored. None: no search, ``lr`` is the step. Or a transformation.

    Differentiable:
        As :func:`scale_by_lbfgs`, and in ``lr``; the step that a search finds is a constant.
        Without a search it may be vmapped.

    Raises:
        TypeError: ``linesearch`` is none of these, or ``lr`` no hyperparameter.
        ValueError: ``memory_size`` or ``lr`` out of range, or an unknown ``linesearch``.

    Differs:
        The names ``"zoom"`` and ``"backtracking"`` are ours.

    Example:
        >>> import torch
        >>> import optcore
        >>> def rosenbrock(params):
        ...     x, y = params["x"], params["y"]
        ...     return (1 - x) ** 2 + 100 * (y - x**2) ** 2
        >>> params = {k: torch.tensor(-1.0, dtype=torch.float64) for k in "xy"}
        >>> tx = lbfgs()
        >>> state = tx.init(params)
        >>> value_and_grad = optcore.value_and_grad_from_state(rosenbrock)
        >>> for _ in range(40):
        ...     value, grad = value_and_grad(params, state=state)
        ...     updates, state = tx.update(
        ...         grad, state, params, value=value, grad=grad, value_fn=rosenbrock
        ...     )
        ...     params = optcore.apply_updates(params, updates)
        >>> bool((params["x"] - 1).abs() < 1e-8)
        True

    Reference:
        Liu and Nocedal, 1989, doi:10.1007/BF01589116.
    """
    who = "lbfgs"
    if lr is not None:
        check_range(who, "lr", lr, 0.0)
    return chain(
        scale_by_lbfgs(memory_size, scale_init_precond),
        scale_by_learning_rate(1.0 if lr is None else lr),
        *_searches(who, linesearch),
    ).named(who)


def _searches(who: str, linesearch: Any) -> list[GradientTransformation]:
    if linesearch is None:
        return []
    if isinstance(linesearch, GradientTransformation):
        return [linesearch]
    if linesearch == "zoom":
        return [scale_by_zoom_linesearch(20, initial_guess_strategy="one")]
    if linesearch == "backtracking":
        return [scale_by_backtracking_linesearch(20, increase_factor=math.inf, store_grad=True)]
    error = ValueError if isinstance(linesearch, str) else TypeError
    got = repr(linesearch) if isinstance(linesearch, str) else describe(linesearch)
    raise error(
        f'{who}: expected linesearch "zoom", "backtracking", None or a GradientTransformation, '
        f"got {got}"
    )


def _lbfgs_init(params: Tree, *, memory_size: int, **_: Any) -> ScaleByLBFGSState:
    # A tree for each: the memory is never overwritten, but torch.compile would guard on sharing.
    params_memory, updates_memory = (
        tuple(zeros_like(_WHO, params) for _ in range(memory_size)) for _ in range(2)
    )
    leaves = tree_leaves(params_memory[0])
    weights = inner(leaves, leaves).expand(memory_size).clone()
    old_params, old_updates = zeros_like(_WHO, params), zeros_like(_WHO, params)
    return ScaleByLBFGSState(
        counts_like(params), old_params, old_updates, params_memory, updates_memory, weights
    )


def _lbfgs_update(
    updates: Tree,
    state: ScaleByLBFGSState,
    params: Tree,
    *,
    inplace: bool,
    memory_size: int,
    scale_init_precond: bool,
) -> tuple[Tree, ScaleByLBFGSState]:
    count, old_params, old_updates, *memory = state
    step, new_params = leafwise(_WHO, _step, updates, old_params, counts=count, params=params)[:2]
    change, new_updates, count = leafwise(_WHO, _change, updates, old_updates, counts=count)
    memory = _remembered(_filled(step, old_params), _filled(change, old_updates), memory, inplace)
    pairs = [
        Pair(tree_leaves(s), tree_leaves(y), weight)
        for s, y, weight in zip(*memory[:2], memory[2].unbind(), strict=True)
    ]
    gamma = _first_scale(updates, pairs[-1]) if scale_init_precond else 1.0
    direction = two_loop(tree_leaves(updates), pairs, gamma, inplace)
    state = ScaleByLBFGSState(count, new_params, new_updates, *memory)
    return tree_unflatten(tree_structure(updates), direction), state


def _step(
    grad: torch.Tensor, old: torch.Tensor, param: torch.Tensor, *, tick: Tick
) -> tuple[torch.Tensor, torch.Tensor]:
    return (param - old) * tick.derive(_seen_before), param.clone()


def _change(
    grad: torch.Tensor, old: torch.Tensor, *, tick: Tick
) -> tuple[torch.Tensor, torch.Tensor]:
    new = grad.to(old.dtype)
    return (new - old) * tick.derive(_seen_before), new.clone() if new is grad else new


def _seen_before(count: torch.Tensor) -> torch.Tensor:
    return count > 1


def _filled(tree: Tree, like: Tree) -> Tree:
    """Zeros for the leaves that had no gradient."""
    return tree_map(
        lambda x, old: torch.zeros_like(old) if x is None and old is not None else x, tree, like
    )


def _remembered(step: Tree, change: Tree, memory: Any, inplace: bool) -> tuple[Any, Any, Any]:
    """The memory with the newest pair in place of the oldest, unless it shows no curvature."""
    s, y = tree_leaves(step), tree_leaves(change)
    product, square = inner(s, y), inner(y, y)
    limits = torch.finfo(product.dtype)
    curved = (product > limits.eps * square) & (product >= limits.tiny)
    steps, changes, weights = memory

    def take(pair: Tree, inplace: bool) -> Tree:
        step, change, weight = pair
        newer = torch.cat([weights[1:], weight.to(weights.dtype).reshape(1)])
        return (*steps[1:], step), (*changes[1:], change), newer

    weight = 1 / torch.where(curved, product, 1.0)
    return cond(_WHO, curved, (step, change, weight), take, lambda: tuple(memory), inplace)


def _first_scale(updates: Tree, newest: Pair) -> torch.Tensor:
    """The inverse Hessian before the first pair is taken in."""
    known = newest.weight > 0
    square = torch.where(known, newest.weight * inner(newest.change, newest.change), 1.0)
    return torch.where(known, 1 / square, 1 / at_least(total_norm(_WHO, updates, 2.0), 1.0))
