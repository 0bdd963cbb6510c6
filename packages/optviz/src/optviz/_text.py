# SPDX-License-Identifier: Apache-2.0
"""A graph for terminals, and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from optviz._boxes import Box, arrows, lane_name
from optviz._flow import edge_state
from optviz._fold import folded, told_bytes
from optviz.graph import Graph


def to_text(graph: Graph) -> str:
    """An outline: boxes as in pictures, with what each reads."""
    root = folded(graph)
    reads: dict[int, list[str]] = {}
    names: dict[int, str] = {}
    seen: dict[str, int] = {}
    shown = arrows(root, graph)
    ends = {box.index for arrow in shown for box in (arrow.source, arrow.target)}
    lines: list[str] = [heading(graph)]
    waiting = [(child, 0) for child in reversed(root.children)]
    order: list[tuple[Box, int]] = []
    while waiting:
        box, depth = waiting.pop()
        order.append((box, depth))
        if box.index in ends:  # names that occur again are numbered
            seen[box.label] = seen.get(box.label, 0) + 1
            number = seen[box.label]
            names[box.index] = box.label if number == 1 else f"{box.label}#{number}"
        if box.open and box.children:
            waiting += [(child, depth + 1) for child in reversed(box.children)]
    for arrow in shown:
        norm, state = edge_state(arrow.edges)
        told = names[arrow.source.index]
        if norm is not None:
            told += f" [{state if state in ('nan', 'inf', 'never') else f'{norm:.1e}'}]"
        reads.setdefault(arrow.target.index, []).append(told)
    for box, depth in order:
        name = names.get(box.index, box.label)
        notes = [] if box.open and box.children else list(box.notes)
        if box.order and box.kind not in ("leaf", "output"):
            notes.append(lane_name(box.order))
        text = f"{name} ({'; '.join(note.strip('()') for note in notes)})" if notes else name
        arrow_text = f" <- {', '.join(reads[box.index])}" if box.index in reads else ""
        lines.append(f"{'  ' * depth}{text}{arrow_text}")
    return "\n".join(lines) + "\n"


def heading(graph: Graph) -> str:
    """What is in a graph, in numbers."""
    names = {"ops": "op", "leaves": "leaf", "outputs": "output", "edges": "edge"}
    counts = graph.summary()
    told = [f"{counts[k]} {one if counts[k] == 1 else k}" for k, one in names.items()]
    hooked = sum(len(node.by_hooks) for node in graph.nodes)
    rest = f" and {hooked} unpacked by hooks" if hooked else ""
    return f"{', '.join(told)}, {told_bytes(counts['saved_bytes'])} saved{rest}"


def to_json(graph: Graph) -> str:
    """Nodes and edges, as the dataclasses have them."""
    nodes: list[dict[str, Any]] = []
    for node in graph.nodes:
        entry = asdict(node)
        del entry["key"]  # means something in this process only
        entry["label"] = node.label
        nodes.append(entry)
    edges = []
    for edge in graph.edges:
        told = asdict(edge)
        if edge.state in ("nan", "inf"):  # JSON has no such numbers
            told["norm"] = None
        edges.append(told)
    return json.dumps({"nodes": nodes, "edges": edges}, indent=1, allow_nan=False) + "\n"
