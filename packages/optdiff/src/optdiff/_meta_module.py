# SPDX-License-Identifier: Apache-2.0
"""Modules that hold meta-parameters beside their own."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from optcore import describe
from optdiff._containers import every_module, note_detached, outer_parameters, walked
from optdiff._two_loop_module import TwoLoopModule


class MetaGradientModule(TwoLoopModule):
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

    def __getstate__(self) -> dict[str, Any]:
        """What a copy needs: its constructor is over."""
        return {**self.__dict__, "_meta_inputs": {}}

    def __deepcopy__(self, memo: dict[int, Any]) -> MetaGradientModule:
        """A copy whose tensors are detached where torch would refuse to copy their graph."""
        note_detached(self, memo)
        twin = memo[id(self)] = type(self).__new__(type(self))
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return twin

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

    def _check_leaves(self, what: str, do: str) -> None:
        for name, param in self.named_meta_parameters():
            if not param.is_leaf:
                raise ValueError(
                    f"{self._who(what)}: expected meta-parameters without a graph, got "
                    f"{describe(param)} with one, at {name!r}; {do} what it was computed from"
                )
