# SPDX-License-Identifier: Apache-2.0
"""Transformations that run only sometimes, by Python where it can read the condition, or not."""

import re

import pytest
import torch

import optcore

BAD = {"nan": torch.nan, "inf": torch.inf, "-inf": -torch.inf}


def by_where(function):
    """The same under vmap, where no condition can be read."""
    return lambda *args: [x[0] for x in torch.vmap(function)(*(a[None] for a in args))]


MODES = {"read": lambda function: function, "where": by_where}


@pytest.fixture(params=MODES.values(), ids=MODES.keys())
def mode(request):
    return request.param


@pytest.mark.parametrize("value", BAD.values(), ids=BAD.keys())
def test_bad_gradients_change_nothing_until_there_are_too_many(mode, value):
    tx = optcore.apply_if_finite(optcore.trace(1.0), max_consecutive_errors=2)

    def steps(bad):
        good, state = torch.ones(2), tx.init([torch.ones(2)])
        seen = []
        for g in (good, bad, bad, good, bad, bad, bad):
            (u,), state = tx.update([g], state)
            seen.append(u)
        counts = (state.notfinite_count, state.total_notfinite, state.last_finite)
        return (*seen, *counts)

    *seen, in_a_row, ever, last = mode(steps)(torch.tensor([1.0, value]))
    expected = [[1, 1], [0, 0], [0, 0], [2, 2], [0, 0], [0, 0]]
    assert [u.tolist() for u in seen[:6]] == expected
    assert not seen[6][1].isfinite()
    assert (in_a_row.item(), ever.item(), last.item()) == (3, 5, False)


@pytest.mark.parametrize("order", ["first", "second"])
def test_an_ignored_nan_has_derivative_zero(order):
    tx = optcore.chain(
        optcore.apply_if_finite(optcore.adam(lr=0.1), 5),
        optcore.conditionally_mask(optcore.adam(lr=0.1), lambda step: step > 3),
        optcore.conditionally_transform(optcore.scale(2.0), lambda step: step > 3),
    )

    def loss(g):
        updates, _ = tx.update([g], tx.init([g]))
        return updates[0].sum()

    derivative = torch.func.grad(loss)
    second = torch.func.grad(lambda g: derivative(g).sum())
    g = torch.tensor([torch.nan, 0.0, 1.0])
    found = {"first": derivative, "second": second}[order](g)
    assert torch.equal(found, torch.zeros(3))


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (optcore.conditionally_transform, [3, 1, 6, 1, 9]),
        (optcore.conditionally_mask, [3, 0, 6, 0, 9]),
    ],
)
def test_conditions_see_every_step_and_the_state_only_those_taken(mode, build, expected):
    tx = build(optcore.chain(optcore.trace(1.0), optcore.scale(3.0)), lambda step: step % 2 == 0)

    def steps(g):
        state, seen = tx.init([g]), []
        for _ in range(5):
            (u,), state = tx.update([g], state)
            seen.append(u)
        return (*seen, state.step)

    *seen, step = mode(steps)(torch.ones(()))
    assert [u.item() for u in seen] == expected
    assert step.item() == 5


@pytest.mark.parametrize("build", [optcore.conditionally_transform, optcore.conditionally_mask])
def test_conditions_may_ask_for_extra_arguments(build):
    tx = build(optcore.scale(2.0), lambda step, loss: loss > 1.0, forward_extra_args=True)
    state = tx.init([torch.ones(1)])
    for loss, expected in ((torch.tensor(2.0), 2.0), (5.0, 2.0)):
        assert tx.update([torch.ones(1)], state, loss=loss)[0][0].item() == expected


def test_steps_not_taken_cost_nothing_where_the_condition_can_be_read():
    calls = []

    def count(updates, state, params, *, inplace):
        calls.append(inplace)
        return updates, state

    inner = optcore.GradientTransformation(lambda params: (), count)
    tx = optcore.conditionally_mask(inner, lambda step: step == 1)
    state = tx.init([torch.ones(1)])
    for _ in range(3):
        _, state = tx.update([torch.ones(1)], state, inplace=True)
    assert calls == [True]


def test_a_choice_keeps_shared_counts_shared():
    tx = optcore.apply_if_finite(optcore.adam(), 1)

    def shared(g):
        _, state = tx.update([g, g], tx.init([g, g]))
        first, second = state.inner_state[0].count
        return torch.full_like(g, first is second)

    assert torch.vmap(shared)(torch.ones(2, 3)).all()


def test_a_scheduled_rate_waits_with_its_transformation(mode):
    tx = optcore.conditionally_mask(
        optcore.scale_by_schedule(lambda count: count + 1.0), lambda s: s > 1
    )

    def steps(g):
        state = tx.init([g])
        for _ in range(4):
            (u,), state = tx.update([g], state)
        return (u,)

    assert mode(steps)(torch.ones(()))[0] == 2.0


SKIPS = [
    ([[1.0, 2.0], [1.0]], False, 0, False),
    ([[1.0, torch.nan], [torch.inf]], True, 2, True),
    ([[3.0, 0.0], [0.0]], False, 0, True),
    ([], False, 0, False),
]


@pytest.mark.parametrize(("rows", "bad", "how_many", "large"), SKIPS)
def test_reasons_to_skip(rows, bad, how_many, large):
    updates = [torch.tensor(row) for row in rows] + [None]
    skip, report = optcore.skip_not_finite(updates, torch.tensor(0), None)
    assert (skip.item(), report["num_not_finite"].item()) == (bad, how_many)
    assert report["should_skip"] is skip
    skip, report = optcore.skip_large_updates(updates, torch.tensor(0), None, 9.0)
    assert skip.item() == large
    assert (report["norm_squared"] < 9.0).item() != large


ERRORS = [
    (
        lambda: optcore.apply_if_finite(3, 1),
        TypeError,
        "apply_if_finite: expected a GradientTransformation, got int",
    ),
    (
        lambda: optcore.apply_if_finite(optcore.adam(), 1.5),
        TypeError,
        "apply_if_finite: expected max_consecutive_errors as an int, got float",
    ),
    (
        lambda: optcore.apply_if_finite(optcore.adam(), True),
        TypeError,
        "apply_if_finite: expected max_consecutive_errors as an int, got bool",
    ),
    (
        lambda: optcore.apply_if_finite(optcore.adam(), -1),
        ValueError,
        "apply_if_finite: expected max_consecutive_errors >= 0, got -1",
    ),
    (
        lambda: optcore.conditionally_transform(None, bool),
        TypeError,
        "conditionally_transform: expected a GradientTransformation, got NoneType",
    ),
    (
        lambda: optcore.conditionally_mask(optcore.adam(), 3),
        TypeError,
        "conditionally_mask: expected should_transform_fn as a function step -> bool, got int",
    ),
    (
        lambda: optcore.conditionally_mask(optcore.adam(), lambda step: step).update(
            [], optcore.conditionally_mask(optcore.adam(), bool).init([])
        ),
        TypeError,
        "conditionally_mask: expected should_transform_fn to return a bool or a bool tensor of "
        "shape (), got i64[]",
    ),
    (
        lambda: optcore.conditionally_transform(optcore.adam(), lambda step: 1).update(
            [], optcore.conditionally_transform(optcore.adam(), bool).init([])
        ),
        TypeError,
        "conditionally_transform: expected should_transform_fn to return a bool or a bool tensor "
        "of shape (), got int",
    ),
    (
        lambda: optcore.apply_if_finite(optcore.adam(), 1).update(
            ["x"], optcore.apply_if_finite(optcore.adam(), 1).init([])
        ),
        TypeError,
        "skip_not_finite: expected a tree of tensors and None, got a str leaf",
    ),
]


@pytest.mark.parametrize(("build", "error", "message"), ERRORS)
def test_errors(build, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        build()


def counts_in_python(updates, state, params, *, inplace):
    return updates, state + 1


def restructures(updates, state, params, *, inplace):
    return updates, (state,)


CHOICES = [
    (
        counts_in_python,
        TypeError,
        "conditionally_mask: expected tensors to choose between, got int and int; keep numbers",
    ),
    (restructures, ValueError, "conditionally_mask: states to choose from differ: "),
]


@pytest.mark.parametrize(("update", "error", "message"), CHOICES)
def test_states_that_cannot_be_chosen_between(update, error, message):
    inner = optcore.GradientTransformation(lambda params: 0, update)
    tx = optcore.conditionally_mask(inner, lambda step: step > 0)
    with pytest.raises(error, match="^" + re.escape(message)):
        torch.vmap(lambda g: tx.update([g], tx.init([g]))[0])(torch.ones(2, 3))
