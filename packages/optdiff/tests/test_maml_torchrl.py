# SPDX-License-Identifier: Apache-2.0
"""MAML with torchrl: its environment plays the same processes, its actors take the same step."""

import importlib
from pathlib import Path

import pytest
import torch

envs = pytest.importorskip("torchrl.envs", reason="needs torchrl: pip install torchrl")

EXAMPLES = Path(__file__).parents[1] / "examples"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(EXAMPLES))
    policy_training = importlib.import_module("policy_training")
    maml_torchrl = importlib.import_module("maml_torchrl")
    processes = importlib.import_module("decision_processes")
    torchrl_tasks = importlib.import_module("torchrl_tasks")


def generator():
    return torch.Generator().manual_seed(0)


def policies(common, tasks, spread=0.0):
    found = torchrl_tasks.Policies(common, tasks)
    torch.nn.init.normal_(found.change.logits, std=spread)
    return found


@pytest.mark.parametrize("draw", [processes.grid_tasks, processes.random_tasks])
def test_the_environment_keeps_to_its_specs(draw):
    envs.check_env_specs(torchrl_tasks.TabularTasks(draw(3, generator()), 0, episodes=4))


def test_a_rollout_follows_the_tables():
    tasks = processes.grid_tasks(6, generator())
    played = torchrl_tasks.collect(policies(torch.randn(25, 5), 6), tasks, 0)
    at = torch.arange(6)[:, None, None], played.states, played.actions
    assert (played.states[..., 0] == tasks.start).all()
    assert torch.equal(played.rewards, tasks.rewards[at])
    ends = tasks.transitions[at].argmax(-1)  # where a move leads to is certain
    assert torch.equal(played.states[..., 1:], ends[..., :-1])


def test_certain_policies_earn_the_exact_return():
    tasks = processes.grid_tasks(40, generator())
    some = policies(1000 * torch.randn(25, 5), 40, spread=1000.0)
    found = torchrl_tasks.collect(some, tasks, 0).rewards.sum(-1)
    expected = processes.exact_return(some.table().detach(), tasks)
    torch.testing.assert_close(found, expected[:, None].expand(-1, processes.EPISODES))
    assert expected.max() > 0


def test_what_is_played_earns_the_exact_return_on_average():
    tasks, some = processes.random_tasks(2, generator()), policies(torch.randn(10, 5), 2, 1.0)
    environment = torchrl_tasks.TabularTasks(tasks, 0, episodes=20_000)
    with torch.no_grad():
        played = environment.rollout(processes.HORIZON, torchrl_tasks.actor(some))
    earned = played["next", "reward"].sum((-2, -1))
    expected = processes.exact_return(some.table().detach(), tasks)
    torch.testing.assert_close(earned.mean(-1), expected, rtol=0, atol=0.15)  # 5 standard errors


def test_a_partial_reset_leaves_the_others_where_they_are():
    environment = torchrl_tasks.TabularTasks(processes.grid_tasks(2, generator()), 0, episodes=1)
    before = environment.reset()
    before["state"] = torch.tensor([[3], [4]])
    before["_reset"] = torch.tensor([[[True]], [[False]]])
    assert environment.reset(before)["state"].tolist() == [[12], [4]]


def test_an_episode_counted_by_torchrl_ends_and_starts_again():
    tasks = processes.grid_tasks(2, generator())
    environment = envs.TransformedEnv(
        torchrl_tasks.TabularTasks(tasks, 0, episodes=3), envs.StepCounter(max_steps=4)
    )
    played = environment.rollout(8, break_when_any_done=False)
    assert played["next", "done"][..., 0].any(-1).all()
    assert (played["state"][..., [0, 4]] == tasks.start).all()


def test_the_seed_decides_what_is_played():
    tasks, some = processes.random_tasks(2, generator()), policies(torch.randn(10, 5), 2)
    first, again, other = (torchrl_tasks.collect(some, tasks, seed) for seed in (5, 5, 6))
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first.rewards, other.rewards)


def test_a_step_in_the_actor_is_the_one_of_unroll():
    tasks, common = processes.grid_tasks(4, generator()), torch.randn(25, 5, requires_grad=True)
    some = policies(common, 4)
    played = torchrl_tasks.collect(some, tasks, 0)
    maml_torchrl.adapt(some, played)
    expected = policy_training.adapted_each(common, played, policy_training.INNER_LR["grid"])
    torch.testing.assert_close(some.table(), expected)
    found, known = (
        torch.autograd.grad(processes.exact_return(after, tasks).sum(), common)[0]
        for after in (some.table(), expected)
    )
    torch.testing.assert_close(found, known, rtol=1e-10, atol=1e-12)
    later = torchrl_tasks.collect(some, tasks, 1)  # the same module, adapted
    fresh = torchrl_tasks.collect(policies(common, 4), tasks, 1)
    assert later.rewards.sum() > fresh.rewards.sum()


def test_training_makes_a_step_worth_more():
    unseen = processes.grid_tasks(60, generator())
    notes = []
    run, played = maml_torchrl.train(policy_training.Method.maml, 20, unseen, 0, notes.append)
    assert len(notes) == 20
    assert run.after > run.curve[0][1]
    assert run.after > 5 * run.before
    assert played == pytest.approx(run.after, abs=0.5)
