# SPDX-License-Identifier: Apache-2.0
"""The sinusoid example: its tasks, its meta-gradient, and what its user meets."""

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

import optcore

EXAMPLES = Path(__file__).parents[1] / "examples"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(EXAMPLES))
    sinusoid = importlib.import_module("sinusoid")


@pytest.fixture
def invoke(monkeypatch):
    monkeypatch.setattr(sinusoid, "VALIDATION_TASKS", 4)
    torch.set_default_dtype(torch.float32)
    app = typer.Typer()
    app.command()(sinusoid.main)
    return lambda *options: CliRunner().invoke(app, [str(option) for option in options])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_points_lie_on_sine_waves_of_the_papers_ranges():
    tasks = sinusoid.sample(2000, 10, 7, generator())
    assert tasks.x.shape == tasks.y.shape == (2000, 10, 1)
    assert tasks.query_x.shape == tasks.query_y.shape == (2000, 7, 1)
    x, y = torch.cat([tasks.x, tasks.query_x], 1), torch.cat([tasks.y, tasks.query_y], 1)
    assert -5 <= x.min() < -4.99
    assert 4.99 < x.max() <= 5
    waves = torch.cat([x.sin(), x.cos()], 2)  # A sin(x - phase) = a sin x + b cos x
    a, b = torch.linalg.lstsq(waves, y).solution.squeeze(2).unbind(1)
    torch.testing.assert_close(waves @ torch.stack([a, b], 1)[..., None], y)
    amplitude, phase = torch.hypot(a, b), torch.atan2(-b, a)
    assert 0.1 <= amplitude.min() < 0.11
    assert 4.99 < amplitude.max() <= 5
    assert 0 <= phase.min() < 0.01
    assert 3.13 < phase.max() <= torch.pi


def by_hand(net, tasks, steps):
    """Task after task, every derivative from plain autograd."""
    losses = []
    for x, y, query_x, query_y in zip(*tasks, strict=True):
        params = dict(net.named_parameters())
        for _ in range(steps):
            loss = (torch.func.functional_call(net, params, (x,)) - y).square().mean()
            grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
            params = {
                name: p - 0.01 * g for (name, p), g in zip(params.items(), grads, strict=True)
            }
        predicted = torch.func.functional_call(net, params, (query_x,))
        losses.append((predicted - query_y).square().mean())
    return torch.stack(losses)


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("init", list(sinusoid.Init))
def test_loss_and_meta_gradient_are_those_of_a_loop_over_tasks(init, steps):
    net = sinusoid.network(init)
    tasks = sinusoid.sample(4, 5, 5, generator())
    learner = sinusoid.Learner(net, optcore.sgd(sinusoid.INNER_LR))
    params = dict(net.named_parameters())
    found, expected = learner.losses(params, tasks, steps), by_hand(net, tasks, steps)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = list(params.values())
    grads = (torch.autograd.grad(losses.mean(), weights) for losses in (found, expected))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_the_score_of_losses():
    mean, half_width = sinusoid.score(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert mean == 3.0
    assert half_width == pytest.approx(1.96 * (14 / 3) ** 0.5 / 2)


@pytest.mark.parametrize(
    ("mean", "half_width", "shown"),
    [
        (0.4321, 0.0123, "0.432 ± 0.012"),
        (3.2e9, 6.4e9, "3e+09 ± 6e+09"),
        (float("nan"), float("nan"), "diverges"),
        (float("inf"), float("nan"), "diverges"),
    ],
)
def test_scores_as_the_table_shows_them(mean, half_width, shown):
    assert sinusoid.text(sinusoid.Score(mean, half_width)) == shown


def test_training_lowers_the_loss_after_a_step():
    net = sinusoid.network(sinusoid.Init.torch)
    learner = sinusoid.Learner(net, optcore.sgd(sinusoid.INNER_LR))
    notes = []
    curve = sinusoid.train(learner, 10, 200, 0, notes.append)
    assert [iteration for iteration, _ in curve] == list(range(0, 201, 5))
    assert len(notes) == 200
    assert curve[-1][1] < 0.9 * curve[0][1]


def test_a_short_run_prints_the_table_and_saves_everything(invoke, tmp_path):
    options = ("--shots", 10, "--shots", 3, "--iterations", 3, "--test-tasks", 5)
    result = invoke(*options, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    for text in ("10-shot", "3-shot", "0.429 ± 0.035", "5 unseen tasks, 3 iterations"):
        assert text in result.output
    written = json.loads((tmp_path / "results.json").read_text())
    assert {shots: list(rows) for shots, rows in written["mse"].items()} == {
        "10": ["0", "1", "5", "10"],
        "3": ["0", "1", "5", "10"],
    }
    assert [iteration for iteration, _ in written["learning_curve"]["3"]] == [0, 1, 2, 3]
    with Image.open(tmp_path / "sinusoid.png") as image:
        assert min(image.size) > 200


def test_seed_and_init_decide_the_numbers(invoke, tmp_path):
    short = ("--shots", 5, "--iterations", 2, "--test-tasks", 3)
    runs = {"a": (), "b": (), "c": ("--seed", 1), "d": ("--init", "paper")}
    for name, options in runs.items():
        assert invoke(*short, *options, "--out", tmp_path / name).exit_code == 0
    first, again, other, small = (
        json.loads((tmp_path / name / "results.json").read_text())["mse"] for name in runs
    )
    assert first == again
    assert first != other
    assert first != small


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--out", "taken/out"), "expected a folder to write to, got 'Not a directory', at taken/"),
        (("--shots", 0), "Invalid value for '--shots'"),
        (("--iterations", 0), "Invalid value for '--iterations'"),
        (("--test-tasks", 1), "Invalid value for '--test-tasks'"),
        (("--seed", -1), "Invalid value for '--seed'"),
        (("--init", "zero"), "Invalid value for '--init'"),
    ],
)
def test_bad_options_get_one_clear_error(invoke, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file")
    result = invoke(*options)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_the_script_runs_by_its_path():
    command = [sys.executable, str(EXAMPLES / "sinusoid.py"), "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    for option in ("--shots", "--iterations", "--init", "--test-tasks", "--seed", "--out"):
        assert option in shown
