# SPDX-License-Identifier: Apache-2.0
"""Hypergradients of published problems, and the truth of our own."""

import pytest
import torch
from sklearn import datasets, model_selection, preprocessing

import treeops
from optdiff import custom_root, minimize, testing
from optdiff.linear_solve import solve_cg

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")


@pytest.mark.parametrize("name", testing.PROBLEMS)
def test_problems_know_their_solution_and_hypergradient(name):
    problem = testing.PROBLEMS[name]()
    x = problem.solution(*problem.args)
    for leaf in treeops.tree_leaves(problem.optimality(x, *problem.args)):
        assert leaf.abs().max() < 1e-11
    grads = problem.hypergradient(*problem.args)
    for position, (arg, grad) in enumerate(zip(problem.args, grads, strict=True)):
        direction = torch.randn_like(arg)
        values = []
        for step in (1e-5, -1e-5):
            moved = list(problem.args)
            moved[position] = arg + step * direction
            values.append(problem.outer(problem.solution(*moved)))
        slope = (values[0] - values[1]) / 2e-5
        torch.testing.assert_close((grad * direction).sum(), slope, rtol=1e-7, atol=1e-8)


def tensors(*arrays):
    return tuple(torch.from_numpy(array) for array in arrays)


def diabetes(theta):
    features, targets = datasets.load_diabetes(return_X_y=True)
    split = model_selection.train_test_split(
        preprocessing.normalize(features), targets, test_size=0.33, random_state=0
    )
    train, held_out, y, y_held_out = tensors(*split)
    return testing.ridge_regression(train, y, (held_out, y_held_out), theta)


RIDGE = [
    (1.0, 28571.122030, 325.762573),
    (0.0, 28125.978153, 557.964299),
    (-3.0, 27008.056134, -49.499776),
]


@pytest.mark.parametrize(("theta", "value", "slope"), RIDGE)
def test_ridge_on_diabetes(theta, value, slope):
    problem = diabetes(theta)

    @custom_root(problem.optimality, solve=solve_cg())
    def solve(init, theta):
        return minimize.newton(problem.objective, init, theta).solution

    at = problem.args[0].clone().requires_grad_()
    found = problem.outer(solve(problem.init, at))
    (grad,) = torch.autograd.grad(found, at)
    printed = {"rtol": 0, "atol": 5.01e-7}  # the references have six decimals
    torch.testing.assert_close(found.item(), value, **printed)
    torch.testing.assert_close(grad.item(), slope, **printed)
    (exact,) = problem.hypergradient(*problem.args)
    torch.testing.assert_close(grad, exact, rtol=1e-9, atol=0)


def test_digits_with_a_weight_decay_for_each_pixel():
    features, labels = datasets.load_digits(return_X_y=True)
    split = model_selection.train_test_split(features / 16, labels, test_size=0.5, random_state=0)
    train, held_out, y, y_held_out = tensors(*split)
    problem = testing.logistic_regression(train, y, (held_out, y_held_out), log_decay=-4.0)

    @custom_root(problem.optimality)
    def solve(init, theta):
        return minimize.newton(problem.objective, init, theta).solution

    theta = problem.args[0].clone().requires_grad_()
    value = problem.outer(solve(problem.init, theta))
    (grad,) = torch.autograd.grad(value, theta)
    found = (value.item(), grad.norm().item(), grad.sum().item())
    expected = (0.610423085, 0.0502112537, 0.2801746770)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
