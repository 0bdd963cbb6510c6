# SPDX-License-Identifier: Apache-2.0
"""`parallelize`: a function of a batch, run chunk by chunk by all workers, gradient included."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.futures import Future

from optdist import _chunk, _engine, _program
from optdist._dispatch import Call, Chunk, Plan, Policy
from optdist._modes import check_no_transform
from optdist._partition import TensorDimensionPartitioner, batch_partitioner
from optdist._reduce import Reducer, mean_reducer, shares_of, weighted_sum
from optdist._report import Report
from optdist._session import log
from optdist._waiting import check_seconds, in_thread
from optdist._wrapping import only_function

UNSET_TIMEOUT: float | None = None


def parallelize(
    partitioner: Any = None,
    reducer: Reducer | None = None,
    timeout: float | None = UNSET_TIMEOUT,
    *,
    replicate: Sequence[int | str] = (),
    chunks_per_worker: int = 1,
    on_worker_lost: str = "redispatch",
    min_workers: int = 1,
    engine: str | None = None,
) -> Callable[[Callable[..., Any]], ParallelFunction]:
    r"""Run a function of a batch in chunks on all workers, and differentiate it there.

    The caller sees one value with a gradient, as if it had called the function itself:

    .. math:: L(\theta, B) = \sum_i \frac{|B_i|}{|B|} L(\theta, B_i)

    Each worker gets the tensors that all chunks need once a call, and its rows; it runs forward
    *and* backward and sends back a number and a gradient. Derivatives inside the function may
    have any order; the result has one.

    A chunk is a function of its arguments and of random numbers seeded for it: what it changes
    (batch statistics, attributes, globals) stays behind. The function is found by its name in the
    other processes, so it must stand at the top level of a module. It returns a scalar tensor or
    ``(scalar, aux)``; the caller then gets ``(value, [aux of chunk 0, ...])``, tensors on the CPU.

    Args:
        partitioner: How arguments are split: :data:`batch_partitioner` by default; a rank or name
            sends the whole call to one worker; a function ``(*args, **kwargs) -> [(rank, args,
            kwargs), ...]`` makes chunks of its own.
        reducer: Of the chunks' results; :func:`mean_reducer`, weighted by rows, by default. Other
            functions get a list of scalars (or of whatever the function returns, without
            gradient).
        timeout: Seconds for each chunk on another worker; RPC's (60) by default.
        replicate: Names or positions of arguments that every worker gets whole. Modules, remote
            references and tensors without dimensions always are.
        chunks_per_worker: More than one for uneven tasks: who is done takes the next.
        on_worker_lost: ``"redispatch"`` runs a lost or late worker's chunk elsewhere, in the end
            here; ``"raise"`` raises.
        min_workers: Raise when fewer are left, the caller included.
        engine: ``"rpc"``, ``"local"`` (everything in this process), or whichever is there;
            ``"ray"`` for a Ray that runs (``pip install optdist[ray]``), which places chunks and
            repeats lost ones itself.

    Differentiable: in all tensors that require grad, in modules too, once: ``create_graph=True``
    through it raises.

    Raises:
        ValueError: an option is wrong, or the arguments have no rows, or not the same number.
        TypeError: an option is wrong, the function or an argument cannot be sent, or the result is
            not a scalar, or depends on a global or closed-over tensor that requires grad.
        ImportError: ``engine="ray"`` where Ray is not installed.
        RuntimeError: the engine asked for does not run, or a transform of ``torch.func`` or
            forward-mode AD is around the call.
        WorkerLostError: too few workers, or one lost with ``on_worker_lost="raise"``.
        WorkerTimeoutError: one was late with ``on_worker_lost="raise"``.

    Example:
        >>> @parallelize()
        ... def loss(model, x):
        ...     return model(x).square().mean()
        >>> model, x = torch.nn.Linear(3, 1), torch.ones(4, 3)
        >>> loss(model, x).backward()
        >>> model.weight.grad.shape, loss.last_report.chunks
        (torch.Size([1, 3]), 1)
    """
    options = _options(
        partitioner, reducer, timeout, replicate, chunks_per_worker, on_worker_lost, min_workers,
        engine,
    )  # fmt: skip

    def decorate(*decorated: Callable[..., Any], **named: Any) -> ParallelFunction:
        return ParallelFunction(only_function("parallelize", decorated, named), **options)

    return decorate


def parallelize_async(
    partitioner: Any = None,
    reducer: Reducer | None = None,
    timeout: float | None = UNSET_TIMEOUT,
    *,
    replicate: Sequence[int | str] = (),
    chunks_per_worker: int = 1,
    on_worker_lost: str = "redispatch",
    min_workers: int = 1,
    engine: str | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Future[Any]]]:
    """Like :func:`parallelize`, but a call returns at once, a ``torch.futures.Future``.

    What is wrong with the call is raised by it. The chunks run on other workers while there are
    any; alone, in a thread here, which shares torch's generator of random numbers.

    Example:
        >>> @parallelize_async()
        ... def loss(w, x):
        ...     return (w * x).mean()
        >>> w = torch.tensor(2.0, requires_grad=True)
        >>> loss(w, torch.ones(3)).wait()
        tensor(2., grad_fn=<_ChunksBackward>)
    """
    options = _options(
        partitioner, reducer, timeout, replicate, chunks_per_worker, on_worker_lost, min_workers,
        engine,
    )  # fmt: skip

    def decorate(*decorated: Callable[..., Any], **named: Any) -> AsyncParallelFunction:
        func = only_function("parallelize_async", decorated, named)
        return AsyncParallelFunction(func, **options)

    return decorate


def _options(
    partitioner: Any,
    reducer: Reducer | None,
    timeout: float | None,
    replicate: Sequence[int | str],
    chunks_per_worker: int,
    on_worker_lost: str,
    min_workers: int,
    engine: str | None,
) -> dict[str, Any]:
    who = "parallelize"
    partitioner = batch_partitioner if partitioner is None else partitioner
    if isinstance(partitioner, bool) or not (
        callable(partitioner) or isinstance(partitioner, (int, str))
    ):
        raise TypeError(
            f"{who}: expected a partitioner, a rank or a name, got {type(partitioner).__name__}"
        )
    if reducer is not None and not callable(reducer):
        raise TypeError(f"{who}: expected a function as reducer, got {type(reducer).__name__}")
    if timeout is not None:
        check_seconds(who, "a timeout", timeout)
    if isinstance(replicate, str):
        raise TypeError(f"{who}: expected a sequence for replicate, got a string; [{replicate!r}]?")
    for name, number in (("chunks_per_worker", chunks_per_worker), ("min_workers", min_workers)):
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"{who}: expected an integer for {name}, got {number!r}")
    if chunks_per_worker < 1:
        raise ValueError(f"{who}: expected chunks_per_worker >= 1, got {chunks_per_worker}")
    if on_worker_lost not in ("redispatch", "raise"):
        raise ValueError(
            f"{who}: expected on_worker_lost 'redispatch' or 'raise', got {on_worker_lost!r}"
        )
    if min_workers < 1:
        raise ValueError(f"{who}: expected min_workers >= 1, got {min_workers}")
    if engine not in (None, "local", "rpc", "ray"):
        raise ValueError(f"{who}: expected engine 'local', 'rpc', 'ray' or None, got {engine!r}")
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        raise ImportError(f"{who}(engine='ray'): ray is not installed; pip install 'optdist[ray]'")
    return {
        "partitioner": partitioner,
        "reducer": mean_reducer if reducer is None else reducer,
        "policy": Policy(timeout, on_worker_lost == "redispatch", min_workers),
        "replicate": tuple(replicate),
        "chunks_per_worker": chunks_per_worker,
        "engine": engine,
    }


class ParallelFunction:
    """A function under :func:`parallelize`; ``last_report`` tells what its last call took."""

    def __init__(
        self,
        func: Callable[..., Any],
        *,
        partitioner: Any,
        reducer: Reducer,
        policy: Policy,
        replicate: tuple[int | str, ...],
        chunks_per_worker: int,
        engine: str | None,
    ) -> None:
        functools.update_wrapper(self, func)
        self.optdist_function = func
        self.last_report: Report | None = None
        self._partitioner, self._reducer, self._policy = partitioner, reducer, policy
        self._chunks_per_worker, self._engine, self._plan = chunks_per_worker, engine, Plan()
        inherited = partitioner.replicate if _splits(partitioner) else ()
        self._positions = _positions(func, (*replicate, *inherited))
        self.__doc__ = func.__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the chunks; return the reduced value, or ``(value, [aux, ...])``."""
        return self._run(*self._call(args, kwargs))

    def _call(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], aside: bool = False
    ) -> tuple[Call, list[float] | None, list[int] | None]:
        """Check and write what is to be sent; return it, what chunks count, and who runs them."""
        who = getattr(self, "__name__", "parallelize")
        check_no_transform(who)
        engine = _engine.choose(self._engine)
        chunks, whole, rows, members = self._chunks(who, engine, args, kwargs)
        shares = shares_of(self._reducer, rows, len(chunks))
        call = Call(
            self.optdist_function,
            who,
            engine,
            self._plan,
            chunks,
            whole,
            self._policy,
            scalar=shares is not None,
            aside=aside,
        )
        call.report.rows = sum(rows) if rows else None
        return call, shares, members

    def _run(self, call: Call, shares: list[float] | None, members: list[int] | None) -> Any:
        call.run(members)
        self.last_report = call.report
        log.debug("optdist: %s: %s", call.who, call.report)
        return self._value(call, shares)

    def _chunks(
        self, who: str, engine: _engine.Engine, args: Any, kwargs: Any
    ) -> tuple[list[Chunk], list[torch.Tensor], list[int] | None, list[int] | None]:
        """Return the chunks, tensors for all of them, rows of each, and the workers that run."""
        part = self._partitioner
        address = engine.address(self.optdist_function, who)
        write = functools.partial(_program.write, writer=engine.writer)
        if _splits(part):
            members = None if part.workers is None else engine.ranks(part.workers)
            count = len(engine.live() if members is None else members) * self._chunks_per_worker
            split = part.split(who, args, kwargs, max(count, 1), self._positions)
            program, whole = write(address, split.args, split.kwargs, who)
            pieces = [Chunk(program, rows) for rows in split.pieces]
            return pieces, whole, split.sizes, members
        if isinstance(part, (int, str)):
            (rank,) = members = engine.ranks([part])
            program, whole = write(address, args, kwargs, who)
            return [Chunk(program, [], rank)], whole, None, members
        parts = [(rank, args or (), kwargs or {}) for rank, args, kwargs in part(*args, **kwargs)]
        if not parts:
            raise ValueError(f"{who}: expected at least one part from the partitioner, got none")
        members = engine.ranks([rank for rank, _, _ in parts])
        # Which tensors parts have in common is not known: all are a part's own.
        written = [write(address, a, k, who, "row") for _, a, k in parts]
        chunks = [Chunk(*found, rank) for found, rank in zip(written, members, strict=True)]
        return chunks, [], None, list(dict.fromkeys(members))

    def _value(self, call: Call, shares: list[float] | None) -> Any:
        results = [call.results[index] for index in range(len(call.chunks))]
        auxes = [pickle.loads(r.aux) if r.has_aux else None for r in results]
        if any(result.value is None for result in results):
            return self._reducer(auxes)
        value = _differentiable(call, results, shares)
        if shares is None:
            value = self._reducer(list(value.unbind()))
        return (value, auxes) if any(result.has_aux for result in results) else value


class AsyncParallelFunction(ParallelFunction):
    """A function under :func:`parallelize_async`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Future[Any]:
        """Start the chunks; return a future of the reduced value."""
        # Whatever depends on this thread, its modes and random numbers, is read now.
        call, shares, members = self._call(args, kwargs, aside=True)
        inside = _chunk.is_inside()

        def run() -> Any:
            _chunk.mark_inside(inside)
            with torch.set_grad_enabled(call.modes.grad_enabled):
                return self._run(call, shares, members)

        return in_thread(run, "optdist-call")


def _splits(partitioner: Any) -> bool:
    return isinstance(partitioner, TensorDimensionPartitioner)


def _positions(func: Callable[..., Any], replicate: Sequence[int | str]) -> set[int | str]:
    """Return positions beside names, so that an argument is found however it is given."""
    wrong = [e for e in replicate if isinstance(e, bool) or not isinstance(e, (int, str))]
    if wrong:
        raise TypeError(
            f"parallelize: expected names or positions in replicate=, got {type(wrong[0]).__name__}"
        )
    found: set[int | str] = set(replicate)
    try:
        parameters = list(inspect.signature(func).parameters.values())
    except ValueError:  # a builtin does not tell
        return found
    names = [parameter.name for parameter in parameters]
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    more = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters)
    for entry in replicate:
        if isinstance(entry, int):
            if not 0 <= entry < len(names) and not (more and entry > 0):
                raise ValueError(
                    f"parallelize: expected replicate= to number arguments below {len(names)}, "
                    f"got {entry}"
                )
            found.update(names[entry : entry + 1])
        elif entry in names:
            found.add(names.index(str(entry)))
        elif isinstance(entry, str) and not open_ended:
            raise ValueError(
                f"parallelize: expected replicate= to name arguments among {names}, got {entry!r}"
            )
    return found


def _differentiable(
    call: Call, results: list[_chunk.Result], shares: list[float] | None
) -> torch.Tensor:
    """Return the weighted sum of the chunks' values, or a vector of them, with its gradient."""
    values = torch.stack([result.value for result in results if result.value is not None])
    if shares is not None:
        values = weighted_sum(torch.tensor(shares, dtype=torch.float64), values)
    if not any(result.used for result in results):
        return values
    rows = [row for chunk in call.chunks for row in chunk.rows if row.requires_grad]
    inputs = [*(tensor for tensor in call.whole if tensor.requires_grad), *rows]
    gradient = _Gradient(call, results, shares)
    return _Chunks.apply(gradient, values, *inputs)


class _Gradient:
    """What the chunks sent: the sum if their shares are known, else one by one."""

    def __init__(
        self, call: Call, results: list[_chunk.Result], shares: list[float] | None
    ) -> None:
        self.layout, self.shares = call.learned, shares
        learned = len(call.learned.specs)
        order = sorted(call.gradients)
        self.flats = {index: call.gradients[index] for index in order}
        if shares is not None and learned:
            total = self.layout.weighted_sum(list(self.flats.values()), [shares[i] for i in order])
            self.flats = {0: total}
        used = [result.used for result in results if result.used]
        self.whole_used = [any(flags[i] for flags in used) for i in range(learned)]
        self.rows: list[tuple[int, torch.Tensor | None, str]] = []  # chunk, gradient, device
        for index, (chunk, result) in enumerate(zip(call.chunks, results, strict=True)):
            learning = [row for row in chunk.rows if row.requires_grad]
            flags = result.used[learned:] or (False,) * len(learning)
            grads = result.row_grads or [torch.empty(0)] * len(learning)
            for row, flag, grad in zip(learning, flags, grads, strict=True):
                self.rows.append((index, grad if flag else None, str(row.device)))

    def scaled(self, outer: torch.Tensor) -> list[torch.Tensor | None]:
        """Return the gradient of every input, times that of the value or the vector of values."""
        numbers = outer.cpu().reshape(-1).tolist()
        if self.shares is None:
            weights = {index: numbers[index] for index in self.flats}
        else:
            weights = dict.fromkeys(self.flats, numbers[0])
            numbers = [share * numbers[0] for share in self.shares]
        total = self.layout.weighted_sum(list(self.flats.values()), list(weights.values()))
        whole: list[torch.Tensor | None] = [
            grad.to(spec.device) if used else None
            for grad, spec, used in zip(
                self.layout.unpack(total), self.layout.specs, self.whole_used, strict=True
            )
        ]
        return whole + [
            None if grad is None else (grad * numbers[index]).to(device)
            for index, grad, device in self.rows
        ]


class _Chunks(torch.autograd.Function):
    """Values computed elsewhere, with gradients that came along."""

    @staticmethod
    def forward(
        ctx: Any, gradient: _Gradient, values: torch.Tensor, *inputs: torch.Tensor
    ) -> torch.Tensor:
        ctx.gradient = gradient
        return values.clone()

    @staticmethod
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "parallelize: expected a first derivative, got create_graph=True; higher ones do "
                "not cross processes: take them inside the parallelized function"
            )
        return (None, None, *ctx.gradient.scaled(outer))
