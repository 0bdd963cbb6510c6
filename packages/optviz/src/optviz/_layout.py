# SPDX-License-Identifier: Apache-2.0
"""Where the boxes of a picture stand: layers from top to bottom, lanes from left to right.

Every open box is laid out by itself and is one big box for what surrounds it, so frames never
overlap. Where gradients are measured, arrows get room for their numbers. The page lays out by the
same rules: keep layout.js alike.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from optviz._boxes import Arrow, Box, arrows
from optviz._ranks import CHAR, PAD, Item, columns, put_in_order, ranked, waypoints
from optviz.graph import Graph

LINE, GAP_Y, HEADER = 15.0, 42.0, 24.0
LABEL, LABEL_LINE = 46.0, 12.0  # what the number on an arrow takes
ROOM = 26.0  # of a gap between ranks that is free for such numbers
LONGEST = 34  # characters of a line
IN, OUT = -1, -2  # where arrows come into a frame and leave it

Point: TypeAlias = tuple[float, float]
_Way: TypeAlias = tuple[int, tuple[int, int]]  # a frame, and from where to where in it


@dataclass
class Placed:
    """A box with its corner and size, and the lanes in it if it is open."""

    box: Box
    x: float
    y: float
    width: float
    height: float
    lanes: list[tuple[str, float, float]] = field(default_factory=list)  # name, x, width


@dataclass
class Route:
    """An arrow through points from above to below, and where its number is centred."""

    arrow: Arrow
    points: list[Point]
    label: Point | None = None


@dataclass
class Drawing:
    """Everything in absolute coordinates."""

    width: float
    height: float
    placed: list[Placed]  # outer boxes first
    routes: list[Route]
    lanes: list[tuple[str, float, float]] = field(default_factory=list)  # outside of all frames


@dataclass
class _Frame:
    items: dict[int, Item]
    waypoints: dict[tuple[int, int], list[Item]]  # IN and OUT stand for what is around
    width: float
    height: float
    lanes: list[tuple[str, float, float]]


def lines_of(box: Box) -> list[str]:
    """The text of a box."""
    return [cut(line) for line in (box.label, *box.notes)]


def cut(text: str) -> str:
    """A text that fits into a box."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def laid_out(root: Box, graph: Graph) -> Drawing:
    """Place all visible boxes and route the arrows between them."""
    shown = arrows(root, graph)
    lifted: dict[int, set[tuple[int, int]]] = defaultdict(set)
    meeting = [_meeting(arrow) for arrow in shown]
    for arrow, (frame, source, target) in zip(shown, meeting):
        lifted[frame.index].add((source.index, target.index))
        for box in _within(arrow.source, frame):
            lifted[_above(box).index].add((box.index, OUT))
        for box in _within(arrow.target, frame):
            lifted[_above(box).index].add((IN, box.index))
    measured = any(edge.norm is not None for edge in graph.edges)
    numbers = Counter(arrow.target.index for arrow in shown if measured)
    frames: dict[int, _Frame] = {}
    opened = [root]
    for box in opened:  # grows while it is walked
        opened += [child for child in box.children if child.open and child.children]
    for box in reversed(opened):
        frames[box.index] = _frame(box, lifted[box.index], frames, numbers)
    placed: list[Placed] = []
    corners: dict[int, tuple[float, float]] = {root.index: (PAD, PAD)}
    where: dict[int, Placed] = {}
    for box in opened:
        frame = frames[box.index]
        left, top = corners[box.index]
        for child in box.children:
            item = frame.items[child.index]
            x, y = left + item.x - item.width / 2, top + item.y
            lanes = []
            if child.index in frames:
                corners[child.index] = (x, y)
                lanes = frames[child.index].lanes
            where[child.index] = Placed(child, x, y, item.width, item.height, lanes)
            placed.append(where[child.index])
    through = [
        _through(arrow, frame, source, target)
        for arrow, (frame, source, target) in zip(shown, meeting)
    ]
    beside: dict[_Way, dict[int, int]] = defaultdict(dict)  # arrows that share a way, in order
    for number in sorted(range(len(shown)), key=lambda k: where[shown[k].source.index].x):
        for way in through[number]:
            beside[way][number] = len(beside[way])
    routes = []
    for number, arrow in enumerate(shown):
        points: list[Point] = []
        for way in through[number]:
            left, top = corners[way[0]]
            together = beside[way]
            place = together[number] - (len(together) - 1) / 2
            left += place * min(4.0, 16.0 / len(together))
            for item in frames[way[0]].waypoints.get(way[1], []):  # straight past its rank
                points.append((left + item.x, top + item.y))
                points.append((left + item.x, top + item.y + item.height))
        start, end = where[arrow.source.index], where[arrow.target.index]
        first = (start.x + start.width / 2, start.y + start.height)
        routes.append(Route(arrow, [first, *points, (end.x + end.width / 2, end.y)]))
    _spread_ends(routes, where, measured)
    whole = frames[root.index]
    return Drawing(whole.width + 2 * PAD, whole.height + 2 * PAD, placed, routes, whole.lanes)


def _through(arrow: Arrow, frame: Box, source: Box, target: Box) -> list[_Way]:
    """The ways that an arrow takes through frames, from its source to its target."""
    ways = [(_above(box).index, (box.index, OUT)) for box in _within(arrow.source, frame)]
    ways.append((frame.index, (source.index, target.index)))
    inwards = [(_above(box).index, (IN, box.index)) for box in _within(arrow.target, frame)]
    return [*ways, *reversed(inwards)]


def _meeting(arrow: Arrow) -> tuple[Box, Box, Box]:
    """The innermost frame that holds both ends, and what of it does."""
    above: dict[int, Box] = {}
    box = arrow.source
    while box.parent is not None:
        above[box.parent.index] = box
        box = box.parent
    box = arrow.target
    while box.parent is not None and box.parent.index not in above:
        box = box.parent
    assert box.parent is not None  # both ends are in the root
    return box.parent, above[box.parent.index], box


def _above(box: Box) -> Box:
    assert box.parent is not None  # only the root has none, and no arrow ends there
    return box.parent


def _within(box: Box, frame: Box) -> list[Box]:
    """The box and those around it, up to the one that lies directly in an inner frame."""
    found = []
    while box.parent is not frame:
        found.append(box)
        box = _above(box)
    return found


def _spread_ends(routes: Sequence[Route], where: Mapping[int, Placed], measured: bool) -> None:
    """Arrows leave and reach a box side by side, in the order of where they go."""
    for end, beside in ((0, 1), (-1, -2)):
        meeting: dict[int, list[Route]] = defaultdict(list)
        for route in routes:
            meeting[(route.arrow.target if end else route.arrow.source).index].append(route)
        for index, ways in meeting.items():
            ways.sort(key=lambda route: route.points[beside][0])
            step = _step(len(ways), where[index].width, bool(end) and measured)
            for place, route in enumerate(ways):
                x, y = route.points[end]
                x += (place - (len(ways) - 1) / 2) * step
                route.points[end] = (x, y)
                if end and measured:
                    row = place % _rows(len(ways), where[index].width)
                    route.label = (x, y - 14.0 - row * LABEL_LINE)


def _step(count: int, width: float, labelled: bool) -> float:
    """How far apart arrows end at a box."""
    return min(LABEL if labelled else 12.0, (width - 12.0) / count)


def _rows(count: int, width: float) -> int:
    """How many lines the numbers take that stand above a box."""
    return min(count, math.ceil(LABEL / _step(count, width, True)))


def _frame(
    box: Box,
    edges: set[tuple[int, int]],
    frames: Mapping[int, _Frame],
    numbers: Mapping[int, int],
) -> _Frame:
    items: dict[int, Item] = {}
    for child in box.children:
        if child.index in frames:
            inner = frames[child.index]
            items[child.index] = Item(child, inner.width, inner.height, child.order)
        else:
            lines = lines_of(child)
            own = min(numbers.get(child.index, 0), 3) * LABEL + 12.0
            width = max(max(map(len, lines)) * CHAR + 2 * PAD, 44.0, own)
            items[child.index] = Item(child, width, len(lines) * LINE + PAD, child.order)
    within = {edge for edge in edges if IN not in edge and OUT not in edge}
    forward = ranked(items, within)
    ways = waypoints(items, forward, sorted(edges - within))
    every = [*items.values(), *(item for way in ways.values() for item in way)]
    ranks: list[list[Item]] = [[] for _ in range(max((i.rank for i in every), default=-1) + 1)]
    for item in every:
        ranks[item.rank].append(item)
    put_in_order(ranks)
    lanes = columns(ranks)
    top = PAD if box.parent is None else HEADER + PAD
    if lanes:
        top += LINE + 20.0
    for rank, row in enumerate(ranks):
        room = max(LABEL_LINE * _lines_above(item, numbers) for item in row)
        top += room if rank == 0 else max(room - ROOM, 0.0)
        height = max(item.height for item in row)
        for item in row:
            if item.box is None:
                item.height = height
            item.y = top + (height - item.height) / 2
        top += height + GAP_Y
    title = 0.0 if box.parent is None else len(cut(box.label)) * CHAR + 4 * PAD
    right = max([PAD, *(i.x + i.width / 2 for i in every), *(x + size for _, x, size in lanes)])
    width = max(right + PAD, title)
    shift = (width - right - PAD) / 2
    for item in every:
        item.x += shift
    lanes = [(name, x + shift, size) for name, x, size in lanes]
    height = top - GAP_Y + PAD if ranks else PAD
    return _Frame(items, ways, width, height, lanes)


def _lines_above(item: Item, numbers: Mapping[int, int]) -> int:
    count = 0 if item.box is None else numbers.get(item.box.index, 0)
    return _rows(count, item.width) if count else 0
