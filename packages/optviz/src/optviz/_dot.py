# SPDX-License-Identifier: Apache-2.0
"""Source for Graphviz."""

from __future__ import annotations

from typing import Any

import graphviz

from optviz._flow import edge_state
from optviz._fold import Box, arrows, folded
from optviz.graph import Graph

_FILL = {"leaf": "#cfe3ff", "leaves": "#cfe3ff", "output": "#c9efd3", "fused": "#fff3a8"}
_ORDER = ("white", "#ffe8c7", "#f9d3e3", "#e4d7fb")


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
        if state in ("nan", "inf"):
            attributes["color"] = attributes["fontcolor"] = "#c81e3a"
        elif state:
            attributes["style"] = "dashed"
        dot.edge(f"n{arrow.source.index}", f"n{arrow.target.index}", **attributes)
    return dot


def _fill(dot: graphviz.Digraph, box: Box) -> None:
    """Boxes nest as deep as scopes do, so this may call itself."""
    for child in box.children:
        if child.open and child.children:
            with dot.subgraph(name=f"cluster_{child.index}") as inside:
                inside.attr(label=graphviz.escape(child.label), style="rounded", color="#8b95a3")
                _fill(inside, child)
            continue
        label = graphviz.escape("\n".join([child.label, *child.notes]))
        attributes = {"fillcolor": _FILL.get(child.kind, _ORDER[min(child.order, 3)])}
        if child.kind == "repeat":
            attributes["style"] = "filled,rounded,dashed"
        dot.node(f"n{child.index}", label, **attributes)


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
