# SPDX-License-Identifier: Apache-2.0
"""Modules whose parameters get their gradient from values alone."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import nn
from torch.autograd import forward_ad

import treeops
from optcore import describe
from optdiff._directions import check_sampler
from optdiff._methods import check_method, refuse_on_instance, wrap_method
from optdiff._tracking import is_tracked
from optdiff._trees import NAMESPACE, tree_leaves
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

    ``forward`` may be inherited, from a mixin or another module class, but not assigned to an
    instance. Only parameters that require grad move. The calls with moved parameters work on copies
    of the buffers, so that batch normalisation, say, counts every batch once; modules that write to
    buffers need ``vectorize=False``.

    In ``forward`` the parameters do not require grad. To train on from them there, as ES-MAML does,
    train a copy that does (``vectorize=False``)::

        net = copy.deepcopy(self.fc).requires_grad_()
        grads = torch.autograd.grad(loss(net, train), list(net.parameters()))
        # ... step, and return loss(net, test)

    Args:
        method: Class keyword, as are all options of :func:`optdiff.zero_order` but ``argnums``:
            ``num_samples``, ``sigma`` (a prefix tree of ``{parameter's name: ...}`` will do; the
            names of frozen parameters are passed over), ``generator``, ... A subclass inherits
            those that it does not give.

    Differentiable:
        As :func:`optdiff.zero_order`, in the parameters.

    Raises:
        TypeError, ValueError: When the class is defined: an option, ``sample`` or ``forward`` is
            not as it should be. When called: as :func:`optdiff.zero_order`; the module has no
            parameters; an input requires grad.
        TypeError: ``forward`` is assigned to an instance.

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
    _settings: ClassVar[Settings]  # with the sample of no instance

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__()
        unknown = sorted(options.keys() - _DEFAULTS.keys())
        if unknown:
            raise TypeError(
                f"{cls.__name__}: expected options in {[*_DEFAULTS]}, got {', '.join(unknown)}"
            )
        cls._options = {**cls._options, **options}
        check_sigma(cls.__name__, cls._options["sigma"])
        bound = inspect.getattr_static(cls, "sample").__get__(object(), cls)
        rest = {name: value for name, value in cls._options.items() if name != "sigma"}
        cls._settings = check_settings(cls.__name__, bound, **rest)
        check_method(cls, "forward")
        wrap_method(cls, "forward", ZeroOrderGradientModule, _estimated)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "forward":
            refuse_on_instance(self, name, value)
        if name == "sample":
            check_sampler(type(self).__name__, value)
        super().__setattr__(name, value)

    def sample(self, sample_shape: torch.Size) -> torch.Tensor:
        """Noise of mean 0 and variance 1; standard normal unless a subclass says otherwise.

        Args:
            sample_shape: ``(n, d)``: the number of directions, the number of coordinates.
        """
        return torch.randn(sample_shape, device=next(self.parameters()).device)


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
        _check_inputs(who, args, kwargs)
        settings = replace(type(self)._settings, sample=self.sample)
        sigma = _of_moving(self._options["sigma"], parameters, self)
        return value_of_call(settings, sigma, call, slots, ["parameters"])

    return wrapped


def _check_inputs(who: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse inputs that would silently get no gradient."""
    if not torch.is_grad_enabled():
        return
    for place, leaf in enumerate(tree_leaves((args, kwargs))):
        if isinstance(leaf, torch.Tensor) and is_tracked(leaf):
            paths = treeops.tree_paths((args, kwargs), none_is_leaf=True, namespace=NAMESPACE)
            kind, *path = paths[place]
            where = "".join(f"[{key!r}]" for key in (("args", "kwargs")[kind], *path))
            raise ValueError(
                f"{who}: expected inputs that require no grad, got {describe(leaf)}, at {where}, "
                "which would get no gradient; detach it, or decorate a function of parameters and "
                "input, torch.func.functional_call inside, with optdiff.zero_order(argnums=(0, 1))"
            )


def _of_moving(sigma: Any, parameters: Mapping[str, torch.Tensor], module: nn.Module) -> Any:
    """Steps by name without those of parameters that do not move."""
    if not isinstance(sigma, Mapping):
        return sigma
    frozen = dict(module.named_parameters()).keys() - parameters.keys()
    return {name: step for name, step in sigma.items() if name not in frozen}


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
