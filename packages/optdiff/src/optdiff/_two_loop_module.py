# SPDX-License-Identifier: Apache-2.0
"""Modules whose attributes belong to an inner loop or to the outer one."""

from __future__ import annotations

import types
import weakref
from abc import ABCMeta
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from optcore import describe
from optdiff._containers import every_module, outer_parameters, walked
from optdiff._tracking import is_tracked
from optdiff._trees import tree_leaves

M = TypeVar("M", bound="TwoLoopModule")

_OWN = ("_parameters", "_buffers", "_modules", "_meta_parameters", "_meta_modules")


class _Checked(ABCMeta):
    """Of classes whose instances are looked at when their constructor is over."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        module = super().__call__(*args, **kwargs)
        module._check_constructed()
        return module


class TwoLoopModule(nn.Module, metaclass=_Checked):
    """What decides where an attribute belongs: see :class:`optdiff.nn.MetaGradientModule`."""

    _meta_inputs: dict[int, weakref.ref[Any]]  # by id: tensors and modules that were given
    _meta_parameters: dict[str, torch.Tensor | None]
    _meta_modules: dict[str, nn.Module | None]

    def __new__(cls: type[M], *args: Any, **kwargs: Any) -> M:
        """Make the module ready and note what it is given, before ``__init__`` runs."""
        instance = super().__new__(cls)
        nn.Module.__init__(instance)
        found: list[Any] = []
        for value in _held((args, kwargs), attributes=True):
            if isinstance(value, torch.Tensor):
                found.append(value)
            else:
                found += every_module(value)
                found += [param for _, param in outer_parameters(walked(value, "", True))]
        instance.__dict__["_meta_inputs"] = {id(value): weakref.ref(value) for value in found}
        instance.__dict__["_meta_parameters"] = {}
        instance.__dict__["_meta_modules"] = {}
        return instance

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Pass the arguments on to another module class beside this one, if there is one.

        Raises:
            TypeError: There are arguments and no such class.
        """
        following = super().__init__
        if following.__func__ is not nn.Module.__init__:
            following(*args, **kwargs)
        elif args or kwargs:  # else done already; nn.Module's would forget what was assigned before
            raise TypeError(
                f"{type(self).__name__}: expected no arguments, got {len(args) + len(kwargs)}; "
                "write def __init__(self, ...) that assigns them"
            )

    def register_meta_parameter(self, name: str, param: torch.Tensor | None) -> None:
        """Add a meta-parameter: a floating tensor that requires grad, a leaf or not.

        Args:
            name: Of the attribute, without dots.
            param: The tensor, or None for a place without one.

        Raises:
            TypeError: No floating tensor, or a name that is no string.
            ValueError: It does not require grad.
            KeyError: A bad name, or one that is taken.

        Example:
            >>> import optdiff
            >>> module = optdiff.nn.MetaGradientModule()
            >>> module.register_meta_parameter("decay", torch.ones((), requires_grad=True))
            >>> module.decay
            tensor(1., requires_grad=True)
        """
        self._check_name("register_meta_parameter", name, self._meta_parameters)
        if param is not None:
            self._check_meta_parameter("register_meta_parameter", name, param)
        self._meta_parameters[name] = param

    def add_meta_module(self, name: str, meta_module: nn.Module | None) -> None:
        """Add a meta-module: a module whose parameters are meta-parameters.

        Args:
            name: Of the attribute, without dots.
            meta_module: The module, or None for a place without one.

        Raises:
            TypeError: No module, or a name that is no string.
            KeyError: A bad name, or one that is taken.

        Example:
            >>> import optdiff
            >>> module = optdiff.nn.MetaGradientModule()
            >>> module.add_meta_module("net", torch.nn.Linear(1, 1))
            >>> [name for name, _ in module.named_meta_parameters()]
            ['net.weight', 'net.bias']
        """
        self._check_name("add_meta_module", name, self._meta_modules)
        if meta_module is not None and not isinstance(meta_module, nn.Module):
            raise TypeError(
                f"{self._who('add_meta_module')}: expected a module, got {describe(meta_module)}, "
                f"at {name!r}"
            )
        self._meta_modules[name] = meta_module

    def register_meta_module(self, name: str, meta_module: nn.Module | None) -> None:
        """:meth:`add_meta_module` by another name."""
        self.add_meta_module(name, meta_module)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As ``nn.Module``'s.

        Raises:
            ValueError: It was given to the constructor, so it is a meta-parameter.
        """
        if param is not None and self._is_input(param):
            raise ValueError(
                f"{self._who('register_parameter')}: expected a parameter of its own, got one "
                f"given to the constructor, at {name!r}; call register_meta_parameter"
            )
        super().register_parameter(name, param)

    def register_buffer(
        self, name: str, tensor: torch.Tensor | None, persistent: bool = True
    ) -> None:
        """As ``nn.Module``'s.

        Raises:
            ValueError: It was given to the constructor and requires grad.
        """
        if isinstance(tensor, torch.Tensor) and self._is_input(tensor) and is_tracked(tensor):
            raise ValueError(
                f"{self._who('register_buffer')}: expected data, got {describe(tensor)} that "
                f"requires grad and was given to the constructor, at {name!r}; call "
                "register_meta_parameter, or detach it"
            )
        super().register_buffer(name, tensor, persistent)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """As ``nn.Module``'s.

        Raises:
            ValueError: It was given to the constructor, or contains what was.
        """
        if isinstance(module, nn.Module):
            self._check_own_module("add_module", name, module)
        super().add_module(name, module)

    def register_module(self, name: str, module: nn.Module | None) -> None:
        """:meth:`add_module` by another name."""
        self.add_module(name, module)

    def __getattr__(self, name: str) -> Any:
        for container in ("_meta_parameters", "_meta_modules"):
            if name in self.__dict__.get(container, ()):
                return self.__dict__[container][name]
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._meta_parameters:
            if value is not None:
                self._check_floating("assignment", name, value)
            self._meta_parameters[name] = value  # torch.func.functional_call: grad or not
        elif name in self._meta_modules:
            if value is not None and not isinstance(value, nn.Module):
                raise TypeError(
                    f"{self._who('assignment')}: expected a module or None for a meta-module, got "
                    f"{describe(value)}, at {name!r}"
                )
            self._meta_modules[name] = value
        elif isinstance(value, torch.Tensor) and self._is_input(value):
            self._assign_input(name, value)
        elif isinstance(value, nn.Module) and self._is_input(value):
            self._forget(name)
            self._meta_modules[name] = value
        else:
            self._check_own(name, value)
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        for container in (self._meta_parameters, self._meta_modules):
            if name in container:
                del container[name]
                return
        super().__delattr__(name)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._meta_parameters, *self._meta_modules]

    def _assign_input(self, name: str, value: torch.Tensor) -> None:
        if is_tracked(value):
            self._check_meta_parameter("assignment", name, value)
            self._forget(name)
            self._meta_parameters[name] = value
        elif value.is_floating_point() and name not in self._buffers:
            raise ValueError(
                f"{self._who('assignment')}: expected a meta-parameter that requires grad, got "
                f"{describe(value)} that does not, at {name!r}; call its requires_grad_() first, "
                "or register_buffer if it is data"
            )
        else:
            super().__setattr__(name, value)

    def _check_own(self, name: str, value: Any) -> None:
        """Refuse what may belong to the outer loop, or to the inner one."""
        if isinstance(value, nn.Module):
            self._check_own_module("assignment", name, value)
        elif isinstance(value, torch.Tensor):
            known = name in self._parameters or name in self._buffers
            if is_tracked(value) and not isinstance(value, nn.Parameter) and not known:
                raise ValueError(
                    f"{self._who('assignment')}: expected an nn.Parameter or a tensor given to the "
                    f"constructor, got another {describe(value)} that requires grad, at {name!r}; "
                    "call register_meta_parameter, or wrap it in nn.Parameter"
                )
        else:
            for leaf in _held(value, attributes=False):
                if self._is_input(leaf) and (isinstance(leaf, nn.Module) or is_tracked(leaf)):
                    raise ValueError(
                        f"{self._who('assignment')}: expected meta-parameters and meta-modules as "
                        f"attributes of their own, got some in a {describe(value)}, at {name!r}; "
                        "call register_meta_parameter or register_meta_module for each"
                    )

    def _check_own_module(self, what: str, name: str, module: nn.Module) -> None:
        if any(map(self._is_input, (*module.modules(), *module.parameters()))):
            raise ValueError(
                f"{self._who(what)}: expected a module of its own, got {describe(module)} with "
                f"parts given to the constructor, at {name!r}; call register_meta_module"
            )

    def _check_constructed(self) -> None:
        """Refuse to have among its own what was given, by whatever way it came there."""
        for name, part in (*self.named_modules(), *self.named_parameters()):
            if self._is_input(part):
                raise ValueError(
                    f"{type(self).__name__}: expected parameters and modules of its own, got "
                    f"{describe(part)} that was given to the constructor, at {name!r}; call "
                    "register_meta_parameter or register_meta_module for it, or copy it"
                )

    def _check_meta_parameter(self, what: str, name: str, param: Any) -> None:
        self._check_floating(what, name, param)
        if not is_tracked(param):
            raise ValueError(
                f"{self._who(what)}: expected a meta-parameter that requires grad, got "
                f"{describe(param)} that does not, at {name!r}; call its requires_grad_() first"
            )

    def _check_floating(self, what: str, name: str, param: Any) -> None:
        known = isinstance(param, torch.Tensor)
        if not known or not (param.is_floating_point() or param.is_complex()):
            raise TypeError(
                f"{self._who(what)}: expected a floating tensor for a meta-parameter, got "
                f"{describe(param)}, at {name!r}" + ("; call register_buffer for data" * known)
            )

    def _check_name(self, what: str, name: str, container: Mapping[str, Any]) -> None:
        if not isinstance(name, str):
            raise TypeError(f"{self._who(what)}: expected a string, got {describe(name)}")
        if not name or "." in name:
            raise KeyError(f"{self._who(what)}: expected a name without dots, got {name!r}")
        if name not in container and hasattr(self, name):
            raise KeyError(f"{self._who(what)}: expected a new name, got {name!r}, which is taken")

    def _is_input(self, value: Any) -> bool:
        known = self._meta_inputs.get(id(value))
        return known is not None and known() is value

    def _forget(self, name: str) -> None:
        for container in (self.__dict__, *(self.__dict__[kind] for kind in _OWN)):
            container.pop(name, None)
        self._non_persistent_buffers_set.discard(name)

    def _who(self, what: str) -> str:
        return f"{type(self).__name__}.{what}"


def _held(value: Any, *, attributes: bool) -> Iterator[Any]:
    """Tensors and modules in containers and sets, and in the attributes of objects."""
    for leaf in tree_leaves(value):
        if isinstance(leaf, (torch.Tensor, nn.Module)):
            yield leaf
        elif isinstance(leaf, (set, frozenset)):
            yield from _held([*leaf], attributes=attributes)
        elif attributes and not isinstance(leaf, (type, types.ModuleType)):
            yield from _held(getattr(leaf, "__dict__", None), attributes=False)
