# SPDX-License-Identifier: Apache-2.0
"""The boxes of one frame: ranks from top to bottom, columns from left to right.

Ranks by longest path (Sugiyama, Tagawa and Toda, 1981), long arrows through waypoints, order within
a rank by barycentres, one lane for each derivative order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from optviz._boxes import Box, lane_name

CHAR = 7.3  # of a monospace font of 12 pixels
PAD, GAP_X = 8.0, 22.0


@dataclass
class Item:
    """A box, or a waypoint of a long arrow, in one frame."""

    box: Box | None
    width: float
    height: float
    lane: int
    rank: int = 0
    x: float = 0.0  # centre
    y: float = 0.0  # top
    place: float = 0.0
    above: list[Item] = field(default_factory=list)
    below: list[Item] = field(default_factory=list)


def ranked(items: dict[int, Item], edges: set[tuple[int, int]]) -> list[tuple[int, int]]:
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
    nearest: dict[int, int] = {}
    for source, target in forward:
        nearest[source] = min(nearest.get(source, items[target].rank), items[target].rank)
    for index, item in items.items():  # what nothing precedes stands right above its first reader
        if item.rank == 0 and index in nearest:
            item.rank = nearest[index] - 1
    return forward


def _first(item: Item) -> int:
    return item.box.first if item.box is not None else 0


def waypoints(
    items: dict[int, Item], forward: Sequence[tuple[int, int]], around: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], list[Item]]:
    """What long arrows pass, and those that come into the frame and leave it."""
    ways = {}
    last = max((item.rank for item in items.values()), default=0)
    for source, target in [*forward, *around]:
        above, end = items.get(source), items.get(target)
        lane = min(item.lane for item in (above, end) if item is not None)
        start, stop = above.rank + 1 if above else 0, end.rank if end else last + 1
        way = [Item(None, 10.0, 0.0, lane, rank) for rank in range(start, stop)]
        chain = [item for item in (above, *way, end) if item is not None]
        for upper, lower in pairwise(chain):
            upper.below.append(lower)
            lower.above.append(upper)
        ways[source, target] = way
    return ways


def put_in_order(ranks: list[list[Item]]) -> None:
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


def columns(ranks: list[list[Item]]) -> list[tuple[str, float, float]]:
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
        if len(orders) > 1:
            size = max(size, len(lane_name(order)) * CHAR)
        for item in held:
            item.x += left - start + (size - (end - start)) / 2
        lanes.append((lane_name(order), left, size))
        left += size + 2 * GAP_X
    return lanes if len(orders) > 1 else []


def _spread(rows: list[list[Item]]) -> None:
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


def _settle(row: list[Item], wanted: list[float]) -> None:
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


def _weight(item: Item) -> float:
    """Boxes stand straight below each other, the larger the straighter; waypoints give way."""
    return 1.0 if item.box is None else 4.0 + item.height
