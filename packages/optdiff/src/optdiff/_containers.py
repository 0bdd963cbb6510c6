# SPDX-License-Identifier: Apache-2.0
"""Writing tensors that are no Parameters into a module, without breaking it."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import nn

Place: TypeAlias = tuple[str, nn.Module, bool]  # see walked


def replace_tensors(module: nn.Module, new: Mapping[int, torch.Tensor]) -> None:
    """Put ``new[id(old)]`` in the place of each tensor ``old``, at every owner of it.

    A tied parameter has several owners; recurrent layers also list their weights by themselves.
    """
    for owner in module.modules():
        for container in (owner._parameters, owner._buffers):
            for name, tensor in container.items():
                if tensor is not None and id(tensor) in new:
                    container[name] = new[id(tensor)]
    settle(module)


@contextmanager
def swapped(module: nn.Module, new: Mapping[int, torch.Tensor]) -> Iterator[None]:
    """Have ``new[id(old)]`` in the place of each parameter ``old`` while the block runs.

    ``torch.func.functional_call`` leaves the new ones in a module that is registered twice.
    """
    owners = list(module.modules())
    before = [dict(owner._parameters) for owner in owners]
    for owner in owners:
        for name, param in owner._parameters.items():
            if param is not None and id(param) in new:
                owner._parameters[name] = new[id(param)]  # type: ignore[assignment]
        relist(owner)
    try:
        yield
    finally:
        for owner, params in zip(owners, before, strict=True):
            owner._parameters.update(params)
            relist(owner)


def settle(module: nn.Module) -> None:
    """Make the rest of a module agree with tensors written into its containers."""
    for owner in module.modules():
        relist(owner)
        owner.__dict__["__deepcopy__"] = _DetachedCopy(owner)


def relist(owner: nn.Module) -> None:
    """Make a recurrent layer's own list of its weights agree with its containers."""
    if isinstance(owner, nn.RNNBase):
        owner._flat_weights = [getattr(owner, name, None) for name in owner._flat_weights_names]


def tensors_of(module: nn.Module) -> list[str]:
    """Names of the containers that hold a module's tensors, those of the outer loop too."""
    kinds = ("_parameters", "_buffers", "_meta_parameters")
    return [kind for kind in kinds if kind in module.__dict__]


def modules_of(module: nn.Module) -> list[str]:
    """Names of the containers that hold the modules in a module."""
    return [kind for kind in ("_modules", "_meta_modules") if kind in module.__dict__]


def every_module(module: nn.Module) -> list[nn.Module]:
    """A module and all in it, those of the outer loop too, each once."""
    found: dict[int, nn.Module] = {}
    waiting = [module]
    while waiting:
        owner = waiting.pop()
        if id(owner) not in found:
            found[id(owner)] = owner
            children = [owner.__dict__[kind].values() for kind in modules_of(owner)]
            waiting += [child for held in children for child in held if child is not None]
    return [*found.values()]


def walked(module: nn.Module, path: str, outer: bool) -> Iterator[Place]:
    """A module and all in it, where, and whether each belongs to the outer loop."""
    yield path, module, outer
    for kind in modules_of(module):
        for name, child in module.__dict__[kind].items():
            if child is not None:
                inside = outer or kind == "_meta_modules"
                yield from walked(child, f"{path}.{name}" if path else name, inside)


def outer_parameters(walk: Iterable[Place]) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters that belong to the outer loop, as often as they occur."""
    for path, owner, outer in walk:
        own = owner._parameters if outer else {}
        for name, param in {**own, **owner.__dict__.get("_meta_parameters", {})}.items():
            if param is not None:
                yield f"{path}.{name}" if path else name, param


class _DetachedCopy:
    """An instance's ``__deepcopy__``: torch refuses to copy non-leaf tensors, so detach them first.

    Keeps only a weak reference to its module, which keeps it in turn.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = weakref.ref(module)

    def __call__(self, memo: dict[int, Any]) -> nn.Module:
        module = self._module()
        if module is None:
            raise ReferenceError("copy.deepcopy: expected a living module, got one that is gone")
        note_detached(module, memo)
        own = module.__dict__.pop("__deepcopy__")
        try:
            return copy.deepcopy(module, memo)
        finally:
            module.__dict__["__deepcopy__"] = own

    def __getstate__(self) -> dict[str, Any]:
        return {"module": self._module()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._module = weakref.ref(state["module"])


def note_detached(module: nn.Module, memo: dict[int, Any]) -> None:
    """Give ``copy.deepcopy`` copies of the tensors in a module that it would refuse to copy."""
    for owner in every_module(module):
        for kind in tensors_of(owner):
            parameter = kind == "_parameters"
            for tensor in filter(torch.is_tensor, owner.__dict__[kind].values()):
                if not (isinstance(tensor, nn.Parameter) if parameter else tensor.is_leaf):
                    memo.setdefault(id(tensor), detached(tensor, parameter=parameter))


def detached(tensor: torch.Tensor, *, parameter: bool) -> torch.Tensor:
    """A copy outside the graph that requires grad if the tensor does."""
    copied = tensor.detach().clone()
    if parameter:
        return nn.Parameter(copied, requires_grad=tensor.requires_grad)
    return copied.requires_grad_(tensor.requires_grad)
