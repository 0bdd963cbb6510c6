# SPDX-License-Identifier: Apache-2.0
"""The reweighting example: its meta-gradient, its weights, its data."""

import importlib
from pathlib import Path

import pytest
import torch
import typer
from torch import nn
from torch.func import functional_call, grad, vmap
from typer.testing import CliRunner

EXAMPLES = Path(__file__).parents[1] / "examples"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(EXAMPLES))
    reweight = importlib.import_module("reweight")
    digits = importlib.import_module("digits")
    report = importlib.import_module("report")


def net_and_images():
    net = nn.Sequential(nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 10))
    images = digits.shuffled(torch.Generator().manual_seed(0))
    return net, *digits.parts_of(images, 12, 7)[:2]


def gradients_of_examples(net, images):
    """One row for each image, from torch.func."""

    def loss(params, x, y):
        return nn.functional.cross_entropy(functional_call(net, params, (x[None],)), y[None])

    params = {name: p.detach() for name, p in net.named_parameters()}
    grads = vmap(grad(loss), in_dims=(None, 0, 0))(params, images.x, images.y)
    return torch.cat([g.flatten(1) for g in grads.values()], 1)


@pytest.mark.parametrize("lr", [0.02, 0.7])
def test_the_meta_gradient_is_minus_lr_times_the_inner_product_of_gradients(lr):
    net, batch, clean = net_and_images()
    found = reweight.meta_gradient(net, batch, clean, lr)
    of_batch, of_clean = gradients_of_examples(net, batch), gradients_of_examples(net, clean)
    torch.testing.assert_close(found, -lr * of_batch @ of_clean.mean(0), rtol=1e-12, atol=1e-14)


def test_the_virtual_step_leaves_no_trace():
    net, batch, clean = net_and_images()
    before = [(p, p.detach().clone()) for p in net.parameters()]
    reweight.meta_gradient(net, batch, clean, 0.5)
    assert [p is q for p, (q, _) in zip(net.parameters(), before, strict=True)] == [True] * 4
    for p, (_, value) in zip(net.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), value, rtol=0, atol=0)
        assert p.grad is None


def test_learned_weights_are_positive_parts_of_sum_one():
    net, batch, clean = net_and_images()
    weights = reweight.by_meta_gradient(clean)(net, batch)
    gradient = reweight.meta_gradient(net, batch, clean, 1.0)  # the step size divides out
    helpful = gradient.clamp(max=0)
    torch.testing.assert_close(weights, helpful / helpful.sum(), rtol=1e-12, atol=0)
    assert 0 < (weights == 0).sum() < len(weights)


@pytest.mark.parametrize(
    ("weights", "expected"), [([1.0, 0, 3], [0.25, 0, 0.75]), ([0.0, 0, 0], [0.0, 0, 0])]
)
def test_normalized_weights(weights, expected):
    assert reweight.normalized(torch.tensor(weights)).tolist() == expected


def test_by_frequency_every_class_counts_the_same():
    problem = reweight.imbalanced(5, 0)
    weights = reweight.by_frequency(problem.train)(nn.Identity(), problem.train)
    sums = torch.zeros(2).index_add(0, problem.train.y, weights)
    torch.testing.assert_close(sums, torch.tensor([0.5, 0.5]))


def test_the_rare_class():
    problem = reweight.imbalanced(2, 3)
    assert problem.train.y.bincount().tolist() == [110, 2]
    assert problem.clean.y.bincount().tolist() == [5, 5]
    assert problem.test.y.bincount().tolist() == [65, 66]


@pytest.mark.parametrize(("kind", "zeros"), [("uniform", False), ("background", True)])
def test_changed_labels(kind, zeros):
    honest, problem = (reweight.mislabelled(kind, share, 1) for share in (0.0, 0.6))
    assert not honest.wrong.any()
    assert torch.equal(honest.train.x, problem.train.x)
    changed = problem.train.y != honest.train.y
    assert torch.equal(changed, problem.wrong)
    assert 500 < changed.sum() < 650
    assert (problem.train.y[changed] == 0).all() == zeros
    assert problem.clean.y.bincount().tolist() == [10] * 10
    assert len(problem.test.y) == 697


def test_training_heeds_the_weights():
    train, _, _, test = reweight.imbalanced(110, 0)

    def nines_only(net, batch):
        return reweight.normalized((batch.y == 0).to(batch.x))

    trained = reweight.train(train, nines_only, test, 40, 0)
    assert trained.accuracy == pytest.approx(65 / 131)  # all are read as nines
    assert trained.weights[train.y == 0].mean() > 1
    assert (trained.weights[train.y == 1] == 0).all()


def test_the_interval_over_seeds_is_students():
    mean, half_width = report.score([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half_width == pytest.approx(4.302652730 / 3**0.5)  # the quantile for two degrees


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    app = typer.Typer()
    app.command()(reweight.main)
    result = CliRunner().invoke(app, ["--out", str(tmp_path / "file" / "out")])
    assert result.exit_code == 2
    assert "reweight: expected a folder to write to, got 'Not a directory'" in result.output
