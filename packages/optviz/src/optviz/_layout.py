# SPDX-License-Identifier: Apache-2.0
"""Where the boxes of a picture stand: layers from top to bottom, lanes from left to right.

Every open box is laid out by itself and is one big box for what surrounds it, so frames never
overlap. In it: ranks by longest path (Sugiyama, Tagawa and Toda, 1981), long arrows through
waypoints, order within a rank by barycentres, one lane for each derivative order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from optviz._fold import Arrow, Box, arrows, lane_name
from optviz.graph import Graph

CHAR, LINE = 7.3, 15.0  # of a monospace font of 12 pixels
PAD, GAP_X, GAP_Y, HEADER = 8.0, 22.0, 42.0, 24.0
LONGEST = 30  # characters of a line
IN, OUT = -1, -2  # where arrows come into a frame and leave it


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
class Drawing:
    """Everything in absolute coordinates."""

    width: float
    height: float
    placed: list[Placed]  # outer boxes first
    routes: list[tuple[Arrow, list[tuple[float, float]]]]


@dataclass
class _Item:
    """A box, or a waypoint of a long arrow, in one frame."""

    box: Box | None
    width: float
    height: float
    lane: int
    rank: int = 0
    x: float = 0.0  # centre
    y: float = 0.0  # top
    place: float = 0.0
    above: list[_Item] = field(default_factory=list)
    below: list[_Item] = field(default_factory=list)


@dataclass
class _Frame:
    items: dict[int, _Item]
    waypoints: dict[tuple[int, int], list[_Item]]  # IN and OUT stand for what is around
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
    frames: dict[int, _Frame] = {}
    opened = [root]
    for box in opened:  # grows while it is walked
        opened += [child for child in box.children if child.open and child.children]
    for box in reversed(opened):
        frames[box.index] = _frame(box, lifted[box.index], frames)
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
    routes = []
    for arrow, (frame, source, target) in zip(shown, meeting):
        ways = [(_above(box), (box.index, OUT)) for box in _within(arrow.source, frame)]
        ways.append((frame, (source.index, target.index)))
        inwards = [(_above(box), (IN, box.index)) for box in _within(arrow.target, frame)]
        points = []
        for box, key in [*ways, *reversed(inwards)]:
            left, top = corners[box.index]
            way = frames[box.index].waypoints.get(key, [])
            points += [(left + item.x, top + item.y) for item in way]
        start, end = where[arrow.source.index], where[arrow.target.index]
        first = (start.x + start.width / 2, start.y + start.height)
        routes.append((arrow, [first, *points, (end.x + end.width / 2, end.y)]))
    _spread_ends(routes, where)
    whole = frames[root.index]
    return Drawing(whole.width + 2 * PAD, whole.height + 2 * PAD, placed, routes)


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


def _spread_ends(
    routes: list[tuple[Arrow, list[tuple[float, float]]]], where: dict[int, Placed]
) -> None:
    """Arrows leave and reach a box side by side, in the order of where they go."""
    for end, beside in ((0, 1), (-1, -2)):
        meeting: dict[int, list[list[tuple[float, float]]]] = defaultdict(list)
        for arrow, points in routes:
            meeting[(arrow.target if end else arrow.source).index].append(points)
        for index, ways in meeting.items():
            width = where[index].width
            ways.sort(key=lambda points: points[beside][0])
            step = min(12.0, (width - 12.0) / len(ways))
            for place, points in enumerate(ways):
                x, y = points[end]
                points[end] = (x + (place - (len(ways) - 1) / 2) * step, y)


def _frame(box: Box, edges: set[tuple[int, int]], frames: dict[int, _Frame]) -> _Frame:
    items: dict[int, _Item] = {}
    for child in box.children:
        if child.index in frames:
            inner = frames[child.index]
            items[child.index] = _Item(child, inner.width, inner.height, child.order)
        else:
            lines = lines_of(child)
            width = max(max(map(len, lines)) * CHAR + 2 * PAD, 44.0)
            items[child.index] = _Item(child, width, len(lines) * LINE + PAD, child.order)
    within = {edge for edge in edges if IN not in edge and OUT not in edge}
    forward = _rank(items, within)
    ways = _waypoints(items, forward, sorted(edges - within))
    every = [*items.values(), *(item for way in ways.values() for item in way)]
    ranks: list[list[_Item]] = [[] for _ in range(max((i.rank for i in every), default=-1) + 1)]
    for item in every:
        ranks[item.rank].append(item)
    _order(ranks)
    lanes = _columns(ranks, box.parent is not None)
    top = PAD if box.parent is None else HEADER + PAD
    if lanes:
        top += LINE + 20.0
    for row in ranks:
        for item in row:
            item.y = top
        height = max(item.height for item in row)
        for item in row:
            item.y += (height - item.height) / 2
        top += height + GAP_Y
    title = 0.0 if box.parent is None else len(cut(box.label)) * CHAR + 4 * PAD
    right = max([PAD, *(i.x + i.width / 2 for i in every), *(x + size for _, x, size in lanes)])
    width = max(right + PAD, title)
    shift = (width - right - PAD) / 2
    for item in every:
        item.x += shift
    lanes = [(name, x + shift, size) for name, x, size in lanes]
    return _Frame(items, ways, width, top - GAP_Y + PAD, lanes)


def _rank(items: dict[int, _Item], edges: set[tuple[int, int]]) -> list[tuple[int, int]]:
    """Longest-path ranks; the arrows that go down."""
    following: dict[int, list[int]] = defaultdict(list)
    waiting_for = dict.fromkeys(items, 0)
    for source, target in sorted(edges):
        following[source].append(target)
        waiting_for[target] += 1
    ready = [index for index in items if waiting_for[index] == 0]
    left = dict.fromkeys(items)  # ordered, and quick to remove from
    forward: list[tuple[int, int]] = []
    while left:
        if not ready:  # a circle of boxes: cut it where the program began
            ready = [min(left, key=lambda index: _first(items[index]))]
        index = ready.pop(0)
        if index not in left:
            continue
        del left[index]
        for target in following[index]:
            if target in left:
                forward.append((index, target))
                items[target].rank = max(items[target].rank, items[index].rank + 1)
                waiting_for[target] -= 1
                if waiting_for[target] == 0:
                    ready.append(target)
    for index, item in items.items():  # what nothing precedes stands right above its first reader
        below = [items[t].rank for s, t in forward if s == index]
        if below and item.rank == 0:
            item.rank = min(below) - 1
    return forward


def _first(item: _Item) -> int:
    return item.box.first if item.box is not None else 0


def _waypoints(
    items: dict[int, _Item], forward: Sequence[tuple[int, int]], around: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], list[_Item]]:
    """What long arrows pass, and those that come into the frame and leave it."""
    ways = {}
    last = max((item.rank for item in items.values()), default=0)
    for source, target in [*forward, *around]:
        above, end = items.get(source), items.get(target)
        lane = min(item.lane for item in (above, end) if item is not None)
        start, stop = above.rank + 1 if above else 0, end.rank if end else last + 1
        way = [_Item(None, 10.0, 0.0, lane, rank) for rank in range(start, stop)]
        chain = [item for item in (above, *way, end) if item is not None]
        for upper, lower in pairwise(chain):
            upper.below.append(lower)
            lower.above.append(upper)
        ways[source, target] = way
    return ways


def _order(ranks: list[list[_Item]]) -> None:
    """Fewer crossings: items go where their neighbours are, lanes stay apart."""
    for row in ranks:
        for place, item in enumerate(row):
            item.place = place
    for sweep in range(8):
        down = sweep % 2 == 0
        for row in ranks if down else reversed(ranks):
            for item in row:
                near = item.above if down else item.below
                if near:
                    item.place = sum(other.place for other in near) / len(near)
            row.sort(key=lambda item: (item.lane, item.place))
            for place, item in enumerate(row):
                item.place = place


def _columns(ranks: list[list[_Item]], named: bool) -> list[tuple[str, float, float]]:
    """Set the centres; the lanes, if there are several."""
    orders = sorted({item.lane for row in ranks for item in row})
    left = PAD
    lanes = []
    for order in orders:
        rows = [[item for item in row if item.lane == order] for row in ranks]
        _spread(rows)
        held = [item for row in rows for item in row]
        start = min(item.x - item.width / 2 for item in held)
        end = max(item.x + item.width / 2 for item in held)
        size = end - start
        if len(orders) > 1 and named:
            size = max(size, len(lane_name(order)) * CHAR)
        for item in held:
            item.x += left - start + (size - (end - start)) / 2
        lanes.append((lane_name(order), left, size))
        left += size + 2 * GAP_X
    return lanes if len(orders) > 1 else []


def _spread(rows: list[list[_Item]]) -> None:
    """Centres near those of the neighbours, without overlaps."""
    for row in rows:
        x = 0.0
        for item in row:
            item.x = x + item.width / 2
            x += item.width + GAP_X
        for item in row:
            item.x -= (x - GAP_X) / 2
    for sweep in range(12):
        down = sweep % 2 == 0
        for row in rows if down else reversed(rows):
            wanted = []
            for item in row:
                near = item.above if down else item.below
                near = [other for other in near if other.lane == item.lane]
                heavy = sum(map(_weight, near))
                wanted.append(sum(o.x * _weight(o) for o in near) / heavy if near else item.x)
            _settle(row, wanted)


def _settle(row: list[_Item], wanted: list[float]) -> None:
    """The places nearest to the wanted ones that keep order and distance."""
    offsets, running = [], 0.0
    for item in row:
        offsets.append(running + item.width / 2)
        running += item.width + GAP_X
    starts: list[list[float]] = []
    for item, target, offset in zip(row, wanted, offsets):
        starts.append([target - offset, _weight(item), 1])
        while len(starts) > 1 and starts[-2][0] > starts[-1][0]:
            value, weight, count = starts.pop()
            before = starts[-1]
            before[0] = (before[0] * before[1] + value * weight) / (before[1] + weight)
            before[1] += weight
            before[2] += count
    at = 0
    for value, _, count in starts:
        for _ in range(int(count)):
            row[at].x = value + offsets[at]
            at += 1


def _weight(item: _Item) -> float:
    """Boxes stand straight below each other, the larger the straighter; waypoints give way."""
    return 1.0 if item.box is None else 4.0 + item.height
