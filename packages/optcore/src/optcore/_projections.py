# SPDX-License-Identifier: Apache-2.0
"""Euclidean projections of trees onto convex sets and spheres."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch

from optcore._hyperparams import Hyperparam
from optcore._leafwise import leafwise
from optcore._norms import inverse, limit, multiply, total_norm
from optcore._set_options import check_call, check_order
from optcore._tree import Tree, tree_flatten, tree_unflatten


def projection_non_negative(tree: Tree) -> Tree:
    r"""The nearest tree without negative elements: :math:`\max(x, 0)`.

    Args:
        tree: Tree of tensors; None stays None, as in all projections.

    Differentiable:
        Derivative 1 inside, 0 outside and on the boundary.

    Raises:
        TypeError: A leaf that is no dense, real, floating tensor.

    Example:
        >>> projection_non_negative([torch.tensor([-1.0, 2.0])])
        [tensor([0., 2.])]

    Reference:
        Parikh and Boyd, 2014, "Proximal algorithms", section 6.2.
    """
    who = "projection_non_negative"
    check_call(who, tree)
    return leafwise(who, torch.relu, tree)[0]


def projection_box(tree: Tree, lower: Hyperparam, upper: Hyperparam) -> Tree:
    r"""The nearest tree within bounds: :math:`\min(\max(x, l), u)`.

    Args:
        tree: Tree of tensors.
        lower: :math:`l`: a number, a tensor that broadcasts, or a prefix tree of such.
        upper: :math:`u \ge l`, alike.

    Differentiable:
        In ``tree`` and in tensor bounds.

    Raises:
        TypeError: A leaf that is no dense, real, floating tensor; a bound that is no number,
            tensor or tree of such.
        ValueError: ``lower`` above ``upper``, both numbers; a tensor that does not broadcast.

    Example:
        >>> projection_box([torch.tensor([-1.0, 0.5, 2.0])], 0.0, 1.0)
        [tensor([0.0000, 0.5000, 1.0000])]

    Reference:
        Parikh and Boyd, 2014, "Proximal algorithms", section 6.2.
    """
    who = "projection_box"
    check_call(who, tree, lower=lower, upper=upper)
    return leafwise(who, _boxed, tree, lower=lower, upper=upper)[0]


def projection_hypercube(tree: Tree, scale: Hyperparam = 1.0) -> Tree:
    r"""The nearest tree with elements in :math:`[0, s]`.

    Args:
        tree: Tree of tensors.
        scale: :math:`s \ge 0`: a number, a tensor that broadcasts, or a prefix tree of such.

    Differentiable:
        In ``tree`` and a tensor ``scale``.

    Raises:
        TypeError: A leaf that is no dense, real, floating tensor; ``scale`` no number,
            tensor or tree of such.
        ValueError: A negative ``scale``, or a tensor that does not broadcast.

    Example:
        >>> projection_hypercube([torch.tensor([-1.0, 0.5, 2.0])])
        [tensor([0.0000, 0.5000, 1.0000])]

    Reference:
        Parikh and Boyd, 2014, "Proximal algorithms", section 6.2.
    """
    check_call("projection_hypercube", tree, scale=scale)
    return leafwise("projection_hypercube", _unsigned, tree, scale=scale)[0]


def projection_simplex(tree: Tree, scale: float | torch.Tensor = 1.0) -> Tree:
    r"""The nearest tree whose elements are not negative and together sum to :math:`s`.

    .. math::
        y = \max(x - \tau, 0), \qquad \tau \text{ such that } \textstyle\sum_i y_i = s

    Args:
        tree: Tree of tensors, one point of all elements together.
        scale: :math:`s > 0`: a number or a tensor ``()``.

    Differentiable:
        In ``tree`` and a tensor ``scale``: on the support :math:`\operatorname{diag}(m) - m m^\top
        / |m|` with :math:`m` its indicator. Second derivatives are 0.

    Raises:
        TypeError: A leaf that is no dense, real, floating tensor; ``scale`` no number or
            tensor ``()``.
        ValueError: A ``scale`` that is not positive.

    Example:
        >>> projection_simplex([torch.tensor([0.5, 1.5]), torch.tensor([-1.0])])
        [tensor([0., 1.]), tensor([0.])]

    Reference:
        Duchi et al., 2008, "Efficient projections onto the l1-ball", Figure 1.
    """
    return _together("projection_simplex", _simplex, tree, scale)


def projection_l1_sphere(tree: Tree, scale: float | torch.Tensor = 1.0) -> Tree:
    r"""A nearest tree whose absolute values sum to :math:`s`, each sign kept, that of 0 positive.

    Args:
        tree: Tree of tensors, one point of all elements together.
        scale: :math:`s > 0`: a number or a tensor ``()``.

    Differentiable:
        As :func:`projection_simplex`; at an element that is 0, the derivative from above.

    Raises:
        TypeError: A leaf that is no dense, real, floating tensor; ``scale`` no number or
            tensor ``()``.
        ValueError: A ``scale`` that is not positive.

    Differs:
        optax leaves what is 0 where it is, off the sphere if others are too small.

    Example:
        >>> projection_l1_sphere([torch.tensor([0.25, -0.25])])
        [tensor([ 0.5000, -0.5000])]

    Reference:
        Duchi et al., 2008, "Efficient projections onto the l1-ball", Figure 1, with signs.
    """
    return _together("projection_l1_sphere", _l1_sphere, tree, scale)


def projection_l1_ball(tree: Tree, scale: float | torch.Tensor = 1.0) -> Tree:
    r"""The nearest tree whose absolute values sum to :math:`s` at most.

    Args:
        tree: Tree of tensors, one point of all elements together.
        scale: :math:`s > 0`: a number or a tensor ``()``.

    Differentiable:
        Inside the identity, outside as :func:`projection_l1_sphere`.

    Raises:
        TypeError: A leaf that is no dense, real, floating tensor; ``scale`` no number or
            tensor ``()``.
        ValueError: A ``scale`` that is not positive.

    Example:
        >>> projection_l1_ball([torch.tensor([3.0, -1.0])])
        [tensor([1., -0.])]

    Reference:
        Duchi et al., 2008, "Efficient projections onto the l1-ball", Figure 1.
    """
    return _together("projection_l1_ball", _l1_ball, tree, scale)


def projection_l2_sphere(tree: Tree, scale: float | torch.Tensor = 1.0) -> Tree:
    r"""The nearest tree of norm :math:`s`: :math:`s\,x / \lVert x \rVert`.

    Args:
        tree: Tree of tensors, one point of all elements together.
        scale: :math:`s \ge 0`: a number or a tensor ``()``.

    Differentiable:
        Twice. Zero has no nearest point: it stays 0, with derivative 0.

    Raises:
        TypeError: A leaf that is no dense, real, floating tensor; ``scale`` no number or
            tensor ``()``.
        ValueError: A negative ``scale``.

    Example:
        >>> projection_l2_sphere([torch.tensor([3.0]), torch.tensor([4.0])])
        [tensor([0.6000]), tensor([0.8000])]

    Reference:
        Absil and Malick, 2012, "Projection-like retractions on matrix manifolds".
    """
    who = "projection_l2_sphere"
    check_call(who, tree, scale=scale)
    return multiply(who, tree, inverse(total_norm(who, tree, 2.0)) * scale)


def projection_l2_ball(tree: Tree, scale: float | torch.Tensor = 1.0) -> Tree:
    r"""The nearest tree of norm :math:`s` at most: :math:`x \min(1, s / \lVert x \rVert)`.

    Args:
        tree: Tree of tensors, one point of all elements together.
        scale: :math:`s \ge 0`: a number or a tensor ``()``.

    Differentiable:
        Twice, but on the boundary.

    Raises:
        TypeError: A leaf that is no dense, real, floating tensor; ``scale`` no number or
            tensor ``()``.
        ValueError: A negative ``scale``.

    Example:
        >>> projection_l2_ball([torch.tensor([0.3]), torch.tensor([0.4])])
        [tensor([0.3000]), tensor([0.4000])]

    Reference:
        Parikh and Boyd, 2014, "Proximal algorithms", section 6.5.1.
    """
    who = "projection_l2_ball"
    check_call(who, tree, scale=scale)
    return multiply(who, tree, limit(total_norm(who, tree, 2.0), scale))


def projection_linf_sphere(tree: Tree, scale: float | torch.Tensor = 1.0) -> Tree:
    r"""A nearest tree whose largest absolute value is :math:`s`.

    From inside, the largest element moves out to :math:`\pm s` (the first of several), from outside
    all are clamped.

    Args:
        tree: Tree of tensors, one point of all elements together.
        scale: :math:`s \ge 0`: a number or a tensor ``()``.

    Differentiable:
        In ``tree`` and a tensor ``scale``, where the largest element does not change.

    Raises:
        TypeError: A leaf that is no dense, real, floating tensor; ``scale`` no number or
            tensor ``()``.
        ValueError: A negative ``scale``.

    Example:
        >>> projection_linf_sphere([torch.tensor([0.5, -0.7])])
        [tensor([ 0.5000, -1.0000])]

    Reference:
        Equals ``optax.projections.projection_linf_ball`` outside of the ball.
    """
    return _together("projection_linf_sphere", _linf_sphere, tree, scale)


def projection_linf_ball(tree: Tree, scale: Hyperparam = 1.0) -> Tree:
    r"""The nearest tree with elements in :math:`[-s, s]`.

    Args:
        tree: Tree of tensors.
        scale: :math:`s \ge 0`: a number, a tensor that broadcasts, or a prefix tree of such.

    Differentiable:
        In ``tree`` and a tensor ``scale``.

    Raises:
        TypeError: A leaf that is no dense, real, floating tensor; ``scale`` no number,
            tensor or tree of such.
        ValueError: A negative ``scale``, or a tensor that does not broadcast.

    Example:
        >>> projection_linf_ball([torch.tensor([-3.0, 0.5])])
        [tensor([-1.0000,  0.5000])]

    Reference:
        Parikh and Boyd, 2014, "Proximal algorithms", section 6.2.
    """
    check_call("projection_linf_ball", tree, scale=scale)
    return leafwise("projection_linf_ball", _bounded, tree, scale=scale)[0]


def _boxed(x: torch.Tensor, *, lower: Any, upper: Any) -> torch.Tensor:
    check_order("projection_box", lower, upper)  # as they are for this leaf
    return _clamped(x, lower=lower, upper=upper)


def _unsigned(x: torch.Tensor, *, scale: Any) -> torch.Tensor:
    return _clamped(x, lower=0.0, upper=scale)


def _bounded(x: torch.Tensor, *, scale: Any) -> torch.Tensor:
    return _clamped(x, lower=-scale, upper=scale)


def _clamped(x: torch.Tensor, *, lower: Any, upper: Any) -> torch.Tensor:
    low, high = (torch.as_tensor(b, dtype=x.dtype, device=x.device) for b in (lower, upper))
    return x.clamp(low, high)


def _together(who: str, project: Callable[..., torch.Tensor], tree: Tree, scale: Any) -> Tree:
    """A projection of all elements as one vector; half precision is rounded once, at the end."""
    check_call(who, tree, scale=scale)
    leaves, spec = tree_flatten(tree)
    present = [leaf for leaf in leaves if leaf is not None]
    if not sum(leaf.numel() for leaf in present):
        return tree
    wide = reduce(torch.promote_types, (leaf.dtype for leaf in present), torch.float32)
    joined = torch.cat([leaf.reshape(-1).to(present[0].device, wide) for leaf in present])
    if isinstance(scale, torch.Tensor):
        scale = scale.to(joined)
    parts = iter(project(joined, scale).split([leaf.numel() for leaf in present]))
    projected = [
        None if leaf is None else next(parts).reshape(leaf.shape).to(leaf.device, leaf.dtype)
        for leaf in leaves
    ]
    return tree_unflatten(spec, projected)


def _simplex(x: torch.Tensor, scale: Any) -> torch.Tensor:
    ordered = x.sort(descending=True).values
    excess = ordered.cumsum(0) - scale  # of the k largest, over what they may sum to
    ranks = torch.arange(1, x.numel() + 1, device=x.device, dtype=x.dtype)
    size = (ordered * ranks > excess).sum().clamp_min(1)  # of the support
    threshold = excess.gather(0, (size - 1).reshape(1)) / size
    return torch.relu(x - threshold)


def _l1_sphere(x: torch.Tensor, scale: Any) -> torch.Tensor:
    sign = torch.where(x < 0, -1.0, 1.0).to(x.dtype)
    return sign * _simplex(sign * x, scale)


def _l1_ball(x: torch.Tensor, scale: Any) -> torch.Tensor:
    return torch.where(x.abs().sum() <= scale, x, x.sign() * _simplex(x.abs(), scale))


def _linf_sphere(x: torch.Tensor, scale: Any) -> torch.Tensor:
    bound = torch.as_tensor(scale, device=x.device, dtype=x.dtype)
    size = x.abs()
    largest = torch.arange(x.numel(), device=x.device) == size.argmax()
    inside = size.amax() < bound
    return torch.where(inside & largest, torch.where(x < 0, -bound, bound), x.clamp(-bound, bound))
