# SPDX-License-Identifier: Apache-2.0
"""Modules whose parameters get their gradient from values alone."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn
from torch.autograd import forward_ad

from optdiff._directions import check_sampler
from optdiff._tracking import is_tracked
from optdiff._uncompiled import uncompiled
from optdiff._zero_order import value_of_call, zero_order
from optdiff._zero_order_settings import Settings, check_settings, check_sigma

Forward = Callable[..., Any]

_DEFAULTS: dict[str, Any] = {
    name: parameter.default
    for name, parameter in inspect.signature(zero_order).parameters.items()
    if name not in ("distribution", "argnums")
}


class ZeroOrderGradientModule(nn.Module):
    r"""A module whose parameters get the gradient that :func:`optdiff.zero_order` estimates.

    ``forward`` returns a scalar; it is called with the parameters as they are for the value, and
    with moved ones for the estimate of

    .. math::
        \nabla_\theta\,\mathbb E\, f(\theta + \sigma\varepsilon; x) .

    Only parameters that require grad move. The calls with moved parameters work on copies of the
    buffers, so that batch normalisation, say, counts every batch once; modules that write to
    buffers need ``vectorize=False``.

    Args:
        method: Class keyword, as are all options of :func:`optdiff.zero_order` but ``argnums``:
            ``num_samples``, ``sigma`` (a prefix tree of ``{parameter's name: ...}`` will do),
            ``generator``, ... A subclass inherits those that it does not give.

    Differentiable:
        As :func:`optdiff.zero_order`, in the parameters.

    Raises:
        TypeError, ValueError: When the class is defined: an option or ``sample`` is not as it
            should be. When called: as :func:`optdiff.zero_order`; the module has no parameters.

    Example:
        >>> class Net(ZeroOrderGradientModule, method="antithetic", num_samples=2000, sigma=0.1):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.linear = torch.nn.Linear(2, 1, bias=False)
        ...
        ...     def forward(self, x):
        ...         return self.linear(x).sum()
        ...
        ...     def sample(self, sample_shape):
        ...         return torch.randn(sample_shape)
        >>> _ = torch.manual_seed(0)
        >>> net = Net()
        >>> (grad,) = torch.autograd.grad(net(torch.ones(3, 2)), net.parameters())
        >>> (grad - 3).abs().max() < 0.5
        tensor(True)

    Reference:
        Salimans et al., 2017, arXiv:1703.03864, Algorithm 1.
    """

    _options: ClassVar[dict[str, Any]] = _DEFAULTS

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__()
        unknown = sorted(options.keys() - _DEFAULTS.keys())
        if unknown:
            raise TypeError(
                f"{cls.__name__}: expected options in {[*_DEFAULTS]}, got {', '.join(unknown)}"
            )
        cls._options = {**cls._options, **options}
        bound = inspect.getattr_static(cls, "sample").__get__(object(), cls)
        check_sampler(cls.__name__, bound)
        _check_options(cls, bound)
        if "forward" in cls.__dict__:
            cls.forward = _estimated(cls.forward)

    def sample(self, sample_shape: torch.Size) -> torch.Tensor:
        """Noise of mean 0 and variance 1; standard normal unless a subclass says otherwise."""
        return torch.randn(sample_shape, device=next(self.parameters()).device)


def _check_options(cls: type[ZeroOrderGradientModule], sample: Callable[..., Any]) -> Settings:
    rest = {name: value for name, value in cls._options.items() if name != "sigma"}
    check_sigma(cls.__name__, cls._options["sigma"])
    return check_settings(cls.__name__, sample, **rest)


def _estimated(forward: Forward) -> Forward:
    @uncompiled
    @functools.wraps(forward)
    def wrapped(self: ZeroOrderGradientModule, *args: Any, **kwargs: Any) -> Any:
        who = type(self).__name__
        if next(self.parameters(), None) is None:
            raise ValueError(f"{who}: expected a module with parameters, got none")
        every = forward_ad._current_level >= 0  # forward mode is refused where it reaches them
        parameters = {
            name: parameter
            for name, parameter in self.named_parameters()
            if every or is_tracked(parameter)
        }
        if not parameters:
            return forward(self, *args, **kwargs)
        call = _Call(self, forward)
        slots: dict[int | str, Any] = {"parameters": parameters, "args": args, "kwargs": kwargs}
        settings = _check_options(type(self), self.sample)
        return value_of_call(settings, self._options["sigma"], call, slots, ["parameters"])

    return wrapped


class _Call:
    """One call of a module, as a function of its parameters."""

    def __init__(self, module: ZeroOrderGradientModule, forward: Forward) -> None:
        self._plain = _Plain(module, forward)
        self._called = False

    def __call__(
        self, parameters: dict[str, torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        tensors = {f"module.{name}": tensor for name, tensor in parameters.items()}
        if self._called:  # the first call is the one for the value
            for name, buffer in self._plain.named_buffers():
                tensors[name] = buffer.clone()
        self._called = True
        return torch.func.functional_call(self._plain, tensors, args, kwargs)


class _Plain(nn.Module):
    """A module under the ``forward`` that its class was written with."""

    def __init__(self, module: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.module = module
        self._forward = forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward(self.module, *args, **kwargs)
