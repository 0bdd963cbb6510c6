# SPDX-License-Identifier: Apache-2.0
"""SVG without any other program."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from xml.sax.saxutils import escape, quoteattr

from optviz._boxes import Box, lane_name, well_formed
from optviz._flow import MAGNITUDES, edge_state, magnitude
from optviz._fold import folded
from optviz._layout import (
    HEADER,
    LINE,
    Drawing,
    Placed,
    Route,
    cut,
    laid_out,
    lines_of,
)
from optviz._ranks import CHAR, PAD
from optviz._text import heading
from optviz.graph import Graph

# Readable in black and white too: kinds differ in their outlines.
STYLE = """
svg { --page: #ffffff; --ink: #1b1f24; --faint: #6b7280; --frame: #f6f7f9; --line: #8b95a3;
  --leaf: #cfe3ff; --output: #c9efd3; --o0: #ffffff; --o1: #ffe8c7; --o2: #f9d3e3; --o3: #e4d7fb;
  --fused: #fff3a8; --repeat: #e8ebef; --bad: #c81e3a; --dead: #b0b7c1;
  --hot1: #e0a252; --hot2: #dd7726; --hot3: #c8401a;
  --cold1: #7fb0e6; --cold2: #3f83d1; --cold3: #2456b8; }
@media (prefers-color-scheme: dark) { svg { --page: #14171b; --ink: #e6e9ee; --faint: #9aa4b2;
  --frame: #1c2026; --line: #6f7a89; --leaf: #1d3c66; --output: #1c4a2c; --o0: #262c34;
  --o1: #553a12; --o2: #57233c; --o3: #3d2c63; --fused: #57500f; --repeat: #2d343d; --bad: #ff6b81;
  --dead: #4b545f; --hot1: #b98a4a; --hot2: #e08a3c; --hot3: #ff7043;
  --cold1: #4d7fb8; --cold2: #5a9ff0; --cold3: #8ac0ff; } }
.page { fill: var(--page); } text { font: 12px ui-monospace, monospace; fill: var(--ink); }
text.note, text.lane { fill: var(--faint); } text.title { font-weight: bold; }
.box { fill: var(--o0); stroke: var(--line); } .frame { fill: var(--frame); stroke: var(--line); }
.o1 { fill: var(--o1); } .o2 { fill: var(--o2); } .o3 { fill: var(--o3); }
.leaf, .leaves { fill: var(--leaf); } .output { fill: var(--output); stroke-width: 2; }
.fused { fill: var(--fused); stroke-width: 2; } .repeat { fill: var(--repeat);
  stroke-dasharray: 5 3; } .custom { stroke-width: 2; }
.edge { fill: none; stroke: var(--line); stroke-width: 1.2; } .head { fill: var(--line); }
.edge.hot1 { stroke: var(--hot1); stroke-width: 1.8; } .box.hot1 { fill: var(--hot1); }
.edge.hot2 { stroke: var(--hot2); stroke-width: 2.6; } .box.hot2 { fill: var(--hot2); }
.edge.hot3 { stroke: var(--hot3); stroke-width: 3.4; } .box.hot3 { fill: var(--hot3); }
.edge.cold1 { stroke: var(--cold1); } .box.cold1 { fill: var(--cold1); }
.edge.cold2 { stroke: var(--cold2); } .box.cold2 { fill: var(--cold2); }
.edge.cold3 { stroke: var(--cold3); } .box.cold3 { fill: var(--cold3); }
.nan, .inf { stroke: var(--bad); stroke-width: 3; } .zero, .never { stroke: var(--dead);
  stroke-dasharray: 4 4; } text.flow { font-size: 10px; fill: var(--faint); }
text.over { paint-order: stroke; stroke: var(--page); stroke-width: 3px; stroke-linejoin: round; }
text.bad { fill: var(--bad); font-weight: bold; }
"""


def to_svg(graph: Graph) -> str:
    """The folded graph as SVG."""
    return svg_of(laid_out(root := folded(graph), graph), root, graph)


def svg_of(drawing: Drawing, root: Box, graph: Graph) -> str:
    """A laid-out graph as SVG."""
    colours = legend(root, [edge_state(route.arrow.edges)[0] for route in drawing.routes])
    width = max([drawing.width, *(len(name) * CHAR + 34 + 2 * PAD for _, name in colours)])
    rows = _rows_of(colours, width)
    height = drawing.height + 8 + 20 * len(rows)
    shift = (width - drawing.width) / 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f"aria-label={quoteattr(heading(graph))}>",
        f"<style>{escape(STYLE)}</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="9" '
        'markerHeight="9" markerUnits="userSpaceOnUse" orient="auto">'
        '<path class="head" d="M0 0 L8 4 L0 8 z"/></marker></defs>',
        '<rect class="page" width="100%" height="100%"/>',
        f'<g transform="translate({shift:.1f} 0)">',
    ]
    opened = [placed for placed in drawing.placed if placed.box.open and placed.box.children]
    closed = [placed for placed in drawing.placed if not (placed.box.open and placed.box.children)]
    parts += [_frame(placed) for placed in opened]
    parts += [_edge(route) for route in drawing.routes]
    parts += [_box(placed, graph) for placed in closed]
    parts += [_captions(placed) for placed in opened]
    parts += [_lane(PAD, PAD - HEADER, lane) for lane in drawing.lanes]
    parts += _norms(drawing)
    parts.append("</g>")
    for row, entries in enumerate(rows):
        x, y = PAD, drawing.height + 6 + 20 * row
        for kind, name in entries:
            parts.append(f'<rect class="box {kind}" x="{x:.1f}" y="{y}" width="14" height="14"/>')
            parts.append(_text(x + 20, y + 11, name, "note"))
            x += len(name) * CHAR + 34
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _rows_of(colours: Sequence[tuple[str, str]], width: float) -> list[list[tuple[str, str]]]:
    """As many entries of the legend in a row as have room."""
    rows: list[list[tuple[str, str]]] = [[]]
    used = 2 * PAD
    for kind, name in colours:
        needed = len(name) * CHAR + 34
        if used + needed > width and rows[-1]:
            rows.append([])
            used = 2 * PAD
        rows[-1].append((kind, name))
        used += needed
    return rows


def legend(root: Box, norms: Iterable[float | None]) -> list[tuple[str, str]]:
    """Classes that the picture uses for its boxes and gradients, and what they mean."""
    kinds, orders, waiting = set(), set(), list(root.children)
    while waiting:
        box = waiting.pop()
        kinds.add(box.kind)
        if box.kind not in ("leaf", "leaves", "output"):
            orders.add(box.order)
        waiting += box.children
    found = [("leaf", "leaf")] if kinds & {"leaf", "leaves"} else []
    found += [(f"o{min(order, 3)}", lane_name(order)) for order in sorted(orders)]
    found += [("fused", "fused kernel")] if "fused" in kinds else []
    found += [("output", "output")] if "output" in kinds else []
    sizes = set(map(magnitude, norms))
    return found + [(size, told) for size, (_, told) in MAGNITUDES.items() if size in sizes]


def _classes(box: Box, graph: Graph) -> str:
    known = box.kind if box.kind in ("leaf", "leaves", "output", "fused", "repeat") else ""
    custom = "custom" if box.node is not None and graph.nodes[box.node].custom else ""
    names = ["box", f"o{min(box.order, 3)}", known, custom]
    return " ".join(name for name in names if name)


def _frame(placed: Placed) -> str:
    return _rect(placed, "frame")


def _captions(placed: Placed) -> str:
    parts = [_text(placed.x + PAD, placed.y + 16, cut(placed.box.label), "title over")]
    parts += [_lane(placed.x, placed.y, lane) for lane in placed.lanes]
    return "".join(parts)


def _lane(left: float, top: float, lane: tuple[str, float, float]) -> str:
    name, x, width = lane
    return _text(left + x + width / 2, top + HEADER + 8, name, "lane over", "middle")


def _box(placed: Placed, graph: Graph) -> str:
    box = placed.box
    full = [box.label, *box.notes]
    if box.node is not None:
        node = graph.nodes[box.node]
        full = [node.name, "/".join(node.path), str(list(node.shape or ())), *box.notes]
        full += [f"{name} = {value}" for name, value in (*node.statistics, *node.attributes)]
    tip = escape(well_formed("\n".join(line for line in full if line)))
    parts = [f"<g><title>{tip}</title>{_rect(placed, _classes(box, graph))}"]
    for row, line in enumerate(lines_of(box)):
        style = ("title" if box.children else "") if row == 0 else "note"
        y = placed.y + PAD / 2 + 12 + row * LINE
        parts.append(_text(placed.x + placed.width / 2, y, line, style, "middle"))
    return "".join(parts) + "</g>"


def _rect(placed: Placed, classes: str) -> str:
    return (
        f'<rect class="{classes}" x="{placed.x:.1f}" y="{placed.y:.1f}" '
        f'width="{placed.width:.1f}" height="{placed.height:.1f}" rx="5"/>'
    )


def _text(x: float, y: float, text: str, classes: str, anchor: str = "start") -> str:
    return (
        f'<text class="{classes}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
        f"{escape(text)}</text>"
    )


def path_of(points: Sequence[tuple[float, float]]) -> str:
    """A smooth line through points from above to below."""
    (x, y), *rest = points
    parts = [f"M{x:.1f} {y:.1f}"]
    for nx, ny in rest:
        bend = max(abs(ny - y) / 2, 12.0)
        curve = f"C{x:.1f} {y + bend:.1f} {nx:.1f} {ny - bend:.1f} {nx:.1f} {ny:.1f}"
        parts.append(curve if nx != x else f"L{nx:.1f} {ny:.1f}")
        x, y = nx, ny
    return "".join(parts)


def _edge(route: Route) -> str:
    norm, state = edge_state(route.arrow.edges)
    classes = " ".join(filter(None, ("edge", magnitude(norm), state)))
    return f'<path class="{classes}" d="{path_of(route.points)}" marker-end="url(#head)"/>'


def _norms(drawing: Drawing) -> list[str]:
    """The measured gradients, on their arrows."""
    parts = []
    for route in drawing.routes:
        norm, state = edge_state(route.arrow.edges)
        if norm is None or route.label is None:
            continue
        told = state if state in ("nan", "inf", "never") else f"{norm:.1e}" if norm else "0"
        x, y = route.label
        style = "bad over" if state in ("nan", "inf") else "flow over"
        parts.append(_text(x, y + 4, told, style, "middle"))
    return parts
