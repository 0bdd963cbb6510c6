# SPDX-License-Identifier: Apache-2.0
"""Perturbed functions estimate what their expectations are; seeds make them deterministic."""

import math
import re

import pytest
import torch

import optcore

SCORES = torch.tensor([0.3, 1.1, -0.4, 0.8], dtype=torch.float64)


def hard(scores):
    return torch.nn.functional.one_hot(scores.argmax(-1), 4).to(scores.dtype)


def test_gumbel_noise_makes_the_argmax_a_softmax_with_its_derivative():
    soft = optcore.make_perturbed_fun(hard, num_samples=40_000, sigma=1.0)
    expected = SCORES.softmax(-1)
    torch.testing.assert_close(soft(0, SCORES), expected, rtol=0, atol=0.01)
    found = torch.autograd.functional.jacobian(lambda s: soft(0, s), SCORES)
    slope = torch.diag(expected) - torch.outer(expected, expected)
    torch.testing.assert_close(found, slope, rtol=0, atol=0.02)


@pytest.mark.parametrize("use_baseline", [True, False])
def test_normal_noise_smooths_a_sine_and_its_derivatives(use_baseline):
    # E sin(x + s Z) = exp(-s^2 / 2) sin(x)
    sigma, x = 0.5, {"x": torch.tensor(0.7, requires_grad=True)}
    smooth = optcore.make_perturbed_fun(
        lambda tree: {"y": tree["x"].sin()}, 100_000, sigma, optcore.Normal(), use_baseline
    )
    y = smooth(1, x)["y"]
    (first,) = torch.autograd.grad(y, x["x"], create_graph=True)
    (second,) = torch.autograd.grad(first, x["x"])
    factor = math.exp(-(sigma**2) / 2)
    assert y.item() == pytest.approx(factor * math.sin(0.7), abs=0.01)
    assert first.item() == pytest.approx(factor * math.cos(0.7), abs=0.02)
    assert second.item() == pytest.approx(-factor * math.sin(0.7), abs=0.1)


def test_the_baseline_lessens_the_variance():
    def slope(seed, use_baseline):
        x = torch.tensor(0.7, requires_grad=True)
        perturbed = optcore.make_perturbed_fun(
            lambda v: v.sin() + 5.0, 100, 0.1, optcore.Normal(), use_baseline
        )
        return torch.autograd.grad(perturbed(seed, x), x)[0]

    spread = {
        use: torch.stack([slope(seed, use) for seed in range(30)]).std() for use in (True, False)
    }
    assert spread[True] < spread[False] / 5


def test_a_seed_makes_the_samples():
    soft = optcore.make_perturbed_fun(hard, num_samples=50)
    assert torch.equal(soft(3, SCORES), soft(torch.tensor(3), SCORES))
    assert not torch.equal(soft(3, SCORES), soft(4, SCORES))


def test_a_fenchel_young_loss_has_the_gradient_it_promises():
    loss = optcore.make_fenchel_young_loss(lambda s: s.logsumexp(0))
    scores = torch.stack([SCORES, -SCORES]).requires_grad_()
    targets = torch.eye(4)[:2]
    values = loss(scores, targets)
    expected = torch.nn.functional.cross_entropy(scores, torch.arange(2), reduction="none")
    torch.testing.assert_close(values, expected)
    (slope,) = torch.autograd.grad(values.sum(), scores)
    torch.testing.assert_close(slope, scores.detach().softmax(-1) - targets)


def test_a_perturbed_maximum_makes_the_perturbed_fenchel_young_loss():
    highest = optcore.make_perturbed_fun(lambda s: s.amax(-1), 20_000, 1.0)
    loss = optcore.make_fenchel_young_loss(lambda s: highest(0, s))
    scores = SCORES.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(scores, hard(SCORES)), scores)
    torch.testing.assert_close(slope, SCORES.softmax(-1) - hard(SCORES), rtol=0, atol=0.03)


ERRORS = [
    (
        lambda: optcore.make_perturbed_fun(3),
        "make_perturbed_fun: expected fun as a function, got int",
    ),
    (
        lambda: optcore.make_perturbed_fun(hard, 0),
        "make_perturbed_fun: expected num_samples >= 1, got 0",
    ),
    (
        lambda: optcore.make_perturbed_fun(hard, sigma=0.0),
        "make_perturbed_fun: expected sigma > 0, got 0",
    ),
    (
        lambda: optcore.make_perturbed_fun(hard)("seed", SCORES),
        "make_perturbed_fun: expected seed as an int or i64[], got str",
    ),
    (
        lambda: optcore.make_fenchel_young_loss(1),
        "make_fenchel_young_loss: expected max_fun as a function, got int",
    ),
    (
        lambda: optcore.make_fenchel_young_loss(torch.amax)(SCORES, torch.ones(3)),
        "make_fenchel_young_loss: expected scores and targets (..., n) of one shape, got f64[4]",
    ),
    (
        lambda: optcore.make_perturbed_fun(hard, sigma=-1.0),
        "make_perturbed_fun: expected sigma > 0, got -1.0",
    ),
    (
        lambda: optcore.make_perturbed_fun(hard, sigma=lambda count: 1.0),
        "make_perturbed_fun: expected sigma as a number or tensor, got function",
    ),
    (
        lambda: optcore.make_perturbed_fun(hard, noise=3),
        "make_perturbed_fun: expected noise with methods sample and log_prob, as Gumbel(), got int",
    ),
    (
        lambda: optcore.make_perturbed_fun(hard)(0, {"a": None}),
        "make_perturbed_fun: expected x as a tree of tensors, got dict",
    ),
    (
        lambda: optcore.make_perturbed_fun(lambda x: x.long())(0, SCORES),
        "make_perturbed_fun: fun: expected real floating outputs, got i64[4]",
    ),
    (
        lambda: optcore.make_fenchel_young_loss(lambda s: s)(torch.ones(2, 3), torch.ones(2, 3)),
        "make_fenchel_young_loss: expected a scalar loss, got f64[3]",
    ),
    (
        lambda: optcore.make_fenchel_young_loss(torch.amax)(3, torch.ones(3)),
        "make_fenchel_young_loss: expected scores and targets (..., n) of one shape, got int and",
    ),
]


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_errors_name_what_was_expected(call, message):
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}"):
        call()
