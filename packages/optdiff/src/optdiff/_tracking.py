# SPDX-License-Identifier: Apache-2.0
"""What a tensor is to torch.func and to autograd: wrapped, tracked, or plain numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

# torch.func has no public way to ask what a tensor is to it or to step below a level.
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
from torch.autograd import forward_ad


def unwrapped(tensor: torch.Tensor) -> torch.Tensor:
    """The plain tensor under all torch.func transforms: with every batch dimension."""
    while is_wrapped(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def peel(tensor: torch.Tensor) -> torch.Tensor:
    """:func:`unwrapped` without a graph."""
    return unwrapped(tensor).detach()


@contextmanager
def below_every_level() -> Iterator[None]:
    """Step out of all torch.func transforms, to where plain tensors stay plain."""
    with ExitStack() as stack:
        while (transform := innermost_transform()) is not None:
            stack.enter_context(transform.lower())
        yield


def sample(tensor: torch.Tensor) -> torch.Tensor:
    """The plain tensor of the first example, where transforms have batched it."""
    while is_wrapped(tensor):
        dim = torch._C._functorch.maybe_get_bdim(tensor)
        tensor = torch._C._functorch.get_unwrapped(tensor)
        tensor = tensor if dim < 0 else tensor.select(dim, 0)
    return tensor.detach()


def is_wrapped(tensor: torch.Tensor) -> bool:
    """Whether a torch.func transform works on the tensor."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def is_tracked(tensor: torch.Tensor) -> bool:
    """Whether a derivative may be taken in the tensor, at any level of nested transforms."""
    if tensor.requires_grad:
        return True
    transform = innermost_transform()
    at_this_level = transform is None or _level(tensor) == transform.level()
    by_forward_mode = transform is None or transform.key() == TransformType.Jvp
    dual = forward_ad._current_level >= 0 and at_this_level and by_forward_mode
    if dual and forward_ad.unpack_dual(tensor).tangent is not None:
        return True
    if transform is None:
        return False
    with transform.lower():
        return is_tracked(torch._C._functorch.get_unwrapped(tensor) if at_this_level else tensor)


def is_differentiated_by_transform(tensor: torch.Tensor) -> bool:
    """Whether reverse mode of torch.func goes through the tensor, at any level."""
    while is_wrapped(tensor):
        if tensor.requires_grad and not torch._C._functorch.is_batchedtensor(tensor):
            return True
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return False


def is_wrapped_or_tracked(tensor: torch.Tensor) -> bool:
    """Whether the tensor is more than numbers to a transform or a derivative."""
    return is_wrapped(tensor) or is_tracked(tensor)


def under_transform() -> bool:
    """Whether the code runs inside a torch.func transform or forward-mode differentiation."""
    return innermost_transform() is not None or forward_ad._current_level >= 0


def refuse_tracing(who: str) -> None:
    """Refuse to read a number that a tracer such as torch.func.linearize does not know."""
    if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None:
        raise RuntimeError(
            f"{who}: expected tensors with values, by which it stops, got those of a tracer "
            "(torch.func.linearize, make_fx), which have none; use torch.func.jvp or vjp"
        )


def refuse_legacy_batch(tensors: Sequence[torch.Tensor | None]) -> None:
    """Refuse what torch.autograd batches, by the predecessor of torch.vmap."""
    legacy = torch._C._functorch.is_legacy_batchedtensor
    if any(tensor is not None and legacy(tensor) for tensor in tensors):
        raise RuntimeError(
            "implicit differentiation: expected one derivative at a time or a batch of torch.vmap, "
            "got a batch of torch.autograd (is_grads_batched=True, vectorize=True or "
            "check_batched_grad=True); use torch.func.jacrev, jacfwd or hessian"
        )


def transform_depth() -> int:
    """How many torch.func transforms the code runs inside: the level of the innermost one."""
    return torch._C._functorch.maybe_current_level() or 0


def belongs_elsewhere(tensor: torch.Tensor, own: range) -> bool:
    """Whether a living transform works on the tensor that is none of ours, at levels ``own``."""
    while is_wrapped(tensor):
        level = _level(tensor)
        # a level that was left is dead to its tensors; one that was stepped out of is not
        if not torch._C._functorch.is_dead_tensor_wrapper(tensor):
            batched = torch._C._functorch.is_batchedtensor(tensor)
            if level not in own or batched != (_layers()[level - 1].key() == TransformType.Vmap):
                return True
        tensor = torch._C._functorch.get_unwrapped(tensor)
    if forward_ad._current_level < 0:
        return False
    with forward_ad._set_fwd_grad_enabled(True):  # else what tensors have is hidden
        return forward_ad.unpack_dual(tensor).tangent is not None


def derived_at(tensor: torch.Tensor, outside: int) -> list[int]:
    """Levels above ``outside`` that take derivatives, besides reverse mode in the tensor itself."""
    own = _level(tensor)
    return [
        layer.level()
        for layer in _layers()
        if layer.level() > outside
        and (
            layer.key() == TransformType.Jvp
            or (layer.key() == TransformType.Grad and layer.level() != own)
        )
    ]


def innermost_transform() -> Any:
    """The innermost torch.func transform, or None."""
    if torch._C._functorch.peek_interpreter_stack() is None:
        return None
    return retrieve_current_functorch_interpreter()


def _layers() -> list[Any]:
    return torch._C._functorch.get_interpreter_stack() or []


def _level(tensor: torch.Tensor) -> int:
    return torch._C._functorch.maybe_get_level(tensor)
