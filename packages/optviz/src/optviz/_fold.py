# SPDX-License-Identifier: Apache-2.0
"""What a picture shows of a graph at first: repeated steps once, long stretches as one box."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from optviz._boxes import Box, by_scopes, lane_name
from optviz.graph import Graph

MOST = 60  # boxes of a folded picture
_STRETCH = 8  # operations in a row without a scope that are shown one by one
_CHUNK = 40  # children that a box may have before they are put into boxes themselves


def folded(graph: Graph) -> Box:
    """The boxes of a graph, those open that a reader wants to see first."""
    root = by_scopes(graph)
    _gather_leaves(root, graph)
    if graph.fold:
        _group(root)
    _finish(root, graph)
    _open(root, graph.fold)
    return root


def _gather_leaves(root: Box, graph: Graph) -> None:
    """More leaves than a reader can take in become one box."""
    leaves = [box for box in root.children if box.kind == "leaf"]
    if graph.fold and len(leaves) > _STRETCH:
        rest = [box for box in root.children if box.kind != "leaf"]
        root.children = [Box(f"{len(leaves)} leaves", "leaves", children=leaves), *rest]


def _group(box: Box) -> None:
    """Long stretches of operations and repeated steps become boxes, from the inside out."""
    stack = [(box, False)]
    while stack:
        current, ready = stack.pop()
        if not ready:
            stack.append((current, True))
            stack += [(child, False) for child in current.children if child.children]
            continue
        if current.kind in ("root", "step", "scope"):
            parts = _stretches(current.children)
            if len(parts) > 1 or current is box:  # else a frame in a frame
                current.children = parts
        current.children = _repeats(current.children)
        current.children = _chunks(current.children)


def _stretches(children: list[Box]) -> list[Box]:
    found: list[Box] = []
    run: list[Box] = []
    for child in [*children, None]:
        if child is not None and child.kind == "op" and (not run or run[0].order == child.order):
            run.append(child)
            continue
        if len(run) > _STRETCH:
            name = lane_name(run[0].order) if run[0].order else "operations"
            inside = _chunks(run)
            found.append(Box(name, "stretch", run[0].order, children=inside, first=run[0].first))
        else:
            found += run
        run = []
        if child is not None:
            (run if child.kind == "op" else found).append(child)
    return found


def _repeats(children: list[Box]) -> list[Box]:
    """Consecutive scopes that do the same are shown once: "steps 2-9 like step 1"."""
    found: list[Box] = []
    at = 0
    while at < len(children):
        first = children[at]
        end = at + 1
        if first.children and first.kind in ("step", "scope"):
            known = _signature(first)
            while end < len(children) and _signature(children[end]) == known:
                end += 1
        found.append(first)
        same = children[at + 1 : end]
        if len(same) == 1:
            found += same
        elif same:
            found.append(
                Box(_like(first, same), "repeat", first.order, children=same, first=same[0].first)
            )
        at = end
    return found


def _like(first: Box, same: list[Box]) -> str:
    stem, number = _numbered(first.label)
    start, end = _numbered(same[0].label)[1], _numbered(same[-1].label)[1]
    if not number:
        return f"{len(same)} more like {first.label}"
    return f"{stem.strip()}s {start}–{end} like {first.label}"  # noqa: RUF001


def _numbered(name: str) -> tuple[str, str]:
    found = re.fullmatch(r"(.*?)(\d*)", name)
    return (name, "") if found is None else (found[1], found[2])


def _signature(box: Box) -> tuple[Any, ...]:
    """Equal for boxes that hold the same stages and operations."""
    inside: Counter[tuple[str, str, int]] = Counter()
    waiting = list(box.children)
    while waiting:
        child = waiting.pop()
        inside[_numbered(child.label)[0], child.kind, child.order] += 1
        waiting += child.children
    return (_numbered(box.label)[0], box.kind, *sorted(inside.items()))


def _chunks(children: list[Box]) -> list[Box]:
    while len(children) > _CHUNK:
        size = -(-len(children) // -(-len(children) // _CHUNK))  # parts alike, none too large
        parts = [children[at : at + size] for at in range(0, len(children), size)]
        children = [_chunk(part) for part in parts]
    return children


def _chunk(part: list[Box]) -> Box:
    if len(part) == 1:
        return part[0]
    names = list(dict.fromkeys(box.label for box in part))
    if len(names) > 3:
        name = f"{part[0].label} … {part[-1].label}"
    else:
        name = ", ".join(names)
    order = min(box.order for box in part)
    return Box(name, "stretch", order, children=part, first=part[0].first)


def _finish(root: Box, graph: Graph) -> None:
    """Parents, numbers, orders and what a closed box says about its inside."""
    every, waiting = [], [root]
    while waiting:
        box = waiting.pop()
        box.index = len(every)
        every.append(box)
        for child in box.children:
            child.parent = box
        waiting += reversed(box.children)
    counted = {node.storage for node in graph.nodes if node.kind == "leaf"}
    bytes_of = dict.fromkeys(range(len(graph.nodes)), 0)
    for node in graph.nodes:
        for tensor in node.saved:
            if tensor.storage not in counted:
                counted.add(tensor.storage)
                bytes_of[node.id] += tensor.bytes
    totals: dict[int, tuple[int, int]] = {}
    for box in reversed(every):
        if box.node is not None:
            totals[box.index] = (1, bytes_of[box.node])
            continue
        inside = [totals[child.index] for child in box.children]
        count, size = sum(n for n, _ in inside), sum(b for _, b in inside)
        totals[box.index] = count, size
        if box.children:
            box.order = min(child.order for child in box.children)
        what = "op" if box.kind != "leaves" else "tensor"
        box.notes = (f"{count} {what}{'s' * (count != 1)}",)
        if box.kind == "stretch":
            box.notes += (_mostly(box, graph),)
        if size:
            box.notes += (f"{told_bytes(size)} saved",)


def _mostly(box: Box, graph: Graph) -> str:
    """The operations that are in a box most often."""
    names = Counter(graph.nodes[index].label for index in box.nodes())
    told = [f"{name} ×{n}" if n > 1 else name for name, n in names.most_common(2)]  # noqa: RUF001
    return ", ".join(told) + (", …" if len(names) > 2 else "")


def told_bytes(size: int) -> str:
    """A number of bytes as a reader wants it."""
    value, unit = float(size), "B"
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def _is_short(box: Box) -> bool:
    """A stretch that shows operations when it is opened, not mere parts of it."""
    return box.kind == "stretch" and not any(child.kind == "stretch" for child in box.children)


def _open(root: Box, fold: bool) -> None:
    """Open boxes level by level, scopes before mere stretches, while the picture stays small."""
    root.open = True
    shown = list(root.children)
    while True:
        closed = [box for box in shown if box.children]
        scopes = [box for box in closed if box.kind not in ("repeat", "leaves", "stretch")]
        choices = [scopes, [box for box in closed if _is_short(box)]] if fold else [closed]
        for inside in filter(None, choices):
            after = len(shown) + sum(len(box.children) - 1 for box in inside)
            if not fold or after <= MOST - 20:
                break
        else:
            return
        for box in inside:
            box.open = True
        gone = {id(box) for box in inside}
        shown = [box for box in shown if id(box) not in gone]
        shown += [child for box in inside for child in box.children]
