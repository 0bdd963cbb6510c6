# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser, in light and dark."""

import html
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from contextlib import nullcontext

import pytest
import torch

import optviz

BROWSERS = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
CHROMIUM = next(filter(None, BROWSERS), "")
SCHEMES = {"dark": 0, "light": 1}  # as the browser counts them

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed"),
]

PROBE = """
<script>
const problems = [];
window.addEventListener("error", event => problems.push(event.message));
window.addEventListener("unhandledrejection", event => problems.push(String(event.reason)));
console.error = console.warn = (...words) => problems.push(words.join(" "));
window.addEventListener("load", () => {
  const shown = () => document.querySelectorAll("#world .item").length;
  const by = id => document.getElementById(id);
  const press = (key, at = document.activeElement) =>
    at.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
  const view = () => by("world").getAttribute("transform");
  const changes = call => { const before = view(); call(); return view() !== before; };
  const box = name => [...document.querySelectorAll("#world .item")]
    .find(item => item.getAttribute("aria-label").startsWith(name));
  const pointer = (type, x, y, at) =>
    at.dispatchEvent(new PointerEvent(type, {clientX: x, clientY: y, bubbles: true}));
  const report = {start: shown(), heading: by("heading").textContent};
  report.legend = [...document.querySelectorAll("#legend li")].map(entry => entry.textContent);

  press("/"); report.slash = document.activeElement.id;
  const field = by("search");
  field.value = "TanhBackward0"; field.dispatchEvent(new Event("input"));
  report.hits = by("hits").textContent;
  press("Enter", field); report.found = shown();
  report.details = by("details").textContent;
  press("Escape", field); report.left = document.activeElement.id;

  press("-"); report.closed = shown();
  press("+"); report.opened = shown();
  by("close").click(); report.button = shown();

  for (let level = 0; level < 4; level++) by("close").click();
  const before = shown();
  box("hidden").focus(); press("Enter");
  report.expanded = shown() - before;
  report.expandedLabel = document.activeElement.getAttribute("aria-expanded");
  box("tail").focus(); press("Escape");
  report.collapsed = shown() - before;

  const leaf = box("w"); leaf.dispatchEvent(new MouseEvent("click", {bubbles: true}));
  report.leaf = by("details").textContent;
  report.focusable = [...document.querySelectorAll("#world .item")].every(i => i.tabIndex === 0);

  report.arrows = ["ArrowLeft", "ArrowUp"].map(key => changes(() => press(key, by("view"))));
  report.zoom = ["z", "Z", "0"].map(key => changes(() => press(key, by("view"))));
  report.wheel = changes(() => by("view").dispatchEvent(
    new WheelEvent("wheel", {deltaY: 100, clientX: 300, clientY: 300, cancelable: true})));
  report.drag = changes(() => {
    pointer("pointerdown", 100, 100, by("view")); pointer("pointermove", 160, 130, window);
    pointer("pointerup", 160, 130, window);
  });
  const style = getComputedStyle(document.body);
  report.page = style.backgroundColor; report.ink = style.color;
  report.problems = problems;
  document.body.dataset.report = JSON.stringify(report);
});
</script>
"""

PLACES = """
<script>
window.addEventListener("load", () => {
  const rects = [...document.querySelectorAll("#world rect")];
  const numbers = [...document.querySelectorAll("#world text.flow, #world text.lane")];
  const found = (list, names) => list.map(e => names.map(name => Number(e.getAttribute(name))));
  document.body.dataset.report = JSON.stringify({
    rects: found(rects, ["x", "y", "width", "height"]), numbers: found(numbers, ["x", "y"]),
  });
});
</script>
"""


def reported(page, probe, folder, scheme="light"):
    """What a script at the end of the page has found out."""
    path = folder / "graph.html"
    path.write_text(page.replace("</body>", probe + "</body>"), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}"]
    command += [f"--user-data-dir={folder / 'profile'}", "--window-size=1000,800"]
    dumped = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, check=True)
    return json.loads(html.unescape(re.search('data-report="([^"]*)"', dumped.stdout)[1]))


def with_hidden_scope():
    w = torch.ones(2, requires_grad=True)
    with optviz.scope("hidden"):
        y = w
        for _ in range(30):
            y = y.exp()
        with optviz.scope("tail"):
            y = y.tanh()
        for _ in range(30):
            y = y.exp()
    return optviz.draw(y.sum(), {"w": w})


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_page_works(scheme, tmp_path):
    report = reported(with_hidden_scope().to_html(), PROBE, tmp_path, scheme)
    assert report["problems"] == []
    assert report["heading"] == "62 ops, 1 leaf, 1 output, 63 edges, 976 B saved"
    assert report["legend"] == ["leaf", "forward", "output"]
    assert report["slash"] == "search"
    assert report["hits"] == "1 found"
    assert report["found"] >= report["start"]
    assert "TanhBackward0" in report["details"]
    assert "hidden / tail" in report["details"]
    assert report["left"] == "view"
    assert report["opened"] > report["closed"]
    assert report["button"] < report["opened"]
    assert report["expanded"] > 0
    assert report["expandedLabel"] == "true"
    assert report["collapsed"] == 0
    assert "float64[2]" in report["leaf"]
    assert report["focusable"]
    assert all([*report["arrows"], *report["zoom"], report["wheel"], report["drag"]])


OPENS = """
<script>
window.addEventListener("load", () => {
  const shown = () => document.querySelectorAll("#world .item").length, counts = [shown()];
  for (let level = 0; level < 3; level++) {
    const closed = document.querySelector('#world .item[aria-expanded="false"]');
    closed.focus();
    closed.dispatchEvent(new KeyboardEvent("keydown", {key: "Enter", bubbles: true}));
    counts.push(shown());
  }
  document.body.dataset.report = JSON.stringify(counts);
});
</script>
"""


def test_a_long_chain_opens_in_parts(tmp_path):
    y = torch.ones(1, requires_grad=True)
    for _ in range(20_000):
        y = y * 1.0
    counts = reported(optviz.draw(y).to_html(), OPENS, tmp_path)
    assert sorted(set(counts)) == counts
    assert counts[-1] < 200


def test_light_and_dark_differ(tmp_path):
    page = with_hidden_scope().to_html()
    light, dark = (reported(page, PROBE, tmp_path, scheme) for scheme in ("light", "dark"))
    brightness = [
        [sum(map(int, re.findall(r"\d+", found[what]))) for what in ("page", "ink")]
        for found in (light, dark)
    ]
    assert brightness[0][0] > brightness[0][1]
    assert brightness[1][0] < brightness[1][1]


@pytest.mark.parametrize("scope", [optviz.scope, lambda _: nullcontext()], ids=["framed", "plain"])
def test_the_page_places_boxes_as_the_svg_does(scope, tmp_path):
    w, v = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    with optviz.record(), scope("inner"):
        y = (w.exp() * v.tanh() + w * v).sum()
        (g,) = torch.autograd.grad(y, w, create_graph=True)
    with scope("outer"):
        loss = (g * w + g.exp() * v).sum() + y
    graph = optviz.flow(optviz.draw({"loss": loss}, {"w": w, "v": v}), loss)
    svg = ET.fromstring(graph.to_svg())
    shift = float(re.search(r"[\d.]+", svg.find("{*}g").get("transform"))[0])
    places = reported(graph.to_html(), PLACES, tmp_path)
    expected = {
        "rects": ("{*}g//{*}rect", ("x", "y", "width", "height")),
        "numbers": ("{*}g/{*}text[@text-anchor='middle']", ("x", "y")),
    }
    assert shift >= 0
    for what, (path, names) in expected.items():
        ours = [[float(e.get(name)) for name in names] for e in svg.findall(path)]
        theirs = places[what]
        assert len(theirs) > 8
        assert [e for e in sorted(theirs) if not near(e, ours)] == []


def near(place, others):
    """Coordinates in the picture have one digit."""
    return any(
        all(abs(a - b) <= 0.051 for a, b in zip(place, other, strict=True)) for other in others
    )
