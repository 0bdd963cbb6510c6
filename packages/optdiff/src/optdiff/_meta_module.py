# SPDX-License-Identifier: Apache-2.0
"""Modules that hold meta-parameters beside their own."""

from __future__ import annotations

import copy
import types
import weakref
from abc import ABCMeta
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from optcore import describe
from optdiff._containers import every_module, note_detached, outer_parameters, walked
from optdiff._tracking import is_tracked
from optdiff._trees import tree_leaves

_OWN = ("_parameters", "_buffers", "_modules", "_meta_parameters", "_meta_modules")


class _Checked(ABCMeta):
    """Of classes whose instances are looked at when their constructor is over."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        module = super().__call__(*args, **kwargs)
        module._check_constructed()
        return module


class MetaGradientModule(nn.Module, metaclass=_Checked):
    """A module whose ``parameters()`` are those of an inner loop and not those of the outer one.

    What is given to the constructor (also in containers, or as an attribute of an object) and then
    assigned to an attribute belongs to the outer loop: a tensor that requires grad becomes a
    meta-parameter, a module (training or not) a meta-module. A ``nn.Parameter`` or module made
    inside is an ordinary one. Where it cannot be told which, an error asks to register
    (:meth:`register_meta_parameter`, :meth:`register_meta_module`, ``register_parameter``,
    ``register_buffer``): another tensor that requires grad; something given, inside a list, tuple,
    dict or set; something given that is among ``parameters()`` or ``modules()`` when the
    constructor is over. What only an attribute's own attributes hold is not looked at.

    Meta-parameters are attributes; they are not among ``parameters()``, ``state_dict()`` and what
    ``to()`` moves, unless it is asked for: ``state_dict(meta=True)``, ``to(device, meta=True)``.
    All else that ``nn.Module`` does to parameters and submodules (``train``, ``eval``, ``cuda``,
    ``double``, ``requires_grad_``, ``zero_grad``, ``apply``) is done to those of the inner loop
    alone: whether a meta-module trains is for the outer loop to say, by ``meta_net.eval()``.
    ``super().__init__()`` may be called or left out.

    Raises:
        ValueError: It cannot be told where something belongs.

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

    _meta_inputs: dict[int, weakref.ref[Any]]  # by id: tensors and modules that were given
    _meta_parameters: dict[str, torch.Tensor | None]
    _meta_modules: dict[str, nn.Module | None]

    def __new__(cls, *args: Any, **kwargs: Any) -> MetaGradientModule:
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
            >>> module = MetaGradientModule()
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
            >>> module = MetaGradientModule()
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

    def named_meta_parameters(
        self, prefix: str = "", recurse: bool = True
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Meta-parameters by name, each once.

        Args:
            prefix: Put before the names, with a dot.
            recurse: Also those of meta-modules, and of all in this module that holds
                meta-parameters itself.

        Example:
            >>> module = MetaGradientModule()
            >>> module.register_meta_parameter("decay", torch.ones((), requires_grad=True))
            >>> [name for name, _ in module.named_meta_parameters(prefix="inner")]
            ['inner.decay']
        """
        seen: set[int] = set()
        walk = walked(self, prefix, False) if recurse else [(prefix, self, False)]
        for name, param in outer_parameters(walk):
            if id(param) not in seen:
                seen.add(id(param))
                yield name, param

    def meta_parameters(self, recurse: bool = True) -> Iterator[torch.Tensor]:
        """Meta-parameters, each once: what an outer optimizer takes.

        Args:
            recurse: As for :meth:`named_meta_parameters`.
        """
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
        """Meta-modules and all in them, and in submodules of this module, by name.

        Args:
            memo: Modules to leave out; those that come are added.
            prefix: Put before the names, with a dot.
            remove_duplicate: Each once.
        """
        memo = set() if memo is None else memo
        for path, module, outer in walked(self, prefix, False):
            if outer and not (remove_duplicate and module in memo):
                memo.add(module)
                yield path, module

    def meta_modules(self) -> Iterator[nn.Module]:
        """Meta-modules and all in them, each once."""
        for _, module in self.named_meta_modules():
            yield module

    def state_dict(self, *args: Any, meta: bool = False, **kwargs: Any) -> dict[str, Any]:
        """As ``nn.Module``'s; with ``meta=True`` also the meta-parameters and meta-modules.

        Args:
            args: As for ``nn.Module``.
            meta: Whether to include what belongs to the outer loop, here and in all modules inside.
            kwargs: As for ``nn.Module``.
        """
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

        Args:
            state_dict: Of :meth:`state_dict`, with the same ``meta``.
            strict: As for ``nn.Module``.
            assign: As for ``nn.Module``.
            meta: Whether ``state_dict`` includes what belongs to the outer loop.

        Raises:
            ValueError: ``assign`` with ``meta``: the outer optimizer would keep the old tensors. A
                meta-parameter has a graph, which tells another value.
        """
        if not meta:
            return super().load_state_dict(state_dict, strict, assign)
        if assign:
            raise ValueError(
                f"{self._who('load_state_dict')}: expected assign=False with meta=True, got True; "
                "the outer loop holds the tensors themselves"
            )
        self._check_leaves("load_state_dict", "load into")
        with self._with_meta_as_own():
            return super().load_state_dict(state_dict, strict)

    def to(self, *args: Any, meta: bool = False, **kwargs: Any) -> MetaGradientModule:
        """As ``nn.Module``'s; with ``meta=True`` it also moves meta-parameters and meta-modules.

        They are moved in place: whoever else holds them sees them moved.

        Args:
            args: As for ``nn.Module``.
            meta: Whether to move what belongs to the outer loop too.
            kwargs: As for ``nn.Module``.

        Raises:
            ValueError: A meta-parameter cannot move in place: it has a graph, or the device is one
                like ``"meta"``. Nothing has moved then.
        """
        if not meta:
            return super().to(*args, **kwargs)
        self._check_leaves("to", "move")
        rest = {name: value for name, value in kwargs.items() if name != "memory_format"}
        for name, param in self.named_meta_parameters():
            moved = param.detach().new_empty(0).to(*args, **rest)
            if not torch._has_compatible_shallow_copy_type(param, moved):
                raise ValueError(
                    f"{self._who('to')}: expected a device where {describe(param)} can move in "
                    f"place, got {moved.device}, at {name!r}; move it first and make the module "
                    "of the result"
                )
        with self._with_meta_as_own():
            return super().to(*args, **kwargs)

    def extra_repr(self) -> str:
        """Meta-parameters and meta-modules, as lines of ``repr``."""
        lines = [super().extra_repr()]
        for name, param in self._meta_parameters.items():
            lines.append(f"meta ({name}): {None if param is None else describe(param)}")
        for name, module in self._meta_modules.items():
            lines.append(f"meta ({name}): {module!r}")
        return "\n".join(filter(None, lines))

    @contextmanager
    def _with_meta_as_own(self) -> Iterator[None]:
        """Have what is meta among the ordinary parameters and modules, here and below."""
        owners = [owner for owner in every_module(self) if isinstance(owner, MetaGradientModule)]
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

    def __getstate__(self) -> dict[str, Any]:
        """What a copy needs: its constructor is over."""
        return {**self.__dict__, "_meta_inputs": {}}

    def __deepcopy__(self, memo: dict[int, Any]) -> MetaGradientModule:
        """A copy whose tensors are detached where torch would refuse to copy their graph."""
        note_detached(self, memo)
        twin = memo[id(self)] = type(self).__new__(type(self))
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return twin

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

    def _check_leaves(self, what: str, do: str) -> None:
        for name, param in self.named_meta_parameters():
            if not param.is_leaf:
                raise ValueError(
                    f"{self._who(what)}: expected meta-parameters without a graph, got "
                    f"{describe(param)} with one, at {name!r}; {do} what it was computed from"
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
