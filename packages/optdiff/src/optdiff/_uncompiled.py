# SPDX-License-Identifier: Apache-2.0
"""What torch.compile must leave alone, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import torch
from torch._compile import _disable_dynamo

Function = TypeVar("Function", bound=Callable[..., Any])


def uncompiled(function: Function) -> Function:
    """Have torch.compile break the graph at this function, and run it as it is.

    Dynamo cannot trace what asks torch.func which transforms are active: it fails with an internal
    error, or gives wrong numbers in forward mode. ``torch.compiler.disable`` would import the
    compiler, which takes seconds, where optdiff is imported; this does so at the first call, as
    torch.optim and torch.func do.
    """
    apart = cast(Any, _disable_dynamo(function))
    # What torch.compiler.disable leaves on a function: the error of fullgraph=True tells it.
    apart._torchdynamo_disable = True
    apart._torchdynamo_disable_msg = (
        f"{function.__qualname__} runs as it is; compile the functions that it calls, and what is "
        "around it without fullgraph=True"
    )
    return cast(Function, apart)


def refuse_compiled(who: str, loss: torch.Tensor, params: Iterable[torch.Tensor]) -> None:
    """Refuse a loss computed from the parameters in a graph that torch.compile has made.

    Such a graph has one derivative only. Torch raises at a second one where it notices, and drops
    it in silence where the backward keeps none of the tensors that require grad.

    Raises:
        RuntimeError: It was.
    """
    seen = {param.grad_fn for param in params} | {None}
    stack = [loss.grad_fn]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if type(node).__name__ == "CompiledFunctionBackward":
            raise RuntimeError(
                f"{who}: expected a loss with a second derivative, got one computed by "
                "torch.compile, which drops it; compute the loss outside (torch.compiler.disable), "
                "compile with backend='eager', or take first_order=True"
            )
        stack += [parent for parent, _ in node.next_functions]
