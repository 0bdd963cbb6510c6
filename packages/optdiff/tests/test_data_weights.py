# SPDX-License-Identifier: Apache-2.0
"""The example with wrong labels: a short run from end to end, and its errors."""

import importlib
import json
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

EXAMPLES = Path(__file__).parents[1] / "examples"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(EXAMPLES))
    data_weights = importlib.import_module("data_weights")


@pytest.fixture
def invoke():
    torch.set_default_dtype(torch.float32)
    app = typer.Typer()
    app.command()(data_weights.main)
    return lambda *options: CliRunner().invoke(app, [str(option) for option in options])


def test_a_short_run_tells_wrong_labels_from_right_ones(invoke, tmp_path):
    result = invoke("--steps", 60, "--meta-steps", 2, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    for words in ("all labels believed", "wrong labels left out", "learned weights", "AUC"):
        assert words in result.output
    written = json.loads((tmp_path / "results.json").read_text())
    assert len(written["curve"]) == 3
    assert written["curve"][0]["auc"] == 0.5
    assert written["auc"] > 0.75
    assert written["curve"][-1]["validation"] < written["curve"][0]["validation"]
    assert (tmp_path / "data_weights.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_whole_run_closes_half_of_the_gap(invoke, tmp_path):
    result = invoke("--out", tmp_path)
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["auc"] >= 0.9
    assert written["behind"]["after"] <= written["behind"]["before"] / 2


def test_a_share_outside_its_range(invoke, tmp_path):
    result = invoke("--corrupted", 1.5, "--out", tmp_path)
    assert result.exit_code == 2
    message = "data_weights: expected a share in (0, 1), got 1.5, at --corrupted; try 0.3"
    assert message in result.output


def test_a_folder_that_cannot_be_written(invoke, tmp_path):
    (tmp_path / "file").touch()
    result = invoke("--out", tmp_path / "file" / "out")
    assert result.exit_code == 2
    assert "data_weights: expected a folder to write to, got 'Not a directory'" in result.output
