# SPDX-License-Identifier: Apache-2.0
"""Random directions and weights for zero-order estimates."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch.distributions import Distribution, Normal

from optcore import describe
from optdiff._random_states import LOCK


@runtime_checkable
class Samplable(Protocol):
    """What can draw a batch of noise, such as a ``torch.distributions.Distribution``."""

    def sample(self, sample_shape: torch.Size) -> torch.Tensor:
        """Noise of the given shape."""


SampleFunc: TypeAlias = Callable[[torch.Size], "torch.Tensor | Sequence[Any]"]


def sampler(who: str, distribution: SampleFunc | Samplable) -> SampleFunc:
    """The function that draws the noise.

    Raises:
        TypeError: No sampling function of one argument, and nothing with one.
        ValueError: A distribution known not to have mean 0 and variance 1, or not of scalars.
    """
    if isinstance(distribution, str):
        raise TypeError(
            f"{who}: expected the distribution first and the method second, got {distribution!r} "
            f"first; write zero_order(sample, {distribution!r})"
        )
    if isinstance(distribution, Distribution):
        _check_moments(who, distribution)
    if isinstance(distribution, Samplable) and not isinstance(distribution, type):
        function = distribution.sample
    elif callable(distribution) and not isinstance(distribution, type):
        function = distribution
    else:
        raise TypeError(
            f"{who}: expected a sampling function or a distribution, got {_named(distribution)}; "
            "e.g. torch.distributions.Normal(0, 1)"
        )
    check_sampler(who, function)
    return function


def check_sampler(who: str, function: SampleFunc) -> None:
    """Refuse a sampling function that cannot be called with a shape alone.

    Raises:
        TypeError: It needs another number of arguments.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:  # written in C, such as torch.randn
        return
    try:
        signature.bind(torch.Size())
    except TypeError:
        name = getattr(function, "__name__", type(function).__name__)
        own = "self, " if inspect.ismethod(function) else ""
        raise TypeError(
            f"{who}: expected a sampling function of the shape alone, got {name}{signature}; write "
            f"def {name}({own}sample_shape) that returns noise of that shape"
        ) from None


def _check_moments(who: str, distribution: Distribution) -> None:
    name = type(distribution).__name__
    shape = [*distribution.batch_shape, *distribution.event_shape]
    if shape:
        raise ValueError(
            f"{who}: expected a distribution of scalars, got {name} of shape {shape}; write a "
            "function of the sample shape"
        )
    try:
        mean, variance = distribution.mean, distribution.variance
    except NotImplementedError:
        return
    one = torch.ones_like(variance)
    if not (torch.allclose(mean, 0 * one, atol=1e-5) and torch.allclose(variance, one, rtol=1e-5)):
        raise ValueError(
            f"{who}: expected a distribution with mean 0 and variance 1, got {name} with others; "
            "scale the noise by sigma="
        )


def check_spherical(who: str, distribution: SampleFunc | Samplable) -> None:
    """Refuse a distribution known to prefer some directions.

    Raises:
        ValueError: It is one of torch's, but not a normal one.
    """
    if isinstance(distribution, Distribution) and not isinstance(distribution, Normal):
        raise ValueError(
            f"{who}: expected a spherically symmetric distribution for orthogonal directions, got "
            f"{type(distribution).__name__}; use torch.distributions.Normal(0, 1)"
        )


def _named(value: object) -> str:
    return value.__name__ if isinstance(value, type) else type(value).__name__


def draw(
    who: str,
    sample: SampleFunc,
    shape: Sequence[int],
    generator: torch.Generator | None,
    devices: set[torch.device],
) -> torch.Tensor:
    """Noise of a shape, from the generator if there is one, otherwise from torch's own.

    Raises:
        TypeError: The sampling function returned no real tensor.
        ValueError: The noise is of another shape.
    """
    with LOCK, _seeded(generator, devices):
        noise = sample(torch.Size(shape))
    if not isinstance(noise, torch.Tensor):
        try:
            noise = torch.as_tensor(noise)
        except (RuntimeError, TypeError, ValueError):
            raise TypeError(
                f"{who}: expected noise as a tensor or an array, got {describe(noise)}; return "
                "what is drawn from the sampling function, e.g. torch.randn(sample_shape)"
            ) from None
    if noise.is_complex() or noise.dtype is torch.bool:
        raise TypeError(
            f"{who}: expected real noise, got {describe(noise)}; convert it to a floating dtype"
        )
    if noise.shape != torch.Size(shape):
        raise ValueError(
            f"{who}: expected noise of the sample shape {list(shape)}, got {describe(noise)}; "
            "draw it of the shape that the sampling function is given"
        )
    return noise.detach()


@contextmanager
def _seeded(generator: torch.Generator | None, devices: set[torch.device]) -> Iterator[None]:
    """Have torch's own random numbers follow a generator, and go on afterwards as if unused."""
    if generator is None:
        yield
        return
    seed = int(
        torch.randint(2**63 - 1, (), generator=generator, device=generator.device, dtype=torch.long)
    )
    cuda = sorted(
        torch.cuda.current_device() if device.index is None else device.index
        for device in devices
        if device.type == "cuda"
    )
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield


def orthogonal_blocks(noise: torch.Tensor) -> torch.Tensor:
    r"""Make rows ``(..., n, d)`` orthogonal in blocks of at most ``d``; lengths stay.

    For Gaussian rows each row goes on being :math:`\mathcal N(0, I)`: its direction is uniform
    (the factor of a QR decomposition with a positive diagonal) and independent of its length.

    Example:
        >>> first, second = orthogonal_blocks(torch.tensor([[2.0, 0.0], [1.0, 1.0]]))
        >>> round(float(first @ second), 6), round(float(second.norm()), 4)
        (0.0, 1.4142)
    """
    blocks = []
    if noise.dtype not in (torch.float32, torch.float64):  # torch decomposes no others
        noise = noise.float()
    for block in noise.split(max(noise.shape[-1], 1), dim=-2):
        basis, factor = torch.linalg.qr(block.mT)
        signs = factor.diagonal(dim1=-2, dim2=-1).sign()
        signs = torch.where(signs == 0, 1.0, signs)
        lengths = torch.linalg.vector_norm(block, dim=-1, keepdim=True)
        blocks.append((basis * signs.unsqueeze(-2)).mT * lengths)
    return torch.cat(blocks, dim=-2)


def centered_ranks(values: torch.Tensor) -> torch.Tensor:
    """Replace values ``(..., n)`` by their ranks, spread over ``[-1/2, 1/2]``.

    Equal values get their mean rank; a NaN makes all of its row NaN.

    Example:
        >>> centered_ranks(torch.tensor([10.0, -3.0, 7.0]))
        tensor([ 0.5000, -0.5000,  0.0000])

    Reference:
        Salimans et al., 2017, arXiv:1703.03864, section 2 (fitness shaping).
    """
    ordered = values.sort(dim=-1).values
    below = torch.searchsorted(ordered, values.contiguous(), right=False)
    up_to = torch.searchsorted(ordered, values.contiguous(), right=True)
    ranks = (below + up_to - 1).to(values.dtype) / 2
    centered = ranks / max(values.shape[-1] - 1, 1) - 0.5
    return torch.where(values.isnan().any(-1, keepdim=True), torch.nan, centered)
