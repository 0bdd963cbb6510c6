# SPDX-License-Identifier: Apache-2.0
"""Every tutorial is a notebook that runs from top to bottom, without a warning, and draws."""

import re
from pathlib import Path

import nbclient
import nbformat
import pytest

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


def test_two_workers_agree_with_one_process_and_learn(tmp_path):
    printed, shown = run(FOLDER / "distributed.ipynb", tmp_path)
    chunks, gap = re.search(r"(\d) chunks; .* one process by (\S+)", printed).groups()
    before, after = re.search(r"error before (\S+), after (\S+)", printed).groups()
    assert chunks == "2"
    assert float(gap) < 1e-12
    assert float(after) < float(before)
    assert any("image/png" in data for data in shown)


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_holds_neither_outputs_nor_a_machine(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert list(notebook.metadata) == ["kernelspec"]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [(cell.outputs, cell.execution_count) for cell in code] == [([], None)] * len(code)
