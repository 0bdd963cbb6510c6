# SPDX-License-Identifier: Apache-2.0
"""What happens to tensors while a program runs.

The autograd graph keeps no trace of a detach or of an ``.item()``. A recording follows the data
instead: which operation read and made which tensor (by number: no tensor is kept), and where a
tensor that carried a gradient went in and none came out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import resolve_name

from optviz._identity import key_of_function, number_of
from optviz.scopes import Derivatives, differentiate

LEAVING = ("item", "tolist", "numpy", "__array__", "__float__", "__int__", "__index__")
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


class Recording:
    """What :func:`record` has seen. It holds numbers and names, no tensors."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._made: dict[tuple[Any, ...], int] = {}  # autograd function -> number of its tensor
        self._aliases: dict[int, tuple[StorageWeakRef, list[int]]] = {}
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}  # whose memory it is
        self._seen: set[int] = set()

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

    def note(self, name: str, given: list[_Given], result: Any, cut: str, where: str = "") -> None:
        """Remember an operation that has run."""
        made = _tensors_in(result)
        inputs = tuple(entry.number for entry in given)
        outputs = tuple(number_of(tensor) for tensor in made)
        where = where or (user_line() if cut else "")
        tracked = tuple(tensor.requires_grad for tensor in made)
        self.events.append(Event(name, inputs, outputs, tracked, cut, where))
        for tensor, number in zip(made, outputs):
            self._seen.add(number)
            if tensor.grad_fn is not None:
                self._made[key_of_function(tensor.grad_fn)] = number
            if (storage := _storage(tensor)) is not None:
                self._storages[storage._cdata] = (StorageWeakRef(storage), number)
            if cut == "detach" and given:
                self._alias(tensor, (given[0].number, number))
            elif number in inputs:
                self._write_through(name, tensor, (*inputs, number))

    def _alias(self, tensor: torch.Tensor, numbers: tuple[int, ...]) -> None:
        storage = tensor.untyped_storage()
        _, known = self._aliases.setdefault(storage._cdata, (StorageWeakRef(storage), []))
        known.extend(number for number in numbers if number not in known)

    def _write_through(self, name: str, tensor: torch.Tensor, inputs: tuple[int, ...]) -> None:
        """An in-place operation on ``p.data`` changes ``p``, past its graph."""
        for other in self._aliases_of(tensor):
            if other != inputs[-1]:
                event = Event(name, inputs, (other,), (True,), "in_place", user_line())
                self.events.append(event)

    def _aliases_of(self, tensor: torch.Tensor) -> list[int]:
        storage = _storage(tensor) if self._aliases else None
        found = None if storage is None else self._aliases.get(storage._cdata)
        return [] if found is None else found[1]

    def meet(self, tensor: torch.Tensor) -> int:
        """The number of a tensor; how it came about is looked up where no operation told."""
        number = number_of(tensor)
        made = tensor.grad_fn is not None and key_of_function(tensor.grad_fn) in self._made
        if number in self._seen and (made or tensor.grad_fn is None):
            return number
        self._seen.add(number)
        if tensor.grad_fn is not None:  # of a Function, which recorded what it does inside
            source = self._follow(tensor.grad_fn)
            if source != number:
                self.events.append(Event("", (source,), (number,), (True,)))
            return number
        storage = _storage(tensor)
        known = None if storage is None else self._storages.get(storage._cdata)
        if known is not None and not known[0].expired():  # nn.Parameter(x)
            ends = (known[1],), (number,), (False,)
            self.events.append(Event("alias", *ends, "new_leaf", user_line()))
        return number

    def _follow(self, root: Any) -> int:
        """Numbers for a function and what it leads to, back to what is known."""
        stack = [(root, False)]
        while stack:
            function, ready = stack.pop()
            key = key_of_function(function)
            if key in self._made:
                continue
            variable = getattr(function, "variable", None)
            if variable is not None:
                self._made[key] = number_of(variable)
                continue
            below = [f for f, _ in function.next_functions if f is not None]
            if not ready:
                stack.append((function, True))
                stack += [(f, False) for f in below]
                continue
            self._made[key] = number = -1 - len(self._made)  # a tensor that nobody has seen
            inputs = tuple(self._made[key_of_function(f)] for f in below)
            self.events.append(Event(function.name(), inputs, (number,), (True,)))
        return self._made[key_of_function(root)]


@dataclass(frozen=True)
class _Given:
    number: int
    requires_grad: bool  # before the call


_latest: list[Recording] = []


def latest() -> Recording | None:
    """The recording that is running or ran last."""
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
    _latest[:] = [recording]
    with _Recorder(recording):
        yield recording


class _Recorder(Derivatives):
    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self._recording = recording

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = _name(func)
        tensors = _tensors_in((args, kwargs))
        given = [_Given(self._recording.meet(t), t.requires_grad) for t in tensors]
        if func is torch.autograd.grad or func is torch.Tensor.backward:
            result = differentiate(func, args, kwargs)
        else:
            result = func(*args, **kwargs)
        keeps_graph = bool(kwargs.get("create_graph", args[3] if len(args) > 3 else False))
        self._note(name, func, tensors, given, result, args, keeps_graph)
        return result

    def _note(
        self,
        name: str,
        func: Callable[..., Any],
        tensors: list[torch.Tensor],
        given: list[_Given],
        result: Any,
        args: Any,
        keeps_graph: bool,
    ) -> None:
        recording = self._recording
        carried = any(entry.requires_grad for entry in given)
        if name == "requires_grad" and len(args) == 2:  # p.requires_grad = False
            cut = "requires_grad" if carried and not args[1] else ""
            recording.note(name, given, tensors[0], cut)
            return
        made = _tensors_in(result)
        if not made:
            if name in LEAVING:
                recording.note(name, given, (), "item" if carried else "")
            elif name == "backward":
                recording.note(name, given, (), "" if keeps_graph else "create_graph")
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
            recording.note(around[0], given, result, "non_differentiable", around[1])


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
    if not any(tensor.is_floating_point() or tensor.is_complex() for tensor in made):
        return "integer"
    return "non_differentiable"


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
