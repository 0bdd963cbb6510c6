# SPDX-License-Identifier: Apache-2.0
"""The distillation example: its meta-gradient, its teachers, what it learns."""

import importlib
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

EXAMPLES = Path(__file__).parents[1] / "examples"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(EXAMPLES))
    distillation = importlib.import_module("distillation")
    digits = importlib.import_module("digits")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def lesson(steps=3):
    """Weights of two nets, teaching images, rates, and real images."""
    real = digits.shuffled(generator()).rows(torch.arange(50))
    teaching = digits.Images(real.x[:10] + 0.1 * torch.randn(10, 64), torch.arange(10))
    return distillation.starts(2, generator(1)), teaching, torch.linspace(-1, 0, steps), real


def test_one_step_is_that_of_plain_autograd():
    first, teaching, _, _ = lesson()
    net = {name: p[0].requires_grad_() for name, p in first.items()}
    hidden = torch.tanh(teaching.x @ net["hidden"] + net["hidden_bias"])
    loss = torch.nn.functional.cross_entropy(hidden @ net["out"] + net["out_bias"], teaching.y)
    grads = torch.autograd.grad(loss, list(net.values()))
    expected = {name: p - 0.3 * g for (name, p), g in zip(net.items(), grads, strict=True)}
    found = distillation.taught(net, *teaching, torch.tensor([0.3]).log())
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("of", ["x", "log_rates"])
def test_the_meta_gradient_is_that_of_differences(of):
    first, teaching, log_rates, real = lesson()
    at = {"x": teaching.x, "log_rates": log_rates}
    direction = torch.randn(at[of].shape)
    direction = direction / direction.norm()

    def value(shift):
        moved = {**at, of: at[of] + shift * direction}
        return distillation.outer_loss(first, moved["x"], teaching.y, moved["log_rates"], real)

    shift, h = torch.zeros((), requires_grad=True), 1e-3
    (slope,) = torch.autograd.grad(value(shift), shift)
    ends = torch.stack([value(s * h) for s in (2, 1, -1, -2)])
    difference = torch.tensor([-1.0, 8.0, -8.0, 1.0]) @ ends / (12 * h)  # fourth order
    torch.testing.assert_close(slope, difference, rtol=1e-8, atol=1e-11)


def test_teachers_come_from_the_real_images():
    real = digits.shuffled(generator()).rows(torch.arange(300))
    one = distillation.teachers(real, 1, 0)
    assert {name: images.y.tolist() for name, images in one.items()} == {
        "real images": list(range(10)),
        "mean images": list(range(10)),
        "k-means images": list(range(10)),
    }
    means = one["mean images"].x
    torch.testing.assert_close(means[4], real.x[real.y == 4].mean(0))
    torch.testing.assert_close(one["k-means images"].x, means)
    two = distillation.teachers(real, 2, 0)["real images"]
    assert two.y.bincount().tolist() == [2] * 10
    distances = torch.cdist(two.x, real.x)
    assert torch.equal(real.y[distances.argmin(1)], two.y)
    assert distances.min(1).values.max() < 1e-6


@pytest.mark.parametrize("rates_only", [True, False])
def test_learning_lowers_the_loss(rates_only):
    first, teaching, log_rates, real = lesson(distillation.STEPS)
    ((images, learned),) = distillation.learn(
        teaching, real, first, 6, 0, [0.05], rates_only=rates_only
    )
    assert torch.equal(images.x, teaching.x) == rates_only
    before = distillation.outer_loss(first, *teaching, torch.full_like(log_rates, 0.5).log(), real)
    assert distillation.outer_loss(first, *images, learned, real) < before


@pytest.mark.parametrize("rates_only", [True, False])
def test_outer_rates_at_once_are_each_a_training_by_adam(rates_only):
    _, teaching, _, real = lesson()
    steps, outer_rates = 3, [0.01, 0.1]
    found = distillation.learn(teaching, real, None, steps, 5, outer_rates, rates_only=rates_only)
    for rate, (images, log_rates) in zip(outer_rates, found, strict=True):
        draws = generator(5)
        x, log = teaching.x.clone(), torch.full((distillation.STEPS,), 0.5).log()
        learned = [one.requires_grad_() for one in ((log,) if rates_only else (log, x))]
        adam = torch.optim.Adam(learned, lr=rate)
        shrinking = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
        for _ in range(steps):
            first = distillation.starts(distillation.STARTS, draws)
            batch = real.rows(torch.randperm(len(real.y), generator=draws)[: distillation.BATCH])
            adam.zero_grad()
            distillation.outer_loss(first, x, teaching.y, log, batch).backward()
            torch.nn.utils.clip_grad_norm_(learned, 1.0)
            adam.step()
            shrinking.step()
        torch.testing.assert_close(log_rates, log, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(images.x, x, rtol=1e-6, atol=1e-6)


def test_outer_rates_are_chosen_by_images_held_out_and_no_test_image(monkeypatch):
    def learn(teaching, real, known, steps, seed, outer_rates, *, rates_only):
        return [(teaching, torch.full((10,), rate).log()) for rate in outer_rates]

    honest = digits.shuffled(generator(0))
    sizes = distillation.TRAIN, distillation.HELD_OUT
    real, held_out, test = digits.parts_of(honest, *sizes)
    scrambled = digits.together(real, held_out, test._replace(y=test.y.flip(0)))
    monkeypatch.setattr(distillation, "learn", learn)
    monkeypatch.setattr(distillation, "RATES_ALONE", (1e-6, 0.5, 3.0))
    for images in (honest, scrambled):
        monkeypatch.setattr(distillation, "shuffled", lambda draws, images=images: images)
        found = distillation.compare("fixed", 2, 0, 0)["k-means images"]
        known = distillation.starts(1, generator(0))
        read = [
            distillation.accuracy(known, found.images, torch.full((10,), rate).log(), held_out)
            for rate in distillation.RATES_ALONE
        ]
        assert max(read) > min(read) + 0.1
        assert found.outer_rate == distillation.RATES_ALONE[read.index(max(read))]


def test_accuracy_is_the_mean_share_of_images_read_correctly():
    first = {name: torch.zeros_like(p) for name, p in distillation.starts(2, generator()).items()}
    first["hidden"][:, :10, :10] = torch.eye(10)
    first["out"][0, :10] = torch.eye(10)  # one net reads what the first ten pixels say,
    first["out"][1, :10] = torch.eye(10).roll(1, 1)  # the other the next digit
    told = torch.tensor([0, 1, 2, 3, 4, 5, 6, 8, 9, 7])
    test = digits.Images(torch.eye(10, 64), told)
    nothing = torch.tensor([-torch.inf])  # the logarithm of the rate of a step
    found = distillation.accuracy(first, test, nothing, test)
    assert found == pytest.approx((0.7 + 0.2) / 2)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    app = typer.Typer()
    app.command()(distillation.main)
    result = CliRunner().invoke(app, ["--out", str(tmp_path / "file" / "out")])
    assert result.exit_code == 2
    assert "distillation: expected a folder to write to, got 'Not a directory'" in result.output
