# SPDX-License-Identifier: Apache-2.0
"""What a line search has computed at the new parameters, for the next step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from optcore._backtracking import ScaleByBacktrackingLinesearchState
from optcore._line import Evaluation, check_function, refuse_transforms
from optcore._tree import Tree, tree_leaves
from optcore._zoom import ScaleByZoomLinesearchState


def value_and_grad_from_state(
    value_fn: Callable[..., torch.Tensor],
) -> Callable[..., tuple[torch.Tensor, Tree]]:
    """Value and gradient that the last line search left in the state, computed if it left none.

    Args:
        value_fn: ``(params, *args, **kwargs) -> value``, a scalar tensor.

    Returns:
        A function ``(params, *args, state, **kwargs) -> (value, grad)``. What it finds or computes
        has no graph: a differentiable run takes ``torch.autograd.grad(..., create_graph=True)``.
        It is what the parameters need only if nothing after the line search changes the updates,
        and if the function is the same at every step (no batches).

    Raises:
        TypeError: ``value_fn`` is not callable.
        ValueError: On a call, a state without or with several line searches, or one that keeps no
            gradient.

    Example:
        >>> import torch
        >>> import optcore
        >>> def f(x):
        ...     return (x**2).sum()
        >>> tx = optcore.lbfgs()
        >>> x = torch.tensor([1.0, 2.0, 3.0])
        >>> state = tx.init(x)
        >>> value_and_grad = value_and_grad_from_state(f)
        >>> for _ in range(3):
        ...     value, grad = value_and_grad(x, state=state)
        ...     updates, state = tx.update(grad, state, x, value=value, grad=grad, value_fn=f)
        ...     x = optcore.apply_updates(x, updates)
        >>> bool(f(x) < 1e-10)
        True
    """
    check_function("value_and_grad_from_state", value_fn)
    return partial(_value_and_grad, value_fn)


def _value_and_grad(
    value_fn: Callable[..., torch.Tensor], params: Tree, /, *args: Any, state: Tree, **kwargs: Any
) -> tuple[torch.Tensor, Tree]:
    who = "value_and_grad_from_state"
    found = [node for node in tree_leaves(state, is_leaf=_is_search) if _is_search(node)]
    if len(found) != 1:
        raise ValueError(
            f"{who}: expected the state of one line search, got {len(found)}; chain one, e.g. "
            "optcore.scale_by_zoom_linesearch"
        )
    if found[0].grad is None:
        raise ValueError(
            f"{who}: expected a gradient in the state, got None; use "
            "scale_by_backtracking_linesearch(store_grad=True)"
        )
    if torch.isfinite(found[0].value):
        return found[0].value, found[0].grad
    refuse_transforms(who)
    wanted = [i for i, p in enumerate(tree_leaves(params)) if p is not None]

    def of_params(point: Tree) -> torch.Tensor:
        return value_fn(point, *args, **kwargs)

    evaluation = Evaluation(who, of_params, params, wanted, {})
    return evaluation.value, evaluation.gradient()


def _is_search(node: object) -> bool:
    return isinstance(node, (ScaleByBacktrackingLinesearchState, ScaleByZoomLinesearchState))
