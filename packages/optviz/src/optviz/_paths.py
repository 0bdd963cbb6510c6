# SPDX-License-Identifier: Apache-2.0
"""Whether a gradient flows along the paths of a graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from optviz._capture import Walk
from optviz._identity import key_of, key_of_function
from optviz._nodes import Node
from optviz.graph import Graph

# Their derivative is zero wherever there is one.
_FLAT = (
    *("Sign", "Round", "Floor", "Ceil", "Trunc", "Bernoulli", "Poisson", "Normal", "Uniform"),
    *("Exponential", "Geometric", "Cauchy", "LogNormal", "Random", "Zero"),
)


@dataclass(frozen=True)
class Answer:
    """What :func:`why_no_grad` found; true if there is no gradient, false if there is a path.

    ``kind`` is ``"path"`` (there is one), ``"requires_grad"``, ``"detach"``, ``"no_grad"``,
    ``"in_place"``, ``"item"``, ``"integer"``, ``"non_differentiable"``, ``"create_graph"``,
    ``"new_leaf"`` (``nn.Parameter(x)``; its line is that of the first read), ``"custom"`` (a
    Function's backward returned None), ``"zero_derivative"``, ``"never_used"`` or ``"no_path"``.
    ``op`` is the operation, ``where`` its line, as far as they are known.
    """

    kind: str
    message: str
    op: str = ""
    where: str = ""
    feeds: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.kind != "path"

    def __str__(self) -> str:
        return self.message


def along_paths(
    graph: Graph, source: Node, target: Node, param: Any, loss: Any, named: str
) -> Answer | None:
    """What happens on the paths from one node to another; None if there is none."""
    taken = param if isinstance(param, torch.Tensor) else None
    if source.kind == "output":
        source, result = made_by(graph, source)
    else:
        result = taken.output_nr if taken is not None and taken.grad_fn is not None else None
    if source.id == made_by(graph, target)[0].id and _other_result(graph, target, loss, result):
        return None
    everything = set(range(len(graph.nodes)))
    between = _reached(graph, source.id, result, everything) & graph._upstream(target.id)
    if target.id not in between:
        return None
    flat = {i for i in between if _is_flat(graph.nodes[i])}
    if target.id not in _reached(graph, source.id, result, between - flat):
        first = graph.nodes[min(flat)]
        return Answer(
            "zero_derivative",
            f"the gradient of {named} is zero: the derivative of {first.label} is zero everywhere",
            first.name,
        )
    raising = {i for i in between - flat if graph.nodes[i].label == "NotImplemented"}
    if target.id not in _reached(graph, source.id, result, between - flat - raising):
        return Answer(
            "non_differentiable",
            f"no gradient reaches {named}: an operation on the way has no derivative in torch, and "
            "a backward pass raises",
        )
    custom = {i for i in between - flat if graph.nodes[i].custom}
    path = f"a path leads from the loss to {named}"
    untold = {i for i in custom if graph.nodes[i].groups is None}
    if target.id not in _reached(graph, source.id, result, between - flat - untold):
        through = ", ".join(dict.fromkeys(graph.nodes[i].name for i in sorted(untold)))
        path += (
            f", through Functions written in Python ({through}): the graph does not tell which of "
            "their inputs their outputs depend on"
        )
        both = taken is not None and isinstance(loss, torch.Tensor)
        stopped = _returned_none(taken, loss) if both else None
        if stopped is not None:
            return Answer(
                "custom",
                f"no gradient reaches {named}: the backward of {stopped} returned None",
                stopped,
            )
    return Answer("path", path)


def made_by(graph: Graph, node: Node) -> tuple[Node, int]:
    """The operation or leaf behind an output, and which of its results."""
    if node.kind != "output":
        return node, 0
    edge = graph._inputs[node.id][0]
    return graph.nodes[edge.source], edge.output


def _other_result(graph: Graph, target: Node, loss: Any, result: int | None) -> bool:
    """Whether the operation that made both made the loss as another result."""
    if isinstance(loss, torch.Tensor):
        at: int | None = loss.output_nr if loss.grad_fn is not None else None
    else:
        at = made_by(graph, target)[1] if target.kind == "output" else None
    return at is not None and result is not None and at != result


def _is_flat(node: Node) -> bool:
    if node.label in _FLAT:
        return True
    if node.label == "Sgn":  # of complex numbers it is not
        return not node.dtype.startswith("complex")
    return node.label == "Div" and dict(node.attributes).get("rounding_mode") in ("floor", "trunc")


def _reached(graph: Graph, source: int, result: int | None, allowed: set[int]) -> set[int]:
    """The nodes that data of a node gets to, or of one of its results.

    Where a Function told which inputs its outputs depend on, only those are followed.
    """
    if source not in allowed:
        return set()
    reached: dict[int, set[int] | None] = {source: None}  # groups of outputs; None: all
    for node in range(source, len(graph.nodes)):
        if node not in reached:
            continue
        groups, told = reached[node], graph.nodes[node].groups
        for edge in graph._consumers[node]:
            if node == source and result not in (None, edge.output):
                continue
            if groups is not None and told is not None and edge.output % told[1] not in groups:
                continue
            if edge.target in allowed:
                _arrive(reached, graph.nodes[edge.target], edge.slot)
    return set(reached)


def _arrive(reached: dict[int, set[int] | None], node: Node, slot: int) -> None:
    if node.groups is None or slot < node.groups[0]:
        reached[node.id] = None
        return
    known = reached.setdefault(node.id, set())
    if known is not None:
        known.add((slot - node.groups[0]) % node.groups[1])


def _returned_none(param: torch.Tensor, loss: torch.Tensor) -> str | None:
    """Run a backward pass; the name of the Function where the gradient of ``param`` ended.

    None where it did not end, and where the pass fails, so that nothing is known.
    """
    stopped: list[str] = []
    handles = []
    walk = Walk([loss.grad_fn])
    leads = _leading_to(walk, param)
    for function, following in zip(walk.functions, walk.following):
        if isinstance(function, torch.autograd.function.BackwardCFunction) and function in leads:
            slots = [i for i, (below, _) in enumerate(following) if below in leads]

            def look(
                grads: Any, _: Any, slots: list[int] = slots, name: str = function.name()
            ) -> None:
                if all(grads[slot] is None for slot in slots):
                    stopped.append(name)

            handles.append(function.register_hook(look))
    try:
        (found,) = torch.autograd.grad(
            loss, param, torch.ones_like(loss), retain_graph=True, allow_unused=True
        )
    except (RuntimeError, TypeError, ValueError):  # freed, or a backward of the program's own
        return None
    finally:
        for handle in handles:
            handle.remove()
    return stopped[0] if found is None and stopped else None


def _leading_to(walk: Walk, param: torch.Tensor) -> set[Any]:
    wanted = key_of(param)
    leads: set[Any] = set()
    for function, following in zip(walk.functions, walk.following):
        if key_of_function(function) == wanted or any(below in leads for below, _ in following):
            leads.add(function)
    return leads
