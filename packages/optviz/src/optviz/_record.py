# SPDX-License-Identifier: Apache-2.0
"""What happens to tensors while a program runs.

The autograd graph keeps no trace of a detach or of an ``.item()``. A recording follows the data
instead: which operation read and made which tensor (by number: no tensor is kept), and where a
tensor that carried a gradient went in and none came out.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import resolve_name

from optviz._identity import end_of, fresh_number, key_of_function, number_of
from optviz.scopes import Derivatives, differentiate

LEAVING = (
    *("item", "tolist", "numpy", "__array__"),
    *("__float__", "__int__", "__index__", "__bool__"),
)
_MOST_NUMBERS = 10_000  # of one list that are recognised again
_DETACHING = ("detach", "detach_", "data")
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

    def note(self, name: str, given: list[_Given], result: Any, cut: str, around: Any = ()) -> None:
        """Remember an operation that has run; ``around``: the Function that it ran in, its line."""
        made = _tensors_in(result)
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
            if name in _DETACHING and given:
                self._alias(tensor, (given[0].number, number))
            elif number in inputs:
                self._write_through(name, tensor, (*inputs, number), carried)

    def note_call(self, name: str, given: list[_Given], cut: str) -> None:
        """Remember a call that made no tensor."""
        inputs = tuple(entry.number for entry in given)
        self.events.append(Event(name, inputs, (), (), cut, user_line() if cut else ""))

    def note_leaving(self, name: str, given: list[_Given], result: Any, carried: bool) -> None:
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

    def numbers_in(self, tree: Any) -> list[_Given]:
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
                found.append(_Given(self._floats[id(value)][1], False))
            elif (array := self._arrays.get(id(value))) is not None and array[0]() is value:
                found.append(_Given(array[1], False))
        return found

    def note_data_set(self, param: int, value: _Given) -> None:
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


@dataclass(frozen=True)
class _Given:
    number: int
    requires_grad: bool  # before the call


_latest: list[Recording] = []


class _Running(threading.local):
    depth = 0  # recordings of this thread, one in another


_running = _Running()


def latest() -> Recording | None:
    """The recording that is running or ran last; of nested ones the outermost, which saw all."""
    return _latest[-1] if _latest else None


@contextmanager
def record() -> Iterator[Recording]:
    """Note cuts as they happen, and which calls take derivatives of what order.

    Afterwards :func:`optviz.why_no_grad` names the first cut, and :func:`optviz.draw` knows the
    order of every node. Each operation costs some Python; values and gradients are the same.
    Inside, backward passes run on the calling thread.

    Example:
        >>> import torch, optviz
        >>> w = torch.ones(2, requires_grad=True)
        >>> with optviz.record():
        ...     loss = (w.detach() * torch.ones(2, requires_grad=True)).sum()
        >>> print(optviz.why_no_grad(w, loss).kind)
        detach
    """
    recording = Recording()
    if not _running.depth:
        _latest[:] = [recording]
    _running.depth += 1
    try:
        with _Recorder(recording):
            yield recording
    finally:
        _running.depth -= 1


class _Recorder(Derivatives):
    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self._recording = recording

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():  # a graph of its own
            return func(*args, **kwargs)
        name = _name(func)
        tensors = _tensors_in((args, kwargs))
        given = [_Given(self._recording.meet(t), t.requires_grad) for t in tensors]
        if func is torch.autograd.grad or func is torch.Tensor.backward:
            result = differentiate(func, args, kwargs)
        else:
            result = func(*args, **kwargs)
        given += self._recording.numbers_in((args, kwargs))
        if func is torch.Tensor.backward:
            keeps = kwargs.get("create_graph", args[3] if len(args) > 3 else False)
            self._recording.note_call(name, given, "" if keeps else "create_graph")
        else:
            self._note(name, func, tensors, given, result, args)
        return result

    def _note(
        self,
        name: str,
        func: Callable[..., Any],
        tensors: list[torch.Tensor],
        given: list[_Given],
        result: Any,
        args: Any,
    ) -> None:
        recording = self._recording
        carried = any(entry.requires_grad for entry in given)
        if name == "requires_grad" and len(args) == 2:  # p.requires_grad = False
            cut = "requires_grad" if carried and not args[1] else ""
            recording.note(name, given, tensors[0], cut)
            return
        if name == "data" and len(args) == 2:  # p.data = x
            recording.note_data_set(given[0].number, given[1])
            return
        if name == "__setitem__":
            result = args[0]
        made = _tensors_in(result)
        if not made:
            if name in LEAVING and given:
                recording.note_leaving(name, given, result, carried)
            return
        if func is torch.autograd.grad:
            # what a kept graph depends on, its functions tell exactly
            lost = [tensor for tensor in made if not tensor.requires_grad]
            if lost:
                recording.note(name, given, lost, "create_graph" if carried else "")
            return
        if name == "grad":  # p.grad: made by the last backward
            last = next((e for e in reversed(recording.events) if e.name == "backward"), None)
            if last is not None and not made[0].requires_grad:
                event = Event(
                    "backward", last.inputs, (number_of(made[0]),), (False,), last.cut, last.where
                )
                recording.events.append(event)
                recording._seen.add(number_of(made[0]))
            return
        cut, around = _how_cut(name, given, made) if carried else "", None
        if cut == "no_grad":
            around = _function_around()
        if around is None:
            recording.note(name, given, result, cut)
        else:  # it has no gradient, unless the Function gives it one
            recording.note(name, given, result, "non_differentiable", around)


def _how_cut(name: str, given: list[_Given], made: list[torch.Tensor]) -> str:
    """How the gradient ends at an operation that read something tracked; "" if it does not."""
    if name in _DETACHING:
        return "detach"
    numbers = {entry.number for entry in given}
    outside = not torch.is_grad_enabled()
    if outside and any(number_of(tensor) in numbers for tensor in made) and name[-1:] == "_":
        return "" if name == "requires_grad_" else "no_grad"  # written past the graph
    if any(tensor.requires_grad for tensor in made):
        return ""
    if name == "requires_grad_":
        return "requires_grad"
    if outside:
        return "no_grad"
    return "non_differentiable" if any(map(_has_gradients, made)) else "integer"


def _has_gradients(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _end_of_output(tensor: torch.Tensor, made: list[torch.Tensor], carried: bool) -> str:
    """How the gradient ends at one output where it goes on at another: indices beside values."""
    if tensor.requires_grad or not carried or not any(other.requires_grad for other in made):
        return ""
    return "non_differentiable" if _has_gradients(tensor) else "integer"


def _name(func: Callable[..., Any]) -> str:
    name = getattr(func, "__name__", "")
    if name in ("__get__", "__set__"):
        return (resolve_name(func) or "").split(".")[-2:][0]
    return name


def _tensors_in(tree: Any) -> list[torch.Tensor]:
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


def _function_around() -> tuple[str, str] | None:
    """Name and line of the autograd Function, written in Python, whose forward is running."""
    frame: Any = sys._getframe(1)
    found = None
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module == "torch.autograd.function" and frame.f_code.co_name == "apply":
            found = frame
        frame = frame.f_back
    return None if found is None else (found.f_locals["cls"].__name__, user_line(found.f_back))


def user_line(frame: Any = None) -> str:
    """The innermost line that belongs to none of these libraries."""
    frame = frame or sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "").split(".")[0]
        if module not in _OURS and module not in ("contextlib", "copy"):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
