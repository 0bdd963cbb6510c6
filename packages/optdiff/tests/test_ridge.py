# SPDX-License-Identifier: Apache-2.0
"""Ridge regression on scikit-learn's diabetes data, by explicit unrolling to convergence."""

import pytest
import torch
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import normalize

import optdiff

# theta, value, derivative of the closed form
EXPECTED = [
    (1.0, 28571.122030, 325.762573),
    (0.0, 28125.978153, 557.964299),
    (-3.0, 27008.056134, -49.499776),
]
OPTIONS = [{}, {"checkpoint": "sqrt"}, {"checkpoint": 30}]


def data():
    inputs, targets = load_diabetes(return_X_y=True)
    parts = train_test_split(normalize(inputs), targets, test_size=0.33, random_state=0)
    return [torch.from_numpy(part).double() for part in parts]


def problem():
    x, held_out, y, answers = data()
    largest = torch.linalg.matrix_norm(x, 2) ** 2

    def step(w, i, theta):
        decay = len(x) * theta.exp()
        gradient = x.T @ (x @ w - y) + decay * w
        return w - gradient / (largest + decay.detach())

    def objective(w, theta):
        return (held_out @ w - answers).square().mean()

    return step, torch.zeros(x.shape[1], dtype=torch.float64), objective


@pytest.mark.parametrize(("theta", "value", "derivative"), EXPECTED)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_unrolled(theta, value, derivative, options):
    step, w, objective = problem()
    at = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
    found = objective(optdiff.unroll(step, w, 300, at, **options), at)
    assert found.item() == pytest.approx(value, rel=1e-6)
    assert torch.autograd.grad(found, at)[0].item() == pytest.approx(derivative, rel=1e-6)


@pytest.mark.parametrize(("theta", "value", "derivative"), EXPECTED)
def test_forward_mode(theta, value, derivative):
    step, w, objective = problem()
    at = torch.tensor(theta, dtype=torch.float64)
    found, slope = optdiff.forward_hypergradient(objective, step, w, 300, at)
    assert found.item() == pytest.approx(value, rel=1e-6)
    assert slope.item() == pytest.approx(derivative, rel=1e-6)
