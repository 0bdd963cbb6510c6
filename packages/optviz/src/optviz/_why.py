# SPDX-License-Identifier: Apache-2.0
"""Why a parameter gets no gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from optviz._capture import Walk, draw
from optviz._identity import key_of, key_of_function, number_of
from optviz._nodes import Node
from optviz._record import LEAVING, Event, Recording, latest
from optviz.graph import Graph

# Their derivative is zero wherever there is one.
_FLAT = (
    *("Sign", "Round", "Floor", "Ceil", "Trunc", "Bernoulli", "Poisson", "Normal", "Uniform"),
    *("Exponential", "Geometric", "Cauchy", "LogNormal", "Random", "Zero"),
)

_CAUSES = {
    "create_graph": "the gradient was taken without create_graph=True (first_order=True does that)",
    "detach": "{op} took it off the graph",
    "no_grad": "{op} ran under torch.no_grad()",
    "in_place": "{op} wrote it into a tensor's .data, past the graph",
    "item": "{op} turned it into a number of Python",
    "integer": "{op} gave integers or booleans, which have no gradient",
    "non_differentiable": "{op} has no derivative",
    "requires_grad": "{op} switched requires_grad off",
    "inside": "it was read inside the Function {op}, whose forward is outside the graph; "
    "only a backward of {op} could give it a gradient",
    "new_leaf": "a tensor of its own was made of it, as nn.Parameter(x) does, and read first",
}


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


def why_no_grad(param: torch.Tensor, loss: torch.Tensor) -> Answer:
    """Why ``param`` gets no gradient from ``loss``; falsy if it does.

    Under :func:`optviz.record` (a recording of how both came about) the first cut is named, with
    its line. Without one the graph alone can tell only that there is no path, and what the
    parameter does feed. Where every path leads through Functions written in Python, a backward
    pass is run to see whether they return None; ``.grad`` stays as it is.

    Raises:
        TypeError: One of them is no tensor.

    Example:
        >>> import torch, optviz
        >>> phi = torch.tensor(1.0, requires_grad=True)
        >>> w = torch.tensor(2.0, requires_grad=True)
        >>> with optviz.record():
        ...     (g,) = torch.autograd.grad(phi * w**2, w)
        ...     loss = (w - 0.1 * g) ** 2
        >>> answer = optviz.why_no_grad(phi, loss)
        >>> answer.kind, bool(answer)
        ('create_graph', True)
    """
    for name, tensor in (("param", param), ("loss", loss)):
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(
                f"why_no_grad: expected a tensor as {name}, got {type(tensor).__name__}"
            )
    graph = draw(loss, {"param": param}) if loss.requires_grad else Graph((), ())
    return explain(graph, param, loss)


def explain(
    graph: Graph, param: str | int | torch.Tensor, loss: str | int | torch.Tensor
) -> Answer:
    """:func:`why_no_grad` in a graph that exists, for tensors, names or ids."""
    named = f"{param!r}" if isinstance(param, str) else "the parameter"
    recording = latest()
    if isinstance(param, torch.Tensor) and not param.requires_grad:
        return _frozen(recording, param, named)
    # a tensor may be outside the graph, a wrong name is a mistake
    source = graph._find(param) if isinstance(param, torch.Tensor) else graph.node(param)
    target = graph._find(loss) if isinstance(loss, torch.Tensor) else graph.node(loss)
    if source is not None and target is not None:
        if dict(source.attributes).get("requires_grad") == "False":
            return Answer("requires_grad", f"{named} has requires_grad=False")
        found = _along_paths(graph, source, target, param, loss, named)
        if found is not None:
            return found
    end = number = None
    left: list[Event] = []
    if recording is not None:
        end = _number(recording, graph, loss, target)
        if not _saw(recording, graph, loss, target, end):
            recording = None  # of another program
        else:
            number = _number(recording, graph, param, source)
    if recording is not None and number is not None:
        cut, left = _first_cut(recording, number, end)
        if cut is not None:
            what = _CAUSES["inside" if cut.inside else cut.cut].format(op=cut.name)
            where = f", at {cut.where}" if cut.where else ""
            begin = "no path of the graph" if cut.inside else "no gradient"
            return Answer(cut.cut, f"{begin} reaches {named}: {what}{where}", cut.name, cut.where)
        if not any(number in event.inputs for event in recording.events):
            return Answer(
                "never_used",
                f"no gradient reaches {named}: no recorded operation of this thread read it",
            )
    feeds = _feeds(graph, source)
    if recording is not None and number is not None and not feeds:
        feeds = tuple(dict.fromkeys(e.name for e in recording.events if number in e.inputs))
    told = f"it feeds {', '.join(feeds)}" if feeds else "it feeds nothing in this graph"
    advice = "" if recording is not None else "; run the program under optviz.record() to see why"
    if left:
        taken = dict.fromkeys(f"{event.name} at {event.where}" for event in left)
        places = ", ".join([*taken][:3]) + (", ..." if len(taken) > 3 else "")
        advice = (
            f"; numbers were taken from what it feeds ({places}): if the loss was computed from "
            "those, the gradient ended there"
        )
    return Answer("no_path", f"no path from the loss to {named}: {told}{advice}", feeds=feeds)


def _saw(
    recording: Recording, graph: Graph, which: Any, node: Node | None, end: int | None
) -> bool:
    """Whether a tensor, or what it was computed from, came about under a recording."""
    if end in recording._seen or (end is not None and end in recording._made.values()):
        return True
    if isinstance(which, torch.Tensor):
        below = [] if which.grad_fn is None else which.grad_fn.next_functions
        keys = [(*key_of_function(fn), at) for fn, at in below if fn is not None]
    else:
        edges = () if node is None else graph._inputs[_made_by(graph, node)[0].id]
        keys = [(*graph.nodes[edge.source].key, edge.output) for edge in edges]
    return any(key in recording._made for key in keys)


def _made_by(graph: Graph, node: Node) -> tuple[Node, int]:
    """The operation or leaf behind an output, and which of its results."""
    if node.kind != "output":
        return node, 0
    edge = graph._inputs[node.id][0]
    return graph.nodes[edge.source], edge.output


def _number(recording: Recording, graph: Graph, which: Any, node: Node | None) -> int | None:
    """The number under which a recording knows a tensor or a node."""
    if isinstance(which, torch.Tensor):
        return number_of(which)
    if node is None:
        return None
    made, output = _made_by(graph, node)
    return int(made.key[1]) if made.kind == "leaf" else recording._made.get((*made.key, output))


def _frozen(recording: Recording | None, param: torch.Tensor, named: str) -> Answer:
    number = number_of(param)
    events = [] if recording is None else recording.events
    switched = [e for e in events if e.cut == "requires_grad" and number in e.outputs]
    where = switched[-1].where if switched else ""
    at = f", switched off at {where}" if where else ""
    return Answer("requires_grad", f"{named} has requires_grad=False{at}", "", where)


def _along_paths(
    graph: Graph, source: Node, target: Node, param: Any, loss: Any, named: str
) -> Answer | None:
    """What happens on the paths from one node to another; None if there is none."""
    taken = param if isinstance(param, torch.Tensor) else None
    if source.kind == "output":
        source, result = _made_by(graph, source)
    else:
        result = taken.output_nr if taken is not None and taken.grad_fn is not None else None
    if source.id == _made_by(graph, target)[0].id and _other_result(graph, target, loss, result):
        return None
    start = {e.target for e in graph._consumers[source.id] if result in (None, e.output)}
    reached = graph._downstream_of(start)
    between = (reached & graph._upstream(target.id)) | {source.id}
    if target.id not in between:
        return None
    flat = {i for i in between if _is_flat(graph.nodes[i])}
    if not _connected(graph, start, source.id, target.id, between - flat):
        first = graph.nodes[min(flat)]
        return Answer(
            "zero_derivative",
            f"the gradient of {named} is zero: the derivative of {first.label} is zero everywhere",
            first.name,
        )
    raising = {i for i in between - flat if graph.nodes[i].label == "NotImplemented"}
    if not _connected(graph, start, source.id, target.id, between - flat - raising):
        return Answer(
            "non_differentiable",
            f"no gradient reaches {named}: an operation on the way has no derivative in torch, and "
            "a backward pass raises",
        )
    custom = {i for i in between - flat if graph.nodes[i].custom}
    path = f"a path leads from the loss to {named}"
    if not _connected(graph, start, source.id, target.id, between - flat - custom):
        through = ", ".join(dict.fromkeys(graph.nodes[i].name for i in sorted(custom)))
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


def _other_result(graph: Graph, target: Node, loss: Any, result: int | None) -> bool:
    """Whether the operation that made both made the loss as another result."""
    if isinstance(loss, torch.Tensor):
        at: int | None = loss.output_nr if loss.grad_fn is not None else None
    else:
        at = _made_by(graph, target)[1] if target.kind == "output" else None
    return at is not None and result is not None and at != result


def _is_flat(node: Node) -> bool:
    if node.label in _FLAT:
        return True
    if node.label == "Sgn":  # of complex numbers it is not
        return not node.dtype.startswith("complex")
    return node.label == "Div" and dict(node.attributes).get("rounding_mode") in ("floor", "trunc")


def _connected(graph: Graph, start: set[int], source: int, target: int, allowed: set[int]) -> bool:
    if source not in allowed:
        return False
    if source == target:
        return True
    reached = start & allowed
    for node in sorted(allowed):
        if node in reached:
            reached.update({edge.target for edge in graph._consumers[node]} & allowed)
    return target in reached


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


def _first_cut(
    recording: Recording, start: int, end: int | None
) -> tuple[Event | None, list[Event]]:
    """Follow the data of a tensor in time: where its gradient ended first, and where numbers left.

    Numbers are followed where the very object comes back in.
    """
    events = recording.events
    live, dead = {start}, {}  # dead: still carries the data, cut at that event
    left: list[Event] = []
    for at, event in enumerate(events):
        alive = any(number in live for number in event.inputs)
        cuts = [dead[number] for number in event.inputs if number in dead]
        if not alive and not cuts:
            continue
        if alive and event.cut:
            cuts.append(at)
            alive = False
        if event.name in LEAVING and cuts:
            left.append(event)
        for number, tracked in zip(event.outputs, event.tracked):
            if alive and tracked:
                live.add(number)
                dead.pop(number, None)
            elif cuts and not (number in live and tracked):
                live.discard(number)
                dead[number] = min(cuts)
    return (None if end is None or end not in dead else events[dead[end]]), left


def _feeds(graph: Graph, source: Node | None) -> tuple[str, ...]:
    if source is None:
        return ()
    reached = graph._downstream(source.id) - {source.id}
    return tuple(graph.nodes[i].name for i in sorted(reached) if graph.nodes[i].kind == "output")
