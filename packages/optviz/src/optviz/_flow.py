# SPDX-License-Identifier: Apache-2.0
"""How much gradient flows along every edge."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from optviz._capture import Walk
from optviz._identity import key_of_function
from optviz._nodes import Edge
from optviz._statistics import statistics_of
from optviz.graph import Graph


def flow(graph: Graph, loss: torch.Tensor, grad_output: torch.Tensor | None = None) -> Graph:
    """The graph with the norm of the gradient on every edge, measured by one backward pass.

    An edge is marked ``"nan"``, ``"inf"``, ``"zero"`` or ``"never"`` (no gradient went there);
    pictures show that, and in colour what explodes or vanishes (``> 1e2``, ``< 1e-2``). The graph
    of the loss is kept, and ``.grad`` of the leaves stays as it is; hooks that were registered on
    tensors run.

    Args:
        graph: What :func:`optviz.draw` made of the loss, before or after other outputs.
        loss: The tensor to start from; its graph must not be freed.
        grad_output: The gradient at it, like ``loss``; ones if None.

    Raises:
        TypeError: ``loss`` is no tensor.
        ValueError: ``loss`` is not in the graph.
        RuntimeError: The backward pass fails: an earlier one has freed what it needs, a checkpoint
            is reentrant, or a Function written in Python raises.

    Example:
        >>> import torch, optviz
        >>> w = torch.tensor([3.0, 4.0], requires_grad=True)
        >>> loss = (w * w).sum() / 2
        >>> measured = optviz.flow(optviz.draw(loss, {"w": w}), loss)
        >>> [edge.norm for edge in measured.edges if measured.nodes[edge.source].name == "w"]
        [2.5, 2.5]
    """
    if not isinstance(loss, torch.Tensor):
        raise TypeError(f"flow: expected a tensor as loss, got {type(loss).__name__}")
    if loss.grad_fn is None or graph._find(loss) is None:
        raise ValueError(
            "flow: expected a loss of this graph, got another tensor; draw the graph from the loss"
        )
    walk = Walk([loss.grad_fn])
    index = [graph._by_key.get(key_of_function(function)) for function in walk.functions]
    measured: dict[tuple[int, int], tuple[float, str]] = {}
    handles = []
    leaves = []
    for node, function, following in zip(index, walk.functions, walk.following):
        if node is None:
            raise ValueError(
                "flow: expected the graph that the loss has now, got an older one; draw it again"
            )
        variable = getattr(function, "variable", None)
        if variable is not None:
            leaves.append(variable)
            continue
        slots = [slot for slot, (below, _) in enumerate(following) if below is not None]
        handles.append(function.register_hook(_measuring(node.id, slots, measured)))
    at_loss = torch.ones_like(loss) if grad_output is None else grad_output
    try:
        if leaves:
            torch.autograd.grad(loss, leaves, at_loss, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise RuntimeError(
            f"flow: expected a loss whose backward pass runs, got {type(error).__name__} in it: "
            f"{str(error).splitlines()[0] if str(error) else ''}; keep the graph in earlier passes "
            "(retain_graph=True) and checkpoint with use_reentrant=False"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    ends = {graph._by_key[key_of_function(loss.grad_fn)].id}
    edges = []
    for edge in graph.edges:
        if graph.nodes[edge.target].kind == "output" and edge.source in ends:
            found = _size(at_loss)
        else:
            found = measured.get((edge.target, edge.slot), (0.0, "never"))
        edges.append(replace(edge, norm=found[0], state=found[1]))
    nodes = list(graph.nodes)
    for node, function in zip(index, walk.functions):  # a backward pass may have added to them
        if node is not None and (told := statistics_of(function)):
            nodes[node.id] = replace(node, statistics=told)
    return replace(graph, nodes=tuple(nodes), edges=tuple(edges))


def _measuring(
    node: int, slots: list[int], measured: dict[tuple[int, int], tuple[float, str]]
) -> Callable[[Any, Any], None]:
    def measure(found: Any, _: Any) -> None:
        for slot in slots:
            if found[slot] is not None:
                measured[node, slot] = _size(found[slot])

    return measure


def _size(gradient: torch.Tensor) -> tuple[float, str]:
    values = gradient.detach()
    values = (values.coalesce().values() if values.is_sparse else values).abs()
    if values.isnan().any():
        return float("nan"), "nan"
    if values.isinf().any():
        return float("inf"), "inf"
    return _root_of_squares(values.double())


def _root_of_squares(values: torch.Tensor) -> tuple[float, str]:
    """Scaled first: squares overflow and vanish long before their numbers do."""
    largest = float(values.max()) if values.numel() else 0.0
    if not largest:
        return 0.0, "zero"
    norm = largest * float(torch.linalg.vector_norm(values / largest))
    return (norm, "inf") if math.isinf(norm) else (norm, "")


# From where on a gradient is drawn as exploding or vanishing, the worst first.
MAGNITUDES = {
    "hot3": (1e6, "gradient > 1e6"),
    "hot2": (1e4, "gradient > 1e4"),
    "hot1": (1e2, "gradient > 1e2"),
    "cold3": (1e-6, "gradient < 1e-6"),
    "cold2": (1e-4, "gradient < 1e-4"),
    "cold1": (1e-2, "gradient < 1e-2"),
}


def magnitude(norm: float | None) -> str:
    """The name of how large a gradient is; empty for what is neither large nor small."""
    if not norm or norm != norm:  # none, zero and NaN have marks of their own
        return ""
    for name, (limit, _) in MAGNITUDES.items():
        if norm > limit if limit > 1 else norm < limit:
            return name
    return ""


def edge_state(edges: list[Edge]) -> tuple[float | None, str]:
    """The norm and mark of several edges drawn as one."""
    for state in ("nan", "inf"):
        if any(edge.state == state for edge in edges):
            return float(state), state
    norms = [edge.norm for edge in edges]
    if any(norm is None for norm in norms):
        return None, ""
    norm = math.hypot(*(value for value in norms if value is not None))
    if norm:
        return norm, "inf" if math.isinf(norm) else ""
    return 0.0, "zero" if any(edge.state == "zero" for edge in edges) else "never"
