# SPDX-License-Identifier: Apache-2.0
"""Every tutorial is a notebook that runs from top to bottom, without a warning, and draws."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")
pytest.importorskip("optdiff")

FOLDER = Path(__file__).parents[1] / "tutorials"
TUTORIALS = sorted(FOLDER.glob("*.ipynb"))
STRICT = """\
import warnings

warnings.simplefilter("error")
warnings.filterwarnings("ignore", module="ipykernel")  # its own, when it stops
"""


def run(path, folder):
    """Run a notebook: what it printed, what it showed. A failure names its cell."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(STRICT))

    def tell(cell, cell_index, execute_reply):
        said = execute_reply["content"]
        what = f"{path.name}, {cell.id}: {said.get('ename')}: {said.get('evalue')}"
        pytest.fail(f"{what}\n\n{cell.source}", pytrace=False)

    place = {"metadata": {"path": folder}}
    nbclient.NotebookClient(notebook, timeout=300, resources=place, on_cell_error=tell).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.get("text", "") for output in outputs)
    return printed, [output.data for output in outputs if "data" in output]


def test_graphs_show_themselves_as_pictures_and_pages(tmp_path):
    printed, shown = run(FOLDER / "visualization.ipynb", tmp_path)
    graphs = [data for data in shown if "image/svg+xml" in data]
    assert len(graphs) == 2
    for data in graphs:
        ET.fromstring(data["image/svg+xml"])
        assert data["text/html"].startswith("<iframe srcdoc=")
        assert data["text/plain"].startswith("Graph(ops=")
    assert "steps 3–100 like step 2" in graphs[1]["image/svg+xml"]  # noqa: RUF001
    assert "create_graph - no gradient reaches" in printed
    assert any("image/png" in data for data in shown)


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_holds_neither_outputs_nor_a_machine(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert list(notebook.metadata) == ["kernelspec"]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [(cell.outputs, cell.execution_count) for cell in code] == [([], None)] * len(code)
