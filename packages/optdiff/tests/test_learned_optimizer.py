# SPDX-License-Identifier: Apache-2.0
"""The learned optimizer: where it starts, what it is a transformation of, and its gradient."""

import importlib
from pathlib import Path

import pytest
import torch

import optcore

EXAMPLES = Path(__file__).parents[1] / "examples"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(EXAMPLES))
    learned_optimizer, learned_rule, small_tasks = map(
        importlib.import_module, ("learned_optimizer", "learned_rule", "small_tasks")
    )


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def moved_theta():
    theta = learned_rule.first_theta(generator())
    return {name: value + 0.1 * torch.ones_like(value) for name, value in theta.items()}


def test_the_first_rule_is_adam():
    tasks = small_tasks.random_tasks(3, 30, generator())
    theta = learned_rule.first_theta(generator())
    found = learned_optimizer.trainings(learned_rule.learned, theta, tasks)
    adam = learned_optimizer.trainings(optcore.adam, torch.tensor(0.01), tasks)
    torch.testing.assert_close(found, adam, rtol=1e-10, atol=1e-12)
    other = learned_optimizer.trainings(learned_rule.learned, moved_theta(), tasks)
    assert (other - adam).abs().max() > 1e-3


def test_a_rule_does_to_each_parameter_the_same():
    rule, order = learned_rule.learned(moved_theta()), torch.tensor([2, 0, 1])
    params = torch.tensor([0.3, -1.0, 2.0])
    grads = [torch.tensor([1.0, -0.5, 1e-3]), torch.tensor([0.2, 0.0, 3.0])]

    def after(select):
        state, updates = rule.init(params[select]), None
        for one in grads:
            updates, state = rule.update(one[select], state, params[select])
        return updates

    torch.testing.assert_close(after(order), after(torch.arange(3))[order], rtol=1e-12, atol=0)


def test_all_tasks_at_once_are_one_after_the_other():
    tasks = small_tasks.random_tasks(3, 10, generator())
    rule = learned_rule.learned(moved_theta())
    for index, losses in enumerate(
        learned_optimizer.trainings(learned_rule.learned, moved_theta(), tasks)
    ):
        weights = {name: value[index] for name, value in tasks.weights.items()}
        one = small_tasks.Tasks(tasks.x[index], tasks.y[index], weights, tasks.rows[index])
        torch.testing.assert_close(learned_optimizer.training(rule, one), losses)


def test_a_run_that_diverges_counts_as_the_worst():
    tasks = small_tasks.random_tasks(2, 10, generator())
    losses = learned_optimizer.trainings(optcore.sgd, torch.tensor(1e300), tasks)
    assert losses[:, -1].tolist() == [learned_optimizer.WORST] * 2


def test_the_estimate_is_the_gradient_of_the_smoothed_objective():
    # Of a quadratic plus the cube of a coordinate, smoothed by normal noise of width s, the
    # gradient is A x, plus 3 (x_0^2 + s^2) in the first coordinate.
    matrix = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 3.0]])
    x = torch.tensor([0.7, -1.0, 0.4], requires_grad=True)
    objective = learned_optimizer.smoothed(lambda x: x @ matrix @ x / 2 + x[0] ** 3, generator())
    calls = 800
    estimates = torch.stack([torch.autograd.grad(objective(x), x)[0] for _ in range(calls)])
    expected = (matrix @ x).detach()
    expected[0] += 3 * (0.7**2 + learned_optimizer.SIGMA**2)
    error = estimates.std(0) / calls**0.5
    assert ((estimates.mean(0) - expected).abs() < 4 * error).all()
    assert (error < 0.03 * expected.norm()).all()


def test_the_tuned_rate_is_the_best():
    tasks = small_tasks.random_tasks(3, 10, generator())
    losses = [
        learned_optimizer.trainings(optcore.sgd, torch.tensor(lr), tasks).mean().item()
        for lr in learned_optimizer.RATES
    ]
    best = losses.index(min(losses))
    assert learned_optimizer.tuned(optcore.sgd, tasks) == learned_optimizer.RATES[best]


def test_learning_lowers_the_loss_on_validation_tasks(monkeypatch):
    monkeypatch.setattr(learned_optimizer, "LENGTHS", (5,))
    monkeypatch.setattr(learned_optimizer, "STEPS", 5)
    monkeypatch.setattr(learned_optimizer, "META_LR", 0.1)
    _, curve = learned_optimizer.meta_train(4, generator(), print)
    assert curve[-1][0] == 4
    assert curve[-1][1] < 0.95 * curve[0][1]


def test_labels_of_random_tasks_are_of_every_class():
    tasks = small_tasks.random_tasks(20, 2, generator())
    counts = torch.stack([(tasks.y == k).sum(1) for k in range(small_tasks.CLASSES)])
    assert (counts.sum(1) > 0).all()
    assert tasks.x.shape == (20, small_tasks.POINTS, small_tasks.INPUTS)
    assert int(tasks.rows.max()) < small_tasks.POINTS
