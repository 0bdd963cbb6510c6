# SPDX-License-Identifier: Apache-2.0
"""Proximal operators, and transformations that end a step with one or with a projection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from optcore._hyperparams import Hyperparam
from optcore._leafwise import fit, leafwise
from optcore._norms import limit, safe_sqrt
from optcore._set_options import check_axis, check_call, check_end
from optcore._transform import EmptyState, GradientTransformation, stateless_init
from optcore._tree import Tree, describe


def prox_l1(tree: Tree, strength: Hyperparam = 1.0, scaling: Hyperparam = 1.0) -> Tree:
    r"""Soft thresholding, the proximal operator of the lasso's penalty.

    .. math::
        \operatorname*{argmin}_y \tfrac12 \lVert x - y \rVert^2 + s \lambda \lVert y \rVert_1
            = \operatorname{sign}(x) \max(|x| - s \lambda, 0)

    Args:
        tree: Tree of tensors :math:`x`; None stays None.
        strength: :math:`\lambda \ge 0`: a number, a tensor that broadcasts, or a prefix tree.
        scaling: :math:`s \ge 0`, alike: the step size.

    Differentiable:
        In everything, but at :math:`|x| = s \lambda`.

    Raises:
        TypeError: A leaf that is no dense, real, floating tensor; an option of the wrong type.
        ValueError: A negative number, or a tensor that does not broadcast.

    Example:
        >>> prox_l1([torch.tensor([-3.0, 0.5])], 1.0)
        [tensor([-2.,  0.])]

    Reference:
        Parikh and Boyd, 2014, "Proximal algorithms", section 6.5.2.
    """
    check_call("prox_l1", tree, strength=strength, scaling=scaling)
    return leafwise("prox_l1", _shrunk, tree, strength=strength, scaling=scaling)[0]


def prox_elastic_net(
    tree: Tree, strength: Hyperparam = 1.0, ridge: Hyperparam = 1.0, scaling: Hyperparam = 1.0
) -> Tree:
    r"""Soft thresholding and shrinking, the proximal operator of the elastic net's penalty.

    .. math::
        \operatorname*{argmin}_y \tfrac12 \lVert x - y \rVert^2
            + s \lambda \bigl(\lVert y \rVert_1 + \tfrac{\gamma}{2} \lVert y \rVert^2\bigr)
            = \frac{\operatorname{sign}(x) \max(|x| - s \lambda, 0)}{1 + s \lambda \gamma}

    Args:
        tree: Tree of tensors :math:`x`; None stays None.
        strength: :math:`\lambda \ge 0`: a number, a tensor that broadcasts, or a prefix tree.
        ridge: :math:`\gamma \ge 0`, alike.
        scaling: :math:`s \ge 0`, alike: the step size.

    Differentiable:
        In everything, but at :math:`|x| = s \lambda`.

    Raises:
        TypeError: A leaf that is no dense, real, floating tensor; an option of the wrong type.
        ValueError: A negative number, or a tensor that does not broadcast.

    Example:
        >>> prox_elastic_net([torch.tensor([-3.0, 0.5])], 1.0, 1.0)
        [tensor([-1.,  0.])]

    Reference:
        Parikh and Boyd, 2014, "Proximal algorithms", section 6.5.3.
    """
    given = {"strength": strength, "ridge": ridge, "scaling": scaling}
    check_call("prox_elastic_net", tree, **given)
    return leafwise("prox_elastic_net", _netted, tree, **given)[0]


def prox_group_lasso(
    tree: Tree,
    strength: Hyperparam = 1.0,
    scaling: Hyperparam = 1.0,
    *,
    axis: int | tuple[int, ...] | None = None,
) -> Tree:
    r"""Shorten each group as a whole, the proximal operator of the group lasso's penalty.

    For every group :math:`x_g`:

    .. math::
        \operatorname*{argmin}_y \tfrac12 \lVert x_g - y \rVert^2 + s \lambda \lVert y \rVert
            = x_g \max\left(1 - \frac{s \lambda}{\lVert x_g \rVert}, 0\right)

    Args:
        tree: Tree of tensors; None stays None.
        strength: :math:`\lambda \ge 0`: a number, a tensor that broadcasts, or a prefix tree.
        scaling: :math:`s \ge 0`, alike: the step size.
        axis: Along which a leaf's elements belong to one group; None makes each leaf one.

    Differentiable:
        In everything, twice, but at :math:`\lVert x_g \rVert = s \lambda`; 0 at zero groups.

    Raises:
        TypeError: A leaf that is no dense, real, floating tensor; an option of the wrong type.
        ValueError: A negative number, or an axis that a leaf does not have.

    Example:
        >>> prox_group_lasso([torch.tensor([[3.0, 4.0], [0.3, 0.4]])], 1.0, axis=1)
        [tensor([[2.4000, 3.2000],
                [0.0000, 0.0000]])]

    Reference:
        Parikh and Boyd, 2014, "Proximal algorithms", section 6.5.4.
    """
    check_call("prox_group_lasso", tree, strength=strength, scaling=scaling)
    check_axis("prox_group_lasso", axis, tree)

    def shortened(x: torch.Tensor, *, strength: Any, scaling: Any) -> torch.Tensor:
        square = x.square()
        along = axis if x.ndim and axis is not None else tuple(range(x.ndim))
        norm = safe_sqrt(square.sum(along, keepdim=True) if x.ndim else square)
        # what a bound of the norm would leave is what is taken away
        return x - x * limit(norm, _threshold(x, strength, scaling))

    return leafwise("prox_group_lasso", shortened, tree, strength=strength, scaling=scaling)[0]


def prox_non_negative_l1(tree: Tree, strength: Hyperparam = 1.0, scaling: Hyperparam = 1.0) -> Tree:
    r"""One-sided thresholding, the proximal operator of the lasso without negative elements.

    .. math::
        \operatorname*{argmin}_{y \ge 0} \tfrac12 \lVert x - y \rVert^2 + s \lambda \textstyle\sum y
            = \max(x - s \lambda, 0)

    Args:
        tree: Tree of tensors :math:`x`; None stays None.
        strength: :math:`\lambda \ge 0`: a number, a tensor that broadcasts, or a prefix tree.
        scaling: :math:`s \ge 0`, alike: the step size.

    Differentiable:
        In everything, but at :math:`x = s \lambda`.

    Raises:
        TypeError: A leaf that is no dense, real, floating tensor; an option of the wrong type.
        ValueError: A negative number, or a tensor that does not broadcast.

    Example:
        >>> prox_non_negative_l1([torch.tensor([-3.0, 3.0])], 1.0)
        [tensor([0., 2.])]

    Reference:
        Parikh and Boyd, 2014, "Proximal algorithms", section 6.5.2, without negative elements.
    """
    given = {"strength": strength, "scaling": scaling}
    check_call("prox_non_negative_l1", tree, **given)
    return leafwise("prox_non_negative_l1", _above, tree, **given)[0]


def keep_params_in(projection: Callable[..., Tree], **options: Any) -> GradientTransformation:
    r"""End each step in a set: :math:`u = P(\theta + g) - \theta`.

    Put it last in a chain: ``chain(sgd(0.1), keep_params_in(projection_simplex))`` is projected
    gradient descent.

    What is added to the parameters is an update, so they end in the set up to the rounding of
    :math:`\theta + u`, half a unit in the last place of the larger of :math:`\theta` and
    :math:`P`. Clamped to 0.7 from within 1, elements are past it by 6e-8 at most in float32 and by
    0.004 in bfloat16; from 1000 by 1e-5 and 0.3, and the next step brings them back. Where it has
    to be exact, end with the projection itself: ``params = projection_box(params, 0.0, 0.7)``.

    Args:
        projection: ``(tree, **options) -> tree``, as :func:`projection_simplex`.
        options: What it takes besides the tree, each a hyperparameter (or ``axis``).

    Differentiable:
        As ``projection``, in the updates, the parameters and tensor options. Parameters without a
        gradient stay where they are, and the projection does not see them.

    Raises:
        TypeError: ``projection`` is not callable, an option no hyperparameter or none of its own.
        ValueError: An option outside the range of the projection; ``update`` was given no
            ``params``.

    Example:
        >>> import optcore
        >>> tx = keep_params_in(optcore.projection_l2_ball, scale=1.0)
        >>> params = [torch.tensor([0.6, 0.0])]
        >>> tx.update([torch.tensor([2.4, 4.0])], tx.init(params), params)[0]
        [tensor([0.0000, 0.8000])]

    Reference:
        Parikh and Boyd, 2014, "Proximal algorithms", section 4.2.
    """
    return _ending("keep_params_in", "projection", projection, options)


def proximal_step(prox: Callable[..., Tree], **options: Any) -> GradientTransformation:
    r"""End each step with a proximal operator: :math:`u = P(\theta + g) - \theta`.

    Put it last in a chain, with the learning rate as its ``scaling``:
    ``chain(sgd(0.1), proximal_step(prox_l1, strength=0.01, scaling=0.1))`` is ISTA.

    Args:
        prox: ``(tree, **options) -> tree``, as :func:`prox_l1`.
        options: What it takes besides the tree, each a hyperparameter (or ``axis``).

    Differentiable:
        As ``prox``, in the updates, the parameters and tensor options. Parameters without a
        gradient stay where they are.

    Raises:
        TypeError: ``prox`` is not callable, an option no hyperparameter or none of its own.
        ValueError: An option outside the range of ``prox``; ``update`` was given no ``params``.

    Example:
        >>> tx = proximal_step(prox_l1, strength=1.0)
        >>> params = [torch.tensor([2.0, 2.0])]
        >>> tx.update([torch.tensor([1.0, -1.5])], tx.init(params), params)[0]
        [tensor([ 0., -2.])]

    Reference:
        Beck and Teboulle, 2009, "A fast iterative shrinkage-thresholding algorithm", equation 1.4.
    """
    return _ending("proximal_step", "prox", prox, options)


def _ending(
    who: str, name: str, function: Callable[..., Tree], options: dict[str, Any]
) -> GradientTransformation:
    if not callable(function):
        raise TypeError(f"{who}: expected {name} as a function, got {describe(function)}")
    hyperparams = {key: value for key, value in options.items() if key != "axis"}
    check_end(who, function, options)
    static = {"who": who, "function": function, **{k: options[k] for k in options if k == "axis"}}
    return GradientTransformation(
        stateless_init, _end_update, hyperparams, static, name=who, needs_params=True
    )


def _end_update(
    updates: Tree,
    state: EmptyState,
    params: Tree,
    *,
    inplace: bool,
    who: str,
    function: Callable[..., Tree],
    **options: Any,
) -> tuple[Tree, EmptyState]:
    (moved,) = leafwise(who, _sum, updates, params=params)
    image = function(moved, **options)
    updates, _ = leafwise(who, _difference, updates, image, params=params)
    return updates, state


def _sum(update: torch.Tensor, param: torch.Tensor) -> torch.Tensor:
    return param + update


def _difference(update: torch.Tensor, image: torch.Tensor, param: torch.Tensor) -> Any:
    return (image - param).to(update.dtype), image


def _threshold(x: torch.Tensor, strength: Any, scaling: Any) -> Any:
    value = strength * scaling
    return fit(value, x).to(x) if isinstance(value, torch.Tensor) else value


def _shrunk(x: torch.Tensor, *, strength: Any, scaling: Any) -> torch.Tensor:
    return x.sign() * torch.relu(x.abs() - _threshold(x, strength, scaling))


def _netted(x: torch.Tensor, *, strength: Any, ridge: Any, scaling: Any) -> torch.Tensor:
    divisor = 1 + _threshold(x, strength, scaling) * fit(ridge, x)
    return _shrunk(x, strength=strength, scaling=scaling) / divisor


def _above(x: torch.Tensor, *, strength: Any, scaling: Any) -> torch.Tensor:
    return torch.relu(x - _threshold(x, strength, scaling))
