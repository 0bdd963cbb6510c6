# SPDX-License-Identifier: Apache-2.0
"""What a recording has seen of tensors: which operation read and made which, and what was cut.

It follows data by number: no tensor is kept.
"""

from __future__ import annotations

import sys
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from optviz._identity import end_of, fresh_number, key_of_function, number_of

LEAVING = (
    *("item", "tolist", "numpy", "__array__"),
    *("__float__", "__int__", "__index__", "__bool__"),
)
_MOST_NUMBERS = 10_000  # of one list that are recognised again
# What they make has nothing of their tensor but its shape.
BY_SHAPE = ("new_zeros", "new_ones", "new_empty", "new_empty_strided", "new_full")
DETACHING = ("detach", "detach_", "data")
_OURS = ("torch", "optcore", "optcore_accel", "optdiff", "treeops", "optviz")


@dataclass(frozen=True)
class Event:
    """One operation: the numbers of what it read and made, and how it cut the gradient, if so."""

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    tracked: tuple[bool, ...]  # which outputs require grad
    cut: str = ""
    where: str = ""
    inside: bool = False  # in the forward of a Function, which is outside the graph


@dataclass(frozen=True)
class Given:
    number: int
    requires_grad: bool  # before the call


class Recording:
    """What :func:`record` has seen. It holds numbers and names, no tensors."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._made: dict[tuple[Any, ...], int] = {}  # end_of(tensor) -> its number
        self._aliases: dict[int, tuple[StorageWeakRef, list[int]]] = {}
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}  # whose memory it is
        self._seen: set[int] = set()
        self._floats: dict[int, tuple[float, int]] = {}  # by id; held, so that ids stay
        self._arrays: dict[int, tuple[weakref.ref[Any], int]] = {}  # by id and by address

    @property
    def cuts(self) -> list[Event]:
        """Where gradients ended, in the order of time.

        Example:
            >>> import torch, optviz
            >>> w = torch.ones(2, requires_grad=True)
            >>> with optviz.record() as recording:
            ...     y = w.detach() * 2
            >>> [(event.name, event.cut) for event in recording.cuts]
            [('detach', 'detach')]
        """
        return [event for event in self.events if event.cut]

    def __repr__(self) -> str:
        return f"Recording({len(self.events)} operations, {len(self.cuts)} cuts)"

    def note(self, name: str, given: list[Given], result: Any, cut: str, around: Any = ()) -> None:
        """Remember an operation that has run; ``around``: the Function that it ran in, its line."""
        made = tensors_in(result)
        inputs = tuple(entry.number for entry in given)
        carried = any(entry.requires_grad for entry in given)
        for ending in dict.fromkeys(_end_of_output(tensor, made, carried) for tensor in made):
            some = [t for t in made if _end_of_output(t, made, carried) == ending]
            outputs = tuple(number_of(tensor) for tensor in some)
            tracked = tuple(tensor.requires_grad for tensor in some)
            kind = cut or ending
            told, where = around or (name, user_line() if kind else "")
            self.events.append(Event(told, inputs, outputs, tracked, kind, where, bool(around)))
        for tensor in made:
            number = number_of(tensor)
            self._seen.add(number)
            if tensor.grad_fn is not None:
                self._made[end_of(tensor)] = number
            if (storage := _storage(tensor)) is not None:
                self._storages[storage._cdata] = (StorageWeakRef(storage), number)
            if name in DETACHING and given:
                self._alias(tensor, (given[0].number, number))
            elif number in inputs:
                self._write_through(name, tensor, (*inputs, number), carried)

    def note_call(self, name: str, given: list[Given], cut: str) -> None:
        """Remember a call that made no tensor."""
        inputs = tuple(entry.number for entry in given)
        self.events.append(Event(name, inputs, (), (), cut, user_line() if cut else ""))

    def note_leaving(self, name: str, given: list[Given], result: Any, carried: bool) -> None:
        """Remember numbers that were taken out of tensors, to know them when they come back."""
        inputs, number = tuple(entry.number for entry in given), fresh_number()
        cut = "item" if carried else ""
        self.events.append(Event(name, inputs, (number,), (False,), cut, user_line()))
        waiting, left = [result], _MOST_NUMBERS
        while waiting and left:
            value = waiting.pop()
            left -= 1
            if isinstance(value, list):
                waiting += value
            elif type(value) is float:
                self._floats[id(value)] = (value, number)
            elif name in ("numpy", "__array__"):
                entry = (weakref.ref(value), number)
                self._arrays[id(value)] = self._arrays[value.ctypes.data] = entry

    def numbers_in(self, tree: Any) -> list[Given]:
        """Numbers and arrays among arguments that were taken out of tensors."""
        if not (self._floats or self._arrays):
            return []
        found, waiting = [], [tree]
        while waiting:
            value = waiting.pop()
            if isinstance(value, (tuple, list)):
                waiting += reversed(value)
            elif isinstance(value, dict):
                waiting += reversed(value.values())
            elif type(value) is float and id(value) in self._floats:
                found.append(Given(self._floats[id(value)][1], False))
            elif (array := self._arrays.get(id(value))) is not None and array[0]() is value:
                found.append(Given(array[1], False))
        return found

    def note_data_set(self, param: int, value: Given) -> None:
        """``p.data = x`` gives ``p`` other numbers, past its graph."""
        cut = "in_place" if value.requires_grad else ""
        where = user_line() if cut else ""
        self.events.append(Event("data", (value.number,), (param,), (True,), cut, where))

    def _alias(self, tensor: torch.Tensor, numbers: tuple[int, ...]) -> None:
        storage = _storage(tensor)
        if storage is None:
            return
        _, known = self._aliases.setdefault(storage._cdata, (StorageWeakRef(storage), []))
        known.extend(number for number in numbers if number not in known)

    def _write_through(
        self, name: str, tensor: torch.Tensor, inputs: tuple[int, ...], carried: bool
    ) -> None:
        """An in-place operation on ``p.data`` changes ``p``, past its graph."""
        for other in self._aliases_of(tensor):
            if other != inputs[-1]:
                ending = ("in_place", user_line()) if carried else ("", "")
                self.events.append(Event(name, inputs, (other,), (True,), *ending))

    def _aliases_of(self, tensor: torch.Tensor) -> list[int]:
        storage = _storage(tensor) if self._aliases else None
        found = None if storage is None else self._aliases.get(storage._cdata)
        return [] if found is None else found[1]

    def meet(self, tensor: torch.Tensor) -> int:
        """The number of a tensor; how it came about is looked up where no operation told."""
        number = number_of(tensor)
        made = tensor.grad_fn is not None and end_of(tensor) in self._made
        if number in self._seen and (made or tensor.grad_fn is None):
            return number
        self._seen.add(number)
        if tensor.grad_fn is not None:  # of a Function, which recorded what it does inside
            source = self._follow(tensor.grad_fn, tensor.output_nr)
            if source != number:
                self.events.append(Event("", (source,), (number,), (True,)))
            return number
        storage = _storage(tensor)
        known = None if storage is None else self._storages.get(storage._cdata)
        if known is not None and not known[0].expired():  # nn.Parameter(x)
            ends = (known[1],), (number,), (False,)
            self.events.append(Event("alias", *ends, "new_leaf", user_line()))
        elif storage is not None and self._arrays:  # torch.from_numpy(array)
            array = self._arrays.get(storage.data_ptr())
            if array is not None and array[0]() is not None:
                self.events.append(Event("from_numpy", (array[1],), (number,), (False,)))
        return number

    def _follow(self, root: Any, output: int) -> int:
        """Numbers for what a function made and what it leads to, back to what is known."""
        stack = [(root, output, False)]
        while stack:
            function, output, ready = stack.pop()
            key = (*key_of_function(function), output)
            if key in self._made:
                continue
            variable = getattr(function, "variable", None)
            if variable is not None:
                self._made[key] = number_of(variable)
                continue
            below = [(f, at) for f, at in function.next_functions if f is not None]
            if not ready:
                stack.append((function, output, True))
                stack += [(f, at, False) for f, at in below]
                continue
            self._made[key] = number = -1 - len(self._made)  # a tensor that nobody has seen
            inputs = tuple(self._made[(*key_of_function(f), at)] for f, at in below)
            self.events.append(Event(function.name(), inputs, (number,), (True,)))
        return self._made[key]


def has_gradients(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _end_of_output(tensor: torch.Tensor, made: list[torch.Tensor], carried: bool) -> str:
    """How the gradient ends at one output where it goes on at another: indices beside values."""
    if tensor.requires_grad or not carried or not any(other.requires_grad for other in made):
        return ""
    return "non_differentiable" if has_gradients(tensor) else "integer"


def tensors_in(tree: Any) -> list[torch.Tensor]:
    """The tensors in arguments or results."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    found = []
    waiting = [tree]
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            waiting += reversed(value)
        elif isinstance(value, dict):
            waiting += reversed(value.values())
    return found


def _storage(tensor: torch.Tensor) -> Any:
    """The memory of a tensor; None where there is none to be told by."""
    if tensor.layout is not torch.strided:
        return None
    try:
        storage = tensor.untyped_storage()
        return storage if storage.nbytes() else None
    except (NotImplementedError, RuntimeError):  # wrappers have none
        return None


def user_line(frame: Any = None) -> str:
    """The innermost line that belongs to none of these libraries."""
    frame = frame or sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "").split(".")[0]
        if module not in _OURS and module not in ("contextlib", "copy"):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
