# SPDX-License-Identifier: Apache-2.0
"""Which part of a program made a node.

Autograd numbers the functions that a thread makes. A scope remembers the numbers at its entry and
exit, and no tensor; what was made in between belongs to it, whoever draws it later.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode

from optviz._nodes import Scope

_KEPT = 200_000  # entries per thread; the oldest go first


@dataclass
class Entry:
    """One stay in a scope, or one call that takes derivatives (``order`` above 0, no name)."""

    name: str
    kind: str
    number: int
    start: int
    end: int | None = None  # None: still open
    order: int = 0
    counts: dict[Any, int] = field(default_factory=dict)  # steps taken directly in this scope


class _Log(threading.local):
    """What this thread has noted."""

    def __init__(self) -> None:
        self.entries: deque[Entry] = deque(maxlen=_KEPT)
        self.derivatives: deque[Entry] = deque(maxlen=_KEPT)  # that have ended, by their end
        self.taken: list[Entry] = []  # derivatives that have not
        self.open: list[Entry] = []
        self.number = 0
        self.counts: dict[Any, int] = {}


_log = _Log()


def now() -> int:
    """The number that the next autograd function of this thread gets."""
    return torch._C._autograd._get_sequence_nr()


@contextmanager
def scope(name: str) -> Iterator[None]:
    """Attribute what is computed here to a name; scopes nest.

    Works as a decorator too. Costs two integers; gradients taken inside belong to it as well.

    Raises:
        TypeError: ``name`` is no string.

    Example:
        >>> import torch, optviz
        >>> w = torch.ones(2, requires_grad=True)
        >>> with optviz.scope("loss"):
        ...     loss = (w * w).sum()
        >>> optviz.draw(loss).node("Mul").path
        ('loss',)
    """
    if not isinstance(name, str):
        raise TypeError(f"scope: expected a name, got {type(name).__name__}")
    with entered(name):
        yield


@contextmanager
def entered(name: str, kind: str = "scope", start: int | None = None) -> Iterator[Entry]:
    """:func:`scope` of another kind, which may have begun before."""
    entry = noted(name, kind, now() if start is None else start, None)
    _log.open.append(entry)
    try:
        yield entry
    finally:
        _log.open.remove(entry)
        entry.end = now()


def noted(name: str, kind: str, start: int, end: int | None, order: int = 0) -> Entry:
    """Remember a stay that has been, or has begun."""
    _log.number += 1
    entry = Entry(name, kind, _log.number, start, end, order)
    _log.entries.append(entry)
    return entry


def opened_at() -> int:
    """Where the innermost open scope began."""
    return _log.open[-1].start if _log.open else 0


def counted(what: Any) -> int:
    """How often this was asked for in the innermost open scope, this time included."""
    counts = _log.open[-1].counts if _log.open else _log.counts
    counts[what] = counts.get(what, 0) + 1
    return counts[what]


def derivatives_since(start: int) -> list[Entry]:
    """Calls that took derivatives and began there or later, in their order."""
    found = []
    for entry in reversed(_log.entries):
        if entry.kind == "derivative" and entry.start >= start:
            found.append(entry)
        elif entry.end is not None and entry.end < start:
            break
    return found[::-1]


class _Within(NamedTuple):
    """What holds from an entry on, up to its end."""

    end: int
    scopes: tuple[Scope, ...]
    order: int


class Attribution:
    """Scopes and order of every number, for the thread that asks."""

    @classmethod
    def now(cls) -> Attribution:
        """By what is noted at this moment."""
        return cls([*_log.entries], now())

    def __init__(self, entries: Sequence[Entry], end: int) -> None:
        spans = [(entry.start, end if entry.end is None else entry.end, entry) for entry in entries]
        spans = sorted(
            (span for span in spans if span[0] < span[1]), key=lambda s: (s[0], -s[1], s[2].number)
        )
        self._starts: list[int] = [0]
        self._meaning: list[tuple[tuple[Scope, ...], int]] = [((), 0)]
        stack: list[_Within] = []
        for start, stop, entry in spans:
            self._leave(stack, start)
            around = stack[-1] if stack else _Within(stop, (), 0)
            named = (
                () if entry.kind == "derivative" else (Scope(entry.name, entry.number, entry.kind),)
            )
            order = entry.order or around.order
            stack.append(_Within(min(stop, around.end), (*around.scopes, *named), order))
            self._mark(start, stack)
        self._leave(stack, end + 1)

    def _leave(self, stack: list[_Within], at: int) -> None:
        while stack and stack[-1].end <= at:
            self._mark(stack.pop().end, stack)

    def _mark(self, at: int, stack: list[_Within]) -> None:
        meaning = (stack[-1].scopes, stack[-1].order) if stack else ((), 0)
        if self._starts[-1] == at:
            self._meaning[-1] = meaning
        else:
            self._starts.append(at)
            self._meaning.append(meaning)

    def of(self, number: int) -> tuple[tuple[Scope, ...], int]:
        """Scopes, outermost first, and order of the function that has this number."""
        return self._meaning[bisect_right(self._starts, number) - 1]


class Derivatives(TorchFunctionMode):
    """Notes the calls that take derivatives, and of which order."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():  # a graph of its own
            return func(*args, **kwargs)
        if func is torch.autograd.grad or func is torch.Tensor.backward:
            return differentiate(func, args, kwargs)
        return func(*args, **kwargs)


def differentiate(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Call ``torch.autograd.grad`` or ``Tensor.backward`` and note it."""
    given = dict(zip(("outputs", "inputs"), args)) | kwargs
    if func is torch.Tensor.backward:
        given = {"outputs": args[0], "inputs": kwargs.get("inputs")}
    order = 1 + _order_between(_tensors(given.get("outputs")), _tensors(given.get("inputs")))
    entry = noted("", "derivative", now(), None, order)
    _log.taken.append(entry)
    try:
        # On one thread: on CUDA autograd's own threads would number what they make by themselves.
        with torch.autograd.set_multithreading_enabled(False):
            return func(*args, **kwargs)
    finally:
        entry.end = now()
        _log.taken.remove(entry)
        _log.derivatives.append(entry)


def _tensors(given: Any) -> list[Any]:
    found = [given] if isinstance(given, torch.Tensor) else list(given or ())
    return [getattr(entry, "grad_fn", None) for entry in found]


def _order_between(outputs: Sequence[Any], inputs: Sequence[Any]) -> int:
    """The highest order of the functions that lead from inputs to outputs; None is a leaf."""
    ends = {function for function in inputs if function is not None}
    floor = min((f._sequence_nr() for f in ends), default=0) if len(ends) == len(inputs) else 0
    seen: set[Any] = set()
    waiting = [function for function in outputs if function is not None]
    numbers: list[int] = []
    while waiting:
        function = waiting.pop()
        if function in seen or function in ends or function._sequence_nr() < floor:
            continue
        seen.add(function)
        if not hasattr(function, "variable"):
            numbers.append(function._sequence_nr())
        waiting += [below for below, _ in function.next_functions if below is not None]
    first = min(numbers, default=0)
    noted_since = list(_log.taken)
    for entry in reversed(_log.derivatives):  # older ones made none of these functions
        if entry.end is not None and entry.end <= first:
            break
        noted_since.append(entry)
    attribution = Attribution(noted_since, now())
    return max((attribution.of(number)[1] for number in numbers), default=0)
