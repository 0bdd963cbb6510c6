# SPDX-License-Identifier: Apache-2.0
"""One differentiable step on the parameters of modules: what all Meta optimizers share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from optcore import GradientTransformation, ParamDict, check_loss
from optdiff._tracking import is_wrapped
from optdiff._uncompiled import refuse_compiled


def trainable(module: nn.Module) -> ParamDict:
    """The parameters of a module that require grad, by name."""
    return ParamDict((name, p) for name, p in module.named_parameters() if p.requires_grad)


class StepPart(NamedTuple):
    """Some parameters, and what moves them."""

    transformation: GradientTransformation
    params: ParamDict
    state: Any


def differentiable_step(
    who: str,
    loss: torch.Tensor,
    parts: Sequence[StepPart],
    create_graph: bool,
    change: Callable[[list[torch.Tensor | None]], Sequence[torch.Tensor | None]] = list,
    extra: Mapping[str, Any] | None = None,
) -> list[tuple[ParamDict, Any]]:
    """New parameters and states of some parts after a step on one loss, in the graph.

    Args:
        who: The class whose ``step`` is named in errors.
        loss: What all gradients are of; its graph stays, for other optimizers or an outer loss.
        parts: What moves.
        create_graph: Whether the gradients have a graph.
        change: Changes the list of gradients.
        extra: Arguments for transformations that ask for some, beside ``value``, the loss.
    """
    with torch.inference_mode(False), torch.enable_grad():  # the step is part of the graph
        wanted = [param for part in parts for param in part.params.values()]
        found = inner_gradients(f"{who}.step", loss, wanted, create_graph)
        grads = iter(change(found))
        results = []
        informed = {"value": loss if create_graph else loss.detach(), **(extra or {})}
        for transformation, params, state in parts:
            own = ParamDict((name, next(grads)) for name in params)
            results.append(transformation.step(own, state, params, inplace=False, **informed))
    return results


def inner_gradients(
    who: str, loss: torch.Tensor, wanted: Sequence[torch.Tensor], create_graph: bool
) -> list[torch.Tensor | None]:
    """Gradients of a loss in some parameters, None where it does not depend on one.

    Its graph stays.

    Raises:
        TypeError: ``loss`` is not a tensor.
        ValueError: It is not a scalar, has no graph, is batched by vmap, or depends on none.
        RuntimeError: A second derivative is wanted, and torch.compile has dropped it.
    """
    if isinstance(loss, torch.Tensor) and is_wrapped(loss) and not loss.requires_grad:
        raise ValueError(
            f"{who}: expected a loss that torch.autograd sees, got one batched by torch.vmap; use "
            "optdiff.unroll with torch.func.grad there"
        )
    check_loss(who, loss)
    if create_graph:
        refuse_compiled(who, loss, wanted)
    found = torch.autograd.grad(
        loss, wanted, create_graph=create_graph, retain_graph=True, allow_unused=True
    )
    if all(grad is None for grad in found):
        raise ValueError(
            f"{who}: expected a loss that depends on the module's parameters, got one that "
            "depends on none; compute it from the module after the previous step"
        )
    return list(found)
