# SPDX-License-Identifier: Apache-2.0
"""Kernels of other packages, found through the entry-point group ``optcore.kernels``.

A distribution offers kernels by the entry point ``accel`` of that group. It loads to a mapping
from the name of a transformation (``"scale_by_adam"``, ``"trace"``, ...) to a callable that does
for many leaves what the torch formula of that transformation does for one:

    kernel(grads, *buffers[, counts], inplace=..., **hyperparams) -> (updates, *new_buffers)
    kernel.prepared(grads, *buffers[, counts], where=..., **hyperparams) -> call

* ``grads`` and each of ``buffers`` are lists of tensors, one per leaf, all on one device; within a
  list the dtypes are the same. Buffers come in the order of the state's fields without its count,
  and go back so.
* ``counts``, where the state has one: a list with the same 0-d tensor for every leaf, like
  ``count`` below. It does not go back.
* ``inplace=True``: nothing is differentiated and the buffers may be overwritten and returned.
  ``inplace=False``: nothing is overwritten and the result is differentiable in every tensor given,
  twice, also under ``torch.func``. Neither overwrites a gradient, and no update shares memory with
  a gradient or a buffer.
* ``hyperparams`` go by the names that the transformation gives them: numbers or tensors that
  broadcast to every leaf; flags (``nesterov``) are bools.
* The ops: ``scale_by_adam`` and ``scale_by_amsgrad`` (``b1, b2, eps, eps_root``, counts),
  ``trace`` (``decay, nesterov``; with dampening also ``dampening`` and counts), ``scale_by_rms``
  and ``scale_by_stddev`` (``decay, eps, eps_root``), ``scale_by_rss`` (``eps, eps_root,
  lr_decay``, counts), ``scale_by_lion`` (``b1, b2``).
* What a kernel cannot do it refuses with an error that says why; it never computes something else.
* ``prepared``, which a kernel may have: the call in place with all its checks done.

A ``call`` in place is taken once or, where nothing but values changed, again:

    call() -> updates, or None where the parameters were moved
    call.check_apart(calls) -> None

* ``check_apart`` refuses calls of one step, itself among them, that share memory which one of them
  writes. ``where(name, column, leaf)`` says in errors where a tensor stands: in the ``"params"``,
  the ``"grads"`` or the list with that number among the ``"buffers"``.

Under the name ``step`` the mapping may hold whole steps, with which classes, ``FuncOptimizer`` and
``GradientTransformation.step`` make one call of a chain:

    step(links) -> take or None
    take(params, grads, buffers, count, who=..., where=...) -> (params, buffers)
    take.prepared(params, grads, buffers, count, who=..., where=..., last=None) -> call

* ``links`` pairs the name of each transformation of the chain with its hyperparameters: numbers,
  0-d tensors and flags. None: this chain is not known.
* ``params``, ``grads`` and each of ``buffers`` (those of all links, in order) are lists as above.
* ``count``: a 0-d tensor, the number of updates of these leaves, this one included; or None. A call
  in place reads it when it is taken. It is on the CPU unless its owner moved it, as has to be where
  a CUDA graph is captured: then nothing may wait for it.
* ``take`` is differentiable and overwrites nothing; ``prepared`` overwrites parameters and buffers.
  ``last`` is the call of the step before, on the same lists but for the gradients and made by a
  ``take`` of the same names; it may be given back for this step.

Where a step is no single call, every buffer that its kernels will write is shown to
``step([("scale_by_learning_rate", {"lr": 0.0})]).prepared(buffer, grads, [], None, ...)`` before
anything changes. Such a call is never taken: it only refuses, and takes part in ``check_apart``.

While ``torch.compile`` traces, the torch formula runs: that is what the compiler fuses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple

import torch

from optcore._tree import describe

GROUP = "optcore.kernels"
NAME = "accel"

_BUFFERS = {
    "scale_by_adam": ("mu", "nu"),
    "scale_by_amsgrad": ("mu", "nu", "nu_max"),
    "trace": ("trace",),
    "scale_by_rms": ("nu",),
    "scale_by_stddev": ("mu", "nu"),
    "scale_by_rss": ("sum_of_squares",),
    "scale_by_lion": ("mu",),
}


class Kernel(NamedTuple):
    """A kernel with its flags."""

    run: Callable[..., tuple[Any, ...]]
    prepared: Callable[..., Any] | None
    buffers: tuple[str, ...]  # their names


class KernelsStatus(NamedTuple):
    """What :func:`kernels_status` tells."""

    found: str | None  # the distribution that offers kernels, with its version
    ops: tuple[str, ...]  # the transformations it has kernels for
    reason: str | None  # why there are none


def kernels_status() -> KernelsStatus:
    """Which kernels ``use_accelerated_op=True`` would run, or why there are none.

    Example:
        >>> isinstance(kernels_status().ops, tuple)
        True
    """
    try:
        distribution, kernels = _load()
    except ImportError as error:
        return KernelsStatus(None, (), str(error))
    return KernelsStatus(distribution, tuple(sorted(kernels)), None)


def check_kernels(who: str, use_accelerated_op: bool, *ops: str) -> None:
    """Refuse ``use_accelerated_op=True`` where a kernel for one of ``ops`` is missing.

    Raises:
        ImportError: No kernels are installed, or they do not load.
        NotImplementedError: The installed ones lack this kernel.
        TypeError: ``use_accelerated_op`` is no bool.
    """
    if not isinstance(use_accelerated_op, bool):
        raise TypeError(
            f"{who}: expected use_accelerated_op as a bool, got {describe(use_accelerated_op)}"
        )
    for op in ops if use_accelerated_op else ():
        _kernel(who, op)


def check_one_value(who: str, **hyperparams: Any) -> None:
    """Refuse, for a kernel, hyperparameters with a value per leaf or element.

    Raises:
        NotImplementedError: One has.
    """
    for name, value in hyperparams.items():
        if isinstance(value, (dict, list, tuple)) or getattr(value, "ndim", 0):
            raise NotImplementedError(
                f"{who}(use_accelerated_op=True): expected {name} as one number or 0-d tensor for "
                f"all parameters, got {describe(value)}; leave use_accelerated_op out"
            )


def kernel_for(op: str, use_accelerated_op: bool, **flags: bool) -> Kernel | None:
    """The kernel of a transformation that was told to use one; None while compiling."""
    if not use_accelerated_op or torch.compiler.is_compiling():
        return None
    run = _kernel(op, op)
    prepared = getattr(run, "prepared", None)
    if prepared is not None:
        prepared = partial(prepared, **flags)
    return Kernel(partial(run, **flags), prepared, _BUFFERS[op])


def buffers_of(op: str) -> tuple[str, ...]:
    """What the kernel of a transformation writes, by the names of its state."""
    return _BUFFERS.get(op, ())


def whole_step(links: Sequence[tuple[str, Mapping[str, Any]]]) -> Any | None:
    """What takes a whole step of such a chain, if the installed package has it."""
    if torch.compiler.is_compiling():
        return None
    step = _load()[1].get("step")
    return None if step is None else step(links)


def _kernel(who: str, op: str) -> Callable[..., Any]:
    asked = f"{who}(use_accelerated_op=True)"
    try:
        distribution, kernels = _load()
    except ImportError as error:
        raise ImportError(f"{asked}: {error}") from error
    if op not in kernels:
        raise NotImplementedError(
            f"{asked}: expected a kernel for {op}, got {sorted(kernels)} from {distribution}; "
            "upgrade it, or drop use_accelerated_op"
        )
    return kernels[op]


@lru_cache(maxsize=1)  # remembers success only: what is installed later is found
def _load() -> tuple[str, Mapping[str, Callable[..., Any]]]:
    found = {_distribution(entry): entry for entry in entry_points(group=GROUP, name=NAME)}
    if not found:
        raise ImportError("optcore-accel is not installed; pip install optcore-accel")
    if len(found) > 1:
        raise ImportError(
            f"expected one package with kernels, got {sorted(found)}; uninstall all but one"
        )
    ((distribution, entry),) = found.items()
    try:
        kernels = entry.load()
    except (ImportError, AttributeError, OSError) as error:
        raise ImportError(f"{distribution} does not load: {error}") from error
    if not isinstance(kernels, Mapping) or not all(map(callable, kernels.values())):
        raise ImportError(
            f"{distribution}: expected {entry.value} to be a mapping of functions, got "
            f"{describe(kernels)}"
        )
    return distribution, kernels


def _distribution(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
