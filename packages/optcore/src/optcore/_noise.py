# SPDX-License-Identifier: Apache-2.0
"""Noise on updates, from a counter-based generator written in tensor operations."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from optcore._chain import chain, link
from optcore._hyperparams import Hyperparam, check_range
from optcore._leafwise import check_gradient, check_like_params, leafwise
from optcore._norms import safe_sqrt, times
from optcore._rows import OptimizerRow
from optcore._scaling import scale_by_learning_rate, uphill
from optcore._transform import GradientTransformation, new_count
from optcore._tree import Tree, describe, tree_flatten, tree_unflatten


class AddNoiseState(NamedTuple):
    """Where :func:`add_noise` is in its random stream."""

    count: torch.Tensor  # i64[]: updates so far
    seed: torch.Tensor  # i64[]: names the stream


def add_noise(
    eta: Hyperparam, gamma: Hyperparam, seed: int | torch.Tensor
) -> GradientTransformation:
    r"""Add Gaussian noise that fades.

    .. math::
        u_t = g_t + \sigma_t\,z, \qquad \sigma_t^2 = \frac{\eta}{(1 + t)^\gamma},
        \quad z \sim \mathcal N(0, 1), \quad t = 0, 1, \ldots

    The noise is a function of the seed, the update's count, the leaf's place in the tree and the
    element's place in the leaf: the same in every run, on every device (up to rounding), in a
    compiled graph and after the state was saved and loaded. Torch's generators are not used.

    Args:
        eta: :math:`\eta \ge 0`, the variance at the first update.
        gamma: :math:`\gamma`, how fast it fades; the paper uses 0.55.
        seed: An int, or an int64 tensor ``()``: under ``vmap`` each task can have its own, and
            tasks of one seed get the same noise.

    State:
        ``count``: updates so far, counted whether or not a leaf had a gradient; ``seed``.

    Differentiable:
        In the updates and in tensors ``eta`` (derivative 0 at 0) and ``gamma``.

    Differs:
        optax takes a JAX key; the numbers are others.

    Raises:
        TypeError: ``eta`` or ``gamma`` is not a hyperparameter, ``seed`` neither an int nor an
            int64 tensor ``()``.
        ValueError: ``eta`` is negative, or one of them not finite.

    Example:
        >>> tx = add_noise(eta=0.01, gamma=0.55, seed=0)
        >>> grads = [torch.zeros(1000)]
        >>> (noise,), state = tx.update(grads, tx.init(grads))
        >>> round(noise.std().item(), 2)
        0.1

    Reference:
        Neelakantan et al., 2015, arXiv:1511.06807, equations 1-2. The generator iterates the
        permutation ``lowbias32``: Wellons, 2018, "Prospecting for hash functions".
    """
    who = "add_noise"
    check_range(who, "eta", eta, 0.0)
    check_range(who, "gamma", gamma)
    check_seed(who, seed)
    return GradientTransformation(
        _noise_init, _noise_update, {"eta": eta, "gamma": gamma}, {"seed": seed}, name=who
    )


def noisy_sgd(
    lr: Hyperparam = 1e-3,
    eta: Hyperparam = 0.01,
    gamma: Hyperparam = 0.55,
    seed: int | torch.Tensor = 0,
    *,
    maximize: bool = False,
) -> GradientTransformation:
    r"""Gradient descent with noise that fades: :math:`\theta' = \theta - \eta_l\,(g + \sigma_t z)`.

    Args:
        lr: Learning rate :math:`\eta_l \ge 0`.
        eta: Variance of the noise at the first update, >= 0.
        gamma: How fast it fades; the paper uses 0.55.
        seed: Of the noise; see :func:`add_noise`.
        maximize: Ascend instead of descend.

    State:
        That of :func:`add_noise`, inside the tuple of a :func:`chain`.

    Differentiable:
        As :func:`add_noise`, and in ``lr``.

    Raises:
        TypeError: A hyperparameter is no number, schedule, tensor or tree of such, ``seed`` no int.
        ValueError: A hyperparameter outside its range.

    Differs:
        The numbers are not those of optax, which takes a JAX key. In a class every parameter group
        has the stream of the seed to itself.

    Example:
        >>> opt = noisy_sgd(lr=0.1, eta=0.0)
        >>> opt.update([torch.ones(1)], opt.init([torch.ones(1)]))[0]
        [tensor([-0.1000])]

    Reference:
        Neelakantan et al., 2015, arXiv:1511.06807, equations 1-2.
    """
    check_range("noisy_sgd", "lr", lr, 0.0)
    return chain(
        *uphill("noisy_sgd", maximize),
        link("noisy_sgd", add_noise, eta, gamma, seed),
        scale_by_learning_rate(lr),
    ).named("noisy_sgd")


ROWS = (OptimizerRow(noisy_sgd, "NoisySGD"),)


def _noise_init(params: Tree, *, eta: Any, gamma: Any, seed: int | torch.Tensor) -> AddNoiseState:
    return AddNoiseState(new_count(), seed_of(seed))


def check_seed(who: str, seed: int | torch.Tensor) -> None:
    """Refuse what names no stream.

    Raises:
        TypeError: Neither an int nor an int64 tensor ``()``.
    """
    if isinstance(seed, torch.Tensor):
        if seed.dtype is not torch.int64 or seed.ndim:
            raise TypeError(f"{who}: expected seed as an int or i64[], got {describe(seed)}")
    elif not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(f"{who}: expected seed as an int or i64[], got {describe(seed)}")


def seed_of(seed: int | torch.Tensor) -> torch.Tensor:
    """A seed as it stands in states."""
    if isinstance(seed, torch.Tensor):
        return seed
    return torch.tensor((seed + 2**63) % 2**64 - 2**63)  # its low 64 bits


def _noise_update(
    updates: Tree,
    state: AddNoiseState,
    params: Tree,
    *,
    inplace: bool,
    eta: Any,
    gamma: Any,
    seed: Any,
) -> tuple[Tree, AddNoiseState]:
    elapsed = state.count.to(torch.float64) + 1

    def noisy(grad: torch.Tensor, noise: torch.Tensor, *, eta: Any, gamma: Any) -> torch.Tensor:
        variance = eta / torch.pow(elapsed, gamma)
        return grad + times(noise, safe_sqrt(variance))

    check_like_params("add_noise", updates, params)
    grads, spec = tree_flatten(updates)
    keys = keys_of(state.seed, state.count, len(grads))
    noises: list[torch.Tensor | None] = []
    for leaf, grad in enumerate(grads):
        if grad is not None:
            check_gradient("add_noise", grad)
        noises.append(None if grad is None else normal(keys[leaf], grad))
    (updates,) = leafwise(
        "add_noise", noisy, updates, params=tree_unflatten(spec, noises), eta=eta, gamma=gamma
    )
    return updates, AddNoiseState(state.count + 1, state.seed)


# Words of 32 bits in int64 tensors, so that no product overflows: compilers assume that none does.
_WORD = 2**32 - 1


def keys_of(seed: torch.Tensor, count: torch.Tensor, leaves: int) -> torch.Tensor:
    """Two words per leaf: ``(leaves, 2)``."""
    words = torch.arange(2)
    for part in (seed & _WORD, (seed >> 32) & _WORD, count & _WORD):
        words = _mix(words ^ part)
    return _mix(words ^ torch.arange(leaves)[:, None])


def normal(key: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Standard normal numbers, of which the two words of ``key`` determine every one."""
    return (2**0.5 * torch.erfinv(2 * uniform(key, like) - 1)).to(like.dtype)


def uniform(key: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Numbers in ``(0, 1)``, alike, in float64."""
    first, second = key.to(like.device).unbind()
    place = torch.arange(like.numel(), device=like.device).view(like.shape)
    bits = _mix((_mix(place ^ first) + second) & _WORD)
    return (bits.to(torch.float64) + 0.5) * 2.0**-32


def _mix(word: torch.Tensor) -> torch.Tensor:
    """A permutation of the words that changes half of the bits when one bit changes."""
    word = ((word ^ (word >> 16)) * 0x7FEB352D) & _WORD
    word = ((word ^ (word >> 15)) * (0x846CA68B - 2**32)) & _WORD  # the same product modulo 2**32
    return word ^ (word >> 16)
