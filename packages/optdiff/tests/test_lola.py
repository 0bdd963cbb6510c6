# SPDX-License-Identifier: Apache-2.0
"""The prisoner's dilemma example: returns, LOLA's gradient, and DiCE in expectation."""

import importlib
import itertools
from pathlib import Path

import pytest
import torch
import typer
from torch.autograd.functional import hessian, jacobian
from typer.testing import CliRunner

EXAMPLES = Path(__file__).parents[1] / "examples"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(EXAMPLES))
    dice, lola = map(importlib.import_module, ("dice", "lola"))


def long_sum(mine, other, moves):
    """Discounted returns of both players, move after move."""
    p, q = mine.sigmoid(), other.sigmoid()[[0, 1, 3, 2, 4]]
    payoffs = torch.tensor(lola.PAYOFFS)
    at = torch.tensor([1.0, 0, 0, 0, 0])  # chances of start, CC, CD, DC, DD
    total = torch.zeros(2)
    for move in range(moves):
        joint = torch.stack([p * q, p * (1 - q), (1 - p) * q, (1 - p) * (1 - q)], -1)
        outcome = at @ joint
        total = total + lola.GAMMA**move * payoffs @ outcome
        at = torch.cat([torch.zeros(1), outcome])
    return total


def two_policies():
    return torch.randn(2, 5).unbind()


def test_the_exact_return_is_a_long_sum():
    mine, other = torch.randn(2, 3, 5)
    expected = torch.stack([long_sum(*pair, 900) for pair in zip(mine, other, strict=True)], 1)
    torch.testing.assert_close(lola.exact(mine, other), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("mine", "other", "per_move"),
    [
        ([1, 1, 1, 1, 1], [1, 1, 1, 1, 1], (-1.0, -1.0)),
        ([0, 0, 0, 0, 0], [0, 0, 0, 0, 0], (-2.0, -2.0)),
        ([1, 1, 0, 1, 0], [1, 1, 0, 1, 0], (-1.0, -1.0)),  # tit-for-tat, twice
        ([1, 1, 0, 1, 0], [0, 0, 0, 0, 0], (-3 * 0.04 - 2 * 0.96, -2 * 0.96)),  # cheated once
    ],
)
def test_returns_of_pure_policies(mine, other, per_move):
    logits = [2000 * torch.tensor(policy, dtype=torch.float64) - 1000 for policy in (mine, other)]
    found = (1 - lola.GAMMA) * lola.exact(*logits)
    torch.testing.assert_close(found, torch.tensor(per_move))


def difference(function, at, step=1e-5):
    """Central finite differences of a function of a vector."""
    rows = step * torch.eye(len(at))
    return torch.stack([(function(at + row) - function(at - row)) / (2 * step) for row in rows])


@pytest.mark.parametrize("steps", [1, 2])
def test_lolas_gradient_against_finite_differences(steps, monkeypatch):
    monkeypatch.setattr(lola, "GAMMA", 0.7)  # so that sums may be short
    mine, other = two_policies()

    def return_after(mine):
        theirs = other
        for _ in range(steps):
            theirs = theirs + 0.7 * jacobian(lambda q: long_sum(mine, q, 90)[1], theirs)
        return long_sum(mine, theirs, 90)[0]

    mine.requires_grad_()
    other.requires_grad_()
    then = lola.looked_ahead(lola.exact, mine, other, steps, 0.7)
    (found,) = torch.autograd.grad(lola.exact(mine, then)[0], mine)
    expected = difference(return_after, mine.detach())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    naive = torch.autograd.grad(lola.exact(mine, then.detach())[0], mine)[0]
    assert (found - naive).norm() > 0.05 * found.norm()  # the step of the other counts


def every_game(moves):
    """Memories and outcomes of all games of so many moves, each ``(1, games, moves)``."""
    outcomes = torch.tensor(list(itertools.product(range(4), repeat=moves)))
    start = torch.zeros(len(outcomes), 1, dtype=torch.long)
    return torch.cat([start, 1 + outcomes[:, :-1]], 1)[None], outcomes[None]


@pytest.mark.parametrize("baseline", [[0.0, 0.0, 0.0], [-4.0, 2.0, 1.0]])
@pytest.mark.parametrize("player", [0, 1])
def test_dice_has_the_exact_derivatives_in_expectation(player, baseline):
    memories, outcomes = every_game(3)
    payoffs = torch.tensor(lola.PAYOFFS)[player, outcomes]

    def expected_objective(logits):
        mine, other = logits.view(2, 1, 5)
        both = lola.log_probs(mine, memories, outcomes >= 2)
        both = both + lola.log_probs(other[:, lola.SWAPPED], memories, outcomes % 2 == 1)
        chances = both.sum(-1).exp().detach()
        return (chances * dice.dice(both, payoffs, torch.tensor(baseline), lola.GAMMA)).sum()

    def value(logits):
        return long_sum(*logits.view(2, 5), 3)[player]

    logits = torch.randn(10)
    torch.testing.assert_close(expected_objective(logits), value(logits))
    for derivative in (jacobian, hessian):
        found, expected = derivative(expected_objective, logits), derivative(value, logits)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_what_is_expected_after_a_memory():
    mine, other = two_policies()
    found = lola.values(mine, other)
    p, q = mine.sigmoid(), other.sigmoid()[lola.SWAPPED]
    joint = torch.stack([p * q, p * (1 - q), (1 - p) * q, (1 - p) * (1 - q)], -1)
    to_come = torch.tensor(lola.PAYOFFS) + lola.GAMMA * found[:, 1:]  # by outcome
    torch.testing.assert_close(found, to_come @ joint.mT)
    torch.testing.assert_close(found[:, 0], lola.exact(mine, other))


def test_sampled_games_are_those_of_the_policies():
    sampled = lola.Sampled(4000, 60, torch.Generator().manual_seed(0))
    mine, other = torch.randn(2, 3, 5).unbind()
    memories, outcomes = sampled.play(mine, other)
    assert memories.shape == outcomes.shape == (3, 4000, 60)
    assert (memories[..., 0] == 0).all()
    assert (memories[..., 1:] == 1 + outcomes[..., :-1]).all()
    expected = torch.stack([long_sum(*pair, 60) for pair in zip(mine, other, strict=True)], 1)
    torch.testing.assert_close(sampled(mine, other), expected, rtol=0, atol=0.3)


@pytest.fixture
def games(monkeypatch):
    """Sampled games, but each of three moves once, by its chance."""
    sampled, memories, outcomes = dice.dice, *every_game(3)
    chances = []

    def play(self, mine, other):
        p, q = mine.detach().sigmoid(), other.detach().sigmoid()[:, lola.SWAPPED]
        joint = torch.stack([p * q, p * (1 - q), (1 - p) * q, (1 - p) * (1 - q)], -1)
        shape = len(mine), *outcomes.shape[1:]
        chances.append(joint[:, memories[0], outcomes[0]].prod(-1))
        return memories.expand(shape), outcomes.expand(shape)

    def weighted(*parts):
        return outcomes.shape[1] * chances[-1] * sampled(*parts)

    monkeypatch.setattr(lola.Sampled, "play", play)
    monkeypatch.setattr(lola, "dice", weighted)
    return lola.Sampled(outcomes.shape[1], 3, torch.Generator())


def short(mine, other):
    return torch.stack([long_sum(*pair, 3) for pair in zip(mine, other, strict=True)], 1)


def test_sampled_returns_have_the_exact_derivatives_in_expectation(games):
    logits = torch.randn(20)
    for player in (0, 1):

        def value(logits, returns, player=player):
            return returns(*logits.view(2, 2, 5))[player].sum()

        for derivative in (jacobian, hessian):
            found = derivative(lambda at: value(at, games), logits)
            expected = derivative(lambda at: value(at, short), logits)
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize(("sampled", "rate"), [(False, 3.0), (True, 1.0)])
def test_both_players_take_lolas_step(games, sampled, rate, ahead):
    returns, known, learning = (
        (games, short, lola.ON_GAMES) if sampled else (lola.exact, lola.exact, lola.EXACT)
    )
    learning = learning._replace(optimizer=lola.EXACT.optimizer)  # a plain step, of rate 1
    start, end = (
        lola.learn(returns, learning, ahead, 3, steps, 0, print).policies.logit().unbind(1)
        for steps in (0, 1)
    )
    for before, other, after in zip(start, start[::-1], end, strict=True):

        def earned(mine, other=other):
            theirs = jacobian(lambda q: known(q, mine)[0].sum(), other, create_graph=True)
            return known(mine, other + ahead * rate * theirs)[0].sum()

        torch.testing.assert_close(after, before + jacobian(earned, before), rtol=1e-9, atol=1e-9)


def test_rounded_policies():
    policies = torch.tensor([[0.9, 0.6, 0.4, 0.7, 0.1], [0.9, 0.6, 0.6, 0.7, 0.1]])
    assert lola.tit_for_tat(policies).tolist() == [True, False]


def test_lola_cooperates_where_naive_learners_defect():
    runs = [lola.learn(lola.exact, lola.EXACT, ahead, 8, 60, 0, print) for ahead in (0, 1)]
    naive, aware = (run.curve[-1].median().item() for run in runs)
    assert naive < -1.95
    assert aware > -1.5


def test_a_folder_that_cannot_be_written(tmp_path):
    app = typer.Typer()
    app.command()(lola.main)
    (tmp_path / "file").touch()
    result = CliRunner().invoke(app, ["--smoke", "--out", str(tmp_path / "file" / "out")])
    assert result.exit_code == 2
    assert "lola: expected a folder to write to, got 'Not a directory'" in result.output
