# SPDX-License-Identifier: Apache-2.0
"""MAML on tables: its tasks, exact returns, and the meta-gradient where all episodes are known."""

import importlib
import itertools
import sys
from pathlib import Path

import pytest
import torch
import typer
from torch.autograd.functional import hessian, jacobian
from typer.testing import CliRunner

EXAMPLES = Path(__file__).parents[1] / "examples"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(EXAMPLES))
    maml_rl, maml_torchrl, policies, processes = map(
        importlib.import_module,
        ("maml_rl", "maml_torchrl", "policy_training", "decision_processes"),
    )


def generator():
    return torch.Generator().manual_seed(0)


def small_tasks(count, states=2, actions=2):
    """Random processes of a few states, without noise."""
    transitions = torch.rand(count, states, actions, states)
    transitions /= transitions.sum(-1, keepdim=True)
    return processes.Tasks(transitions, torch.randn(count, states, actions), 0, 0.0)


def every_episode(tasks, logits, horizon):
    """All episodes of one task with their chances, which have no gradient; no baseline."""
    states, actions = 2, 2
    paths, chances = [], []
    policy = logits.detach().softmax(-1)
    later = itertools.product(range(states), repeat=horizon - 1)
    for after, chosen in itertools.product(
        later, itertools.product(range(actions), repeat=horizon)
    ):
        visited = (0, *after)
        chance = 1.0
        for s, a in zip(visited, chosen, strict=True):
            chance = chance * policy[s, a]
        for s, a, to in zip(visited, chosen, after, strict=False):
            chance = chance * tasks.transitions[0, s, a, to]
        paths.append((visited, chosen))
        chances.append(chance)
    paths = torch.tensor(paths)
    rewards = tasks.rewards[0][paths[:, 0], paths[:, 1]]
    played = processes.Episodes(paths[:, 0], paths[:, 1], rewards, torch.zeros_like(rewards))
    return played, torch.stack(chances)


@pytest.fixture
def horizon(monkeypatch):
    monkeypatch.setattr(processes, "HORIZON", 3)
    return 3


@pytest.mark.parametrize("baseline", [0.0, 1.7])
def test_dice_has_the_exact_derivatives_in_expectation(horizon, baseline):
    task, logits = small_tasks(1), torch.randn(2, 2)
    played, chances = every_episode(task, logits, horizon)
    played = played._replace(baseline=torch.full_like(played.rewards, baseline))

    def expected(logits):
        return chances @ policies.objective(logits, played)

    def value(logits):
        return processes.exact_return(logits, task)[0]

    torch.testing.assert_close(chances.sum(), torch.tensor(1.0))
    torch.testing.assert_close(expected(logits), value(logits))
    for derivative in (jacobian, hessian):
        found, known = derivative(expected, logits), derivative(value, logits)
        torch.testing.assert_close(found, known, rtol=1e-10, atol=1e-12)


def differences(function, at, step=1e-5):
    """Central finite differences of a scalar function of a matrix."""
    shifts = step * torch.eye(at.numel()).view(-1, *at.shape)
    slopes = [(function(at + shift) - function(at - shift)) / (2 * step) for shift in shifts]
    return torch.stack(slopes).view(at.shape)


def test_the_meta_gradient_is_that_of_the_exact_objective(horizon, monkeypatch):
    task, logits = small_tasks(1), torch.randn(2, 2)
    lr = 0.9

    def objective(logits):
        slope = jacobian(lambda logits: processes.exact_return(logits, task)[0], logits)
        return processes.exact_return(logits + lr * slope, task)[0]

    played, chances = every_episode(task, logits, horizon)
    sampled = policies.objective

    def weighted(logits, episodes):
        # Every episode once, by its chance, in place of the mean over episodes that were played.
        return len(chances) * chances * sampled(logits, episodes)

    monkeypatch.setattr(policies, "objective", weighted)
    start = logits.clone().requires_grad_()
    after = policies.adapted(start, played, lr)
    new, new_chances = every_episode(task, after, horizon)
    outer = new_chances @ sampled(after, new)
    torch.testing.assert_close(outer, objective(logits))
    (found,) = torch.autograd.grad(outer, start)
    torch.testing.assert_close(found, differences(objective, logits), rtol=1e-6, atol=1e-8)


def test_first_order_is_the_gradient_at_the_adapted_policy(horizon):
    task, logits = small_tasks(1), torch.randn(2, 2, requires_grad=True)
    played, _ = every_episode(task, logits, horizon)
    after = policies.adapted(logits, played, 0.9, first_order=True)
    (found,) = torch.autograd.grad(processes.exact_return(after, task)[0], logits)
    expected = jacobian(lambda one: processes.exact_return(one, task)[0], after.detach())
    torch.testing.assert_close(found, expected)
    second = policies.adapted(logits, played, 0.9)
    (other,) = torch.autograd.grad(processes.exact_return(second, task)[0], logits)
    torch.testing.assert_close(second, after)
    assert (other - found).norm() > 0.01 * found.norm()


def test_tasks_of_a_batch_are_adapted_to_one_by_one():
    tasks, logits = small_tasks(3), torch.randn(2, 2)
    played = processes.play(logits, tasks, generator())
    found = policies.adapted_each(logits, played, 0.5)
    each = zip(*played, strict=True)
    expected = [policies.adapted(logits, processes.Episodes(*one), 0.5) for one in each]
    torch.testing.assert_close(found, torch.stack(expected))


def test_the_exact_return_is_the_mean_of_what_is_played(monkeypatch):
    monkeypatch.setattr(processes, "EPISODES", 20_000)
    tasks, logits = small_tasks(2, 4, 3), torch.randn(4, 3)
    found = processes.play(logits, tasks, generator()).rewards.sum(-1).mean(-1)
    torch.testing.assert_close(found, processes.exact_return(logits, tasks), rtol=0, atol=0.1)


def test_the_baseline_is_what_the_other_episodes_have_to_come():
    played = processes.play(torch.zeros(2, 2), small_tasks(2), generator())
    to_go = played.rewards[1, :, 4:].sum(-1)
    expected = (to_go.sum() - to_go) / (len(to_go) - 1)
    torch.testing.assert_close(played.baseline[1, :, 4], expected)


def test_goals_of_the_grid_are_outer_cells_that_can_be_reached():
    tasks = processes.grid_tasks(400, generator())
    assert (tasks.transitions.sum(-1) == 1).all()
    goals = tasks.rewards[:, :, 0].argmax(-1)  # where it pays to stay
    assert sorted(set(goals.tolist())) == [0, 1, 2, 3, 4, 5, 9, 10, 14, 15, 19, 20, 21, 22, 23, 24]
    away = (goals // 5 - 2).abs() + (goals % 5 - 2).abs()
    expected = 11 - away.to(tasks.rewards)  # the move that ends at the goal is paid too
    torch.testing.assert_close(processes.best_return(tasks), expected)


def test_random_tasks_have_the_published_form():
    tasks = processes.random_tasks(200, generator())
    assert tasks.transitions.shape == (200, 10, 5, 10)
    torch.testing.assert_close(tasks.transitions.sum(-1), torch.ones(200, 10, 5))
    # a share of the uniform Dirichlet distribution: mean 1/10, variance 9/1100
    torch.testing.assert_close(tasks.transitions.var(), torch.tensor(9 / 1100), rtol=0.03, atol=0)
    assert tasks.rewards.mean().item() == pytest.approx(1, abs=0.05)
    assert tasks.rewards.std().item() == pytest.approx(1, abs=0.05)


def test_visits_of_a_walk_to_a_corner():
    logits = torch.zeros(25, 5)
    logits[:, 1] = 1000.0  # up
    found = processes.visits(logits, processes.grid_tasks(1, generator()))
    assert found.nonzero().flatten().tolist() == [2, 7]
    torch.testing.assert_close(found[[2, 7]], torch.tensor([9.0, 1.0]))


def test_training_makes_a_step_worth_more():
    unseen = processes.grid_tasks(60, generator())
    notes = []
    run = policies.train(policies.Method.maml, policies.Kind.grid, 20, unseen, 0, notes.append)
    assert len(notes) == 20
    assert run.after > 1.15 * run.curve[0][1]
    assert run.after > run.before


@pytest.mark.parametrize(
    ("method", "expected"), [(policies.Method.maml, False), (policies.Method.first_order, True)]
)
def test_only_fomaml_trains_on_first_derivatives(method, expected, monkeypatch):
    real, found = policies.adapted_each, []

    def spied(logits, episodes, lr, *, first_order=False):
        found.extend([first_order] * logits.requires_grad)  # a test has no gradient
        return real(logits, episodes, lr, first_order=first_order)

    monkeypatch.setattr(policies, "adapted_each", spied)
    policies.train(method, policies.Kind.grid, 2, processes.grid_tasks(2, generator()), 0, print)
    assert found == [expected] * 2


def test_a_folder_that_cannot_be_written(tmp_path):
    app = typer.Typer()
    app.command()(maml_rl.main)
    (tmp_path / "file").touch()
    result = CliRunner().invoke(app, ["--smoke", "--out", str(tmp_path / "file" / "out")])
    assert result.exit_code == 2
    assert "maml_rl: expected a folder to write to, got 'Not a directory'" in result.output


def test_torchrl_is_asked_for_by_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchrl", None)  # as if it were not installed
    app = typer.Typer()
    app.command()(maml_torchrl.main)
    result = CliRunner().invoke(app, ["--smoke", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "maml_torchrl: expected torchrl, found no package of this name" in result.output
    assert "run `pip install torchrl`" in result.output
