# SPDX-License-Identifier: Apache-2.0
"""Gradients through remote calls: torch's distributed autograd, and plain autograd when alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.distributed.autograd as dist_autograd

from optdist._session import TIMED_OUT, current, is_closed
from optdist._waiting import in_thread
from optdist.errors import WorkerLostError, WorkerTimeoutError

LOCAL_CONTEXT = 0  # of a process without RPC, where the local graph is all there is


def is_available() -> bool:
    """Tell whether torch was built with distributed autograd.

    Example:
        >>> is_available()
        True
    """
    return dist_autograd.is_available()


@contextlib.contextmanager
def context() -> Iterator[int]:
    """Record what remote calls send, so that gradients find the way back; yield its number.

    Example:
        >>> with context() as context_id:
        ...     w = torch.ones(2, requires_grad=True)
        ...     backward(context_id, (3 * w).sum())
        >>> w.grad
        tensor([3., 3.])
    """
    if current() is None:
        yield LOCAL_CONTEXT
        return
    with dist_autograd.context() as number:
        yield number


def is_recording() -> bool:
    """Tell whether this thread is inside a :func:`context` of torch's distributed autograd.

    Example:
        >>> is_recording()
        False
    """
    try:
        torch._C._distributed_autograd._current_context()
    except RuntimeError:  # torch has no other way to ask
        return False
    return True


def get_gradients(context_id: int) -> dict[torch.Tensor, torch.Tensor]:
    """Return the gradients that torch has collected in a context, by tensor of this process.

    Example:
        >>> with context() as context_id:
        ...     get_gradients(context_id)
        {}
    """
    return {} if current() is None else dist_autograd.get_gradients(context_id)


def backward(
    context_id: int,
    tensors: torch.Tensor | Iterable[torch.Tensor],
    retain_graph: bool = False,
    inputs: Sequence[torch.Tensor] | torch.Tensor | None = None,
) -> None:
    """Add the gradient of scalars to ``.grad`` of the leaves of this process.

    Args:
        context_id: Of the :func:`context` in which they were computed.
        tensors: Scalars.
        retain_graph: Keep the graph for another call.
        inputs: Only these leaves.

    Differentiable: once; higher orders do not cross processes.

    Raises:
        ValueError: not scalars, or an input is not a leaf.
        WorkerLostError: a worker on the way is gone.
        WorkerTimeoutError: a worker on the way did not answer within RPC's timeout.

    Example:
        >>> w = torch.ones(2, requires_grad=True)
        >>> with context() as context_id:
        ...     backward(context_id, (w * w).sum())
        >>> w.grad
        tensor([2., 2.])
    """
    roots = _scalars("backward", tensors)
    chosen = None if inputs is None else _listed(inputs)
    if wrong := [t for t in chosen or () if not t.is_leaf]:
        raise ValueError(
            f"backward: expected leaves as inputs, got a computed tensor {list(wrong[0].shape)}; "
            "use optdist.autograd.grad for it"
        )
    if current() is None:
        torch.autograd.backward(roots, retain_graph=retain_graph, inputs=chosen)
        return
    _propagate("backward", context_id, roots, retain_graph)
    found = dist_autograd.get_gradients(context_id)
    for leaf, gradient in found.items():
        if chosen is not None and not any(leaf is tensor for tensor in chosen):
            continue
        leaf.grad = gradient.clone() if leaf.grad is None else leaf.grad + gradient


def grad(
    context_id: int,
    outputs: torch.Tensor | Iterable[torch.Tensor],
    inputs: torch.Tensor | Sequence[torch.Tensor],
    retain_graph: bool = False,
    allow_unused: bool = False,
    create_graph: bool = False,
) -> tuple[torch.Tensor | None, ...]:
    """Return the gradient of scalars with respect to leaves of this process.

    Args:
        context_id: Of the :func:`context` in which they were computed.
        outputs: Scalars.
        inputs: Leaves.
        retain_graph: Keep the graph for another call.
        allow_unused: ``None`` for an input that plays no part, instead of an error.
        create_graph: Refused where RPC runs: no higher derivative crosses processes.

    Differentiable: once.

    Raises:
        ValueError: not scalars, not leaves, or ``create_graph`` across processes.
        RuntimeError: an input plays no part.
        WorkerLostError: a worker on the way is gone.
        WorkerTimeoutError: a worker on the way did not answer within RPC's timeout.

    Example:
        >>> w = torch.ones(2, requires_grad=True)
        >>> with context() as context_id:
        ...     grad(context_id, (w * w).sum(), w)
        (tensor([2., 2.]),)
    """
    roots, leaves = _scalars("grad", outputs), _listed(inputs)
    if current() is None:
        return torch.autograd.grad(
            roots, leaves, retain_graph=retain_graph, allow_unused=allow_unused,
            create_graph=create_graph,
        )  # fmt: skip
    if create_graph:
        raise ValueError(
            "grad: expected a first derivative, got create_graph=True; higher ones do not cross "
            "processes: take them inside the remote function"
        )
    if wrong := [t for t in leaves if not t.is_leaf]:
        raise ValueError(
            f"grad: expected leaves as inputs, got a computed tensor {list(wrong[0].shape)}; "
            "detach it before the remote call and require its gradient"
        )
    before = dist_autograd.get_gradients(context_id)
    if before:
        raise RuntimeError(
            "grad: expected a context without gradients, got one where backward was called; "
            "open a context for each derivative"
        )
    _propagate("grad", context_id, roots, retain_graph)
    collected = list(dist_autograd.get_gradients(context_id).items())
    found = [next((g for leaf, g in collected if leaf is tensor), None) for tensor in leaves]
    if not allow_unused and any(gradient is None for gradient in found):
        raise RuntimeError(
            f"grad: expected all inputs in the graph, got none for number "
            f"{[g is None for g in found].index(True)}; pass allow_unused=True to get None"
        )
    return tuple(None if gradient is None else gradient.clone() for gradient in found)


def _propagate(who: str, context_id: int, roots: list[torch.Tensor], retain_graph: bool) -> None:
    """Go back through all processes, open to signals, and bounded by RPC's timeout."""
    try:
        in_thread(
            lambda: dist_autograd.backward(context_id, roots, retain_graph=retain_graph),
            "optdist-backward",
        ).wait()
    except RuntimeError as error:  # torch has no types for these
        if TIMED_OUT in str(error):
            raise WorkerTimeoutError(
                f"{who}: expected gradients from every worker in time, got none from one; give a "
                "longer rpc_timeout in rpc_backend_options if it takes longer"
            ) from error
        if is_closed(str(error)):
            raise WorkerLostError(
                f"{who}: expected gradients from every worker, got a closed connection; see the "
                "last output of the workers, and start the context again without the lost one"
            ) from error
        raise


def _listed(tensors: torch.Tensor | Iterable[torch.Tensor]) -> list[torch.Tensor]:
    return [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)


def _scalars(who: str, tensors: torch.Tensor | Iterable[torch.Tensor]) -> list[torch.Tensor]:
    found = _listed(tensors)
    if not found or any(tensor.numel() != 1 for tensor in found):
        shapes = [list(tensor.shape) for tensor in found]
        raise ValueError(f"{who}: expected scalars, got shapes {shapes}; reduce them first")
    return found
