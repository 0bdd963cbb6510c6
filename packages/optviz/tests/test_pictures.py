# SPDX-License-Identifier: Apache-2.0
"""Pictures are well-formed, small and deterministic; the page works in a browser."""

import html
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest
import torch

import optviz
from optviz.__main__ import app, maml

BROWSERS = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
CHROMIUM = next(filter(None, BROWSERS), "")


def chain(length):
    y = torch.ones(1, requires_grad=True)
    for _ in range(length):
        y = y * 1.0
    return y


def small():
    w = torch.ones(2, requires_grad=True)
    return optviz.draw(
        (w * w.exp()).sum(), {"<w> & 'v'": w}, show=["saved", "shapes", "attributes"]
    )


def boxes(svg):
    """Rectangles that stand for something."""
    root = ET.fromstring(svg)
    return root.findall(".//{*}g/{*}rect")


def test_a_long_chain_is_captured_and_folded():
    graph = optviz.draw(chain(20_000))
    assert graph.summary()["ops"] == 20_000
    svg = graph.to_svg()
    assert len(boxes(svg)) <= 60
    assert "Mul ×20000" in svg  # noqa: RUF001
    assert len(graph.to_txt().splitlines()) <= 61


def test_many_steps_are_folded():
    pytest.importorskip("optdiff")
    graph = maml(100)
    svg = graph.to_svg()
    assert "steps 3–100 like step 2" in svg  # noqa: RUF001
    assert len(boxes(svg)) <= 60


def overlaps(placed):
    inner = [p for p in placed if not (p["open"])]
    return [
        (a["label"], b["label"])
        for i, a in enumerate(inner)
        for b in inner[:i]
        if a["x"] < b["x"] + b["w"]
        and b["x"] < a["x"] + a["w"]
        and a["y"] < b["y"] + b["h"]
        and b["y"] < a["y"] + a["h"]
    ]


def test_boxes_do_not_overlap():
    pytest.importorskip("optdiff")
    placed = [
        {
            "label": str(index),
            "open": entry.get("class") == "frame",
            **{k: float(entry.get(name)) for k, name in zip("xywh", ("x", "y", "width", "height"))},
        }
        for index, entry in enumerate(boxes(maml(3).to_svg()))
    ]
    assert len(placed) > 20
    assert overlaps(placed) == []


@pytest.mark.parametrize("kind", ["svg", "html", "dot", "json", "txt"])
def test_save(kind, tmp_path):
    path = small().save(tmp_path / f"graph.{kind}")
    assert path.read_text(encoding="utf-8") == getattr(small(), f"to_{kind}")()


def test_svg_is_xml_and_json_is_json():
    ET.fromstring(small().to_svg())
    assert len(json.loads(small().to_json())["edges"]) == 5


def test_notebooks():
    graph = small()
    ET.fromstring(graph._repr_svg_())
    page = re.search('srcdoc="([^"]*)"', graph._repr_html_())
    assert html.unescape(page[1]) == graph.to_html()


def test_the_page_loads_nothing():
    loading = r"""(?:src|href)=["'](?!#)|@import|fetch\(|url\((?!#)"""
    assert re.findall(loading, small().to_html()) == []


def test_unfolded_shows_everything():
    graph = optviz.draw(chain(100), fold=False)
    assert len(boxes(graph.to_svg())) == 102


@pytest.mark.skipif(shutil.which("dot") is not None, reason="dot is installed")
def test_without_dot_the_error_says_so(tmp_path):
    with pytest.raises(RuntimeError, match="expected the program dot, found none"):
        small().save(tmp_path / "graph.svg", engine="dot")


@pytest.mark.skipif(shutil.which("dot") is None, reason="dot is not installed")
def test_dot_accepts_the_source(tmp_path):
    ET.parse(small().save(tmp_path / "graph.svg", engine="dot"))


def test_the_command_draws_an_example(tmp_path):
    pytest.importorskip("optdiff")
    from typer.testing import CliRunner

    outcome = CliRunner().invoke(app, ["example", "--out", str(tmp_path), "--steps", "2"])
    assert outcome.exit_code == 0, outcome.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["maml.html", "maml.svg"]
    assert CliRunner().invoke(app, ["example", "--steps", "0"]).exit_code == 2


def test_importing_it_imports_no_sibling():
    code = (
        "import sys, optviz; "
        "print([m for m in ('optcore', 'optdiff', 'treeops', 'typer') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


PROBE = """
<script>
const problems = [];
window.addEventListener("error", event => problems.push(event.message));
console.error = (...words) => problems.push(words.join(" "));
window.addEventListener("load", () => {
  const shown = () => document.querySelectorAll("#world .item").length;
  const press = key => document.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
  const report = {start: shown()};
  const field = document.getElementById("search");
  field.value = "TanhBackward0"; field.dispatchEvent(new Event("input"));
  report.hits = document.getElementById("hits").textContent;
  field.dispatchEvent(new KeyboardEvent("keydown", {key: "Enter"}));
  report.found = shown();
  report.details = document.getElementById("details").textContent.includes("TanhBackward0");
  press("-"); report.closed = shown();
  press("+"); report.opened = shown();
  const box = document.querySelector("[aria-expanded]");
  box.focus(); const before = shown(); press("Enter"); report.toggled = shown() !== before;
  report.problems = problems;
  document.body.dataset.report = JSON.stringify(report);
});
</script>
"""


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")
def test_the_page_works_in_a_browser(tmp_path):
    w = torch.ones(2, requires_grad=True)
    with optviz.scope("hidden"):
        y = w
        for _ in range(30):
            y = y.exp()
        y = y.tanh()
        for _ in range(30):
            y = y.exp()
    page = tmp_path / "graph.html"
    page.write_text(optviz.draw(y.sum(), {"w": w}).to_html().replace("</body>", PROBE + "</body>"))
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", profile]
    command = [CHROMIUM, *flags, "--virtual-time-budget=3000", "--dump-dom", page.as_uri()]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    report = json.loads(html.unescape(re.search('data-report="([^"]*)"', found)[1]))
    assert report["problems"] == []
    assert report["hits"] == "1 found"
    assert report["found"] > report["start"]
    assert report["details"]
    assert report["closed"] < report["found"]
    assert report["opened"] > report["closed"]
    assert report["toggled"]
