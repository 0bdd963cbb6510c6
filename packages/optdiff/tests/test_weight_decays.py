# SPDX-License-Identifier: Apache-2.0
"""The example with 64 weight decays: its hypergradients, by closed forms and differences."""

import importlib
from pathlib import Path

import pytest
import torch
import typer
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from typer.testing import CliRunner

EXAMPLES = Path(__file__).parents[1] / "examples"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(EXAMPLES))
    digits, regression, weight_decays = map(
        importlib.import_module, ("digits", "regression", "weight_decays")
    )

LOSSES = list(regression.Loss)
TOL = 1e-11  # of the inner problem


def problem(loss, train=40, validation=30):
    images = digits.shuffled(torch.Generator().manual_seed(0))
    return weight_decays.Problem(*digits.parts_of(images, train, validation), loss, TOL)


def log_decays():
    return -3 + torch.randn(64, generator=torch.Generator().manual_seed(1))


def fitted(data, theta):
    return data.fit(data.train)(regression.start(data.train), theta)


def validation_loss(data, theta):
    return data.cost(fitted(data, theta), data.validation)


def closed_form(images, log_decay):
    """Ridge regression with a decay for each row of the weights."""
    x, y = images.x, torch.nn.functional.one_hot(images.y, 10).to(images.x.dtype)
    return torch.linalg.solve(x.T @ x / len(x) + log_decay.exp().diag(), x.T @ y / len(x))


def test_ridge_has_the_solution_and_the_hypergradient_of_the_closed_form():
    data = problem(regression.Loss.squares)
    theta, same = log_decays().requires_grad_(), log_decays().requires_grad_()
    w = fitted(data, theta)
    exact = closed_form(data.train, same)
    torch.testing.assert_close(w, exact, rtol=0, atol=1e-9)
    found, expected = (
        torch.autograd.grad(data.cost(one, data.validation), at)[0]
        for one, at in ((w, theta), (exact, same))
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_the_hypergradient_is_that_of_differences():
    data, theta, h = problem(regression.Loss.entropy), log_decays(), 1e-2
    direction = torch.nn.functional.normalize(torch.randn(64), dim=0)
    at = theta.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(validation_loss(data, at), at)
    ends = [validation_loss(data, theta + s * direction) for s in (2 * h, h, -h, -2 * h)]
    weights = torch.tensor([-1.0, 8.0, -8.0, 1.0]) / (12 * h)  # fourth order
    torch.testing.assert_close(gradient @ direction, weights @ torch.stack(ends), rtol=1e-6, atol=0)


def test_the_known_hypergradient_of_digits():
    pixels, labels = load_digits(return_X_y=True)
    halves = train_test_split(pixels / 16, labels, test_size=0.5, random_state=0)
    x, x_valid, y, y_valid = map(torch.from_numpy, halves)
    train, others = digits.Images(x, y), digits.Images(x_valid, y_valid)
    data = weight_decays.Problem(train, others, others, regression.Loss.entropy, TOL)
    theta = torch.full((64,), -4.0, requires_grad=True)
    value = validation_loss(data, theta)
    (gradient,) = torch.autograd.grad(value, theta)
    found = value.item(), gradient.norm().item(), gradient.sum().item()
    assert found == pytest.approx((0.610423085, 0.0502112537, 0.2801746770), rel=1e-8)


def test_outer_steps_lower_the_validation_loss_and_stay_in_range():
    data = problem(regression.Loss.entropy)
    first = weight_decays.Found(torch.full((64,), -4.0), 0.0, 3)
    found = weight_decays.descend(data, first, 5, shared=False)
    assert found.fits == 8
    assert found.curve[-1] < found.curve[0]
    assert found.log_decay.min() >= weight_decays.LEAST
    assert found.log_decay.max() <= weight_decays.MOST


@pytest.mark.parametrize("loss", LOSSES)
def test_cross_validation_minimizes_the_same_objective(loss):
    data = problem(loss, 60, 60)
    grid = torch.tensor([-3.0, -2.0])
    found = weight_decays.cross_validation(data, grid)
    images = digits.together(data.train, data.validation)
    w = data.fit(images)(regression.start(images), found.log_decay)
    scores = images.x @ w - images.x @ found.refitted  # softmax knows differences only
    scores = scores - scores.mean(1, keepdim=True)
    assert scores.abs().max() < 5e-3


def test_decays_are_chosen_on_validation_images_whatever_the_test_images_are():
    honest = problem(regression.Loss.squares, 100, 200)
    test = honest.test._replace(y=honest.test.y.flip(0))  # of which nothing can be learned
    data, grid = honest._replace(test=test), torch.linspace(0, -6, 3)

    fits = [closed_form(data.train, log_decay.expand(64)) for log_decay in grid]
    losses = [data.cost(w, data.validation) for w in fits]
    assert losses[1] < min(losses[0], losses[2])
    found = weight_decays.search(data, grid[:, None].expand(-1, 64))
    assert found.log_decay.tolist() == [-3.0] * 64
    for choose in (
        lambda data: weight_decays.descend(data, found, 2, shared=False),
        lambda data: weight_decays.cross_validation(data, grid),
    ):
        assert torch.equal(choose(data).log_decay, choose(honest).log_decay)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    app = typer.Typer()
    app.command()(weight_decays.main)
    result = CliRunner().invoke(app, ["--out", str(tmp_path / "file" / "out")])
    assert result.exit_code == 2
    assert "weight_decays: expected a folder to write to, got 'Not a directory'" in result.output
