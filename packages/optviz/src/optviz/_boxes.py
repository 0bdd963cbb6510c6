# SPDX-License-Identifier: Apache-2.0
"""The boxes of a picture: scopes around nodes, and the arrows between those that are shown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from optviz._nodes import Edge, Node, Scope
from optviz._statistics import told_statistics
from optviz.graph import Graph

_LANES = ("forward", "first derivative", "second derivative", "third derivative")


_FORBIDDEN = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def well_formed(text: str) -> str:
    """A name without what XML 1.0 forbids: control characters and lone surrogates."""
    return _FORBIDDEN.sub("\ufffd", text)


@dataclass
class Box:
    """A node of the graph, or a cluster of boxes."""

    label: str
    kind: str
    order: int = 0
    node: int | None = None
    children: list[Box] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    first: int = 0  # its earliest node, in the order in which they were made
    parent: Box | None = field(default=None, repr=False)
    index: int = -1
    open: bool = False

    def __post_init__(self) -> None:
        self.label = well_formed(self.label)
        self.notes = tuple(map(well_formed, self.notes))

    def nodes(self) -> list[int]:
        """Ids of the nodes in it."""
        found, waiting = [], [self]
        while waiting:
            box = waiting.pop()
            if box.node is not None:
                found.append(box.node)
            waiting += box.children
        return sorted(found)


def lane_name(order: int) -> str:
    """What a derivative order is called."""
    return _LANES[order] if order < len(_LANES) else f"derivative {order}"


def lane(node: Node) -> int:
    """Leaves and outputs stand beside the program."""
    return node.order if node.kind == "op" else 0


def by_scopes(graph: Graph) -> Box:
    """Scopes as nested boxes, everything in the order in which it was made."""
    root = Box("program", "root")
    boxes: dict[tuple[int, Scope], Box] = {}
    made = sorted(graph.nodes, key=_when)
    for place, node in enumerate(made):
        parent = root
        for scope in node.scopes:
            key = (id(parent), scope)
            if key not in boxes:
                boxes[key] = Box(scope.name, scope.kind, first=place)
                parent.children.append(boxes[key])
            parent = boxes[key]
        notes = tuple(_notes(node, graph.show))
        parent.children.append(Box(node.label, node.kind, lane(node), node.id, [], notes, place))
    for box in (root, *boxes.values()):
        box.children = [_without_frame(child) for child in box.children]
    return root


def _without_frame(box: Box) -> Box:
    """A step of one kernel is one box, as it is one node."""
    if box.kind != "fused" or len(box.children) != 1:
        return box
    return replace(box.children[0], label=box.label, kind="fused")


def _when(node: Node) -> tuple[int, int, int]:
    if node.kind == "op":
        return 1, node.key[1], node.id
    return (0 if node.kind == "leaf" else 2), 0, node.id


def _notes(node: Node, show: Sequence[str]) -> list[str]:
    notes = []
    attributes = dict(node.attributes)
    if node.kind != "op" or "shapes" in show:
        notes.append(f"({', '.join(map(str, node.shape or ()))})")
    notes += [value for name, value in node.attributes if name == "named"]
    notes += told_statistics(node.statistics)
    if node.custom and node.saved:
        notes.append(f"{len(node.saved)} tensor{'s' * (len(node.saved) != 1)} saved")
    if "attributes" in show:
        notes += [f"{name} = {value}" for name, value in attributes.items()]
    if "saved" in show:
        notes += [f"{s.name}: {s.dtype}{list(s.shape)}" for s in node.saved]
        notes += [f"{name}: unpacked by a hook" for name in node.by_hooks]
    if node.freed:
        notes.append("freed")
    if node.overwritten:
        notes.append("overwritten")
    return notes


def visible(root: Box) -> list[Box]:
    """The boxes that a picture shows closed or as single nodes."""
    found, waiting = [], list(reversed(root.children))
    while waiting:
        box = waiting.pop()
        if box.open and box.children:
            waiting += reversed(box.children)
        else:
            found.append(box)
    return found


@dataclass
class Arrow:
    """The edges of the graph between two visible boxes."""

    source: Box
    target: Box
    edges: list[Edge]


def arrows(root: Box, graph: Graph) -> list[Arrow]:
    """The edges between visible boxes, each pair once."""
    shown_in: dict[int, Box] = {}
    for box in visible(root):
        shown_in.update(dict.fromkeys(box.nodes(), box))
    found: dict[tuple[int, int], Arrow] = {}
    for edge in graph.edges:
        source, target = shown_in[edge.source], shown_in[edge.target]
        if source is not target:
            key = source.index, target.index
            found.setdefault(key, Arrow(source, target, [])).edges.append(edge)
    return list(found.values())
