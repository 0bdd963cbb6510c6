# SPDX-License-Identifier: Apache-2.0
"""Why a parameter gets no gradient."""

from __future__ import annotations

from typing import Any

import torch

from optviz._capture import draw
from optviz._identity import key_of_function, number_of
from optviz._nodes import Node
from optviz._paths import Answer, along_paths, made_by
from optviz._record import latest
from optviz._recording import LEAVING, Event, Recording
from optviz.graph import Graph

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
        found = along_paths(graph, source, target, param, loss, named)
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
        edges = () if node is None else graph._inputs[made_by(graph, node)[0].id]
        keys = [(*graph.nodes[edge.source].key, edge.output) for edge in edges]
    return any(key in recording._made for key in keys)


def _number(recording: Recording, graph: Graph, which: Any, node: Node | None) -> int | None:
    """The number under which a recording knows a tensor or a node."""
    if isinstance(which, torch.Tensor):
        return number_of(which)
    if node is None:
        return None
    made, output = made_by(graph, node)
    return int(made.key[1]) if made.kind == "leaf" else recording._made.get((*made.key, output))


def _frozen(recording: Recording | None, param: torch.Tensor, named: str) -> Answer:
    number = number_of(param)
    events = [] if recording is None else recording.events
    switched = [e for e in events if e.cut == "requires_grad" and number in e.outputs]
    where = switched[-1].where if switched else ""
    at = f", switched off at {where}" if where else ""
    return Answer("requires_grad", f"{named} has requires_grad=False{at}", "", where)


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
