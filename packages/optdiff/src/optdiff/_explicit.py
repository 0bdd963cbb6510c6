# SPDX-License-Identifier: Apache-2.0
"""Making explicit the tensors inside a value: in containers, modules and what functions close over.

A derivative rule and a batching rule see only the tensors that are handed to them. So a call
``f(tree)`` becomes ``rebuild(tensors)`` of a list of tensors: :class:`Explicit` lists the tensors
of a value and builds the value again with others in their place.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn

import treeops
from optdiff._containers import modules_of, settle, tensors_of
from optdiff._trees import NAMESPACE

Rebuild: TypeAlias = Callable[[Sequence[torch.Tensor]], Any]


class Explicit:
    """A growing list of tensors, each once, and the way back from them to values.

    Args:
        closed_over: Which of the tensors that a function closes over to list. Tensors of
            containers and of modules outside functions are always listed.

    Example:
        >>> explicit = Explicit(lambda tensor: True)
        >>> rebuild = explicit.add({"a": torch.ones(2), "b": 3})
        >>> rebuild([torch.zeros(2)])
        {'a': tensor([0., 0.]), 'b': 3}
    """

    def __init__(self, closed_over: Callable[[torch.Tensor], bool]) -> None:
        self.tensors: list[torch.Tensor] = []
        self._index: dict[int, int] = {}
        self._closed_over = closed_over
        self._open: set[int] = set()  # functions being looked into: they may refer to themselves

    def add(self, value: Any) -> Rebuild:
        """List the tensors of a value; what is returned builds it from the whole list."""
        return self._add(value, lambda tensor: True) or _constant(value)

    def add_function(self, function: Callable[..., Any]) -> Rebuild:
        """The same for a function: what it closes over, its defaults, a bound object, a module."""
        return self._add_callable(function) or _constant(function)

    def _add(self, value: Any, listed: Callable[[torch.Tensor], bool]) -> Rebuild | None:
        """None means that nothing inside is listed and the value can stay as it is."""
        if isinstance(value, torch.Tensor):
            return self._add_tensor(value) if listed(value) else None
        if isinstance(value, nn.Module):
            return self._add_module(value, listed)
        if treeops.tree_is_leaf(value, namespace=NAMESPACE):
            return self._add_callable(value) if callable(value) else None
        leaves, spec = treeops.tree_flatten(value, namespace=NAMESPACE)
        parts = [self._add(leaf, listed) for leaf in leaves]
        if not any(parts):
            return None
        return lambda tensors: treeops.tree_unflatten(spec, _built(parts, leaves, tensors))

    def _add_tensor(self, tensor: torch.Tensor) -> Rebuild:
        index = self._index.setdefault(id(tensor), len(self.tensors))
        if index == len(self.tensors):
            self.tensors.append(tensor)
        return lambda tensors: tensors[index]

    def _add_module(
        self, module: nn.Module, listed: Callable[[torch.Tensor], bool]
    ) -> Rebuild | None:
        """A module is rebuilt as a shallow copy, so the user's is never written to."""
        slots: list[tuple[nn.Module, str, str, Rebuild]] = []
        for owner in module.modules():
            for kind in ("_parameters", "_buffers"):
                for name, tensor in getattr(owner, kind).items():
                    if tensor is not None and listed(tensor):
                        slots.append((owner, kind, name, self._add_tensor(tensor)))
        if not slots:
            return None

        def rebuild(tensors: Sequence[torch.Tensor]) -> nn.Module:
            copies: dict[int, nn.Module] = {}
            replica = shallow_copy(module, copies)
            for owner, kind, name, part in slots:
                getattr(copies[id(owner)], kind)[name] = part(tensors)
            settle(replica)
            return replica

        return rebuild

    def _add_callable(self, function: Any) -> Rebuild | None:
        if id(function) in self._open or isinstance(function, type):
            return None
        self._open.add(id(function))
        try:
            if isinstance(function, partial):
                return self._add_partial(function)
            if isinstance(function, types.MethodType):
                return self._add_method(function)
            if isinstance(function, types.FunctionType):
                return self._add_python_function(function)
            if isinstance(function, nn.Module):
                return self._add_module(function, self._closed_over)
            return self._add_object(function)
        finally:
            self._open.discard(id(function))

    def _add_partial(self, function: partial[Any]) -> Rebuild | None:
        parts = [
            self._add_callable(function.func),
            self._add(function.args, self._closed_over),
            self._add(function.keywords, self._closed_over),
        ]
        if not any(parts):
            return None
        values = (function.func, function.args, function.keywords)

        def rebuild(tensors: Sequence[torch.Tensor]) -> partial[Any]:
            inner, args, keywords = _built(parts, values, tensors)
            return partial(inner, *args, **keywords)

        return rebuild

    def _add_method(self, method: types.MethodType) -> Rebuild | None:
        part = self._add_callable(method.__self__)
        if part is None:
            return None
        return lambda tensors: types.MethodType(method.__func__, part(tensors))

    def _add_python_function(self, function: types.FunctionType) -> Rebuild | None:
        if _is_recording(function):
            return None
        cells = [_content(cell) for cell in function.__closure__ or ()]
        names = [
            name
            for name in _global_names(function.__code__)
            if isinstance(function.__globals__.get(name), (torch.Tensor, nn.Module))
        ]
        held = [
            *cells,
            *(function.__globals__[name] for name in names),
            function.__defaults__,
            function.__kwdefaults__,
        ]
        parts = [self._add(value, self._closed_over) for value in held]
        if not any(parts):
            return None

        def rebuild(tensors: Sequence[torch.Tensor]) -> types.FunctionType:
            *built, defaults, keywords = _built(parts, held, tensors)
            scope = function.__globals__
            if names:
                scope = {**scope, **dict(zip(names, built[len(cells) :], strict=True))}
            closure = tuple(
                types.CellType(value) if part else cell
                for cell, value, part in zip(function.__closure__ or (), built, parts)
            )
            twin = types.FunctionType(
                function.__code__, scope, function.__name__, defaults, closure or None
            )
            twin.__kwdefaults__ = keywords
            return twin

        return rebuild

    def _add_object(self, value: Any) -> Rebuild | None:
        """A callable object that holds tensors in its attributes, such as a linear operator."""
        attributes = getattr(value, "__dict__", None)
        if not attributes:
            return None
        part = self._add(dict(attributes), self._closed_over)
        if part is None:
            return None

        def rebuild(tensors: Sequence[torch.Tensor]) -> Any:
            twin = copy.copy(value)
            twin.__dict__.update(part(tensors))
            return twin

        return rebuild


def _constant(value: Any) -> Rebuild:
    return lambda tensors: value


def _built(
    parts: Sequence[Rebuild | None], values: Sequence[Any], tensors: Sequence[torch.Tensor]
) -> list[Any]:
    return [
        value if part is None else part(tensors) for part, value in zip(parts, values, strict=True)
    ]


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable that has no value yet
        return None


def _is_recording(function: types.FunctionType) -> bool:
    """Whether it holds a graph, as what torch.func.vjp returns: other tensors would not fit it.

    Unlike it, ``torch.func.grad(f)`` holds only ``f``.
    """
    module = function.__globals__.get("__name__", "")
    return module.split(".")[0] == "torch" and not hasattr(function, "__wrapped__")


def _global_names(code: types.CodeType) -> list[str]:
    """Names that a function and the functions in its body look up among the globals."""
    names = dict.fromkeys(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names.update(dict.fromkeys(_global_names(constant)))
    return list(names)


def held_at(function: Any, tensor: torch.Tensor) -> tuple[str, str]:
    """Where a function holds a tensor, and the name of the module it is in; empty where unknown."""
    while isinstance(function, partial) or hasattr(function, "__wrapped__"):
        if isinstance(function, partial):
            function = next(filter(callable, function.args), function.func)
        else:
            function = function.__wrapped__  # torch.func.grad(f) holds only f
    held: dict[str, Any] = {}
    if isinstance(function, types.MethodType):
        held["self"], function = function.__self__, function.__func__
    if isinstance(function, nn.Module):
        held[type(function).__name__] = function
    if isinstance(function, types.FunctionType):
        names, scope = _global_names(function.__code__), function.__globals__
        held |= {name: scope[name] for name in names if name in scope}
        cells = function.__closure__ or ()
        held |= zip(function.__code__.co_freevars, map(_content, cells), strict=True)
    for name, value in held.items():
        if value is tensor:
            return name, ""
        if isinstance(value, nn.Module):
            for path, param in value.named_parameters():
                if param is tensor:
                    return f"{name}.{path}", name
    return "", ""


def shallow_copy(module: nn.Module, copies: dict[int, nn.Module]) -> nn.Module:
    """Modules of their own that share every tensor; ``copies`` tells which stands for which."""
    if id(module) in copies:
        return copies[id(module)]
    twin = copies[id(module)] = module.__new__(type(module))
    twin.__dict__ = dict(module.__dict__)
    twin.__dict__.pop("__deepcopy__", None)  # it would copy the original
    for kind in tensors_of(module):
        twin.__dict__[kind] = dict(module.__dict__[kind])
    for kind in modules_of(module):
        twin.__dict__[kind] = {
            name: None if child is None else shallow_copy(child, copies)
            for name, child in module.__dict__[kind].items()
        }
    return twin
