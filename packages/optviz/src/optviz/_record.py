# SPDX-License-Identifier: Apache-2.0
"""What happens to tensors while a program runs.

The autograd graph keeps no trace of a detach or of an ``.item()``. A recording follows the data
instead, and knows where a tensor that carried a gradient went in and none came out.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import resolve_name

from optviz._identity import number_of
from optviz._recording import (
    BY_SHAPE,
    DETACHING,
    LEAVING,
    Event,
    Given,
    Recording,
    has_gradients,
    tensors_in,
    user_line,
)
from optviz.scopes import Derivatives, differentiate

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
        tensors = tensors_in((args, kwargs))
        given = [Given(self._recording.meet(t), t.requires_grad) for t in tensors]
        if func is torch.autograd.grad or func is torch.Tensor.backward:
            result = differentiate(func, args, kwargs)
        else:
            result = func(*args, **kwargs)
        if name.endswith("_like") or name in BY_SHAPE:
            given = []
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
        given: list[Given],
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
        made = tensors_in(result)
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


def _how_cut(name: str, given: list[Given], made: list[torch.Tensor]) -> str:
    """How the gradient ends at an operation that read something tracked; "" if it does not."""
    if name in DETACHING:
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
    return "non_differentiable" if any(map(has_gradients, made)) else "integer"


def _name(func: Callable[..., Any]) -> str:
    name = getattr(func, "__name__", "")
    if name in ("__get__", "__set__"):
        return (resolve_name(func) or "").split(".")[-2:][0]
    return name


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
