# SPDX-License-Identifier: Apache-2.0
"""Calls of the compiled modules: memory for the results, and columns that do not lie alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any, TypeAlias

import torch

from optcore_accel._devices import is_available, module_for
from optcore_accel._rules import Rule, Scalar

Tensors: TypeAlias = "list[torch.Tensor]"
SIGN, L2, DECAY, LR, OUTER = range(5)  # scalars around the rule: the first ones


@dataclass(frozen=True)
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


def overwrite(
    who: str,
    rule: Rule,
    scalars: Sequence[Scalar],
    columns: Columns,
    checked: bool = False,
) -> Tensors | None:
    """One step in place: of the parameters, or of the buffers alone, giving the updates.

    What is refused is refused before anything changes; ``checked``: :func:`check` was asked.
    """
    device = columns.grads[0].device
    module = module_for(who, device) if checked else _checked(who, columns)
    before = partial(_announce, _written(columns))
    stream = _stream(columns)
    out = columns.params
    if out is None:
        out = _like(columns.grads)
    own = columns.buffers
    uneven = _run(who, module, rule, scalars, columns, out, own, stream, before, checked)
    if uneven:
        even, even_out = _evened(columns, uneven), _even(out, uneven)
        if columns.params is not None:
            even_out = even.params
        _run(who, module, rule, scalars, even, even_out, even.buffers, stream, before, checked)
        for target, made in zip((out, *columns.buffers), (even_out, *even.buffers), strict=True):
            for leaf in uneven:
                if made[leaf] is not target[leaf]:
                    target[leaf].copy_(made[leaf])
    return out if columns.params is None else None


def check(who: str, columns: Columns) -> None:
    """Refuse what :func:`overwrite` would refuse.

    Raises:
        RuntimeError: No kernels for that device, or a tensor of inference mode outside of it.
        TypeError: A tensor that kernels cannot read.
        ValueError: Tensors that differ, or share memory.
    """
    module = _checked(who, columns)
    _described(who, module.check, columns.params, columns.grads, columns.buffers)
    _refuse_negated(who, "parameters", columns.params or ())
    for column in columns.buffers:
        _refuse_negated(who, "buffers", column)
    if not torch.is_inference_mode_enabled():
        for column in (columns.params or (), *columns.buffers):
            if any(map(torch.Tensor.is_inference, column)):
                raise RuntimeError(
                    f"{who}: expected tensors that may be written, got one made in inference "
                    "mode; clone it outside"
                )


def prepared(rule: Rule, columns: Columns) -> Callable[[Sequence[Scalar]], None] | None:
    """A step of the parameters in place that needs no word and no copy; else None.

    All checks are done. What is returned takes the step, given the scalars.
    """
    device = columns.grads[0].device
    written = _written(columns)
    if not is_available(device) or _traced() or any(map(torch.Tensor.is_neg, columns.grads)):
        return None
    if any(map(torch.Tensor.is_neg, written)) or any(map(torch.Tensor.is_inference, written)):
        return None
    module = module_for(rule.name, device)
    ready = module.prepare(rule.number, columns.params, columns.grads, columns.buffers)
    if ready is None:
        return None

    def run(scalars: Sequence[Scalar]) -> None:
        _announce(written)
        ready.run(scalars, _stream(columns))

    return run


def compute(
    who: str, rule: Rule, scalars: Sequence[Scalar], columns: Columns
) -> tuple[Tensors, list[Tensors]]:
    """One step out of place: new parameters (or updates) and new buffers."""
    module, stream = _checked(who, columns), _stream(columns)
    _refuse_negated(who, "parameters", columns.params or ())
    uneven: Any = ()
    while True:
        first = columns.grads if columns.params is None else columns.params
        out, fresh = _like(first), [_like(buffer) for buffer in columns.buffers]
        uneven = _run(who, module, rule, scalars, columns, out, fresh, stream)
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
    module, stream = _checked(who, columns), _stream(columns)
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


def _run(
    who: str,
    module: ModuleType,
    rule: Rule,
    scalars: Sequence[Scalar],
    columns: Columns,
    out: Tensors,
    fresh: list[Tensors],
    stream: int,
    before: Any = None,
    checked: bool = False,
) -> list[int] | None:
    return _described(
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
        before,
        checked,
    )


def _described(who: str, function: Any, *arguments: Any) -> list[int] | None:
    """What the compiled function says, with who was asked before it."""
    try:
        return function(*arguments)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{who}: {error}") from None


def _written(columns: Columns) -> Tensors:
    written = list(columns.params or ())
    for buffer in columns.buffers:
        written += buffer
    return written


def _announce(written: Tensors) -> None:
    """Let autograd know; it refuses what may not be written."""
    if torch.is_inference_mode_enabled():  # tensors made here have no version
        written = [tensor for tensor in written if not tensor.is_inference()]
    torch.autograd.graph.increment_version(written)


def _traced() -> bool:
    """Whether a tracer records operations: it would not see what a kernel writes."""
    proxy = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY)
    return proxy is not None or torch._C._get_tracing_state() is not None


def _checked(who: str, columns: Columns) -> ModuleType:
    if _traced():
        raise RuntimeError(
            f"{who}: expected no tracer (torch.jit.trace, make_fx), got one, which cannot see "
            "kernels; leave use_accelerated_op out"
        )
    _refuse_negated(who, "gradients", columns.grads)
    return module_for(who, columns.grads[0].device)


def _refuse_negated(who: str, name: str, tensors: Iterable[torch.Tensor]) -> None:
    if any(map(torch.Tensor.is_neg, tensors)):
        raise TypeError(
            f"{who}: expected {name} that hold their values, got a lazily negated view; call "
            ".resolve_neg()"
        )


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
