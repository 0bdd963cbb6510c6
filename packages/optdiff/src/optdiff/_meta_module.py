# SPDX-License-Identifier: Apache-2.0
"""Modules that hold meta-parameters beside their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from optcore import describe
from optdiff._tracking import is_tracked
from optdiff._trees import tree_leaves

_OWN = ("_parameters", "_buffers", "_modules", "_meta_parameters", "_meta_modules")


class MetaGradientModule(nn.Module):
    """A module whose ``parameters()`` are those of an inner loop and not those of the outer one.

    What is given to the constructor and then assigned to an attribute belongs to the outer loop: a
    tensor that requires grad becomes a meta-parameter, a module (training or not) a meta-module.
    A ``nn.Parameter`` or module made inside is an ordinary one. Where it cannot be told which, an
    error asks to register: :meth:`register_meta_parameter`, :meth:`register_meta_module`,
    ``register_parameter``, ``register_buffer``.

    Meta-parameters are attributes; they are not among ``parameters()``, ``state_dict()`` and what
    ``to()`` moves, unless it is asked for: ``state_dict(meta=True)``, ``to(device, meta=True)``.
    ``super().__init__()`` may be called or left out.

    Example:
        >>> class Inner(MetaGradientModule):
        ...     def __init__(self, meta_net, decay):
        ...         super().__init__()
        ...         self.meta_net = meta_net
        ...         self.decay = decay
        ...         self.head = torch.nn.Linear(2, 1)
        >>> inner = Inner(torch.nn.Linear(3, 2, bias=False), torch.ones((), requires_grad=True))
        >>> [name for name, _ in inner.named_parameters()]
        ['head.weight', 'head.bias']
        >>> [name for name, _ in inner.named_meta_parameters()]
        ['decay', 'meta_net.weight']
    """

    _meta_inputs: dict[int, Any]  # by identity: tensors and modules given to the constructor
    _meta_parameters: dict[str, torch.Tensor | None]
    _meta_modules: dict[str, nn.Module | None]

    def __new__(cls, *args: Any, **kwargs: Any) -> MetaGradientModule:
        """Make the module ready and note what it is given, before ``__init__`` runs."""
        instance = super().__new__(cls)
        nn.Module.__init__(instance)
        found: list[Any] = []
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor):
                found.append(leaf)
            elif isinstance(leaf, nn.Module):
                found += [*leaf.modules(), *leaf.parameters()]
        instance.__dict__["_meta_inputs"] = {id(value): value for value in found}
        instance.__dict__["_meta_parameters"] = {}
        instance.__dict__["_meta_modules"] = {}
        return instance

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass  # done already; nn.Module's would forget what was assigned before

    def register_meta_parameter(self, name: str, param: torch.Tensor | None) -> None:
        """Add a meta-parameter: a floating tensor that requires grad, a leaf or not.

        Raises:
            TypeError: No tensor, or a name that is no string.
            ValueError: It does not require grad.
            KeyError: A bad name, or one that is taken.
        """
        self._check_name("register_meta_parameter", name, self._meta_parameters)
        if param is not None:
            self._check_meta_parameter("register_meta_parameter", name, param)
        self._meta_parameters[name] = param

    def add_meta_module(self, name: str, meta_module: nn.Module | None) -> None:
        """Add a meta-module: a module whose parameters are meta-parameters.

        Raises:
            TypeError: No module, or a name that is no string.
            KeyError: A bad name, or one that is taken.
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

    def named_meta_parameters(
        self, prefix: str = "", recurse: bool = True
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Meta-parameters by name, each once.

        Args:
            prefix: Put before the names, with a dot.
            recurse: Also those of meta-modules, of their submodules, and of submodules of this
                module that hold meta-parameters themselves.
        """
        seen: set[int] = set()
        for name, param in self._every_meta_parameter(f"{prefix}." if prefix else "", recurse):
            if id(param) not in seen:
                seen.add(id(param))
                yield name, param

    def _every_meta_parameter(
        self, prefix: str, recurse: bool
    ) -> Iterator[tuple[str, torch.Tensor]]:
        for name, param in self._meta_parameters.items():
            if param is not None:
                yield prefix + name, param
        if not recurse:
            return
        for name, module in self.named_meta_children():
            yield from module.named_parameters(prefix + name)
        for path, module in self.named_modules():
            if isinstance(module, MetaGradientModule) and module is not self:
                yield from module._every_meta_parameter(f"{prefix}{path}.", False)
                for name, child in module.named_meta_children():
                    yield from child.named_parameters(f"{prefix}{path}.{name}")

    def meta_parameters(self, recurse: bool = True) -> Iterator[torch.Tensor]:
        """Meta-parameters, each once: what an outer optimizer takes."""
        for _, param in self.named_meta_parameters(recurse=recurse):
            yield param

    def named_meta_children(self) -> Iterator[tuple[str, nn.Module]]:
        """Meta-modules held directly, by name, each once."""
        seen: set[int] = set()
        for name, module in self._meta_modules.items():
            if module is not None and id(module) not in seen:
                seen.add(id(module))
                yield name, module

    def meta_children(self) -> Iterator[nn.Module]:
        """Meta-modules held directly, each once."""
        for _, module in self.named_meta_children():
            yield module

    def named_meta_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """Meta-modules and their submodules, by name."""
        memo = set() if memo is None else memo
        for name, module in self._meta_modules.items():
            if module is not None:
                path = f"{prefix}.{name}" if prefix else name
                yield from module.named_modules(memo, path, remove_duplicate)

    def meta_modules(self) -> Iterator[nn.Module]:
        """Meta-modules and their submodules, each once."""
        for _, module in self.named_meta_modules():
            yield module

    def state_dict(self, *args: Any, meta: bool = False, **kwargs: Any) -> dict[str, Any]:
        """As ``nn.Module``'s; with ``meta=True`` also the meta-parameters and meta-modules."""
        if not meta:
            return super().state_dict(*args, **kwargs)
        with self._with_meta_as_own():
            return super().state_dict(*args, **kwargs)

    def load_state_dict(
        self,
        state_dict: Mapping[str, Any],
        strict: bool = True,
        assign: bool = False,
        *,
        meta: bool = False,
    ) -> Any:
        """As ``nn.Module``'s; with ``meta=True`` also into the meta-parameters, in place.

        Raises:
            ValueError: ``assign`` with ``meta``: the outer optimizer would keep the old tensors.
        """
        if not meta:
            return super().load_state_dict(state_dict, strict, assign)
        if assign:
            raise ValueError(
                f"{self._who('load_state_dict')}: expected assign=False with meta=True, got True; "
                "the outer loop holds the tensors themselves"
            )
        with self._with_meta_as_own():
            return super().load_state_dict(state_dict, strict)

    def to(self, *args: Any, meta: bool = False, **kwargs: Any) -> MetaGradientModule:
        """As ``nn.Module``'s; with ``meta=True`` it also moves meta-parameters and meta-modules.

        They are moved in place: whoever else holds them sees them moved.

        Raises:
            ValueError: A meta-parameter has a graph, which cannot move in place.
        """
        if not meta:
            return super().to(*args, **kwargs)
        for name, param in self.named_meta_parameters():
            if not param.is_leaf:
                raise ValueError(
                    f"{self._who('to')}: expected meta-parameters without a graph, got "
                    f"{describe(param)} with one, at {name!r}; move what it was computed from"
                )
        with self._with_meta_as_own():
            return super().to(*args, **kwargs)

    @contextmanager
    def _with_meta_as_own(self) -> Iterator[None]:
        """Have what is meta among the ordinary parameters and modules, here and below."""
        owners = [module for module in self.modules() if isinstance(module, MetaGradientModule)]
        for owner in owners:
            owner._parameters.update(owner._meta_parameters)  # type: ignore[arg-type]
            owner._modules.update(owner._meta_modules)
        try:
            yield
        finally:
            for owner in owners:
                for name in owner._meta_parameters:
                    owner._meta_parameters[name] = owner._parameters.pop(name)
                for name in owner._meta_modules:
                    owner._meta_modules[name] = owner._modules.pop(name)

    def __getattr__(self, name: str) -> Any:
        for container in ("_meta_parameters", "_meta_modules"):
            if name in self.__dict__.get(container, ()):
                return self.__dict__[container][name]
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._meta_parameters:
            if value is not None:
                self._check_meta_parameter("assignment", name, value)
            self._meta_parameters[name] = value
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

    def __getstate__(self) -> dict[str, Any]:
        """What a copy needs: its constructor is over."""
        return {**self.__dict__, "_meta_inputs": {}}

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
        elif isinstance(value, (dict, list, tuple)):
            for leaf in tree_leaves(value):
                module = isinstance(leaf, nn.Module)
                tracked = isinstance(leaf, torch.Tensor) and is_tracked(leaf)
                if (module or tracked) and self._is_input(leaf):
                    raise ValueError(
                        f"{self._who('assignment')}: expected meta-parameters and meta-modules as "
                        f"attributes of their own, got some in a {describe(value)}, at {name!r}; "
                        "call register_meta_parameter or register_meta_module for each"
                    )

    def _check_own_module(self, what: str, name: str, module: nn.Module) -> None:
        if any(self._is_input(part) for part in (*module.modules(), *module.parameters())):
            raise ValueError(
                f"{self._who(what)}: expected a module of its own, got {describe(module)} with "
                f"parts given to the constructor, at {name!r}; call register_meta_module"
            )

    def _check_meta_parameter(self, what: str, name: str, param: Any) -> None:
        if not isinstance(param, torch.Tensor):
            raise TypeError(
                f"{self._who(what)}: expected a tensor for a meta-parameter, got "
                f"{describe(param)}, at {name!r}"
            )
        if not is_tracked(param):
            raise ValueError(
                f"{self._who(what)}: expected a meta-parameter that requires grad, got "
                f"{describe(param)} that does not, at {name!r}; call its requires_grad_() first"
            )

    def _check_name(self, what: str, name: str, container: Mapping[str, Any]) -> None:
        if not isinstance(name, str):
            raise TypeError(f"{self._who(what)}: expected a string, got {describe(name)}")
        if not name or "." in name:
            raise KeyError(f"{self._who(what)}: expected a name without dots, got {name!r}")
        if name not in container and hasattr(self, name):
            raise KeyError(f"{self._who(what)}: expected a new name, got {name!r}, which is taken")

    def _is_input(self, value: Any) -> bool:
        return self._meta_inputs.get(id(value)) is value

    def _forget(self, name: str) -> None:
        for container in (self.__dict__, *(self.__dict__[kind] for kind in _OWN)):
            container.pop(name, None)
        self._non_persistent_buffers_set.discard(name)

    def _who(self, what: str) -> str:
        return f"{type(self).__name__}.{what}"
