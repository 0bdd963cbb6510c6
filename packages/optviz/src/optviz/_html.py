# SPDX-License-Identifier: Apache-2.0
"""One page with everything in it: the graph, the viewer and its style."""

from __future__ import annotations

import html
import json
import math
import re
from importlib.resources import files
from typing import Any

from optviz._boxes import Box, lane_name
from optviz._flow import MAGNITUDES
from optviz._fold import folded
from optviz._svg import STYLE, legend
from optviz._text import heading
from optviz.graph import Graph

_SCRIPTS = ("layout.js", "viewer.js")


def to_html(graph: Graph, title: str = "autograd graph") -> str:
    """The page."""
    own = files("optviz")
    script = "".join((own / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    data = json.dumps(_data(graph), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    parts = {
        "@TITLE@": html.escape(title),
        "@STYLE@": STYLE.replace("svg {", ":root {"),
        "@DATA@": data,
        "@SCRIPT@": script,
    }
    page = (own / "viewer.html").read_text(encoding="utf-8")
    # In one pass: a tensor may be named like a part.
    return re.sub("|".join(parts), lambda found: parts[found[0]], page)


def to_frame(graph: Graph) -> str:
    """The page inside a notebook's output."""
    page = html.escape(to_html(graph), quote=True)
    return f'<iframe srcdoc="{page}" style="width:100%;height:600px;border:0"></iframe>'


def _data(graph: Graph) -> dict[str, Any]:
    root = folded(graph)
    every: list[Box] = []
    waiting = [root]
    while waiting:  # in the order of their indices
        box = waiting.pop()
        every.append(box)
        waiting += reversed(box.children)
    home = {box.node: box.index for box in every if box.node is not None}
    boxes = [
        {
            "p": -1 if box.parent is None else box.parent.index,
            "l": box.label,
            "k": box.kind,
            "o": box.order,
            "f": box.first,
            "t": list(box.notes),
            "e": int(box.open),
            **({} if box.node is None else {"d": _details(graph, box.node)}),
        }
        for box in every
    ]
    edges = [
        [
            home[edge.source],
            home[edge.target],
            None if edge.norm is None or not math.isfinite(edge.norm) else edge.norm,
            edge.state,
        ]
        for edge in graph.edges
    ]
    orders = max((box.order for box in every), default=0) + 1
    return {
        "boxes": boxes,
        "edges": edges,
        "lanes": [lane_name(order) for order in range(orders)],
        "heading": heading(graph),
        "legend": legend(root, (edge.norm for edge in graph.edges)),
        "sizes": [[name, limit] for name, (limit, _) in MAGNITUDES.items()],
    }


def _details(graph: Graph, index: int) -> dict[str, Any]:
    node = graph.nodes[index]
    told: dict[str, Any] = {"name": node.name}
    if node.shape is not None:
        told["shape"] = f"{node.dtype}{list(node.shape)}"
    if node.path:
        told["scope"] = " / ".join(node.path)
    if node.custom:
        told["custom"] = 1
    if node.statistics:
        told["statistics"] = [f"{name} = {value}" for name, value in node.statistics]
    saved = [f"{s.name}: {s.dtype}{list(s.shape)}, {s.bytes} B" for s in node.saved]
    saved += [f"{name}: overwritten in place" for name in node.overwritten]
    saved += [f"{name}: unpacked by a hook" for name in node.by_hooks]
    if saved := saved + ["freed by a backward pass"] * node.freed:
        told["saved"] = saved
    if node.attributes:
        told["attributes"] = [f"{name} = {value}" for name, value in node.attributes]
    return told
