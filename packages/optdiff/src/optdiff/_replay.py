# SPDX-License-Identifier: Apache-2.0
"""Long training runs, differentiated through by running them again from few carries."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeAlias

import torch

from optdiff._binomial import carries_of_levels
from optdiff._files import fingerprint
from optdiff._ledger import FileLedger, Ledger
from optdiff._offload import FOLDER, InPlace, OnDisk, OnHost, Shelf
from optdiff._progress import check_progress
from optdiff._replay_run import Run
from optdiff._steps import Step, refuse_modules, taken_apart
from optdiff._tracking import is_wrapped, under_transform
from optdiff._uncompiled import uncompiled
from optdiff._unroll import check_count

Tree: TypeAlias = Any
Offload: TypeAlias = Literal["cpu", "disk"] | None


@uncompiled
def replay(
    step: Callable[..., Tree],
    init: Tree,
    num_steps: int,
    *args: Any,
    checkpoint: Literal["log"] | int = "log",
    branching: int = 2,
    offload: Offload = None,
    directory: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Tree:
    r"""Run a long loop whose last carry can be differentiated in its start and its arguments.

    .. math::
        c_{i+1} = \text{step}(c_i, i, *\text{args}), \qquad
        (\bar c_i, \bar a) \mathrel{\gets}
        \bigl(\bar c_{i+1}\,\partial_c \text{step},\; \bar a + \bar c_{i+1}\,\partial_a
        \text{step}\bigr)

    The backward pass takes the steps one at a time, last one first; the carry before each is
    computed again from the nearest one that was kept. So at most one step's graph is there at any
    time, and :math:`O(k \log_k K)` carries. Where they are kept is chosen so that the fewest steps
    are run again.

    Args:
        step: ``step(carry, i, *args) -> carry``: one step of training, with parameters, state of
            the optimizer and whatever else changes in the carry, and data chosen by ``i``. It takes
            its gradients with ``torch.autograd.grad(..., create_graph=True)`` or
            ``torch.func.grad``; inside it ``inplace=None`` of optcore means False.
        init: First carry: a tree of tensors and whatever else, as for :func:`unroll`. Parameters in
            it require grad, so that the step can take gradients in them.
        num_steps: :math:`K \ge 0`.
        args: Trees that every step gets, with all tensors to be differentiated in.
        checkpoint: How many carries may be kept besides the first one. ``"log"``: at most
            :math:`(k - 1) \lceil\log_k K\rceil`. More of them take less time: with its 7, of
            10,000 steps each is run 8 times in all for a gradient, with 140 three times.
        branching: :math:`k \ge 2` of ``"log"``.
        offload: Where carries are kept: None: where they are; ``"cpu"``: in memory of the host,
            pinned for CUDA; ``"disk"``: in files.
        directory: Of these files, by default a temporary one. One that you give makes the backward
            pass resumable: a hundred times on its way it notes there how far it has come, and the
            same program, started again after it was killed, runs forward again and goes on from
            there. Of one run at a time, from its start until its backward pass is over or its
            results are gone; another one is refused meanwhile.
        progress: Show a bar with the time left (needs rich).

    Returns:
        The last carry. Random numbers of torch (those of a ``torch.Generator`` of your own if it is
        in ``args``), autocast, and buffers and training flags of modules that the steps call are
        in every run as in the first one, which leaves them behind as a loop would. Whatever else a
        step reads has to stay as it was; the norms of the carries that are kept are compared.

    Differs from ``unroll``:
        Gradients that a step takes by torch.autograd are of that step alone: what it gets from the
        steps before is constant to them. In a plain loop ``torch.autograd.grad(loss, arg)`` goes
        through all earlier steps too, and that in a leaf of the carry through other leaves that
        were computed from it (an average of the weights in their loss). Where steps take gradients
        in some leaves that do not depend on each other's new values, as training does, both are
        equal. What requires grad in the carry may not be overwritten (``m.mul_(0.9)``): from step
        1 on that is everything that depends on something to be differentiated in.

    Differentiable:
        In ``init`` and ``args``, once, by torch.autograd. For second derivatives, ``torch.func``
        and forward mode take ``unroll(checkpoint=...)``. Buffers have no derivative: to a loss in
        evaluation mode the running statistics of batch normalisation are constants; take that of
        a batch in training mode where they matter.

    Raises:
        TypeError: ``step`` is not callable, or returns no tensor where ``init`` has one; an
            argument is of the wrong type, or a module is in the carry.
        ValueError: An option outside its range, a step that changes the structure of the carry,
            one that reads a tensor that requires grad past its arguments, or a directory that
            belongs to another loop or that another one works in.
        RuntimeError: Inside torch.func or forward mode; in the backward pass with
            ``create_graph=True``, after ``init`` or ``args`` were overwritten, or through a step
            that then gives another carry; a step that overwrites what requires grad in its carry.
        ImportError: ``progress=True`` and rich is not installed.
        OSError: The directory is unfit, or a file cannot be written or is gone.

    Example:
        >>> import torch
        >>> def step(w, i, lr):
        ...     (g,) = torch.autograd.grad((w**2).sum(), w, create_graph=True)
        ...     return w - lr * g
        >>> lr = torch.tensor(0.25, requires_grad=True)
        >>> w = replay(step, torch.tensor([8.0], requires_grad=True), 3, lr)
        >>> w  # 8 (1 - 2 lr)^3
        tensor([1.], grad_fn=<_ReplayedBackward>)
        >>> w.sum().backward()
        >>> lr.grad  # -48 (1 - 2 lr)^2
        tensor(-12.)

    Reference:
        Engstrom, Ilyas, Chen, Feldmann, Moses and Madry, 2025, arXiv:2503.13751, section 2
        (replaying training from few checkpoints); Griewank and Walther, 2000, ACM TOMS 26(1),
        Algorithm 799 (where to keep them).
    """
    who = "replay"
    if not callable(step):
        raise TypeError(f"{who}: expected a callable step, got {type(step).__name__}")
    check_count(who, "num_steps", num_steps, 0)
    options = checked_options(who, checkpoint, branching, offload, directory, progress)
    refuse_modules(who, init)
    if under_transform():
        raise RuntimeError(
            f"{who}: expected no transform of torch.func and no forward mode around it, got one; "
            "take unroll(checkpoint='sqrt')"
        )
    if not num_steps:
        return init
    tensors, layout = taken_apart((init, args))
    body = Step(who, step, init)
    carried = len(taken_apart(init)[0])
    name = getattr(step, "__qualname__", type(step).__name__)
    inspect = torch.is_grad_enabled()
    wanted = inspect and any(tensor.requires_grad for tensor in tensors)
    kept: int | None = None
    if wanted:
        kept = carries_of_levels(num_steps, branching) if checkpoint == "log" else checkpoint
    shelf, ledger = _kept_by(who, offload, options, wanted, (tensors, num_steps, name))
    run = Run(
        body,
        num_steps,
        kept=kept,
        inspect=inspect,
        start=tensors,
        layout=layout,
        carried=carried,
        shelf=shelf,
        ledger=ledger,
        progress=progress,
    )
    results = _Replayed.apply(run, *tensors)
    return run.layout.filled(results)


def checked_options(
    who: str, checkpoint: Any, branching: Any, offload: Any, directory: Any, progress: bool
) -> Path | None:
    """The directory, if all options are fit.

    Raises:
        TypeError: One is of the wrong type.
        ValueError: One is outside its range, or a directory stands without files to put there.
        ImportError: No bar can be drawn.
    """
    if checkpoint != "log":
        check_count(who, "checkpoint", checkpoint, 1, "'log' or ")
    check_count(who, "branching", branching, 2)
    if offload not in (None, "cpu", "disk"):
        raise ValueError(f"{who}: expected offload=None, 'cpu' or 'disk', got {offload!r}")
    if directory is not None and offload != "disk":
        raise ValueError(
            f"{who}: expected a directory with offload='disk' only, got one with "
            f"offload={offload!r}"
        )
    if not isinstance(directory, (str, os.PathLike, NoneType)):
        raise TypeError(f"{who}: expected directory as a path, got {type(directory).__name__}")
    check_progress(who, progress)
    return None if directory is None else Path(directory)


def _kept_by(
    who: str, offload: Offload, directory: Path | None, wanted: bool, identity: Any
) -> tuple[Shelf, Ledger]:
    if offload != "disk" or not wanted:
        return (OnHost() if offload == "cpu" else InPlace()), Ledger()
    if directory is None:
        return OnDisk(who, None), Ledger()
    tensors, num_steps, name = identity
    mark = f"{name} {num_steps} {fingerprint(tensors)}"
    return OnDisk(who, directory), FileLedger(who, directory, FOLDER, mark, num_steps)


class _Replayed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Run, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results, smooth = run.forward()
        ctx.run = run
        ctx.mark_non_differentiable(*(r for r, moves in zip(results, smooth) if not moves))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "replay: expected a first derivative, got create_graph=True; take "
                "unroll(checkpoint='sqrt') for second ones"
            )
        if any(map(_is_batch, cotangents)):
            raise RuntimeError(
                "replay: expected one derivative at a time, got a batch (is_grads_batched=True or "
                "vectorize=True); call torch.autograd.grad for each"
            )
        _ = ctx.saved_tensors  # raises if one was overwritten
        return None, *ctx.run.backward(list(cotangents))


def _is_batch(tensor: torch.Tensor | None) -> bool:
    return tensor is not None and (
        is_wrapped(tensor) or torch._C._functorch.is_legacy_batchedtensor(tensor)
    )
