# SPDX-License-Identifier: Apache-2.0
"""Tutorials, benchmarks and the README's listings run."""

import re
import runpy
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TUTORIAL = ROOT / "tutorials" / "where_does_it_flow.py"
LISTINGS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)


def test_the_tutorial_runs(capsys):
    pytest.importorskip("optdiff")
    runpy.run_path(str(TUTORIAL))
    assert "create_graph - no gradient reaches" in capsys.readouterr().out


@pytest.mark.slow
def test_the_tutorial_runs_as_a_notebook(tmp_path):
    pytest.importorskip("optdiff")
    pytest.importorskip("ipykernel")
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    cells = re.split(r"^# %%( \[markdown\])?\n", TUTORIAL.read_text("utf-8"), flags=re.MULTILINE)
    new = {None: nbformat.v4.new_code_cell, " [markdown]": nbformat.v4.new_markdown_cell}
    notebook = nbformat.v4.new_notebook(
        cells=[new[kind](text.strip()) for kind, text in zip(cells[1::2], cells[2::2])]
    )
    nbclient.NotebookClient(notebook, timeout=300).execute(cwd=str(tmp_path))
    outputs = [entry for cell in notebook.cells for entry in cell.get("outputs", [])]
    assert {entry.output_type for entry in outputs} == {"stream", "execute_result"}
    shown = [entry.data for entry in outputs if entry.output_type == "execute_result"]
    assert len(shown) == 2
    for data in shown:
        ET.fromstring(data["image/svg+xml"])
        assert data["text/html"].startswith("<iframe srcdoc=")
        assert data["text/plain"].startswith("Graph(ops=")
    assert "steps 3–100 like step 2" in shown[1]["image/svg+xml"]  # noqa: RUF001


@pytest.mark.parametrize("listing", LISTINGS, ids=range(len(LISTINGS)))
def test_listings_run(listing, tmp_path, monkeypatch):
    pytest.importorskip("optdiff")
    monkeypatch.chdir(tmp_path)
    exec(compile(listing, "README.md", "exec"), {})
