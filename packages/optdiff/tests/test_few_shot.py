# SPDX-License-Identifier: Apache-2.0
"""The few-shot example as its user meets it: options, errors, a short run from end to end."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

EXAMPLES = Path(__file__).parents[1] / "examples"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(EXAMPLES))
    few_shot, glyphs = map(importlib.import_module, ("few_shot", "glyphs"))

FEW = {
    "train": {"Lao": ((0x0E80, 0x0EFF),)},
    "validation": {"N'Ko": ((0x07CA, 0x07EA),)},
    "test": {"Hebrew": ((0x05D0, 0x05EA),)},
}


@pytest.fixture
def invoke(monkeypatch):
    monkeypatch.setattr(glyphs, "SPLITS", FEW)
    monkeypatch.setattr(few_shot, "VALIDATION_TASKS", 2)
    torch.set_default_dtype(torch.float32)
    app = typer.Typer()
    app.command()(few_shot.main)
    return lambda *options: CliRunner().invoke(app, [str(option) for option in options])


def test_the_script_runs_by_its_path():
    command = [sys.executable, str(EXAMPLES / "few_shot.py"), "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    for option in (
        "--data",
        "--root",
        "--algo",
        "--inner",
        "--full",
        "--seed",
        "--device",
        "--out",
    ):
        assert option in shown


TINY = ("--iterations", 3, "--test-tasks", 3, "--width", 4)


@pytest.mark.parametrize(
    ("options", "algorithms"),
    [
        ((), ["MAML", "FOMAML", "iMAML", "ES-MAML"]),
        (("--algo", "es-maml", "--algo", "fomaml", "--algo", "es-maml"), ["ES-MAML", "FOMAML"]),
        (("--algo", "imaml", "--inner", "adam"), ["iMAML"]),
    ],
)
def test_a_short_run_prints_the_tables_and_saves_everything(invoke, tmp_path, options, algorithms):
    result = invoke(*TINY, "--out", tmp_path, *options)
    assert result.exit_code == 0, result.output
    for words in (*algorithms, "5-shot", "1-shot", "from scratch", "CPU time", "peak memory"):
        assert words in result.output
    *shown, _ = result.output.splitlines()  # the last line names the folder
    assert max(map(len, shown)) <= 80
    written = json.loads((tmp_path / "results.json").read_text())
    assert list(written["accuracy"]) == list(written["baselines"]) == ["5-shot", "1-shot"]
    for setting, rows in written["accuracy"].items():
        assert list(rows) == algorithms
        assert [list(scores) for scores in rows.values()] == [["0", "1", "3", "5", "10"]] * len(
            algorithms
        )
        found = [one for scores in rows.values() for one in scores.values()]
        found += written["baselines"][setting].values()
        assert all(0 <= one["mean"] <= 1 and one["half_width"] >= 0 for one in found)
    assert list(written["cost"]) == list(written["learning_curve"]) == algorithms
    for cost in written["cost"].values():
        assert cost["cpu_seconds"] > 0
        assert cost["peak_bytes"] > 100_000
    for curve in written["learning_curve"].values():
        assert [point["iteration"] for point in curve] == [1, 2, 3]
    for picture in ("learning_curve.png", "glyphs.png"):
        with Image.open(tmp_path / picture) as image:
            assert min(image.size) > 200


def test_the_seed_decides_the_numbers(invoke, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        options = (*TINY, "--seed", seed, "--algo", "es-maml")  # draws noise besides
        assert invoke(*options, "--out", tmp_path / name).exit_code == 0
    first, again, other = (
        json.loads((tmp_path / name / "results.json").read_text()) for name in "abc"
    )
    for measured in (first, again):
        del measured["cost"]
    assert first == again
    assert first["accuracy"] != other["accuracy"]


def test_an_algorithm_learns_the_same_whatever_it_is_compared_with(invoke, tmp_path):
    for name, options in (("all", ("--algo", "fomaml")), ("one", ())):
        chosen = (*options, "--algo", "es-maml")
        assert invoke(*TINY, "--out", tmp_path / name, *chosen).exit_code == 0
    all_of_them, one = (
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("all", "one")
    )
    assert all_of_them["learning_curve"]["ES-MAML"] == one["learning_curve"]["ES-MAML"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data", "omniglot"), "expected the folder of Omniglot, got none, at --root; give"),
        (
            ("--data", "omniglot", "--root", "nowhere"),
            "expected folders of alphabets, got no folder",
        ),
        (("--inner-lr", 0), "expected a positive number, got 0.0, at --inner-lr; try"),
        (("--inner-lr", "nan"), "expected a positive number, got nan, at --inner-lr; try"),
        (("--device", "abacus"), "a device that torch can use, got 'abacus', at --device; use cpu"),
        (("--out", "taken/out"), "expected a folder to write to, got 'Not a directory', at taken/"),
        (("--iterations", 0), "Invalid value for '--iterations'"),
        (("--test-tasks", 1), "Invalid value for '--test-tasks'"),
        (("--seed", -1), "Invalid value for '--seed'"),
        (("--algo", "reptile"), "Invalid value for '--algo'"),
    ],
)
def test_bad_options_get_one_clear_error(invoke, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file")
    result = invoke(*options)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_too_small_an_alphabet_gets_one_clear_error(invoke, monkeypatch, tmp_path):
    monkeypatch.setattr(glyphs, "SPLITS", {**FEW, "test": {"Alpha": ((0x03B1, 0x03B3),)}})
    result = invoke("--out", tmp_path)
    assert result.exit_code == 2
    assert "expected at least 5 characters of 20 drawings, got 3 of 20, at" in result.output
