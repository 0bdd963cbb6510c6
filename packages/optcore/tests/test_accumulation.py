# SPDX-License-Identifier: Apache-2.0
"""Accumulated gradients: what is emitted, when, and what waits."""

import functools
import re

import pytest
import torch

import optcore


def run(tx, grads, inplace=None):
    state = tx.init([torch.zeros(())])
    seen = []
    for g in grads:
        (u,), state = tx.update([torch.tensor(float(g))], state, inplace=inplace)
        seen.append(u.item())
    return seen, state


GRADS = [1, 3, 5, 7, 9, 11, 13]
EMITTED = [
    (optcore.multi_steps(optcore.identity(), 1), [1, 3, 5, 7, 9, 11, 13]),
    (optcore.multi_steps(optcore.identity(), 2), [0, 2, 0, 6, 0, 10, 0]),
    (optcore.multi_steps(optcore.identity(), 3, use_grad_mean=False), [0, 0, 9, 0, 0, 27, 0]),
    (optcore.multi_steps(optcore.identity(), lambda step: step + 1), [1, 0, 4, 0, 0, 9, 0]),
    (optcore.multi_steps(optcore.identity(), lambda step: 2, False), [0, 4, 0, 12, 0, 20, 0]),
    (optcore.multi_steps(optcore.trace(1.0), 2), [0, 2, 0, 8, 0, 18, 0]),
    (optcore.apply_every(2), [0, 4, 0, 12, 0, 20, 0]),
    (optcore.apply_every(), [1, 3, 5, 7, 9, 11, 13]),
]


@pytest.mark.parametrize(("tx", "expected"), EMITTED)
@pytest.mark.parametrize("inplace", [True, False])
def test_emits_the_mean_or_the_sum_of_each_window(tx, expected, inplace):
    assert run(tx, GRADS, inplace)[0] == pytest.approx(expected)


SKIPPED = [
    (optcore.skip_not_finite, [1, torch.nan, 3, torch.inf, 5, 7], [0, 0, 2, 0, 0, 6]),
    (
        functools.partial(optcore.skip_large_updates, max_squared_norm=26.0),
        [1, 9, 3, 5, 9, 1],
        [0, 0, 2, 0, 0, 3],
    ),
    (lambda u, step, p: (step >= 1, {"step": step}), [1, 3, 5, 7], [0, 2, 0, 0]),
]


@pytest.mark.parametrize(("reason", "grads", "expected"), SKIPPED)
@pytest.mark.parametrize("inplace", [True, False])
def test_a_skipped_gradient_is_as_if_it_never_came(reason, grads, expected, inplace):
    tx = optcore.multi_steps(optcore.identity(), 2, should_skip_update_fn=reason)
    assert run(tx, grads, inplace)[0] == expected


def test_the_report_of_a_skip_is_in_the_state():
    tx = optcore.multi_steps(optcore.identity(), 2, should_skip_update_fn=optcore.skip_not_finite)
    state = tx.init([torch.zeros(2)])
    assert not state.skip_state["should_skip"]
    _, state = tx.update([torch.full((2,), torch.nan)], state)
    assert state.skip_state["num_not_finite"] == 2
    assert (state.mini_step, state.gradient_step) == (0, 0)


def test_a_skipped_nan_has_derivative_zero_under_a_transform():
    tx = optcore.multi_steps(optcore.adam(lr=0.1), 1, should_skip_update_fn=optcore.skip_not_finite)

    def loss(g):
        (first,), state = tx.update([g], tx.init([g]))
        (second,), _ = tx.update([torch.ones(2)], state)
        return (first + second).sum()

    assert torch.equal(torch.func.grad(loss)(torch.tensor([torch.nan, 1.0])), torch.zeros(2))


def test_derivative_reaches_every_gradient_of_a_window():
    tx = optcore.multi_steps(optcore.scale(2.0), 4)
    g = torch.ones(4, requires_grad=True)
    state = tx.init([torch.zeros(())])
    for part in g:
        (u,), state = tx.update([part], state)
    assert torch.equal(torch.autograd.grad(u, g)[0], torch.full((4,), 0.5))


def test_a_leaf_without_a_gradient_waits_for_the_next_emission():
    tx = optcore.multi_steps(optcore.identity(), 2, use_grad_mean=False)
    one = torch.ones(())
    state = tx.init([one, one])
    seen = []
    for second in (one, None, one, one):
        (_, u), state = tx.update([one, second], state)
        seen.append(u if u is None else u.item())
    assert seen == [0, None, 0, 3]


def test_counts_and_has_updated():
    tx = optcore.multi_steps(optcore.identity(), 2)
    state = tx.init([torch.zeros(1)])
    seen = []
    for _ in range(4):
        _, state = tx.update([torch.ones(1)], state)
        seen.append(
            (int(state.mini_step), int(state.gradient_step), bool(optcore.has_updated(state)))
        )
    assert seen == [(1, 0, False), (0, 1, True), (1, 1, False), (0, 2, True)]


@pytest.mark.parametrize("inplace", [True, False])
def test_accumulates_in_the_dtype_asked_for(inplace):
    tx = optcore.multi_steps(optcore.identity(), 1000, accumulator_dtype=torch.float32)
    p = [torch.zeros((), dtype=torch.bfloat16)]
    state = tx.init(p)
    for _ in range(1000):
        (u,), state = tx.update([torch.ones((), dtype=torch.bfloat16)], state, inplace=inplace)
    assert state.acc_grads[0].dtype == torch.float32
    assert u.dtype == torch.bfloat16
    assert u == 1.0  # a bfloat16 sum of thousandths would stop growing long before


def test_emitted_updates_outlive_the_accumulator():
    tx = optcore.multi_steps(optcore.identity(), 1)
    (first,), state = tx.update([torch.ones(2)], tx.init([torch.zeros(2)]), inplace=True)
    tx.update([torch.full((2,), 5.0)], state, inplace=True)
    assert torch.equal(first, torch.ones(2))


def test_object_form_is_the_function():
    steps = optcore.MultiSteps(optcore.adam(), 3, use_grad_mean=False)
    tx = optcore.multi_steps(optcore.adam(), 3, use_grad_mean=False)
    assert steps.gradient_transformation() == tx
    assert steps.inner_opt == optcore.adam()
    updates, state = steps.update([torch.ones(1)], steps.init([torch.ones(1)]))
    assert not updates[0].any()
    assert not steps.has_updated(state)


ERRORS = [
    (
        lambda: optcore.multi_steps(optcore.adam, 2),
        TypeError,
        "multi_steps: expected a GradientTransformation, got function",
    ),
    (
        lambda: optcore.multi_steps(optcore.adam(), 0),
        ValueError,
        "multi_steps: expected every_k_schedule >= 1, got 0",
    ),
    (
        lambda: optcore.multi_steps(optcore.adam(), 2.0),
        TypeError,
        "multi_steps: expected every_k_schedule as an int, got float",
    ),
    (
        lambda: optcore.multi_steps(optcore.adam(), 2, should_skip_update_fn=True),
        TypeError,
        "multi_steps: expected should_skip_update_fn as a function, got bool",
    ),
    (
        lambda: optcore.multi_steps(
            optcore.adam(), 2, should_skip_update_fn=lambda *a: torch.tensor(True)
        ).init([]),
        TypeError,
        "multi_steps: expected should_skip_update_fn to return a pair (skip, report), got bool[]",
    ),
    (
        lambda: optcore.multi_steps(
            optcore.adam(), 2, should_skip_update_fn=lambda *a: (torch.ones(1), ())
        ).init([]),
        TypeError,
        "multi_steps: expected should_skip_update_fn to return a bool or a bool tensor of shape ()"
        ", got f64[1]",
    ),
    (
        lambda: optcore.multi_steps(optcore.adam(), 2).init([torch.ones(1, dtype=torch.int64)]),
        TypeError,
        "multi_steps: expected real floating parameters, got i64[1]",
    ),
    (lambda: optcore.apply_every(0), ValueError, "apply_every: expected k >= 1, got 0"),
    (lambda: optcore.apply_every("2"), TypeError, "apply_every: expected k as an int, got str"),
]


@pytest.mark.parametrize(("build", "error", "message"), ERRORS)
def test_errors(build, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        build()


def test_other_gradients_than_parameters_change_nothing():
    tx = optcore.multi_steps(optcore.adam(), 2)
    state = tx.init([torch.ones(1)])
    with pytest.raises(ValueError, match="multi_steps: state differs from updates"):
        tx.update([torch.ones(1), torch.ones(1)], state, inplace=True)
    assert not state.acc_grads[0].any()
