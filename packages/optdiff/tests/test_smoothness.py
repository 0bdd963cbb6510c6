# SPDX-License-Identifier: Apache-2.0
"""The check that tells whether a gradient is of use."""

import re

import pytest
import torch

import optdiff

POINT = {"a": torch.tensor([3.0, -1.0]), "b": torch.tensor(2.0), "fixed": torch.tensor([5.0])}


def point():
    moved = {name: t.double().requires_grad_(name != "fixed") for name, t in POINT.items()}
    return moved | {"what": "else"}


def quadratic(p):
    return p["a"].square().sum() + p["a"][0] * p["b"] + p["fixed"].sum()


def test_a_quadratic_has_ratio_one_at_every_step():
    found = optdiff.check_smoothness(quadratic, point(), steps=(0.5, 1e-3), directions=4)
    assert found.ratios.shape == (4, 2)
    torch.testing.assert_close(found.ratios, torch.ones(4, 2), rtol=1e-7, atol=0)
    torch.testing.assert_close(found.agreement, torch.ones(2), rtol=1e-7, atol=0)


def test_a_rough_function_agrees_on_its_own_scale_only():
    def rough(p):
        return quadratic(p) + 1e-2 * (1e4 * p["a"]).sin().sum()

    found = optdiff.check_smoothness(rough, point(), steps=(1e-1, 1e-7), directions=6)
    assert found.agreement[0] < 0.3
    assert found.agreement[1] > 0.99


def test_a_gradient_that_is_given():
    right = optdiff.check_smoothness(quadratic, point(), generator=torch.Generator())
    p = point()
    gradient = dict(zip("ab", torch.autograd.grad(quadratic(p), [p["a"], p["b"]]), strict=True))
    again = optdiff.check_smoothness(quadratic, p, gradient=gradient, generator=torch.Generator())
    torch.testing.assert_close(again.slopes, right.slopes)
    half = {name: g / 2 for name, g in gradient.items()}
    wrong = optdiff.check_smoothness(quadratic, p, gradient=half, generator=torch.Generator())
    torch.testing.assert_close(wrong.ratios, right.ratios / 2)


def test_printing():
    shown = str(optdiff.check_smoothness(quadratic, point(), steps=(0.1, 1e-2), directions=2))
    assert shown.splitlines()[0].startswith("step      agreement  ratio")
    assert re.fullmatch(r"1e-01     1.00       1  1", shown.splitlines()[1])
    assert len(shown.splitlines()) == 3


def test_the_gradient_of_a_replayed_run():
    def run(p):
        start = torch.ones(2, requires_grad=True)
        last = optdiff.replay(lambda w, i, p: w - 0.1 * (w * p["a"]).sin(), start, 20, p)
        return last.square().sum()

    p = {"a": torch.tensor([0.5, 1.5], requires_grad=True)}
    found = optdiff.check_smoothness(run, p, steps=(1e-5,))
    torch.testing.assert_close(found.ratios, torch.ones(3, 1), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": ()}, ValueError, "check_smoothness: expected positive steps, got []"),
        ({"steps": (1, 0)}, ValueError, "check_smoothness: expected positive steps, got [1, 0]"),
        ({"directions": 0}, ValueError, "check_smoothness: expected directions >= 1, got 0"),
        (
            {"gradient": {"a": torch.ones(2)}},
            ValueError,
            "check_smoothness: expected a gradient of shapes [[2], []], got [[2]]",
        ),
        ({"function": 3}, TypeError, "check_smoothness: expected a callable function, got int"),
        (
            {"function": lambda p: 1.0},
            TypeError,
            "check_smoothness: expected function to return a tensor, got float",
        ),
        (
            {"function": lambda p: p["a"] * 2},
            ValueError,
            "check_smoothness: expected function to return a scalar, got shape [2]",
        ),
        (
            {"function": lambda p: p["fixed"].sum()},
            ValueError,
            "check_smoothness: expected a value with a graph, got one without; compute it from ",
        ),
        (
            {"point": torch.ones(2)},
            ValueError,
            "check_smoothness: expected tensors that require grad in point, got none",
        ),
    ],
)
def test_options(options, error, message):
    given = {"function": quadratic, "point": point()} | options
    with pytest.raises(error, match="^" + re.escape(message)):
        optdiff.check_smoothness(**given)
