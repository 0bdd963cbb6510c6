# SPDX-License-Identifier: Apache-2.0
"""Loops of steps, differentiated through: all of them, recomputed, or the last ones only."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch

from optdiff._recompute import recomputed
from optdiff._recording import Recording, Snapshots
from optdiff._steps import Segment, Step, cut, refuse_modules, taken_apart
from optdiff._trees import tree_leaves, tree_map
from optdiff._uncompiled import uncompiled

Tree: TypeAlias = Any


@uncompiled
def unroll(
    step: Callable[..., Any],
    init: Tree,
    num_steps: int,
    *args: Any,
    checkpoint: Literal["sqrt"] | int | None = None,
    truncate: int | None = None,
    first_order: bool = False,
    has_aux: bool = False,
) -> Any:
    r"""Run a loop whose result is a function of its start and its arguments.

    .. math::
        c_{i+1} = \text{step}(c_i, i, *\text{args}), \qquad i = 0, \dots, K - 1

    A step takes its inner gradients with ``torch.autograd.grad(..., create_graph=True)`` or
    ``torch.func.grad`` (the latter if ``unroll`` itself runs inside a torch.func transform).
    Inside it ``inplace=None`` of optcore means False. A tensor that occurs several times in the
    carry stays one tensor; of one that is in the carry and in ``args`` the step gets two.

    Args:
        step: ``step(carry, i, *args) -> carry``, or ``-> (carry, output)`` with ``has_aux``.
            It may be compiled (``torch.compile``) and then takes its gradients with
            ``torch.func.grad``; second derivatives, ``checkpoint`` and ``first_order`` need one
            that is not.
        init: First carry: a tree of tensors and whatever else; every step keeps its structure, and
            a tensor where there is one, of any shape and dtype.
        num_steps: :math:`K \ge 0`.
        args: Trees that every step gets. Under ``checkpoint`` only their tensors are followed, not
            those in modules: pass ``dict(module.named_parameters())`` for them.
        checkpoint: None: keep the graph of every step; memory grows as :math:`K`. A number: keep
            the carry after every so many steps and recompute what lies between; ``"sqrt"``: after
            every :math:`\lceil\sqrt K\rceil`, so that memory grows as :math:`\sqrt K`. Costs one
            more evaluation of each step for the first derivative and about twice as many for each
            further one; forward mode saves no memory by it. Random numbers of torch (those of a
            ``torch.Generator`` of your own if it is in ``args``), autocast, and buffers and
            training flags of modules that the steps call are as in the first run. Whatever else a
            step reads has to be as it was, which is checked by the carry after each part.
        truncate: Detach the carry before the last so many steps, whose graph alone is kept; the
            start and earlier uses of ``args`` get no gradient. None: keep all.
        first_order: Take what torch.autograd.grad and reverse mode of torch.func give inside the
            steps as constants (FOMAML). Values stay as they are: a gradient of a gradient goes by
            torch.func, nested. With ``torch.func.grad`` it saves no time: leave it out and detach
            the inner gradients in the step, which is cheaper. Derivatives that end in forward mode
            (``torch.func.hessian``, ``jvp``) are no constants.
        has_aux: Steps give outputs too, trees of tensors.

    Returns:
        The last carry, or ``(carry, outputs)`` with the outputs of all steps stacked along a new
        first axis.

    Differentiable:
        In ``init`` and ``args``, to every order, in reverse and forward mode, under torch.func. In
        closed-over tensors only without ``checkpoint``.

    Raises:
        TypeError: ``step`` is not callable, or with ``has_aux`` returns no pair, or no tensor where
            ``init`` has one; or a module in the carry under ``checkpoint`` or ``truncate``.
        ValueError: An option outside its range, a step that changes the structure of the carry or
            the shape of its outputs, under ``checkpoint`` one that reads a tensor that requires
            grad (inside torch.func transforms: any tensor of the transform) past its arguments, or
            replaces parameters of a module that it calls, or with ``first_order`` one whose own
            gradients go through others by torch.autograd.grad.
        RuntimeError: Going backward under ``checkpoint`` after a parameter that the steps read was
            overwritten, or through a step that then gives another carry.

    Example:
        >>> import torch
        >>> def step(w, i, lr):
        ...     return w - lr * torch.func.grad(lambda w: (w**2).sum())(w)
        >>> lr = torch.tensor(0.25, requires_grad=True)
        >>> w = unroll(step, torch.tensor([8.0]), 3, lr, checkpoint="sqrt")
        >>> w  # 8 (1 - 2 lr)^3
        tensor([1.], grad_fn=<_RecomputedBackward>)
        >>> torch.autograd.grad(w.sum(), lr)[0]  # -48 (1 - 2 lr)^2
        tensor(-12.)

    Reference:
        Chen, Xu, Zhang and Guestrin, 2016, arXiv:1604.06174, section 4 (checkpoints); Shaban,
        Cheng, Hatch and Boots, 2019, arXiv:1810.10667, section 3 (truncation).
    """
    who = "unroll"
    if not callable(step):
        raise TypeError(f"{who}: expected a callable step, got {type(step).__name__}")
    check_count(who, "num_steps", num_steps, 1 if has_aux else 0)
    if truncate is not None:
        check_count(who, "truncate", truncate, 1)
    if checkpoint is not None and checkpoint != "sqrt":
        check_count(who, "checkpoint", checkpoint, 1, "None, 'sqrt' or ")
    body = Step(who, step, init, has_aux, first_order)
    if checkpoint is not None or truncate is not None:
        refuse_modules(who, init)
    first = 0 if truncate is None else max(0, num_steps - truncate)
    carry, outputs = init, []
    constant = cut(args) if first else args
    for i in range(first):
        carry, output = cut(body(carry, i, constant))
        outputs.append(output)
    if checkpoint is None:
        for i in range(first, num_steps):
            carry, output = body(carry, i, args)
            outputs.append(output)
    else:
        length = checkpoint
        if checkpoint == "sqrt":
            length = max(1, math.ceil(math.sqrt(num_steps - first)))
        carry, late = _checkpointed(body, range(first, num_steps), length, carry, args)
        outputs += late
    if not has_aux:
        return carry
    return carry, tree_map(_stacked, *outputs)


def check_count(who: str, name: str, value: Any, least: int, also: str = "") -> None:
    """Refuse what is no number of steps."""
    if not isinstance(value, int) or isinstance(value, bool):
        got = repr(value) if isinstance(value, str) else type(value).__name__
        raise TypeError(f"{who}: expected {name} as {also}an integer >= {least}, got {got}")
    if value < least:
        raise ValueError(f"{who}: expected {name} >= {least}, got {value}")


def _checkpointed(
    body: Step, numbers: range, length: int, carry: Tree, args: tuple[Any, ...]
) -> tuple[Tree, list[Tree]]:
    """The carry after some steps and their outputs; only the carries between segments are kept."""
    leaves = tree_leaves((carry, args))
    generators = [leaf for leaf in leaves if isinstance(leaf, torch.Generator)]
    snapshots = Snapshots()
    outputs: list[Tree] = []
    for start in range(numbers.start, numbers.stop, length):
        part = range(start, min(start + length, numbers.stop))
        recording = Recording(body.who, snapshots, generators)
        segment = Segment(body, part, carry, args, recording)
        tensors, _ = taken_apart((carry, args))
        results = recomputed(segment, *tensors)
        carry, late = segment.layout.filled(results)
        outputs += late
    return carry, outputs


def _stacked(first: Any, *others: Any) -> Any:
    if first is None:
        return None
    if not isinstance(first, torch.Tensor):
        raise TypeError(
            f"unroll: expected outputs as trees of tensors, got a {type(first).__name__} leaf"
        )
    shapes = {tuple(output.shape) for output in (first, *others)}
    if len(shapes) > 1:
        raise ValueError(
            f"unroll: expected outputs of one shape in every step, got {sorted(shapes)}; put what "
            "grows into the carry"
        )
    return torch.stack((first, *others))
