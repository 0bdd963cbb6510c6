# SPDX-License-Identifier: Apache-2.0
"""A call as bytes: the function by name, everything else by pickle, tensors apart."""

from __future__ import annotations

import importlib
import io
import pickle
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed.rpc as rpc

import treeops

NAMESPACE = "optcore"  # where the siblings register their states


class Row:
    """Stands for the part of a tensor that a chunk gets."""

    def __init__(self, number: int) -> None:
        self.number = number


class ResolvedRRef:
    """What a chunk gets for a remote reference: the value is there already."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def to_here(self, timeout: float | None = None) -> Any:
        """Return the value."""
        return self._value

    def local_value(self) -> Any:
        """Return the value."""
        return self._value


class Apart:
    """Leaves tensors out, numbered by first appearance; the same tensor gets the same number.

    To be mixed into a pickler.
    """

    def __init__(self, file: io.BytesIO, who: str, place: str) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)  # type: ignore[call-arg]
        self.who, self.place = who, place
        self.tensors: list[torch.Tensor] = []
        self._numbers: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, Row):
            return ("row", obj.number)
        if not isinstance(obj, torch.Tensor):
            return None
        if obj.layout is not torch.strided or obj.is_quantized or obj.is_meta:
            raise TypeError(
                f"{self.who}: expected dense tensors, got {obj.layout} on {obj.device}; "
                "make them dense before the call"
            )
        if id(obj) not in self._numbers:
            self._numbers[id(obj)] = len(self.tensors)
            self.tensors.append(obj)
        return (self.place, self._numbers[id(obj)])

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, _rref_types()):
            return self.otherwise(obj)
        if not obj.is_owner():
            raise ValueError(
                f"{self.who}: expected remote references that the caller owns, got one of "
                f"{obj.owner_name()}; call from there, or fetch the value with to_here() first"
            )
        return ResolvedRRef, (obj.local_value(),)

    def otherwise(self, obj: Any) -> Any:
        """Reduce what is not ours as the pickler does."""
        return NotImplemented


class Writer(Apart, pickle.Pickler):
    """Names functions and classes by where they are defined."""


def _rref_types() -> tuple[type, ...]:
    return (rpc.PyRRef,) if rpc.is_available() else ()


class _Reader(pickle.Unpickler):
    def __init__(
        self, content: bytes, whole: Sequence[torch.Tensor], rows: Sequence[torch.Tensor]
    ) -> None:
        super().__init__(io.BytesIO(content))
        self._places = {"whole": whole, "row": rows}

    def persistent_load(self, pid: Any) -> Any:
        place, number = pid
        return self._places[place][number]


def write(
    address: Any,
    args: Any,
    kwargs: Any,
    who: str,
    place: str = "whole",
    writer: type[Apart] = Writer,
) -> tuple[bytes, list[torch.Tensor]]:
    """Return a call as bytes, and its tensors: those of all chunks, or (place "row") its own.

    Raises:
        TypeError: something cannot be sent.
    """
    file = io.BytesIO()
    writing = writer(file, who, place)
    try:
        writing.dump((address, args, kwargs))
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError) as error:
        if str(error).startswith(who):
            raise
        if isinstance(error, RuntimeError):
            if "parametrized" not in str(error):
                raise
            raise TypeError(
                f"{who}: expected modules that pickle can send, got a parametrized one "
                "(torch.nn.utils.parametrizations, such as weight_norm); send its parameters, and "
                "put them into a module inside the function with torch.func.functional_call"
            ) from error
        raise TypeError(
            f"{who}: expected arguments that pickle can send, got one that it refuses ({error}); "
            "define classes and functions at the top level of a module"
        ) from error
    return file.getvalue(), writing.tensors


def read(
    content: bytes, whole: Sequence[torch.Tensor], rows: Sequence[torch.Tensor]
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Return the function's address and its arguments, with these tensors in place."""
    return _Reader(content, whole, rows).load()


def name_of(func: Callable[..., Any], who: str) -> Any:
    """Return the place where every process finds a function, or the function if it can travel."""
    name = _address(func)
    if is_at_its_address(func):
        return name
    try:
        pickle.dumps(func)  # pickle may know better
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError) as error:
        raise TypeError(
            f"{who}: expected a function that other processes can import, got {name[1] or func}; "
            "define it at the top level of a module"
        ) from error
    return func


def is_at_its_address(func: Callable[..., Any]) -> bool:
    """Tell whether the place that a function names as its own has it."""
    name = _address(func)
    try:
        return None not in name and find(name) is func
    except (ImportError, AttributeError):
        return False


def _address(func: Callable[..., Any]) -> tuple[Any, Any]:
    return getattr(func, "__module__", None), getattr(func, "__qualname__", None)


def find(name: Any) -> Callable[..., Any]:
    """Return the function at an address; where a decorator took its place, the one behind it."""
    if not isinstance(name, tuple):
        return name
    module, path = name
    found: Any = sys.modules.get(module) or importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return getattr(found, "optdist_function", found)


def tree_map(func: Callable[..., Any], tree: Any) -> Any:
    """Map over the leaves of arguments."""
    return treeops.tree_map(func, tree, none_is_leaf=True, namespace=NAMESPACE)
