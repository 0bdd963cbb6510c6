// SPDX-License-Identifier: Apache-2.0
// The viewer of one graph. The layout is that of _layout.py: keep the two alike.
"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const boxes = data.boxes;
const CHAR = 7.3, LINE = 15, PAD = 8, GAP_X = 22, GAP_Y = 42, HEADER = 24, LONGEST = 30;
const IN = -1, OUT = -2;  // where arrows come into a frame and leave it
const NS = "http://www.w3.org/2000/svg";
const view = document.getElementById("view");
const details = document.getElementById("details");
boxes.forEach((box, index) => { box.i = index; box.children = []; });
boxes.forEach(box => { if (box.p >= 0) { box.parent = boxes[box.p]; box.parent.children.push(box); } });
const root = boxes[0];
const isOpen = box => box.e && box.children.length > 0;
const cut = text => text.length <= LONGEST ? text : text.slice(0, LONGEST - 1) + "…";
const lines = box => [box.l, ...box.t].map(cut);
const sum = (list, of) => list.reduce((total, entry) => total + of(entry), 0);

// ---- what is visible -------------------------------------------------------------------------
function shownBox(box) {
  let shown = box;
  for (let at = box.parent; at; at = at.parent) if (!at.e) shown = at;
  return shown;
}
function arrows() {
  const shown = boxes.map(shownBox), found = new Map();
  for (const [s, t, norm, state] of data.edges) {
    const source = shown[s], target = shown[t];
    if (source === target) continue;
    const key = source.i * boxes.length + target.i;
    if (!found.has(key)) found.set(key, {source, target, edges: []});
    found.get(key).edges.push([norm, state]);
  }
  return [...found.values()];
}
function flowOf(edges) {
  for (const state of ["nan", "inf"])
    if (edges.some(edge => edge[1] === state)) return {text: state, state, bad: true};
  if (edges.some(edge => edge[0] === null)) return {text: "", state: ""};
  const norm = Math.sqrt(sum(edges, edge => edge[0] ** 2));
  if (norm) return {text: norm.toExponential(1), state: ""};
  return edges.some(edge => edge[1] === "zero")
    ? {text: "0", state: "zero"} : {text: "never", state: "never"};
}

// ---- layout ----------------------------------------------------------------------------------
function layout() {
  const shown = arrows(), lifted = new Map(), frames = new Map();
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
  const opened = [root];
  for (const box of opened) opened.push(...box.children.filter(isOpen));
  for (const box of [...opened].reverse())
    frames.set(box.i, frame(box, [...(lifted.get(box.i) || new Map()).values()], frames));
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
  const routes = shown.map(arrow => {
    const ways = arrow.out.map(box => [box.parent, box.i + "," + OUT]);
    ways.push([arrow.frame, arrow.from.i + "," + arrow.to.i]);
    ways.push(...arrow.in.map(box => [box.parent, IN + "," + box.i]).reverse());
    const points = ways.flatMap(([box, key]) => {
      const [left, top] = corners.get(box.i);
      return (frames.get(box.i).ways.get(key) || []).map(item => [left + item.x, top + item.y]);
    });
    const start = where.get(arrow.source.i), end = where.get(arrow.target.i);
    return {arrow, points: [[start.x + start.width / 2, start.y + start.height], ...points,
      [end.x + end.width / 2, end.y]]};
  });
  for (const last of [false, true]) {  // arrows leave and reach a box side by side
    const meeting = new Map();
    for (const {arrow, points} of routes) {
      const box = last ? arrow.target : arrow.source;
      if (!meeting.has(box.i)) meeting.set(box.i, []);
      meeting.get(box.i).push(points);
    }
    const beside = points => last ? points[points.length - 2][0] : points[1][0];
    for (const [index, ways] of meeting) {
      ways.sort((a, b) => beside(a) - beside(b));
      const step = Math.min(12, (where.get(index).width - 12) / ways.length);
      ways.forEach((points, place) => {
        points[last ? points.length - 1 : 0][0] += (place - (ways.length - 1) / 2) * step;
      });
    }
  }
  const whole = frames.get(root.i);
  return {width: whole.width + 2 * PAD, height: whole.height + 2 * PAD, placed, routes, where};
}
function frame(box, edges, frames) {
  const items = new Map();
  for (const child of box.children) {
    const base = {box: child, lane: child.o, rank: 0, x: 0, y: 0, place: 0, above: [], below: []};
    if (frames.has(child.i)) {
      const inner = frames.get(child.i);
      items.set(child.i, {...base, width: inner.width, height: inner.height});
    } else {
      const text = lines(child);
      const width = Math.max((Math.max(...text.map(line => line.length)) + (child.children.length ? 2 : 0)) * CHAR + 2 * PAD, 44);
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
  let lanes = columns(rows, Boolean(box.parent));
  let top = (box.parent ? HEADER + PAD : PAD) + (lanes.length ? LINE + 20 : 0);
  for (const row of rows) {
    const height = Math.max(0, ...row.map(item => item.height));
    for (const item of row) item.y = top + (height - item.height) / 2;
    top += height + GAP_Y;
  }
  const title = box.parent ? cut(box.l).length * CHAR + 4 * PAD : 0;
  const right = Math.max(PAD, ...every.map(i => i.x + i.width / 2), ...lanes.map(l => l.x + l.width));
  const width = Math.max(right + PAD, title), shift = (width - right - PAD) / 2;
  for (const item of every) item.x += shift;
  lanes = lanes.map(lane => ({...lane, x: lane.x + shift}));
  return {items, ways, width, height: top - GAP_Y + PAD, lanes};
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
function columns(rows, named) {
  const orders = [...new Set(rows.flat().map(item => item.lane))].sort((a, b) => a - b);
  let left = PAD;
  const lanes = [];
  for (const lane of orders) {
    const own = rows.map(row => row.filter(item => item.lane === lane)), held = own.flat();
    spread(own);
    const start = Math.min(...held.map(item => item.x - item.width / 2));
    const extent = Math.max(...held.map(item => item.x + item.width / 2)) - start;
    const name = data.lanes[lane];
    const width = orders.length > 1 && named ? Math.max(extent, name.length * CHAR) : extent;
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

// ---- drawing ---------------------------------------------------------------------------------
function make(name, attributes, parent, text) {
  const element = document.createElementNS(NS, name);
  for (const key in attributes) element.setAttribute(key, attributes[key]);
  if (text !== undefined) element.textContent = text;
  if (parent) parent.appendChild(element);
  return element;
}
const svg = make("svg", {}, view);
const marker = make("marker", {id: "head", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7,
  markerHeight: 7, orient: "auto"}, make("defs", {}, svg));
make("path", {class: "head", d: "M0 0 L8 4 L0 8 z"}, marker);
const world = make("g", {id: "world"}, svg);
let drawn, chosen = null, found = [], hit = -1, at = {x: 0, y: 0, scale: 1};

function pathOf(points) {
  let [x, y] = points[0], path = `M${x} ${y}`;
  for (const [nx, ny] of points.slice(1)) {
    const bend = Math.max(Math.abs(ny - y) / 2, 12);
    path += `C${x} ${y + bend} ${nx} ${ny - bend} ${nx} ${ny}`;
    x = nx; y = ny;
  }
  return path;
}
function draw() {
  drawn = layout();
  world.replaceChildren();
  const open = drawn.placed.filter(p => isOpen(p.box)), closed = drawn.placed.filter(p => !isOpen(p.box));
  for (const place of open) item(place, "frame");
  for (const {arrow, points} of drawn.routes)
    make("path", {class: "edge " + flowOf(arrow.edges).state, d: pathOf(points),
      "marker-end": "url(#head)"}, world);
  for (const place of closed) {
    const box = place.box, known = ["leaf", "leaves", "output", "fused", "repeat"].includes(box.k) ? box.k : "";
    const group = item(place, `box o${Math.min(box.o, 3)} ${known} ${box.d && box.d.custom ? "custom" : ""}`);
    lines(box).forEach((line, row) => make("text", {class: row ? "note" : box.children.length ? "title" : "",
      x: place.x + place.width / 2, y: place.y + PAD / 2 + 12 + row * LINE, "text-anchor": "middle"},
      group, row || !box.children.length ? line : "▸ " + line));
  }
  const over = (classes, x, y, text, anchor = "start") => make("text", {class: classes + " over", x, y,
    "text-anchor": anchor, "pointer-events": "none"}, world, text);
  for (const place of open) {
    over("title", place.x + PAD, place.y + 16, "▾ " + cut(place.box.l));
    for (const lane of place.lanes)
      over("lane", place.x + lane.x + lane.width / 2, place.y + HEADER + 8, lane.name, "middle");
  }
  const ending = new Map(), tip = route => route.points[route.points.length - 1];
  for (const route of [...drawn.routes].sort((a, b) => tip(a)[0] - tip(b)[0])) {
    const flow = flowOf(route.arrow.edges), to = route.arrow.target.i;
    if (!flow.text) continue;
    ending.set(to, (ending.get(to) || 0) + 1);
    const [x, y] = tip(route);
    over(flow.bad ? "bad" : "flow", x + 4, y - 11 * ending.get(to) + 3, flow.text);
  }
  mark();
}
function item(place, classes) {
  const box = place.box, group = make("g", {class: "item", tabindex: 0, role: "button",
    "data-box": box.i, "aria-label": [box.l, ...box.t].join(", ")}, world);
  if (box.children.length) group.setAttribute("aria-expanded", String(Boolean(box.e)));
  make("rect", {class: classes, x: place.x, y: place.y, width: place.width, height: place.height, rx: 5}, group);
  return group;
}
function mark() {
  for (const group of world.querySelectorAll(".item")) {
    const box = boxes[group.dataset.box];
    group.classList.toggle("chosen", box === chosen);
    group.classList.toggle("found", found.some(hitBox => shownBox(hitBox) === box));
  }
}
function move() { world.setAttribute("transform", `translate(${at.x} ${at.y}) scale(${at.scale})`); }
function fit() {
  const width = view.clientWidth || 800, height = view.clientHeight || 600;
  // never smaller than can be read: a long program starts at its top instead
  at.scale = Math.min(1, Math.max(Math.min(width / drawn.width, height / drawn.height), 0.6));
  at.x = (width - drawn.width * at.scale) / 2;
  at.y = Math.max(0, (height - drawn.height * at.scale) / 2);
  move();
}
function zoom(factor, x, y) {
  const scale = Math.min(4, Math.max(0.02, at.scale * factor));
  at.x = x - (x - at.x) * scale / at.scale;
  at.y = y - (y - at.y) * scale / at.scale;
  at.scale = scale;
  move();
}
function show(box) {
  const place = drawn.where.get(box.i);
  if (!place) return;
  at.x = view.clientWidth / 2 - (place.x + place.width / 2) * at.scale;
  at.y = Math.min(view.clientHeight / 2 - (place.y + place.height / 2) * at.scale, 40 - place.y * at.scale + view.clientHeight / 3);
  move();
}
function toggle(box) {
  if (!box.children.length) return;
  const before = drawn.where.get(box.i);
  box.e = box.e ? 0 : 1;
  draw();
  const after = drawn.where.get(box.i);
  if (before && after) {  // what was clicked stays where it was
    at.x += (before.x + before.width / 2 - after.x - after.width / 2) * at.scale;
    at.y += (before.y - after.y) * at.scale;
  }
  move();
  choose(box, true);
}
function choose(box, focus) {
  chosen = box;
  mark();
  if (focus) {
    const group = world.querySelector(`[data-box="${box.i}"]`);
    if (group) group.focus({preventScroll: true});
  }
  describe(box);
}
function describe(box) {
  details.replaceChildren();
  const add = (tag, text, parent = details) => {
    const element = document.createElement(tag);
    element.textContent = text;
    parent.appendChild(element);
    return element;
  };
  add("h2", box.d ? box.d.name : box.l);
  if (box.children.length) {
    const button = add("button", box.e ? "Close" : "Open");
    button.onclick = () => toggle(box);
  }
  const list = add("dl", "");
  const tell = (name, value) => { if (value) { add("dt", name, list); add("dd", value, list); } };
  const d = box.d || {};
  tell("contents", box.d ? "" : box.t.join("\n"));
  tell("shape", d.shape);
  tell("scope", d.scope);
  tell("order", data.lanes[box.o]);
  tell("saved tensors", (d.saved || []).join("\n"));
  tell("attributes", (d.attributes || []).join("\n"));
  const inside = new Set(), waiting = [box];
  while (waiting.length) { const b = waiting.pop(); inside.add(b.i); waiting.push(...b.children); }
  const ends = (here, there) => data.edges.filter(e => inside.has(e[here]) && !inside.has(e[there]));
  const told = (list, other) => list.slice(0, 12).map(e => {
    const flow = flowOf([[e[2], e[3]]]).text;
    return boxes[e[other]].l + (flow ? `   |gradient| ${flow}` : "");
  }).join("\n") + (list.length > 12 ? `\n… ${list.length - 12} more` : "");
  tell("reads", told(ends(1, 0), 0));
  tell("is read by", told(ends(0, 1), 1));
}
function level(opening) {
  const shown = drawn.placed.map(place => place.box);
  const wanted = opening ? shown.filter(box => box.children.length && !box.e)
    : shown.filter(box => isOpen(box) && !box.children.some(isOpen));
  let room = 400 - shown.length;  // more at once nobody can read
  for (const box of wanted) {
    if (opening && box.children.length > room) continue;
    room -= box.children.length;
    box.e = opening ? 1 : 0;
  }
  draw();
}

// ---- input -----------------------------------------------------------------------------------
function search(text) {
  const words = text.trim().toLowerCase();
  found = !words ? [] : boxes.slice(1).filter(box =>
    [box.l, ...box.t, ...Object.values(box.d || {}).flat()].join(" ").toLowerCase().includes(words));
  hit = -1;
  document.getElementById("hits").textContent = words ? `${found.length} found` : "";
  mark();
}
function next(step) {
  if (!found.length) return;
  hit = (hit + step + found.length) % found.length;
  const box = found[hit];
  for (let above = box.parent; above; above = above.parent) above.e = 1;
  draw();
  choose(box, false);
  show(box);
  document.getElementById("hits").textContent = `${hit + 1} of ${found.length}`;
}
const field = document.getElementById("search");
field.addEventListener("input", () => search(field.value));
field.addEventListener("keydown", event => {
  if (event.key === "Enter") next(event.shiftKey ? -1 : 1);
  if (event.key === "Escape") { field.value = ""; search(""); view.focus(); }
  event.stopPropagation();
});
document.getElementById("open").onclick = () => level(true);
document.getElementById("close").onclick = () => level(false);
document.getElementById("fit").onclick = fit;
view.addEventListener("wheel", event => {
  event.preventDefault();
  const corner = view.getBoundingClientRect();
  zoom(Math.exp(-event.deltaY * 0.0015), event.clientX - corner.left, event.clientY - corner.top);
}, {passive: false});
let drag = null, moved = false;
view.addEventListener("pointerdown", event => {
  drag = {x: event.clientX - at.x, y: event.clientY - at.y, fromX: event.clientX, fromY: event.clientY};
  moved = false;
});
window.addEventListener("pointermove", event => {
  if (!drag) return;
  if (Math.hypot(event.clientX - drag.fromX, event.clientY - drag.fromY) > 4) moved = true;
  if (moved) { at.x = event.clientX - drag.x; at.y = event.clientY - drag.y; move(); }
});
window.addEventListener("pointerup", () => { drag = null; });
const boxAt = target => {
  const group = target.closest && target.closest(".item");
  return group ? boxes[group.dataset.box] : null;
};
view.addEventListener("click", event => {
  const box = boxAt(event.target);
  if (moved || !box) return;
  if (box === chosen && box.children.length) toggle(box); else choose(box, true);
});
view.addEventListener("dblclick", event => {
  const box = boxAt(event.target);
  if (box && !box.children.length && box.parent !== root) toggle(box.parent);
});
const steps = {ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60]};
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const box = boxAt(document.activeElement);
  if (event.key === "/") { event.preventDefault(); field.focus(); }
  else if ((event.key === "Enter" || event.key === " ") && box) {
    event.preventDefault();
    if (box.children.length) toggle(box); else choose(box, true);
  } else if (event.key === "Escape" && box && box.parent !== root) toggle(box.parent);
  else if (event.key === "+") level(true);
  else if (event.key === "-") level(false);
  else if (event.key === "0") fit();
  else if (event.key === "n") next(1);
  else if (event.key === "N") next(-1);
  else if (event.key === "z") zoom(1.25, view.clientWidth / 2, view.clientHeight / 2);
  else if (event.key === "Z") zoom(0.8, view.clientWidth / 2, view.clientHeight / 2);
  else if (steps[event.key]) { event.preventDefault(); at.x += steps[event.key][0]; at.y += steps[event.key][1]; move(); }
});
view.addEventListener("focusin", event => {
  const box = boxAt(event.target);
  if (box) { chosen = box; mark(); describe(box); }
});
document.getElementById("heading").textContent = data.heading;
details.textContent = "Click a box for what is in it, again to open it. Keys: Tab to go from box to box, "
  + "Enter to open or close, Escape to close what is around, arrows to move, z and Z to zoom, "
  + "+ and - for a level, 0 to fit, / to search, n and N for the next and the last hit.";
draw();
fit();
})();
