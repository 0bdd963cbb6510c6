# SPDX-License-Identifier: Apache-2.0
"""Pictures show everything once, are well-formed and small, and need no other program."""

import html
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from contextlib import ExitStack
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from typer.testing import CliRunner

import optviz
from optviz.__main__ import app, maml

PICTURES = Path(__file__).parents[1] / "pictures"


def chain(length):
    y = torch.ones(1, requires_grad=True)
    for _ in range(length):
        y = y * 1.0
    return y


NAMES = ["a", "b", "step 1", "step 2"]


def page_data(page):
    """What the page is made of."""
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def small():
    w = torch.ones(2, requires_grad=True)
    return optviz.draw(
        (w * w.exp()).sum(), {"<w> & 'v'": w}, show=["saved", "shapes", "attributes"]
    )


def boxes(svg):
    """Rectangles that stand for something."""
    root = ET.fromstring(svg)
    return root.findall(".//{*}g/{*}rect")


def closed(svg):
    """Those that are no frames around others."""
    return [box for box in boxes(svg) if box.get("class") != "frame"]


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
def test_save_without_any_program(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
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


def test_names_may_look_like_parts_of_the_page():
    w = torch.ones(2, requires_grad=True)
    page = optviz.draw((w * 2).sum(), {"@SCRIPT@ @DATA@": w}).to_html()
    assert "@SCRIPT@ @DATA@" in [box["l"] for box in page_data(page)["boxes"]]
    assert page.count("JSON.parse") == 1


def test_names_may_hold_any_character(tmp_path):
    w = torch.ones(2, requires_grad=True)
    with optviz.scope("bell \x07"):
        y = w * 2
    graph = optviz.draw({"end \x00": y.sum()}, {"half \ud800": w})
    assert "half \ufffd" in ET.fromstring(graph.to_svg()).itertext()
    for kind in ("svg", "html", "dot", "json", "txt"):
        assert graph.save(tmp_path / f"graph.{kind}").stat().st_size


def test_an_empty_graph_is_drawn():
    graph = optviz.Graph((), ())
    assert boxes(graph.to_svg()) == []
    for kind in ("html", "dot", "json", "txt"):
        assert getattr(graph, f"to_{kind}")()


def test_what_ran_before_is_not_told():
    def run():
        w = torch.ones(2, requires_grad=True)
        with optviz.scope("a"):
            y = w.exp()
        with optviz.scope("a"):
            return optviz.draw((y * w).sum(), {"w": w})

    first, second = run(), run()
    assert first == second
    assert first.to_json() == second.to_json()
    assert first.to_html() == second.to_html()


def test_a_long_stretch_opens_in_parts():
    children = {}
    for index, box in enumerate(page_data(optviz.draw(chain(5_000)).to_html())["boxes"]):
        children.setdefault(box["p"], []).append(index)
    assert max(map(len, children.values())) <= 40


def test_lanes_outside_of_all_scopes_have_names():
    w = torch.ones(2, requires_grad=True)
    with optviz.record():
        (g,) = torch.autograd.grad(w.exp().sum(), w, create_graph=True)
    texts = [e.text for e in ET.fromstring(optviz.draw((g * w).sum()).to_svg()).iter()]
    assert texts.count("first derivative") == 2  # the other one in the legend


def test_arrows_into_a_frame_run_side_by_side():
    v, w = (torch.ones(2, requires_grad=True) for _ in range(2))
    with optviz.scope("inner"):
        y = w.exp().exp().exp() * v + w
    svg = ET.fromstring(optviz.draw((y * v).sum(), {"v": v, "w": w}).to_svg())
    lines = [line.get("d") for line in svg.iter("{http://www.w3.org/2000/svg}path")]
    straight = [part for line in lines for part in re.findall(r"L[\d.]+ [\d.]+", line)]
    assert len(straight) == len(set(straight)) > 0


def test_suffixes_may_be_large(tmp_path):
    path = small().save(tmp_path / "GRAPH.SVG")
    assert path.read_text(encoding="utf-8") == small().to_svg()


def test_the_page_loads_nothing():
    loading = r"""(?:src|href)=["'](?!#)|@import|fetch\(|url\((?!#)"""
    assert re.findall(loading, small().to_html()) == []


def test_unfolded_shows_everything():
    graph = optviz.draw(chain(100), fold=False)
    assert len(boxes(graph.to_svg())) == 102


def test_without_dot_the_error_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="expected the program dot, found none"):
        small().save(tmp_path / "graph.svg", engine="dot")


def scoped():
    w = torch.ones(2, requires_grad=True)
    with optviz.scope('a "quoted" \\ scope'), optviz.scope("inner"):
        y = w.exp()
    return optviz.draw({"<loss>": (y * w).sum()}, {"w{0}|": w})


@pytest.mark.skipif(shutil.which("dot") is None, reason="dot is not installed")
@pytest.mark.parametrize("graph", [small, scoped, lambda: optviz.draw(chain(2_000))])
def test_dot_lays_out_the_source(graph, tmp_path):
    drawn = ET.parse(graph().save(tmp_path / "graph.svg", engine="dot"))
    assert len(drawn.findall(".//{*}g[@class='node']")) == len(closed(graph().to_svg()))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99), st.sampled_from(NAMES))))
def test_every_picture_shows_every_node_and_edge_once(plan):
    values = [torch.ones((), requires_grad=True)]
    for one, other, name in [(0, 0, "a"), *plan]:
        with optviz.scope(name):
            values.append(values[one % len(values)] * values[other % len(values)])
    graph = optviz.draw(values[-1], fold=False)
    arrows = {(edge.source, edge.target) for edge in graph.edges}
    svg = graph.to_svg()
    assert len(closed(svg)) == len(graph.nodes)
    assert len(ET.fromstring(svg).findall(".//{*}path[@marker-end]")) == len(arrows)
    source = graph.to_dot()
    assert len(re.findall(r"^\s*n\d+ \[", source, re.MULTILINE)) == len(graph.nodes)
    assert source.count(" -> ") == len(arrows)
    told = json.loads(graph.to_json())
    assert (len(told["nodes"]), len(told["edges"])) == (len(graph.nodes), len(graph.edges))
    for page in (graph.to_html(), optviz.draw(values[-1]).to_html()):
        data = page_data(page)
        assert sum("d" in box for box in data["boxes"]) == len(graph.nodes)
        assert len(data["edges"]) == len(graph.edges)


def test_scopes_may_nest_deeper_than_python_recurses():
    w = torch.ones(2, requires_grad=True)
    with ExitStack() as stack:
        for depth in range(1_200):
            stack.enter_context(optviz.scope(f"depth {depth}"))
        y = w.exp()
    graph = optviz.draw(y.sum(), fold=False)
    for kind in ("svg", "dot", "txt", "html"):
        assert "depth 1199" in getattr(graph, f"to_{kind}")()


def test_the_command_draws_examples(tmp_path):
    pytest.importorskip("optdiff")
    outcome = CliRunner().invoke(app, ["example", "--out", str(tmp_path), "--steps", "2"])
    assert outcome.exit_code == 0, outcome.output
    written = ["implicit.svg", "maml.html", "maml.svg", "zero_order.svg"]
    assert sorted(path.name for path in tmp_path.iterdir()) == written
    assert CliRunner().invoke(app, ["example", "--steps", "0"]).exit_code == 2
    (tmp_path / "file").write_text("in the way")
    refused = CliRunner().invoke(app, ["example", "--out", str(tmp_path / "file" / "folder")])
    assert refused.exit_code == 2
    assert "expected a folder to write to" in refused.output
    assert "Inner steps." in CliRunner().invoke(app, ["example", "--help"]).output


@pytest.mark.skipif(not torch.__version__.startswith("2.13."), reason="torch names its own nodes")
@pytest.mark.parametrize("name", ["maml", "implicit", "zero_order"])
def test_the_pictures_of_the_readme_are_those_of_the_command(name, tmp_path):
    pytest.importorskip("optdiff")
    CliRunner().invoke(app, ["example", "--out", str(tmp_path)])
    made, kept = (folder / f"{name}.svg" for folder in (tmp_path, PICTURES))
    assert rounded(made.read_text("utf-8")) == rounded(kept.read_text("utf-8"))


def rounded(svg):
    """Without what rounding makes of a residual that is zero."""
    return re.sub(r"e-1[5-9]\b", "", re.sub(r"[\d.]+(?=e-1[5-9]\b)", "0", svg))


def test_importing_it_imports_no_sibling():
    code = (
        "import sys, optviz; "
        "print([m for m in ('optcore', 'optdiff', 'treeops', 'typer') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"
