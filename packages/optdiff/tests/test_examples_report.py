# SPDX-License-Identifier: Apache-2.0
"""What the examples share: intervals, the folder they write to; rates chosen by validation."""

import importlib
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

EXAMPLES = Path(__file__).parents[1] / "examples"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(EXAMPLES))
    report = importlib.import_module("report")
    policy_training = importlib.import_module("policy_training")
    distillation = importlib.import_module("distillation")


@pytest.mark.parametrize(("count", "factor"), [(5, 2.7764451), (8, 2.3646243), (16, 2.1314495)])
def test_an_interval_is_students(count, factor):
    values = torch.linspace(1, 2, count)
    mean, half_width = report.score(values.tolist())
    assert mean == pytest.approx(1.5)
    assert half_width == pytest.approx(factor * values.std().item() / count**0.5)


def test_what_diverged_is_null_in_json():
    one = report.Score(1.5, float("nan"))
    assert report.finite(one) == {"mean": 1.5, "half_width": None}
    assert report.finite(report.Score(float("inf"), 0.0)) == {"mean": None, "half_width": 0.0}


def test_a_folder_is_made_and_left_empty(tmp_path):
    report.folder("name", tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_a_folder_that_takes_no_file_is_refused_at_once(capsys):
    with pytest.raises(typer.Exit):
        report.folder("name", Path("/proc"))
    assert "name: expected a folder to write to" in capsys.readouterr().err


KINDS = list(policy_training.Kind)


@pytest.mark.parametrize("kind", KINDS, ids=[kind.value for kind in KINDS])
def test_the_inner_rate_is_the_best_one_on_other_tasks(kind, monkeypatch):
    seeds, given = range(3, 6), []
    rates = policy_training.RATES[kind.value]

    def train(method, kind, iterations, unseen, seed, done, lr):
        given.append((unseen, seed))
        return policy_training.Run(None, [], 0.0, -abs(lr - rates[2]) - seed % 7, lr)

    monkeypatch.setattr(policy_training, "train", train)
    method = policy_training.Method.maml
    assert policy_training.chosen_rate(method, kind, 1, 5, seeds, None) == rates[2]
    assert len(given) == len(rates) * len(seeds)

    def streams(seed):  # by what they begin with
        own = [torch.Generator().manual_seed(3 * seed + k) for k in range(3)]
        return {tuple(torch.rand(3, generator=generator).tolist()) for generator in own}

    used = set().union(*map(streams, (*seeds, 0, policy_training.LARGEST_SEED)))
    assert [seed for _, seed in given if streams(seed) & used] == []
    tests = [policy_training.unseen_tasks(kind, 5, seed) for seed in seeds]
    for unseen, _ in given:
        for test in tests:
            assert not torch.equal(test.rewards, unseen.rewards)


def test_the_rate_given_is_that_of_the_step():
    unseen = policy_training.grid_tasks(20, torch.Generator().manual_seed(0))
    short, long = (
        policy_training.train(
            policy_training.Method.untrained, policy_training.Kind.grid, 0, unseen, 0, None, lr
        )
        for lr in (1e-9, 80.0)
    )
    assert (short.lr, long.lr) == (1e-9, 80.0)
    assert short.after == pytest.approx(short.before, abs=1e-6)
    assert long.after > 2 * short.after


@pytest.mark.parametrize("arguments", [["--count", "100"], ["--seed", str(2**31)]])
def test_numbers_too_large_are_refused(arguments, tmp_path):
    app = typer.Typer()
    app.command()(distillation.main)
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert arguments[0] in result.output
