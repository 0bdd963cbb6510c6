# SPDX-License-Identifier: Apache-2.0
"""Functions smoothed by noise, differentiable where the function is not; Fenchel-Young losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from optcore._choice import check_int
from optcore._curvature import check_function, checked_scalar
from optcore._hyperparams import check_flag, check_single
from optcore._leafwise import check_gradient
from optcore._noise import check_seed, keys_of, normal, seed_of, uniform
from optcore._tree import Tree, describe, tree_flatten, tree_leaves, tree_map, tree_unflatten


class Noise(Protocol):
    """What perturbs: numbers from the stream of a key, and their log-density up to a constant."""

    def sample(self, key: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Numbers of the shape and dtype of ``like``; ``key`` is an int64 tensor ``(2,)``."""
        ...

    def log_prob(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logarithm of the density of each element, up to a constant."""
        ...


@dataclass(frozen=True)
class Normal:
    """Standard normal noise.

    Example:
        >>> Normal().log_prob(torch.tensor(2.0))
        tensor(-2.)
    """

    def sample(self, key: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Numbers of the shape and dtype of ``like``."""
        return normal(key, like)

    def log_prob(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logarithm of the density, up to a constant."""
        return -0.5 * inputs.square()


@dataclass(frozen=True)
class Gumbel:
    """Standard Gumbel noise: the argmax of perturbed scores is a sample of their softmax.

    Example:
        >>> Gumbel().log_prob(torch.tensor(0.0))
        tensor(-1.)
    """

    def sample(self, key: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Numbers of the shape and dtype of ``like``."""
        return (-(-uniform(key, like).log()).log()).to(like.dtype)

    def log_prob(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logarithm of the density, up to a constant."""
        return -inputs - (-inputs).exp()


@dataclass(frozen=True)
class _Perturbed:
    fun: Callable[[Tree], Tree]
    num_samples: int
    sigma: Any
    noise: Noise
    use_baseline: bool

    def __call__(self, seed: int | torch.Tensor, x: Tree) -> Tree:
        who = "make_perturbed_fun"
        check_seed(who, seed)
        leaves, spec = tree_flatten(x)
        if not leaves or any(leaf is None for leaf in leaves):
            raise TypeError(f"{who}: expected x as a tree of tensors, got {describe(x)}")
        for leaf in leaves:
            check_gradient(who, leaf, "tensors")
        baseline = None
        if self.use_baseline:
            baseline = self.fun(tree_unflatten(spec, [leaf.detach() for leaf in leaves]))
        samples = self._samples(seed_of(seed), leaves)
        at = [(leaf + self.sigma * z).detach() for leaf, z in zip(leaves, samples, strict=True)]

        # what the noise was, as a function of x
        parts = [
            self.noise.log_prob((moved - leaf) / self.sigma).reshape(self.num_samples, -1).sum(1)
            for moved, leaf in zip(at, leaves, strict=True)
        ]
        log_prob = torch.stack(parts).sum(0)
        weight = (log_prob - log_prob.detach()).exp()  # 1, with the derivative of log_prob

        def checked(*moved: torch.Tensor) -> Tree:
            outputs = self.fun(tree_unflatten(spec, moved))
            for leaf in tree_leaves(outputs):
                check_gradient(f"{who}: fun", leaf, "outputs")
            return outputs

        outputs = torch.func.vmap(checked)(*at)

        def mean(out: torch.Tensor, base: torch.Tensor | None = None) -> torch.Tensor:
            own = weight.reshape(-1, *(1 for _ in out.shape[1:])).to(out.dtype)
            terms = own * out if base is None else own * out + (1 - own) * base
            return terms.mean(0)

        return tree_map(mean, outputs) if baseline is None else tree_map(mean, outputs, baseline)

    def _samples(self, seed: torch.Tensor, leaves: list[torch.Tensor]) -> list[torch.Tensor]:
        keys = keys_of(seed, torch.zeros((), dtype=torch.int64), len(leaves))
        shapes = [(self.num_samples, *leaf.shape) for leaf in leaves]
        return [
            self.noise.sample(key, leaf.detach().expand(shape))
            for key, leaf, shape in zip(keys, leaves, shapes, strict=True)
        ]


def make_perturbed_fun(
    fun: Callable[[Tree], Tree],
    num_samples: int = 1000,
    sigma: float | torch.Tensor = 0.1,
    noise: Noise | None = None,
    use_baseline: bool = True,
) -> Callable[[int | torch.Tensor, Tree], Tree]:
    r"""Smooth a function by noise: :math:`f_\sigma(x) = \mathbb E\,f(x + \sigma Z)`, sampled.

    ``fun`` may be piecewise constant, an argmax or a shortest path: the derivative is that of the
    density of the noise.

    .. math::
        \nabla f_\sigma(x) = \mathbb E\bigl[(f(x + \sigma Z) - f(x))\,
            \nabla_x \log p\bigl((y - x) / \sigma\bigr)\big|_{y = x + \sigma Z}\bigr]

    Args:
        fun: ``tree -> tree`` of floating tensors, that ``torch.func.vmap`` takes.
        num_samples: How many points to average over, >= 1.
        sigma: :math:`\sigma > 0`.
        noise: :class:`Gumbel` (for None), :class:`Normal`, or what has their two methods.
        use_baseline: Subtract :math:`f(x)` as above: the same mean, less variance.

    Returns:
        ``perturbed(seed, x)``; one seed, an int or an int64 tensor ``()``, gives one set of
        samples.

    Differentiable:
        In ``x``, any number of times; each is an unbiased estimate.

    Raises:
        TypeError: ``fun`` is not callable, ``num_samples`` no int, ``sigma`` no number or tensor
            ``()``, ``noise`` without its methods; when called, ``x`` or what ``fun`` gives is no
            tree of floating tensors.
        ValueError: A number outside its range.

    Differs:
        optax takes a JAX key; the numbers are others.

    Example:
        >>> hard = lambda scores: torch.nn.functional.one_hot(scores.argmax(-1), 3).float()
        >>> soft = make_perturbed_fun(hard, num_samples=4000, sigma=1.0)
        >>> scores = torch.tensor([0.0, 1.0, 0.5])
        >>> (soft(0, scores) - scores.softmax(-1)).abs().max() < 0.02
        tensor(True)

    Reference:
        Berthet et al., 2020, arXiv:2002.08676, proposition 3.1.
    """
    who = "make_perturbed_fun"
    check_function(who, "fun", fun)
    check_int(who, "num_samples", num_samples, 1)
    if callable(sigma):
        raise TypeError(f"{who}: expected sigma as a number or tensor, got {describe(sigma)}")
    check_single(who, "sigma", sigma, 0.0, open_low=True)
    check_flag(who, "use_baseline", use_baseline)
    noise = Gumbel() if noise is None else noise
    for method in ("sample", "log_prob"):
        if isinstance(noise, type) or not callable(getattr(noise, method, None)):
            raise TypeError(
                f"{who}: expected noise with methods sample and log_prob, as Gumbel(), got "
                f"{describe(noise)}"
            )
    return _Perturbed(fun, num_samples, sigma, noise, use_baseline)


@dataclass(frozen=True)
class _FenchelYoung:
    max_fun: Callable[..., torch.Tensor]

    def __call__(self, scores: torch.Tensor, targets: torch.Tensor, *args: Any) -> torch.Tensor:
        tensors = isinstance(scores, torch.Tensor) and isinstance(targets, torch.Tensor)
        if not tensors or scores.shape != targets.shape or not scores.ndim:
            raise ValueError(
                f"make_fenchel_young_loss: expected scores and targets (..., n) of one shape, got "
                f"{describe(scores)} and {describe(targets)}"
            )
        rows = scores.reshape(-1, scores.shape[-1])

        def largest_of(row: torch.Tensor) -> torch.Tensor:
            return checked_scalar("make_fenchel_young_loss", self.max_fun(row, *args))

        largest = torch.func.vmap(largest_of)(rows)
        return largest.reshape(scores.shape[:-1]) - (targets * scores).sum(-1)


def make_fenchel_young_loss(
    max_fun: Callable[..., torch.Tensor],
) -> Callable[..., torch.Tensor]:
    r"""The loss whose gradient is a regularised argmax minus the target.

    .. math::
        L(s, y) = F(s) - \langle y, s \rangle, \qquad \nabla_s L = \nabla F(s) - y

    Args:
        max_fun: :math:`F`, a smoothed maximum of scores ``(n,)``, a scalar ``()``, that
            ``torch.func.vmap`` takes: ``torch.logsumexp`` gives cross-entropy, a maximum from
            :func:`make_perturbed_fun` the perturbed loss.

    Returns:
        ``loss(scores, targets, *args)`` of tensors ``(..., n)``, a tensor ``(...)``; ``args`` are
        handed to ``max_fun``.

    Differentiable:
        As ``max_fun``.

    Raises:
        TypeError: ``max_fun`` is not callable.
        ValueError: When called, scores and targets of different shapes.

    Example:
        >>> loss = make_fenchel_young_loss(lambda scores: scores.logsumexp(0))
        >>> loss(torch.zeros(2, 4), torch.eye(4)[:2])
        tensor([1.3863, 1.3863])

    Reference:
        Blondel et al., 2020, arXiv:1901.02324, definition 1, up to a constant.
    """
    check_function("make_fenchel_young_loss", "max_fun", max_fun)
    return _FenchelYoung(max_fun)
