# SPDX-License-Identifier: Apache-2.0
"""Gradients that a step takes, as constants of whatever is differentiated around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from optdiff._tracking import derived_at, transform_depth


class ConstantGradients(TorchFunctionMode):
    """Inside, torch.autograd.grad and torch.func.grad give constants of what is outside.

    A gradient that is differentiated again inside keeps its graph where that can be seen, in nested
    torch.func transforms, and is refused where it cannot.

    Args:
        who: Who is named in errors.
        i: In which step.
    """

    def __init__(self, who: str, i: int) -> None:
        super().__init__()
        self._outside = transform_depth()
        self._dual_level = forward_ad._current_level
        self._open = True
        self._who = who
        self._i = i

    def __exit__(self, *exception: Any) -> None:
        self._open = False
        super().__exit__(*exception)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if torch.compiler.is_compiling():  # gradients are traced without asking here
            raise RuntimeError(
                f"{self._who}(first_order=True): expected a step that is not compiled; detach the "
                "gradients inside it instead"
            )
        kwargs = kwargs or {}
        if func is not torch.autograd.grad:
            return func(*args, **kwargs)
        inputs = args[1] if len(args) > 1 else kwargs["inputs"]
        inputs = [inputs] if isinstance(inputs, torch.Tensor) else list(inputs)
        inputs = [tensor for tensor in inputs if isinstance(tensor, torch.Tensor)]
        nested = inputs and derived_at(inputs[0], self._outside)
        if nested or forward_ad._current_level > self._dual_level:
            return func(*args, **kwargs)
        kept = kwargs.get("retain_graph")
        kept = kwargs.get("create_graph", False) if kept is None else kept
        found = func(*args, **{**kwargs, "create_graph": False, "retain_graph": kept})
        present = [grad for grad in found if grad is not None]
        # the method and not self, which torch would take for a tensor of another kind
        count, refuse = len(present), self.refuse_inside
        constant = iter(_Constant.apply(refuse, count, *present, *inputs) if present else ())
        return tuple(None if grad is None else next(constant) for grad in found)

    def refuse_inside(self) -> None:
        """Refuse a derivative of such a gradient that the step itself takes.

        Raises:
            ValueError: The step has not ended.
        """
        if self._open:
            raise ValueError(
                f"{self._who}: expected a step that takes no gradient of a gradient for "
                f"first_order=True, got one, at step {self._i}; nest torch.func.grad for it, or "
                "set first_order=False"
            )


class _Constant(torch.autograd.Function):
    """Gradients that look like functions of what they were taken in, and have no derivative."""

    @staticmethod
    def forward(refuse: Callable[[], None], count: int, *tensors: torch.Tensor) -> Any:
        return tuple(tensor.detach().clone() for tensor in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.refuse, ctx.count = inputs[0], len(inputs)
        ctx.save_for_forward(*output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[None, ...]:
        ctx.refuse()
        return (None,) * ctx.count

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, tuple[Any, ...]]:
        return _Constant.apply(*args), in_dims[2 : 2 + args[1]]

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return tuple(map(torch.zeros_like, ctx.saved_tensors))
