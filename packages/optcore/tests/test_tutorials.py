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
EXPECTED = {
    "composing_transforms": r"ten steps of 4 x 32 and of 128 images: largest difference \d",
    "functional_optimizer": r"largest difference from torch.optim.Adam, float32: \S+e-0[5-9]",
    "hyperparameters": r"d/d raw decay\[bmi\]: (-0\.00092)\d+, by finite difference \1",
}


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


@pytest.mark.parametrize("name", EXPECTED)
def test_runs_draws_and_finds(name, tmp_path):
    printed, shown = run(FOLDER / f"{name}.ipynb", tmp_path)
    assert any("image/png" in data for data in shown)
    assert re.search(EXPECTED[name], printed)


def test_every_tutorial_is_run():
    assert [path.stem for path in TUTORIALS] == sorted(EXPECTED)


def test_a_failure_names_its_cell(tmp_path):
    cells = [nbformat.v4.new_code_cell(text, id=f"cell-{text}") for text in ("1", "broken")]
    path = tmp_path / "some.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    with pytest.raises(pytest.fail.Exception, match=r"^some.ipynb, cell-broken: NameError: name"):
        run(path, tmp_path)


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_holds_neither_outputs_nor_a_machine(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert list(notebook.metadata) == ["kernelspec"]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [(cell.outputs, cell.execution_count) for cell in code] == [([], None)] * len(code)
