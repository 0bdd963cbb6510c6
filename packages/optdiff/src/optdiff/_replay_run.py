# SPDX-License-Identifier: Apache-2.0
"""A long loop of steps: run keeping few carries, then gone back through step by step."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge

from optdiff._binomial import first_part
from optdiff._ledger import Ledger, Position
from optdiff._offload import Shelf
from optdiff._progress import Done, bar
from optdiff._recording import Recording, Snapshots
from optdiff._repeats import Norms
from optdiff._steps import Layout, Step, taken_apart

Tree: TypeAlias = Any
Cotangents: TypeAlias = list["torch.Tensor | None"]
# An edge of torch < 2.7 does not keep the node of a custom function alive, and autograd crashes.
_EDGES_OWN_NODES = "ownership_token" in GradientEdge._fields


@dataclass(frozen=True)
class _Point:
    """A carry that is kept, and the surroundings of the steps behind it."""

    number: int  # of the step that starts from it
    kept: Any  # what the shelf gave for its tensors; None: those that the loop started from
    tracked: tuple[bool, ...]  # which tensors require grad
    layout: Layout
    norms: Norms
    recording: Recording


class Run:
    """All steps of one loop, forward once and backward as often as asked.

    Args:
        step: The step.
        num_steps: How many.
        kept: How many carries may be kept besides the first one; None: there is no way back.
        inspect: Whether to refuse steps that read tensors to be differentiated past their inputs.
        start: Tensors of ``(init, args)``.
        layout: The rest of ``(init, args)``.
        carried: How many of the tensors are in ``init``.
        shelf: Where carries are kept.
        ledger: Where the place in the backward pass is noted.
        progress: Whether to show a bar.
    """

    def __init__(
        self,
        step: Step,
        num_steps: int,
        *,
        kept: int | None,
        inspect: bool,
        start: Sequence[torch.Tensor],
        layout: Layout,
        carried: int,
        shelf: Shelf,
        ledger: Ledger,
        progress: bool,
    ) -> None:
        self._step = step
        self._num_steps = num_steps
        self._kept = kept
        self._carried = carried
        self._shelf = shelf
        self._ledger = ledger
        self._progress = progress
        self._snapshots = Snapshots()
        self._start = [t.detach().requires_grad_(t.requires_grad) for t in start]
        first, self._args = layout.filled(self._start)
        own, self._first_layout = taken_apart(first)
        self._moving = [t for t in taken_apart(self._args)[0] if t.requires_grad]
        self._generators = [x for x in layout.leaves if isinstance(x, torch.Generator)]
        self._first = _Point(
            0,
            None,
            tuple(tensor.requires_grad for tensor in own),
            self._first_layout,
            Norms.of(own),
            self._recording(),
        )
        self._points: list[_Point] = []
        self._inspecting = inspect
        self._end: Norms
        self.layout: Layout  # of the last carry; known after the forward run

    def forward(self) -> tuple[list[torch.Tensor], list[bool]]:
        """The tensors of the last carry, and which of them have a derivative."""
        with self._ledger.owning():
            return self._forward()

    def backward(self, cotangents: Cotangents) -> Cotangents:
        """The cotangents of ``(init, args)`` from those of the last carry."""
        with self._ledger.owning():
            return self._backward(cotangents)

    def _forward(self) -> tuple[list[torch.Tensor], list[bool]]:
        who = self._step.who
        self._points = [self._first]
        with ExitStack() as stack, bar(f"{who}: forward", self._num_steps, self._progress) as done:
            stack.enter_context(self._first.recording.running())
            at = 0 if self._kept is None else self._num_steps - 1
            carry = self._towards(at + 1, stack, done)
            carry = self._advance(carry, at, self._num_steps, done)
        self._inspecting = False
        tensors, self.layout = taken_apart(carry)
        self._end = Norms.of(tensors)
        self._ledger.ended(tensors)
        return (
            [tensor.detach() for tensor in tensors],
            [tensor.requires_grad for tensor in tensors],
        )

    def _backward(self, cotangents: Cotangents) -> Cotangents:
        who = self._step.who
        points = self._points or [self._first]  # a second pass runs forward again
        self._points = points
        stop, found, sums = self._ledger.resume(cotangents) or Position(
            self._num_steps, cotangents, [torch.zeros_like(tensor) for tensor in self._moving]
        )
        sums = [total.to(tensor.device) for total, tensor in zip(sums, self._moving, strict=True)]
        del cotangents
        end: Norms | None = self._end if stop == self._num_steps else None
        with bar(f"{who}: backward", self._num_steps, self._progress) as done:
            done(self._num_steps - stop)
            while stop:
                while points[-1].number >= stop:
                    self._shelf.drop(points.pop().kept)
                with ExitStack() as stack:
                    stack.enter_context(points[-1].recording.running())
                    carry = self._towards(stop, stack, lambda count: None)
                    found = self._pull(carry, stop - 1, end, found, sums)
                    del carry
                stop -= 1
                end = points[-1].norms if stop and points[-1].number == stop else None
                done(1)
                self._ledger.note(Position(stop, found, sums))
        self._points = []
        self._shelf.close()
        self._ledger.close()
        return self._of_all(found, sums)

    def _towards(self, stop: int, stack: ExitStack, done: Done) -> Tree:
        """Run from the last point to before step ``stop - 1``, keeping carries on the way."""
        point = self._points[-1]
        carry = self._carry_of(point)
        at = point.number
        while at < stop - 1:
            free = (self._kept or 0) + 1 - len(self._points)
            reached = at + first_part(stop - at, free)
            carry = self._advance(carry, at, reached, done)
            at = reached
            if at < stop - 1:
                carry, recording = self._keep(at, carry)
                stack.enter_context(recording.running())
        return carry

    def _advance(self, carry: Tree, start: int, stop: int, done: Done) -> Tree:
        """Run some steps without a graph."""
        for i in range(start, stop):
            with torch.enable_grad():
                carry, _ = self._step.advance(
                    carry, i, self._args, graph=False, inspect=self._inspecting
                )
            done(1)
        return carry

    def _pull(
        self,
        carry: Tree,
        i: int,
        end: Norms | None,
        cotangents: Cotangents,
        sums: list[torch.Tensor],
    ) -> Cotangents:
        """Cotangents of a step's carry from those of its result; those of args go to the sums."""
        own = taken_apart(carry)[0]
        with torch.enable_grad():
            found, _ = self._step(carry, i, self._args)
        results = taken_apart(found)[0]
        del carry, found
        if end is not None:
            end.check(self._step.who, results, i)
        pairs = [
            (_end_of(result), cotangent.to(result.device))  # a file gives it on the CPU
            for result, cotangent in zip(results, cotangents, strict=True)
            if cotangent is not None and result.requires_grad
        ]
        del results
        smooth = [tensor for tensor in own if tensor.requires_grad]
        if not pairs:
            return [None] * len(own)
        grads = torch.autograd.grad(
            [end for end, _ in pairs],
            [*smooth, *self._moving],
            [cotangent for _, cotangent in pairs],
            allow_unused=True,
        )
        for total, grad in zip(sums, grads[len(smooth) :], strict=True):
            if grad is not None:
                total += grad
        each = iter(grads)
        return [next(each) if tensor.requires_grad else None for tensor in own]

    def _keep(self, number: int, carry: Tree) -> tuple[Tree, Recording]:
        """Keep a carry; what follows goes on from the result."""
        tensors, layout = taken_apart(carry)
        tracked = tuple(tensor.requires_grad for tensor in tensors)
        point = _Point(
            number,
            self._shelf.keep(number, tensors),
            tracked,
            layout,
            Norms.of(tensors),
            self._recording(),
        )
        self._points.append(point)
        own = [_leaf(tensor, smooth) for tensor, smooth in zip(tensors, tracked, strict=True)]
        return layout.filled(own), point.recording

    def _carry_of(self, point: _Point) -> Tree:
        if point.number == 0:
            tensors, layout = self._start[: self._carried], self._first_layout
        else:
            tensors, layout = self._shelf.get(point.kept), point.layout
        own = [_leaf(tensor, smooth) for tensor, smooth in zip(tensors, point.tracked, strict=True)]
        return layout.filled(own)

    def _of_all(self, carry: Cotangents, sums: list[torch.Tensor]) -> Cotangents:
        """Cotangents of all tensors the loop was given; one may be in the carry and in the args."""
        found = {id(tensor): total for tensor, total in zip(self._moving, sums, strict=True)}
        each = [*carry, *[None] * (len(self._start) - self._carried)]
        for place, tensor in enumerate(self._start):
            total, own = found.get(id(tensor)), each[place]
            each[place] = total if own is None else own if total is None else own + total
        return each

    def _recording(self) -> Recording:
        return Recording(self._step.who, self._snapshots, self._generators)


def _leaf(tensor: torch.Tensor, tracked: bool) -> torch.Tensor:
    """The tensor as a step sees it; what is not differentiated it may overwrite."""
    return tensor.detach().requires_grad_() if tracked else tensor.detach().clone()


def _end_of(result: torch.Tensor) -> torch.Tensor | GradientEdge:
    """Where the backward pass of a step begins: an edge, which lets the values of a result go."""
    return get_gradient_edge(result) if _EDGES_OWN_NODES else result
