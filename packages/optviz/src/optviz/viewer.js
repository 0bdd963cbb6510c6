// SPDX-License-Identifier: Apache-2.0
// The viewer of one graph: what is visible, drawing and input. layout.js places the boxes.
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const boxes = data.boxes;
const NS = "http://www.w3.org/2000/svg";
const view = document.getElementById("view");
const details = document.getElementById("details");
boxes.forEach((box, index) => { box.i = index; box.children = []; });
boxes.forEach(box => { if (box.p >= 0) { box.parent = boxes[box.p]; box.parent.children.push(box); } });
const root = boxes[0];

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
  const norm = edges.reduce((whole, edge) => Math.hypot(whole, edge[0]), 0);
  if (norm === Infinity) return {text: "inf", state: "inf", bad: true};
  if (norm) {
    const size = data.sizes.find(([, limit]) => limit > 1 ? norm > limit : norm < limit);
    return {text: norm.toExponential(1).replace(/(\D)(\d)$/, "$10$2"), state: size ? size[0] : ""};
  }
  return edges.some(edge => edge[1] === "zero")
    ? {text: "0", state: "zero"} : {text: "never", state: "never"};
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
const marker = make("marker", {id: "head", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 9,
  markerHeight: 9, markerUnits: "userSpaceOnUse", orient: "auto"}, make("defs", {}, svg));
make("path", {class: "head", d: "M0 0 L8 4 L0 8 z"}, marker);
const world = make("g", {id: "world"}, svg);
let drawn, chosen = null, found = [], hit = -1, at = {x: 0, y: 0, scale: 1};

function pathOf(points) {
  let [x, y] = points[0], path = `M${x} ${y}`;
  for (const [nx, ny] of points.slice(1)) {
    const bend = Math.max(Math.abs(ny - y) / 2, 12);
    path += nx === x ? `L${nx} ${ny}` : `C${x} ${y + bend} ${nx} ${ny - bend} ${nx} ${ny}`;
    x = nx; y = ny;
  }
  return path;
}
function draw() {
  drawn = layout(root, arrows(), data);
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
  for (const lane of drawn.lanes)  // outside of all frames
    over("lane", PAD + lane.x + lane.width / 2, PAD + 8, lane.name, "middle");
  for (const {arrow, label} of drawn.routes) {
    const flow = flowOf(arrow.edges);
    if (label && flow.text) over(flow.bad ? "bad" : "flow", label[0], label[1] + 4, flow.text, "middle");
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
  tell("statistics", (d.statistics || []).join("\n"));
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
for (const [kind, name] of data.legend) {
  const entry = document.createElement("li");
  make("rect", {class: "box " + kind, x: 1, y: 1, width: 12, height: 12}, make("svg", {width: 14, height: 14}, entry));
  entry.append(name);
  document.getElementById("legend").append(entry);
}
details.textContent = "Click a box for what is in it, again to open it. Keys: Tab to go from box to box, "
  + "Enter to open or close, Escape to close what is around, arrows to move, z and Z to zoom, "
  + "+ and - for a level, 0 to fit, / to search, n and N for the next and the last hit.";
draw();
fit();
})();
