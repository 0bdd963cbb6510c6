# SPDX-License-Identifier: Apache-2.0
"""Gradients of single examples: bounding each one, and adding noise to their sum."""

from __future__ import annotations

from typing import Any

import torch

from optcore._hyperparams import Hyperparam, check_flag, check_single
from optcore._leafwise import check_gradient, fit, safe_sqrt
from optcore._noise import AddNoiseState, check_seed, keys_of, normal, seed_of
from optcore._norms import limit
from optcore._transform import GradientTransformation, new_count
from optcore._tree import Tree, describe, path_to, tree_flatten, tree_unflatten


def per_example_global_norm_clip(
    grads: Tree, l2_norm_clip: float | torch.Tensor
) -> tuple[Tree, torch.Tensor]:
    r"""Sum the gradients of examples, each scaled down where its norm is too large.

    .. math::
        u = \sum_i g_i \min\left(1, \frac{c}{\lVert g_i \rVert}\right)

    Args:
        grads: Tree of tensors ``(batch, ...)``, as ``torch.func.vmap`` of a gradient gives them;
            None stays None.
        l2_norm_clip: :math:`c \ge 0`, the largest norm of one example's whole gradient.

    Returns:
        The sum, without the batch axis, and how many examples were clipped, ``()``.

    Differentiable:
        In the gradients, through the norms, twice, and in a tensor ``l2_norm_clip``.

    Raises:
        TypeError: A leaf that is no dense, real, floating tensor; a bound that is no number or
            tensor ``()``.
        ValueError: Leaves without a batch axis, or of different batches; a negative bound.

    Example:
        >>> grads = [torch.tensor([[3.0, 4.0], [0.3, 0.4]])]
        >>> per_example_global_norm_clip(grads, 1.0)
        ([tensor([0.9000, 1.2000])], tensor(1))

    Reference:
        Abadi et al., 2016, arXiv:1607.00133, Algorithm 1.
    """
    who = "per_example_global_norm_clip"
    _check_bound(who, "l2_norm_clip", l2_norm_clip)
    leaves, spec, batch = _examples(who, grads)
    factors = _factors([leaf for leaf in leaves if leaf is not None], l2_norm_clip, batch)
    summed = [None if leaf is None else _weighted(leaf, factors) for leaf in leaves]
    return tree_unflatten(spec, summed), (factors < 1).sum()


def per_example_layer_norm_clip(
    grads: Tree, global_l2_norm_clip: float | torch.Tensor, uniform: bool = True
) -> tuple[Tree, Tree]:
    r"""Sum the gradients of examples, each leaf scaled down by its own bound.

    The bounds' squares sum to :math:`c^2`: they are alike, or as the sizes of the leaves.

    Args:
        grads: Tree of tensors ``(batch, ...)``; None stays None.
        global_l2_norm_clip: :math:`c \ge 0`, the largest norm of one example's whole gradient.
        uniform: False shares :math:`c^2` out by numbers of elements.

    Returns:
        The sums, without the batch axis, and how many examples were clipped in each leaf.

    Differentiable:
        In the gradients, through the norms, twice, and in a tensor ``global_l2_norm_clip``.

    Raises:
        TypeError: A leaf that is no dense, real, floating tensor; a bound that is no number or
            tensor ``()``.
        ValueError: Leaves without a batch axis, or of different batches; a negative bound.

    Example:
        >>> grads = [torch.tensor([[3.0], [0.3]]), torch.tensor([[4.0], [0.4]])]
        >>> per_example_layer_norm_clip(grads, 2.0**0.5)
        ([tensor([1.3000]), tensor([1.4000])], [tensor(1), tensor(1)])

    Reference:
        McMahan et al., 2018, arXiv:1710.06963, section 3.
    """
    who = "per_example_layer_norm_clip"
    _check_bound(who, "global_l2_norm_clip", global_l2_norm_clip)
    check_flag(who, "uniform", uniform)
    leaves, spec, batch = _examples(who, grads)
    present = [leaf for leaf in leaves if leaf is not None]
    sizes = [1 if uniform else leaf[0].numel() for leaf in present]
    shares = iter([(size / max(sum(sizes), 1)) ** 0.5 for size in sizes])
    sums: list[Any] = []
    counts: list[Any] = []
    for leaf in leaves:
        if leaf is None:
            sums.append(None)
            counts.append(None)
            continue
        factors = _factors([leaf], global_l2_norm_clip * next(shares), batch)
        sums.append(_weighted(leaf, factors))
        counts.append((factors < 1).sum())
    return tree_unflatten(spec, sums), tree_unflatten(spec, counts)


def differentially_private_aggregate(
    l2_norm_clip: Hyperparam, noise_multiplier: Hyperparam, seed: int | torch.Tensor
) -> GradientTransformation:
    r"""Average the gradients of a batch of examples, each bounded, under noise.

    With a batch of :math:`n` and standard normal :math:`z`:

    .. math::
        u = \frac1n \Bigl(\sum_i g_i \min\bigl(1, \tfrac{c}{\lVert g_i \rVert}\bigr)
            + c\,\sigma\,z\Bigr)

    Put it first in a chain: it takes tensors ``(batch, ...)`` and gives those of the parameters'
    shapes. The noise is a function of the seed and the update's count, as that of
    :func:`add_noise`: it is reproducible, and no source of secret randomness.

    Args:
        l2_norm_clip: :math:`c \ge 0`.
        noise_multiplier: :math:`\sigma \ge 0`.
        seed: An int, or an int64 tensor ``()``.

    State:
        ``count`` and ``seed``, as :func:`add_noise` has them.

    Differentiable:
        In the gradients and tensor hyperparameters, twice.

    Raises:
        TypeError: A hyperparameter is no number, schedule or tensor, ``seed`` no int.
        ValueError: A hyperparameter outside its range; in ``update``, gradients without a batch
            axis.

    Differs:
        optax takes a JAX key; the numbers are others.

    Example:
        >>> tx = differentially_private_aggregate(1.0, 0.0, seed=0)
        >>> params = [torch.zeros(2)]
        >>> tx.update([torch.tensor([[3.0, 4.0], [0.3, 0.4]])], tx.init(params), params)[0]
        [tensor([0.4500, 0.6000])]

    Reference:
        Abadi et al., 2016, arXiv:1607.00133, Algorithm 1.
    """
    who = "differentially_private_aggregate"
    check_single(who, "l2_norm_clip", l2_norm_clip, 0.0)
    check_single(who, "noise_multiplier", noise_multiplier, 0.0)
    check_seed(who, seed)
    hyperparams = {"l2_norm_clip": l2_norm_clip, "noise_multiplier": noise_multiplier}
    return GradientTransformation(
        _private_init, _private_update, hyperparams, {"seed": seed}, name=who
    )


def _private_init(params: Tree, *, seed: Any, **_: Any) -> AddNoiseState:
    return AddNoiseState(new_count(), seed_of(seed))


def _private_update(
    updates: Tree,
    state: AddNoiseState,
    params: Tree,
    *,
    inplace: bool,
    l2_norm_clip: Any,
    noise_multiplier: Any,
    seed: Any,
) -> tuple[Tree, AddNoiseState]:
    leaves, spec, batch = _examples("differentially_private_aggregate", updates)
    present = [leaf for leaf in leaves if leaf is not None]
    factors = _factors(present, l2_norm_clip, batch)
    deviation = l2_norm_clip * noise_multiplier
    keys = keys_of(state.seed, state.count, len(leaves))
    results: list[torch.Tensor | None] = []
    for leaf, key in zip(leaves, keys, strict=True):
        if leaf is None:
            results.append(None)
            continue
        summed = _weighted(leaf, factors)
        noise = normal(key, summed)
        results.append((summed + noise * fit(deviation, noise)) / batch)
    return tree_unflatten(spec, results), AddNoiseState(state.count + 1, state.seed)


def _check_bound(who: str, name: str, bound: Any) -> None:
    """Refuse what is no norm: a schedule too, which nothing here could ask for its value."""
    if callable(bound):
        raise TypeError(f"{who}: expected {name} as a number or tensor, got {describe(bound)}")
    check_single(who, name, bound, 0.0)


def _examples(who: str, grads: Tree) -> tuple[list[Any], Any, int]:
    """The leaves, checked, and how many examples they are of."""
    leaves, spec = tree_flatten(grads)
    batch = 0
    for index, leaf in enumerate(leaves):
        if leaf is None:
            continue
        check_gradient(who, leaf)
        if not leaf.ndim or leaf.shape[0] == 0 or batch not in (0, leaf.shape[0]):
            size = f"{batch}, ..." if batch else "batch, ..."
            raise ValueError(
                f"{who}: expected gradients ({size}), got {describe(leaf)}, at "
                f"{path_to(grads, index)}; take the gradient of each example with torch.func.vmap"
            )
        batch = leaf.shape[0]
    return leaves, spec, max(batch, 1)


def _factors(leaves: list[torch.Tensor], largest: Any, batch: int) -> torch.Tensor:
    """What brings each example's norm down to the largest one allowed: ``(batch,)``."""
    squares = [leaf.double().square().reshape(batch, -1).sum(1) for leaf in leaves]
    if not squares:
        return torch.ones(batch)
    norms = safe_sqrt(torch.stack([square.to(squares[0].device) for square in squares]).sum(0))
    return limit(norms, fit(largest, norms))


def _weighted(leaf: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """The sum over examples."""
    return torch.tensordot(factors.to(leaf), leaf, 1)
