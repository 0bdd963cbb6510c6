# SPDX-License-Identifier: Apache-2.0
"""Calls of the compiled modules: memory for the results, and columns that do not lie alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from types import ModuleType
from typing import Any, TypeAlias

import torch

from optcore_accel._devices import module_for
from optcore_accel._rules import Rule, Scalar

Tensors: TypeAlias = "list[torch.Tensor]"
Where: TypeAlias = "Callable[[str, int, int], str]"  # name of a column, which of them, leaf
SIGN, L2, DECAY, LR, OUTER = range(5)  # scalars around the rule: the first ones


@dataclass(slots=True)
class Columns:
    """The tensors of a step, an entry per leaf in each list.

    Attributes:
        params: None if the update is wanted, not new parameters.
        grads: Gradients.
        buffers: One list for each buffer of the rule.
    """

    params: Tensors | None
    grads: Tensors
    buffers: list[Tensors]

    def all(self) -> Iterator[Tensors]:
        """Every list that is there."""
        if self.params is not None:
            yield self.params
        yield self.grads
        yield from self.buffers


class Call:
    """A step in place, all its checks done: of the parameters, or of the buffers alone.

    Args:
        who: Name for errors.
        rule: The rule.
        scalars: Those around the rule, and its hyperparameters in order.
        columns: What is overwritten, gradients apart.
        count: The number of updates, this one included, read when the step is taken.
        where: What says in errors where a tensor stands.

    Raises:
        RuntimeError: No kernels for that device, a tensor of inference mode outside of it, or a
            count that a captured graph would repeat.
        TypeError: A tensor that kernels cannot read.
        ValueError: Tensors that differ.
    """

    def __init__(
        self,
        who: str,
        rule: Rule,
        scalars: Sequence[Scalar],
        columns: Columns,
        count: torch.Tensor | None,
        where: Where | None,
    ) -> None:
        self._who, self._rule, self._scalars = who, rule, scalars
        self._columns, self._count, self._where = columns, count, where
        self._module = _checked(who, columns.grads, where)
        self._written = [*chain.from_iterable(_written_columns(columns))]
        refuse_frozen_count(who, count, columns.grads[0].device)
        self._updates = None
        if columns.params is None:
            self._updates = _like(columns.grads)
        self._prepared = self._prepare(columns, self._updates, where)
        self._inference = torch.is_inference_mode_enabled()
        _check_written(who, columns, where)

    def again(self, scalars: Sequence[Scalar], grads: Tensors) -> bool:
        """Make it the next step of the same parameters; False if it takes a new call.

        Raises:
            RuntimeError, TypeError, ValueError: As at the start.
        """
        columns = self._columns
        if self._prepared is None:
            return False
        _checked(self._who, grads, self._where)
        refuse_frozen_count(self._who, self._count, grads[0].device)
        self._scalars, self._columns = scalars, Columns(columns.params, grads, columns.buffers)
        # a tensor that may not be written has other memory: asking each costs a third of a step
        return (
            self._prepared.again(scalars, columns.params, grads, columns.buffers, self._updates)
            and torch.is_inference_mode_enabled() is self._inference
        )

    def _prepare(self, columns: Columns, updates: Tensors | None, where: Where | None) -> Any:
        return _described(
            self._who,
            self._module.prepare,
            self._rule.number,
            self._scalars,
            columns.params,
            columns.grads,
            columns.buffers,
            updates,
            where,
        )

    def check_apart(self, calls: Sequence[Call]) -> None:
        """Refuse calls, this one among them, that write what another or they themselves hold.

        Raises:
            ValueError: Memory in common.
        """
        for module in {call._module for call in calls}:
            prepared = [call._prepared for call in calls if call._module is module]
            _described(self._who, module.refuse_overlaps, prepared)

    def __call__(self) -> Tensors | None:
        """Take the step; the updates, unless the parameters were moved."""
        columns = self._columns
        # one that may come again keeps no gradients alive
        self._columns = Columns(columns.params, [], columns.buffers)
        count = _count_now(self._count, columns.grads[0].device)
        _announce(self._written)
        uneven = self._prepared.uneven
        if not uneven:
            self._prepared.run(count, _stream(columns))
            return self._updates
        self._prepared = None  # not run, so that it would go on holding gradients
        even, out = _evened(columns, uneven), self._updates
        if out is not None:
            out = self._updates = _even(out, uneven)
        self._prepare(even, out, None).run(count, _stream(columns))
        pairs = zip(_written_columns(columns), _written_columns(even), strict=True)
        for target, made in pairs:
            for leaf in uneven:
                if made[leaf] is not target[leaf]:
                    target[leaf].copy_(made[leaf])
        return out


def compute(
    who: str,
    rule: Rule,
    scalars: Sequence[Scalar],
    columns: Columns,
    where: Where | None = None,
) -> tuple[Tensors, list[Tensors]]:
    """One step out of place: new parameters (or updates) and new buffers."""
    module, stream = _checked(who, columns.grads, where), _stream(columns)
    _refuse_negated(who, "params", 0, columns.params or (), where)
    for k, buffer in enumerate(columns.buffers):
        _refuse_negated(who, "buffers", k, buffer, where)
    uneven: Any = ()
    while True:
        first = columns.grads if columns.params is None else columns.params
        out, fresh = _like(first), [_like(buffer) for buffer in columns.buffers]
        uneven = _described(
            who,
            module.step,
            rule.number,
            scalars,
            columns.params,
            columns.grads,
            columns.buffers,
            out,
            fresh,
            stream,
            where,
        )
        if not uneven:
            return out, fresh
        columns = _evened(columns, uneven)


def pull_back(
    who: str,
    rule: Rule,
    scalars: Sequence[Scalar],
    columns: Columns,
    steps: bool,
    cotangents: Sequence[list[torch.Tensor | None]],
    wanted: Sequence[bool],
    scalars_too: bool,
) -> tuple[list[Tensors | None], torch.Tensor | None]:
    """Cotangents of parameters, gradients and buffers from those of a step's results.

    Args:
        who: Name for errors.
        rule: The rule.
        scalars: Those around the rule and its own.
        columns: Where it was taken; ``params`` are needed only where they decay.
        steps: Whether the first result was new parameters.
        cotangents: Of the parameters (or updates) and of each buffer.
        wanted: Which of the columns (parameters, gradients, buffers) want one.
        scalars_too: Whether the derivatives in the scalars are wanted.

    Returns:
        A list or None for each column, and the derivatives in the scalars.
    """
    module, stream = _checked(who, columns.grads, None), _stream(columns)
    cotangents = [_resolved(column) for column in cotangents]
    partials = None
    if scalars_too:
        shape = module.chunks(columns.grads), module.SCALARS
        partials = torch.zeros(shape, dtype=torch.float64, device=columns.grads[0].device)
    likes = [columns.params or columns.grads, columns.grads, *columns.buffers]
    found = [_like(like) if want else None for like, want in zip(likes, wanted, strict=True)]
    while True:
        uneven = _described(
            who,
            module.step_backward,
            rule.number,
            scalars,
            columns.params,
            columns.grads,
            columns.buffers,
            steps,
            cotangents[0],
            cotangents[1:],
            found[0],
            found[1],
            found[2:],
            partials,
            stream,
        )
        if not uneven:
            return found, None if partials is None else partials.sum(0)
        columns = _evened(columns, uneven)
        cotangents = [_even(column, uneven) for column in cotangents]
        found = [None if column is None else _even(column, uneven) for column in found]


def _described(who: str, function: Any, *arguments: Any) -> Any:
    """What the compiled function says, with who was asked before it."""
    try:
        return function(*arguments)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{who}: {error}") from None


def _written_columns(columns: Columns) -> list[Tensors]:
    return columns.buffers if columns.params is None else [columns.params, *columns.buffers]


def _check_written(who: str, columns: Columns, where: Where | None) -> None:
    """Refuse the tensor that holds no values of its own, or that nobody may write."""
    frozen = not torch.is_inference_mode_enabled()
    named = [("params", 0, columns.params or [])]
    named += [("buffers", k, buffer) for k, buffer in enumerate(columns.buffers)]
    for name, k, column in named:
        _refuse_negated(who, name, k, column, where)
        if frozen and any(map(torch.Tensor.is_inference, column)):
            place = _place(name, k, [*map(torch.Tensor.is_inference, column)], where)
            raise RuntimeError(
                f"{who}: expected tensors that may be written, got one made in inference mode, at "
                f"{place}; clone it outside"
            )


def refuse_frozen_count(who: str, count: torch.Tensor | None, device: torch.device) -> None:
    """Refuse a count that a captured graph would not advance.

    Raises:
        RuntimeError: It is on the CPU, and a CUDA graph is captured.
    """
    if count is None or device.type != "cuda" or count.is_cuda:
        return
    with torch.cuda.device(device):
        capturing = torch.cuda.is_current_stream_capturing()
    if capturing:
        raise RuntimeError(
            f"{who}: expected no step count on the CPU while a CUDA graph is captured, got one, "
            "which every replay would repeat; move the counts of the state to the GPU before"
        )


def _count_now(count: torch.Tensor | None, device: torch.device) -> float | torch.Tensor:
    """A number, or a tensor for the kernel to read: nothing waits for a GPU."""
    if count is None:
        return 1.0
    if count.is_cuda and device.type == "cuda":
        return count.to(device, torch.int64)
    return float(count)


def _announce(written: Tensors) -> None:
    """Let autograd know; it refuses what may not be written."""
    if torch.is_inference_mode_enabled():  # tensors made here have no version
        written = [tensor for tensor in written if not tensor.is_inference()]
    torch.autograd.graph.increment_version(written)


def _traced() -> bool:
    """Whether a tracer records operations: it would not see what a kernel writes."""
    proxy = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY)
    return proxy is not None or torch._C._get_tracing_state() is not None


def _checked(who: str, grads: Tensors, where: Where | None) -> ModuleType:
    if _traced():
        raise RuntimeError(
            f"{who}: expected no tracer (torch.jit.trace, make_fx), got one, which cannot see "
            "kernels; leave use_accelerated_op out"
        )
    _refuse_negated(who, "grads", 0, grads, where)
    return module_for(who, grads[0].device)


def _refuse_negated(
    who: str, name: str, k: int, tensors: Sequence[torch.Tensor], where: Where | None
) -> None:
    if any(map(torch.Tensor.is_neg, tensors)):
        place = _place(name, k, [*map(torch.Tensor.is_neg, tensors)], where)
        raise TypeError(
            f"{who}: expected tensors that hold their values, got a lazily negated view, at "
            f"{place}; call .resolve_neg()"
        )


def _place(name: str, k: int, found: Sequence[bool], where: Where | None) -> str:
    """Where the first one stands of those that were found."""
    leaf = found.index(True)
    return f"{name}[{leaf}]" if where is None else where(name, k, leaf)


def _resolved(cotangents: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """The same without lazily negated views, which complex arithmetic gives."""
    if any(map(torch.Tensor.is_neg, filter(_is_tensor, cotangents))):
        return [None if c is None else c.resolve_neg() for c in cotangents]
    return cotangents


def _is_tensor(value: torch.Tensor | None) -> bool:
    return value is not None


def _like(tensors: Tensors) -> Tensors:
    return [*map(torch.empty_like, tensors)]


def _stream(columns: Columns) -> int:
    first = columns.grads[0]
    if first.is_cuda:
        return torch.cuda.current_stream(first.device).cuda_stream
    torch.get_num_threads()  # asked in a new thread, torch sets OpenMP's number to its own
    return 0


def _evened(columns: Columns, leaves: Sequence[int]) -> Columns:
    params = None if columns.params is None else _even(columns.params, leaves)
    buffers = [_even(buffer, leaves) for buffer in columns.buffers]
    return Columns(params, _even(columns.grads, leaves), buffers)


def _even(tensors: Sequence[Any], leaves: Sequence[int]) -> list[Any]:
    """The list with some leaves contiguous; the originals where they are so already."""
    result = list(tensors)
    for leaf in leaves:
        tensor = result[leaf]
        if tensor is not None and not tensor.is_contiguous():
            result[leaf] = tensor.detach().contiguous()
    return result
