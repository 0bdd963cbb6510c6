# SPDX-License-Identifier: Apache-2.0
"""Lookahead against the two nested loops of the paper."""

import re

import pytest
import torch

import optcore


def paper(theta, lr, alpha, period, steps):
    """Algorithm 1 with gradient descent on the sum of fourth powers; returns both parameters."""
    slow = theta
    for step in range(1, steps + 1):
        theta = theta - lr * 4 * theta**3
        if step % period == 0:
            slow = slow + alpha * (theta - slow)
            theta = slow
    return theta, slow


def train(theta, lr, alpha, period, steps, pair=False, inplace=None, reset_state=False):
    tx = optcore.lookahead(optcore.sgd(lr=lr), period, alpha, reset_state)
    params = optcore.LookaheadParams.init_synced([theta]) if pair else [theta]
    state = tx.init(params)
    for _ in range(steps):
        fast = params.fast if pair else params
        grads = [4 * fast[0] ** 3]
        grads = optcore.LookaheadParams(grads, None) if pair else grads
        updates, state = tx.update(grads, state, params, inplace=inplace)
        params = optcore.apply_updates(params, updates, inplace=False)
    return (params.fast[0], params.slow[0]) if pair else (params[0], state.slow[0])


@pytest.mark.parametrize("pair", [True, False])
@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("steps", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("period", [1, 3])
def test_is_the_paper_s(pair, inplace, steps, period):
    theta = torch.tensor([0.7, -1.2])
    found = train(theta.clone(), 0.05, 0.4, period, steps, pair, inplace)
    torch.testing.assert_close(found, paper(theta, 0.05, 0.4, period, steps), rtol=1e-14, atol=0)


@pytest.mark.parametrize("pair", [True, False])
def test_derivatives_are_the_paper_s(pair):
    def derivatives(run, *options):
        inputs = [torch.tensor(x, requires_grad=True) for x in ([0.7, -1.2], 0.05, 0.4)]
        fast, slow = run(*inputs, 2, 5, *options)
        return torch.autograd.grad((fast * slow).sum(), inputs)

    expected = derivatives(paper)
    for found in (derivatives(train, pair), derivatives(train, pair, False)):
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)


def test_plain_training_keeps_no_graph():
    w = torch.ones(2, requires_grad=True)
    tx = optcore.lookahead(optcore.sgd(lr=0.1), 2, 0.5)
    state = tx.init([w])
    assert not state.slow[0].requires_grad
    for _ in range(3):
        updates, state = tx.update([torch.ones(2)], state, [w])
        optcore.apply_updates([w], updates)
    assert w.is_leaf
    assert not state.slow[0].requires_grad


def test_slow_parameters_are_clones():
    w = torch.ones(2)
    tx = optcore.lookahead(optcore.sgd(lr=0.1), 3, 0.5)
    state = tx.init([w])
    _, after = tx.update([torch.ones(2)], state, [w], inplace=True)
    w.zero_()
    for slow in (
        state.slow[0],
        after.slow[0],
        optcore.LookaheadParams.init_synced([w]).slow[0] + 1,
    ):
        assert torch.equal(slow, torch.ones(2))


@pytest.mark.parametrize(("reset_state", "expected"), [(True, 1.0), (False, 1.875)])
def test_the_fast_optimizer_may_start_afresh(reset_state, expected):
    tx = optcore.lookahead(optcore.trace(0.5), 3, 1.0, reset_state)
    state = tx.init([torch.zeros(())])
    for _ in range(4):
        (u,), state = tx.update([torch.ones(())], state, [torch.zeros(())])
    assert u.item() == expected


def test_step_size_may_be_a_schedule_or_a_tree():
    params = {"a": torch.tensor(10.0), "b": torch.tensor(10.0)}
    grads = {"a": torch.tensor(4.0), "b": torch.tensor(4.0)}
    for alpha in ({"a": 0.5, "b": 0.25}, {"a": lambda count: 0.5, "b": 0.25}):
        tx = optcore.lookahead(optcore.sgd(lr=1.0), 1, alpha)
        updates, _ = tx.update(grads, tx.init(params), params)
        assert (updates["a"], updates["b"]) == (-2.0, -1.0)


ERRORS = [
    (
        lambda: optcore.lookahead(0.1, 2, 0.5),
        TypeError,
        "lookahead: expected a GradientTransformation, got float",
    ),
    (
        lambda: optcore.lookahead(optcore.sgd(), 0, 0.5),
        ValueError,
        "lookahead: expected sync_period >= 1, got 0",
    ),
    (
        lambda: optcore.lookahead(optcore.sgd(), 2.5, 0.5),
        TypeError,
        "lookahead: expected sync_period as an int, got float",
    ),
    (
        lambda: optcore.lookahead(optcore.sgd(), 2, 1.5),
        ValueError,
        "lookahead: expected slow_step_size in [0, 1], got 1.5",
    ),
    (
        lambda: optcore.lookahead(optcore.sgd(), 2, "half"),
        TypeError,
        "lookahead: expected slow_step_size as a number, schedule, tensor or tree of such, got str",
    ),
    (
        lambda: optcore.lookahead(optcore.sgd(), 2, 0.5).update([torch.ones(1)], ()),
        ValueError,
        "lookahead: expected params, got None; call update(updates, state, params)",
    ),
]


@pytest.mark.parametrize(("build", "error", "message"), ERRORS)
def test_errors(build, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        build()
