# SPDX-License-Identifier: Apache-2.0
"""The example with wrong labels: a short run from end to end, and its errors."""

import importlib
import io
import json
from pathlib import Path

import pytest
import torch
import typer
from rich.console import Console
from typer.testing import CliRunner

EXAMPLES = Path(__file__).parents[1] / "examples"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(EXAMPLES))
    data_weights, digits, report = map(
        importlib.import_module, ("data_weights", "digits", "report")
    )


@pytest.fixture
def invoke():
    torch.set_default_dtype(torch.float32)
    app = typer.Typer()
    app.command()(data_weights.main)
    return lambda *options: CliRunner().invoke(app, [str(option) for option in options])


def test_a_short_run_tells_wrong_labels_from_right_ones(invoke, tmp_path):
    result = invoke("--steps", 60, "--meta-steps", 2, "--seeds", 2, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "results.json").read_text())
    for words in ("AUC", *written["accuracy"]):
        assert words in result.output
    assert len(written["curves"]) == 2
    for first, second, third in written["curves"]:
        assert first["auc"] == 0.5
        assert third["auc"] > 0.75
        assert third["validation"] < second["validation"] < first["validation"]
    last = torch.tensor([curve[-1]["auc"] for curve in written["curves"]])
    assert written["auc"] == report.score(last.tolist())._asdict()
    assert (tmp_path / "data_weights.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_whole_run_closes_half_of_the_gap(invoke, tmp_path):
    result = invoke("--seeds", 2, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["auc"]["mean"] >= 0.9
    believed, learned, cleaned = (
        written["accuracy"][name]["mean"]
        for name in ("all labels believed", "learned weights", "wrong labels left out")
    )
    assert cleaned - learned <= (cleaned - believed) / 2


def test_labels_that_are_wrong_and_trainings_beside():
    data = data_weights.load(0.3, 4)
    images = digits.shuffled(torch.Generator().manual_seed(4))
    train, validation, test = digits.parts_of(images, 1000, 400)
    assert torch.equal(data.wrong, data.train.y != train.y)
    assert data.wrong.sum() == 300
    for found, expected in zip((*data.validation, *data.test), (*validation, *test), strict=True):
        assert torch.equal(found, expected)

    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_weights, "training", lambda *parts: seen.append(parts) or Trained())
        with report.Phases(Console(file=io.StringIO())) as phases:
            found = data_weights.learn(data, 7, 0, 4, phases)
    assert list(found.accuracy) == [
        "all labels believed",
        "validation images alone",
        "both together",
        "learned weights",
        "wrong labels left out",
    ]
    sizes = [(len(images.y), int(weights.sum())) for images, weights, _, _ in seen]
    assert sizes == [(400, 400), (1400, 1400), (1000, 700), (1000, 1000)]
    assert {parts[2:] for parts in seen} == {(7, 4)}


class Trained:
    """In place of a training run."""

    def run(self):
        return torch.nn.Linear(64, 10)


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
