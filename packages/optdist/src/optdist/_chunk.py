# SPDX-License-Identifier: Apache-2.0
"""One chunk of a call, forward and backward, wherever it runs: the worker's side."""

from __future__ import annotations

import contextlib
import pickle
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from optdist import _program, _shared
from optdist._flat import Layout, Spec
from optdist._modes import Modes
from optdist._outside import check_nothing_outside

Dumps = Callable[[Any], bytes]
KEPT = 16  # parameter sets of so many callers stay with a worker
one_at_a_time = threading.Lock()  # chunks share a generator and, most of all, a core
_inside = threading.local()


class Job(NamedTuple):
    """A chunk on its way to a worker."""

    who: str
    program: bytes
    whole: tuple[Spec, ...]  # of tensors that every chunk gets
    rows: tuple[Spec, ...]  # of those that are this chunk's own
    row_values: list[torch.Tensor]
    seed: int
    modes: Modes
    differentiate: bool
    scalar: bool  # the result must be one
    plan: tuple[int, int]  # which caller's which function
    call: int
    flat: torch.Tensor | None  # the whole tensors; None: they came before, or are in the segment
    segment: tuple[_shared.Handle, int] | None  # where the gradient goes


class Result(NamedTuple):
    """What a chunk gives back."""

    value: torch.Tensor | None  # a number, or None where aux is all of it
    has_aux: bool
    aux: bytes
    used: tuple[bool, ...]  # per input that requires grad; empty: no gradient
    flat: torch.Tensor | None  # of whole tensors; None: it is in the segment
    row_grads: list[torch.Tensor]
    seconds: float


class Failed(NamedTuple):
    """An exception of the user's function on its way to the caller."""

    error: bytes
    text: str


class Missing(NamedTuple):
    """The worker does not have, or cannot reach, the tensors: send them along."""

    shared: bool


class RemoteTraceback(Exception):
    """Shows where an exception was raised in the other process."""


def is_inside() -> bool:
    """Tell whether this thread runs a chunk: calls inside stay here."""
    return getattr(_inside, "depth", 0) > 0


def mark_inside(inside: bool) -> None:
    """Let a new thread know that it works for a chunk."""
    _inside.depth = int(inside)


def run_here(job: Job, flat: torch.Tensor, func: Callable[..., Any]) -> Result:
    """Run a chunk in the process that called."""
    if is_inside():
        return _run(job, flat, None, func)
    with one_at_a_time:
        return _run(job, flat, None, func)


def _run(
    job: Job,
    flat: torch.Tensor,
    out: torch.Tensor | None,
    func: Callable[..., Any] | None = None,
    dumps: Dumps = pickle.dumps,
) -> Result:
    """Run a chunk; its gradient for whole tensors goes to ``out`` or into the result."""
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_seeded(job.seed))
        # A chunk must not see what another changed: every one gets its own copy.
        values = Layout(job.whole).unpack(flat.clone())
        whole = [spec.revive(value) for spec, value in zip(job.whole, values, strict=True)]
        rows = [s.revive(v.clone()) for s, v in zip(job.rows, job.row_values, strict=True)]
        address, args, kwargs = _program.read(job.program, whole, rows)
        # What carries tensors of its own (a bound method, a module, a partial) came with copies
        # of them, which gradients are for: the original would give them none.
        if func is None or not (address is None or isinstance(address, tuple)):
            func = _program.find(address)
        with job.modes.entered():
            value, has_aux, aux = _checked(func(*args, **kwargs), job, dumps)
        del args, kwargs
        if value is not None and value.requires_grad:
            check_nothing_outside(job.who, func, value, [*whole, *rows])
        used: tuple[bool, ...] = ()
        gradient, row_grads = None, []
        if job.differentiate and value is not None and value.requires_grad:
            used, gradient, row_grads = _gradients(value, whole, rows, out)
    number = None if value is None else value.detach().cpu()
    elapsed = time.perf_counter() - started
    return Result(number, has_aux, aux, used, gradient, row_grads, elapsed)


def _gradients(
    value: torch.Tensor,
    whole: list[torch.Tensor],
    rows: list[torch.Tensor],
    out: torch.Tensor | None,
) -> tuple[tuple[bool, ...], torch.Tensor | None, list[torch.Tensor]]:
    learned = [t for t in whole if t.requires_grad]
    inputs = [*learned, *(t for t in rows if t.requires_grad)]
    found = torch.autograd.grad(value.reshape(()), inputs, allow_unused=True)
    # Sparse gradients (of embeddings) come as dense ones: the buffer is.
    grads = [
        torch.zeros_like(t) if g is None else g.to_dense() if g.is_sparse else g
        for t, g in zip(inputs, found, strict=True)
    ]
    layout = Layout([Spec.of(t) for t in learned])
    buffer = torch.empty(layout.nbytes, dtype=torch.uint8) if out is None else out
    layout.pack(grads[: len(learned)], buffer)
    row_grads = [g.detach().cpu() for g in grads[len(learned) :]]
    return tuple(g is not None for g in found), buffer if out is None else None, row_grads


def _checked(result: Any, job: Job, dumps: Dumps) -> tuple[torch.Tensor | None, bool, bytes]:
    """Take a result apart into the number, whether there is more, and the rest as bytes."""
    pair = isinstance(result, tuple) and len(result) == 2 and _is_scalar(result[0])
    if _is_scalar(result):
        return result, False, b""
    if pair:
        return result[0], True, dumps(_detached(result[1]))
    if job.scalar:
        raise TypeError(
            f"{job.who}: expected a floating scalar tensor, or (scalar, aux), from each chunk, got "
            f"{_described(result)}; return a loss, or give a reducer that takes such results"
        )
    leaves: list[bool] = []
    _program.tree_map(lambda x: leaves.append(getattr(x, "requires_grad", False)), result)
    if any(leaves):
        raise TypeError(
            f"{job.who}: expected one scalar from each chunk where gradients are wanted, got "
            f"{_described(result)} that requires grad; return a loss, or detach it"
        )
    return None, True, dumps(_detached(result))


def _is_scalar(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.numel() == 1 and value.is_floating_point()


def _described(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return type(value).__name__


def _detached(tree: Any) -> Any:
    return _program.tree_map(lambda x: x.detach().cpu() if isinstance(x, torch.Tensor) else x, tree)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Give the chunk random numbers of its own, the same wherever it runs."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    _inside.depth = getattr(_inside, "depth", 0) + 1
    try:
        with torch.random.fork_rng(devices=devices):
            if torch.cuda.is_available():
                torch.manual_seed(seed)
            else:  # saves 0.35 ms: the other records a traceback for each kind of sleeping device
                torch.default_generator.manual_seed(seed)
            yield
    finally:
        _inside.depth -= 1


_flats: OrderedDict[tuple[int, int], tuple[int, torch.Tensor]] = OrderedDict()
_segments: OrderedDict[tuple[int, int], tuple[_shared.Handle, torch.Tensor]] = OrderedDict()


def answer(job: Job, dumps: Dumps = pickle.dumps) -> Result | Failed | Missing:
    """Run a chunk that came from elsewhere (called over there by an engine)."""
    with one_at_a_time:
        out = None
        if job.segment is None:
            if job.flat is not None:
                _keep(_flats, job.plan, (job.call, job.flat))
            call, flat = _flats.get(job.plan, (-1, torch.empty(0, dtype=torch.uint8)))
            if call != job.call:
                return Missing(shared=False)
        else:
            handle, start = job.segment
            memory = _attached(job.plan, handle)
            if memory is None:
                return Missing(shared=True)
            flat = memory[: Layout(job.whole).nbytes]
            learned = Layout([spec for spec in job.whole if spec.requires_grad])
            out = memory[start : start + learned.nbytes]
        try:
            return _run(job, flat, out, dumps=dumps)
        except BaseException as error:  # noqa: BLE001 - travels to the caller, who raises it
            return failed(error, dumps)


def failed(error: BaseException, dumps: Dumps = pickle.dumps) -> Failed:
    """Make an exception ready to travel."""
    text = "".join(traceback.format_exception(error))
    try:
        content = dumps(error)
        pickle.loads(content)
    except Exception:  # noqa: BLE001 - whatever the user's exception does when it is copied
        content = pickle.dumps(RuntimeError(f"{type(error).__qualname__}: {error}"))
    return Failed(content, text)


def raised(failed: Failed, worker: str) -> BaseException:
    """Return the exception of another process, with its traceback as the cause."""
    try:
        error = pickle.loads(failed.error)
    except Exception:  # noqa: BLE001 - a class that only the other process has, or worse
        error = RuntimeError(failed.text.strip().splitlines()[-1])
    error.__cause__ = RemoteTraceback(f"on {worker}:\n{failed.text}")
    return error


def _attached(plan: tuple[int, int], handle: _shared.Handle) -> torch.Tensor | None:
    known, memory = _segments.get(plan, (None, None))
    if known == handle:
        return memory
    for other, (old, _) in list(_segments.items()):
        if _shared.is_gone(old):
            del _segments[other]
    memory = _shared.attach(handle)
    if memory is not None:
        _keep(_segments, plan, (handle, memory))
    return memory


def _keep(store: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    store[key] = value
    store.move_to_end(key)
    while len(store) > KEPT:
        store.popitem(last=False)
