# SPDX-License-Identifier: Apache-2.0
"""Source for Graphviz."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import graphviz

from optviz._boxes import Box, arrows
from optviz._flow import edge_state, magnitude
from optviz._fold import folded
from optviz.graph import Graph

_FILL = {"leaf": "#cfe3ff", "leaves": "#cfe3ff", "output": "#c9efd3", "fused": "#fff3a8"}
_ORDER = ("white", "#ffe8c7", "#f9d3e3", "#e4d7fb")

_SIZES = {
    "hot3": "#c8401a",
    "hot2": "#dd7726",
    "hot1": "#e0a252",
    "cold3": "#2456b8",
    "cold2": "#3f83d1",
    "cold1": "#7fb0e6",
}


def to_digraph(graph: Graph) -> graphviz.Digraph:
    """The folded graph, open boxes as clusters."""
    root = folded(graph)
    dot = graphviz.Digraph(
        "autograd",
        graph_attr={"fontname": "monospace", "fontsize": "11", "nodesep": "0.25"},
        node_attr={
            "shape": "box",
            "style": "filled,rounded",
            "fontname": "monospace",
            "fontsize": "10",
            "height": "0.2",
        },
        edge_attr={"arrowsize": "0.6", "fontname": "monospace", "fontsize": "8"},
    )
    _fill(dot, root)
    for arrow in arrows(root, graph):
        norm, state = edge_state(arrow.edges)
        attributes = {}
        if norm is not None:
            attributes["label"] = state if state in ("nan", "inf", "never") else f"{norm:.1e}"
        if size := magnitude(norm):
            attributes["color"] = _SIZES[size]
        if state in ("nan", "inf"):
            attributes["color"] = attributes["fontcolor"] = "#c81e3a"
        elif state:
            attributes["style"] = "dashed"
        dot.edge(f"n{arrow.source.index}", f"n{arrow.target.index}", **attributes)
    return dot


def _fill(dot: graphviz.Digraph, root: Box) -> None:
    """Nodes and clusters, a cluster after what stands before it."""
    waiting: list[tuple[graphviz.Digraph, Iterator[Box]]] = [(dot, iter(root.children))]
    while waiting:
        into, boxes = waiting[-1]
        box = next(boxes, None)
        if box is None:
            waiting.pop()
            if waiting:
                waiting[-1][0].subgraph(into)
        elif box.open and box.children:
            inside = graphviz.Digraph(f"cluster_{box.index}")
            inside.attr(label=graphviz.escape(box.label), style="rounded", color="#8b95a3")
            waiting.append((inside, iter(box.children)))
        else:
            _node(into, box)


def _node(dot: graphviz.Digraph, box: Box) -> None:
    label = graphviz.escape("\n".join([box.label, *box.notes]))
    attributes = {"fillcolor": _FILL.get(box.kind, _ORDER[min(box.order, 3)])}
    if box.kind == "repeat":
        attributes["style"] = "filled,rounded,dashed"
    dot.node(f"n{box.index}", label, **attributes)


def rendered(graph: Graph) -> str:
    """SVG as Graphviz lays it out.

    Raises:
        RuntimeError: The program ``dot`` is not installed.
    """
    digraph: Any = to_digraph(graph)
    try:
        return digraph.pipe(format="svg", encoding="utf-8")
    except graphviz.ExecutableNotFound as error:
        raise RuntimeError(
            "Graph.save(engine='dot'): expected the program dot, found none; install Graphviz or "
            "leave engine out"
        ) from error
