// SPDX-License-Identifier: Apache-2.0
// Where boxes stand: the rules of _layout.py and _ranks.py, keep them alike.
"use strict";
const CHAR = 7.3, LINE = 15, PAD = 8, GAP_X = 22, GAP_Y = 42, HEADER = 24, LONGEST = 34;
const LABEL = 46, LABEL_LINE = 12, ROOM = 26;  // what the number on an arrow takes, and has
const IN = -1, OUT = -2;  // where arrows come into a frame and leave it
const isOpen = box => box.e && box.children.length > 0;
const cut = text => text.length <= LONGEST ? text : text.slice(0, LONGEST - 1) + "…";
const lines = box => [box.l, ...box.t].map(cut);
const sum = (list, of) => list.reduce((total, entry) => total + of(entry), 0);

// `root` is the outermost box, `shown` the arrows between visible ones: sets their frame, from, to.
function layout(root, shown, data) {
  const lifted = new Map(), frames = new Map();
  const lift = (frame, s, t) => {
    if (!lifted.has(frame.i)) lifted.set(frame.i, new Map());
    lifted.get(frame.i).set(s + "," + t, [s, t]);
  };
  const within = (box, frame) => {
    const inner = [];
    for (; box.parent !== frame; box = box.parent) inner.push(box);
    return inner;
  };
  for (const arrow of shown) {
    const above = new Map();
    for (let box = arrow.source; box.parent; box = box.parent) above.set(box.parent.i, box);
    let box = arrow.target;
    while (!above.has(box.p)) box = box.parent;
    arrow.frame = box.parent; arrow.from = above.get(box.p); arrow.to = box;
    arrow.out = within(arrow.source, arrow.frame); arrow.in = within(arrow.target, arrow.frame);
    lift(arrow.frame, arrow.from.i, arrow.to.i);
    for (const inner of arrow.out) lift(inner.parent, inner.i, OUT);
    for (const inner of arrow.in) lift(inner.parent, IN, inner.i);
  }
  const measured = data.edges.some(edge => edge[2] !== null || edge[3]), numbers = new Map();
  if (measured) for (const {target} of shown) numbers.set(target.i, (numbers.get(target.i) || 0) + 1);
  const opened = [root];
  for (const box of opened) opened.push(...box.children.filter(isOpen));
  for (const box of [...opened].reverse())
    frames.set(box.i, frame(box, [...(lifted.get(box.i) || new Map()).values()], frames, numbers, data.lanes));
  const corners = new Map([[root.i, [PAD, PAD]]]), where = new Map(), placed = [];
  for (const box of opened) {
    const [left, top] = corners.get(box.i);
    for (const child of box.children) {
      const item = frames.get(box.i).items.get(child.i);
      const at = {box: child, x: left + item.x - item.width / 2, y: top + item.y,
        width: item.width, height: item.height, lanes: []};
      if (frames.has(child.i)) { corners.set(child.i, [at.x, at.y]); at.lanes = frames.get(child.i).lanes; }
      where.set(child.i, at); placed.push(at);
    }
  }
  const through = new Map(shown.map(arrow => {
    const ways = arrow.out.map(box => [box.parent, box.i + "," + OUT]);
    ways.push([arrow.frame, arrow.from.i + "," + arrow.to.i]);
    ways.push(...arrow.in.map(box => [box.parent, IN + "," + box.i]).reverse());
    return [arrow, ways];
  }));
  const sharing = new Map(), name = ([box, key]) => box.i + ":" + key;  // arrows that share a way
  for (const arrow of [...shown].sort((a, b) => where.get(a.source.i).x - where.get(b.source.i).x))
    for (const way of through.get(arrow)) {
      if (!sharing.has(name(way))) sharing.set(name(way), new Map());
      sharing.get(name(way)).set(arrow, sharing.get(name(way)).size);
    }
  const routes = shown.map(arrow => {
    const points = through.get(arrow).flatMap(([box, key]) => {
      const together = sharing.get(name([box, key])), [corner, top] = corners.get(box.i);
      const place = together.get(arrow) - (together.size - 1) / 2;
      const left = corner + place * Math.min(4, 16 / together.size);
      return (frames.get(box.i).ways.get(key) || []).flatMap(item =>  // straight past its rank
        [[left + item.x, top + item.y], [left + item.x, top + item.y + item.height]]);
    });
    const start = where.get(arrow.source.i), end = where.get(arrow.target.i);
    return {arrow, points: [[start.x + start.width / 2, start.y + start.height], ...points,
      [end.x + end.width / 2, end.y]]};
  });
  for (const last of [false, true]) {  // arrows leave and reach a box side by side
    const meeting = new Map();
    for (const route of routes) {
      const box = last ? route.arrow.target : route.arrow.source;
      if (!meeting.has(box.i)) meeting.set(box.i, []);
      meeting.get(box.i).push(route);
    }
    const beside = ({points}) => last ? points[points.length - 2][0] : points[1][0];
    for (const [index, ways] of meeting) {
      ways.sort((a, b) => beside(a) - beside(b));
      const width = where.get(index).width, step = stepOf(ways.length, width, last && measured);
      ways.forEach((route, place) => {
        const point = route.points[last ? route.points.length - 1 : 0];
        point[0] += (place - (ways.length - 1) / 2) * step;
        if (last && measured)
          route.label = [point[0], point[1] - 14 - place % rowsOf(ways.length, width) * LABEL_LINE];
      });
    }
  }
  const whole = frames.get(root.i);
  return {width: whole.width + 2 * PAD, height: whole.height + 2 * PAD, placed, routes, where,
    lanes: whole.lanes};
}
// how far apart arrows end at a box, and how many lines the numbers take that stand above it
const stepOf = (count, width, labelled) => Math.min(labelled ? LABEL : 12, (width - 12) / count);
const rowsOf = (count, width) => Math.min(count, Math.ceil(LABEL / stepOf(count, width, true)));
function frame(box, edges, frames, numbers, names) {
  const linesAbove = item => {
    const count = item.box ? numbers.get(item.box.i) || 0 : 0;
    return count ? rowsOf(count, item.width) : 0;
  };
  const items = new Map();
  for (const child of box.children) {
    const base = {box: child, lane: child.o, rank: 0, x: 0, y: 0, place: 0, above: [], below: []};
    if (frames.has(child.i)) {
      const inner = frames.get(child.i);
      items.set(child.i, {...base, width: inner.width, height: inner.height});
    } else {
      const text = lines(child);
      const longest = Math.max(...text.map(line => line.length)) + (child.children.length ? 2 : 0);
      const own = Math.min(numbers.get(child.i) || 0, 3) * LABEL + 12;
      const width = Math.max(longest * CHAR + 2 * PAD, 44, own);
      items.set(child.i, {...base, width, height: text.length * LINE + PAD});
    }
  }
  const inside = edges.filter(([s, t]) => s !== IN && t !== OUT);
  const forward = rank(items, inside);
  const ways = waypoints(items, forward, edges.filter(([s, t]) => s === IN || t === OUT));
  const every = [...items.values(), ...[...ways.values()].flat()];
  const rows = [];
  for (const item of every) (rows[item.rank] = rows[item.rank] || []).push(item);
  for (let at = 0; at < rows.length; at++) rows[at] = rows[at] || [];
  order(rows);
  let lanes = columns(rows, names);
  let top = (box.parent ? HEADER + PAD : PAD) + (lanes.length ? LINE + 20 : 0);
  rows.forEach((row, rank) => {
    const room = LABEL_LINE * Math.max(0, ...row.map(linesAbove));
    top += rank === 0 ? room : Math.max(room - ROOM, 0);
    const height = Math.max(0, ...row.map(item => item.height));
    for (const item of row) {
      if (!item.box) item.height = height;
      item.y = top + (height - item.height) / 2;
    }
    top += height + GAP_Y;
  });
  const title = box.parent ? cut(box.l).length * CHAR + 4 * PAD : 0;
  const right = Math.max(PAD, ...every.map(i => i.x + i.width / 2), ...lanes.map(l => l.x + l.width));
  const width = Math.max(right + PAD, title), shift = (width - right - PAD) / 2;
  for (const item of every) item.x += shift;
  lanes = lanes.map(lane => ({...lane, x: lane.x + shift}));
  return {items, ways, width, height: rows.length ? top - GAP_Y + PAD : PAD, lanes};
}
function rank(items, edges) {
  const following = new Map(), waiting = new Map();
  for (const index of items.keys()) { following.set(index, []); waiting.set(index, 0); }
  for (const [s, t] of edges) { following.get(s).push(t); waiting.set(t, waiting.get(t) + 1); }
  let ready = [...items.keys()].filter(index => !waiting.get(index));
  const left = new Set(items.keys()), forward = [];
  while (left.size) {
    if (!ready.length)  // a circle of boxes: cut it where the program began
      ready = [[...left].reduce((a, b) => items.get(b).box.f < items.get(a).box.f ? b : a)];
    const index = ready.shift();
    if (!left.delete(index)) continue;
    for (const target of following.get(index)) {
      if (!left.has(target)) continue;
      forward.push([index, target]);
      const item = items.get(target);
      item.rank = Math.max(item.rank, items.get(index).rank + 1);
      waiting.set(target, waiting.get(target) - 1);
      if (!waiting.get(target)) ready.push(target);
    }
  }
  const nearest = new Map();
  for (const [s, t] of forward) nearest.set(s, Math.min(nearest.get(s) ?? Infinity, items.get(t).rank));
  for (const [index, item] of items)
    if (item.rank === 0 && nearest.has(index)) item.rank = nearest.get(index) - 1;
  return forward;
}
function waypoints(items, forward, around) {
  const ways = new Map(), last = Math.max(0, ...[...items.values()].map(item => item.rank));
  for (const [s, t] of [...forward, ...around]) {
    const above = items.get(s), end = items.get(t), way = [];
    const lane = Math.min(...[above, end].filter(Boolean).map(item => item.lane));
    for (let at = above ? above.rank + 1 : 0; at < (end ? end.rank : last + 1); at++)
      way.push({box: null, width: 10, height: 0, lane, rank: at, x: 0, y: 0, place: 0, above: [], below: []});
    const chain = [above, ...way, end].filter(Boolean);
    for (let at = 1; at < chain.length; at++) {
      chain[at - 1].below.push(chain[at]); chain[at].above.push(chain[at - 1]);
    }
    ways.set(s + "," + t, way);
  }
  return ways;
}
function order(rows) {
  for (const row of rows) row.forEach((item, place) => { item.place = place; });
  for (let sweep = 0; sweep < 8; sweep++) {
    const down = sweep % 2 === 0;
    for (const row of down ? rows : [...rows].reverse()) {
      for (const item of row) {
        const near = down ? item.above : item.below;
        if (near.length) item.place = sum(near, other => other.place) / near.length;
      }
      row.sort((a, b) => a.lane - b.lane || a.place - b.place);
      row.forEach((item, place) => { item.place = place; });
    }
  }
}
function columns(rows, names) {
  const orders = [...new Set(rows.flat().map(item => item.lane))].sort((a, b) => a - b);
  let left = PAD;
  const lanes = [];
  for (const lane of orders) {
    const own = rows.map(row => row.filter(item => item.lane === lane)), held = own.flat();
    spread(own);
    const start = Math.min(...held.map(item => item.x - item.width / 2));
    const extent = Math.max(...held.map(item => item.x + item.width / 2)) - start;
    const name = names[lane];
    const width = orders.length > 1 ? Math.max(extent, name.length * CHAR) : extent;
    for (const item of held) item.x += left - start + (width - extent) / 2;
    lanes.push({name, x: left, width});
    left += width + 2 * GAP_X;
  }
  return lanes.length > 1 ? lanes : [];
}
const weight = item => item.box ? 4 + item.height : 1;
function spread(rows) {
  for (const row of rows) {
    let x = 0;
    for (const item of row) { item.x = x + item.width / 2; x += item.width + GAP_X; }
    for (const item of row) item.x -= (x - GAP_X) / 2;
  }
  for (let sweep = 0; sweep < 12; sweep++) {
    const down = sweep % 2 === 0;
    for (const row of down ? rows : [...rows].reverse()) {
      settle(row, row.map(item => {
        const near = (down ? item.above : item.below).filter(other => other.lane === item.lane);
        return near.length ? sum(near, o => o.x * weight(o)) / sum(near, weight) : item.x;
      }));
    }
  }
}
function settle(row, wanted) {
  const offsets = [], starts = [];
  let running = 0;
  for (const item of row) { offsets.push(running + item.width / 2); running += item.width + GAP_X; }
  row.forEach((item, at) => {
    starts.push([wanted[at] - offsets[at], weight(item), 1]);
    while (starts.length > 1 && starts[starts.length - 2][0] > starts[starts.length - 1][0]) {
      const [value, heavy, count] = starts.pop(), before = starts[starts.length - 1];
      before[0] = (before[0] * before[1] + value * heavy) / (before[1] + heavy);
      before[1] += heavy; before[2] += count;
    }
  });
  let at = 0;
  for (const [value, , count] of starts)
    for (let k = 0; k < count; k++, at++) row[at].x = value + offsets[at];
}
