# SPDX-License-Identifier: Apache-2.0
"""The example that learns a discount: its returns, and the meta-gradient through a step."""

import importlib
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

import optdiff

EXAMPLES = Path(__file__).parents[1] / "examples"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(EXAMPLES))
    discount = importlib.import_module("discount")


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(discount, "MOVES", 7)
    monkeypatch.setattr(discount, "EPISODES", 5)
    monkeypatch.setattr(discount, "REWARDS", discount.REWARDS.double())


def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(("action", "expected"), [(0, 0.3), (1, (7 - 2) / 7)])
def test_returns_of_pure_policies(action, expected):
    logits = torch.full((1, 4, 2), -1000.0)
    logits[..., action] = 1000.0
    torch.testing.assert_close(discount.exact_return(logits), torch.tensor([expected]))


def test_the_exact_return_is_the_mean_of_what_is_played(monkeypatch):
    monkeypatch.setattr(discount, "EPISODES", 20_000)
    logits = torch.randn(2, 4, 2)
    episodes = discount.play(logits, generator())
    found = episodes.rewards.mean((1, 2))
    torch.testing.assert_close(found, discount.exact_return(logits), rtol=0, atol=0.02)


def test_an_action_is_paid_two_moves_later(monkeypatch):
    monkeypatch.setattr(discount, "NOISE", 0.0)
    _, actions, rewards = discount.play(torch.randn(3, 4, 2), generator())
    paid = torch.zeros(actions.shape)
    paid[..., 2:] = actions[..., :-2]
    torch.testing.assert_close(rewards, 0.3 * (1 - actions) + paid)


def test_the_loss_of_a_batch_written_out():
    logits, discounts = torch.randn(1, 4, 2), torch.tensor([0.8])
    states, actions, rewards = (part[0] for part in discount.play(logits, generator()))
    log_probs, returns = torch.zeros(5, 7), torch.zeros(5, 7)
    for e in range(5):
        for t in range(7):
            log_probs[e, t] = logits[0].log_softmax(-1)[states[e, t], actions[e, t]]
            returns[e, t] = sum(0.8 ** (k - t) * rewards[e, k] for k in range(t, 7))
    advantages = returns - returns.mean(0)
    expected = -(log_probs * advantages).mean() / advantages.square().mean().sqrt()
    found = discount.loss(logits, discount.play(logits, generator()), discounts)
    torch.testing.assert_close(found, expected[None])


def stepped(logits, episodes, raw, lr=0.5):
    """Policies after a differentiable step."""
    policy = discount.Policy(len(logits))
    policy.logits.data.copy_(logits)
    inner = optdiff.MetaSGD(policy, lr=lr)
    inner.step(discount.loss(policy.logits, episodes, raw.sigmoid()).sum())
    return policy.logits


def differences(function, at, step=1e-5):
    """Central differences of ``(agents,)`` functions, each of its own entry."""
    return (function(at + step) - function(at - step)) / (2 * step)


def test_the_derivative_of_the_exact_return_in_the_discount():
    logits, raw = torch.randn(3, 4, 2), torch.tensor([-1.0, 0.5, 3.0], requires_grad=True)
    episodes = discount.play(logits, generator())

    def return_after(raw):
        return discount.exact_return(stepped(logits, episodes, raw))

    (found,) = torch.autograd.grad(return_after(raw).sum(), raw)
    expected = differences(lambda raw: return_after(raw).detach(), raw.detach())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    assert (found != 0).all()


def test_the_meta_gradient_against_finite_differences():
    logits, raw = torch.randn(3, 4, 2), torch.tensor([-1.0, 0.5, 3.0], requires_grad=True)
    episodes = discount.play(logits, generator())
    after = stepped(logits, episodes, raw)
    new = discount.play(after, generator())

    def outer(raw):
        return discount.loss(stepped(logits, episodes, raw), new, torch.ones(3)).detach()

    found = discount.meta_gradient(after, new, raw)
    torch.testing.assert_close(found, differences(outer, raw.detach()), rtol=1e-6, atol=1e-9)


def test_discounts_that_are_learned_and_kept():
    notes = []
    kept = discount.learn(0.3, 4, 3, False, 0, notes.append)
    learned = discount.learn(0.3, 4, 3, True, 0, notes.append)
    torch.testing.assert_close(kept.discounts, torch.full((4, 4), 0.3))
    assert (learned.discounts[1:] != learned.discounts[0]).all()
    torch.testing.assert_close(kept.returns[1], learned.returns[1])  # the first step is the same
    assert len(notes) == 6


def test_a_discount_without_foresight_rises(monkeypatch):
    monkeypatch.setattr(discount, "NOISE", 0.0)
    monkeypatch.setattr(discount, "EPISODES", 20)
    learned = discount.learn(0.3, 10, 12, True, 0, print)  # waiting pays from 0.3 ** 0.5 on
    assert learned.discounts[-1].mean() > 0.4


def test_a_folder_that_cannot_be_written(tmp_path):
    app = typer.Typer()
    app.command()(discount.main)
    (tmp_path / "file").touch()
    result = CliRunner().invoke(app, ["--smoke", "--out", str(tmp_path / "file" / "out")])
    assert result.exit_code == 2
    assert "discount: expected a folder to write to, got 'Not a directory'" in result.output
