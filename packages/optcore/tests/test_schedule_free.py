# SPDX-License-Identifier: Apache-2.0
"""Schedule-free averaging against its three equations written out."""

import pickle
import re

import pytest
import torch

import optcore


def equations(theta, lrs, b1s, power=2.0):
    """Gradient descent on the sum of fourth powers; returns where it trains and the average."""
    x = y = z = theta
    total = largest = 0.0
    for lr, b1 in zip(lrs, b1s, strict=True):
        z = z - lr * 4 * y**3
        largest = torch.maximum(torch.as_tensor(largest), torch.as_tensor(lr))
        weight = largest**power
        total = total + weight
        x = x + weight / total * (z - x)
        y = b1 * x + (1 - b1) * z
    return y, x


def train(tx, theta, steps, inplace=None):
    params = [theta]
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update([4 * params[0] ** 3], state, params, inplace=inplace)
        params = optcore.apply_updates(params, updates, inplace=False)
    return params[0], optcore.schedule_free_eval_params(state, params)[0]


def rate(count):
    return 0.01 * (1 + count)


def fading(count):
    return 0.9 / (1 + 0.2 * count)


@pytest.mark.parametrize("inplace", [True, False, None])
@pytest.mark.parametrize("steps", [0, 1, 2, 7])
def test_is_the_three_equations_with_a_changing_b1(inplace, steps):
    theta = torch.tensor([0.7, -1.2])
    # the wrapped rate is asked for counts from 1, the base's for counts from 0
    tx = optcore.schedule_free(optcore.sgd(lr=rate), lambda count: rate(count - 1), fading, 1.5)
    lrs, b1s = [rate(t) for t in range(steps)], [fading(t) for t in range(steps)]
    expected = equations(theta, lrs, b1s, 1.5)
    torch.testing.assert_close(
        train(tx, theta.clone(), steps, inplace), expected, rtol=1e-13, atol=0
    )


@pytest.mark.parametrize("inplace", [False, None])
def test_derivatives_are_those_of_the_equations(inplace):
    def derivatives(run):
        theta, lr, b1 = (torch.tensor(x, requires_grad=True) for x in ([0.7, -1.2], 0.05, 0.8))
        y, x = run(theta, lr, b1)
        first = torch.autograd.grad((x * y).sum(), [theta, lr, b1], create_graph=True)
        return *first, *torch.autograd.grad(sum(d.sum() for d in first), [theta, lr, b1])

    expected = derivatives(lambda theta, lr, b1: equations(theta, [lr] * 4, [b1] * 4))
    found = derivatives(
        lambda theta, lr, b1: train(optcore.schedule_free_sgd(lr, b1), theta, 4, inplace)
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_hyperparameters_may_be_trees_and_have_axes():
    params = {"a": torch.tensor([0.7, -1.2]), "b": torch.tensor([0.5])}
    lr = {"a": torch.tensor([0.05, 0.01]), "b": rate}
    tx = optcore.schedule_free_sgd(lr=lr, b1={"a": 0.8, "b": 0.6})
    state = tx.init(params)
    for _ in range(4):
        grads = {k: 4 * v**3 for k, v in params.items()}
        updates, state = tx.update(grads, state, params)
        params = optcore.apply_updates(params, updates, inplace=False)
    for index, (start, step) in enumerate([(0.7, 0.05), (-1.2, 0.01)]):
        expected, _ = equations(torch.tensor(start), [step] * 4, [0.8] * 4)
        torch.testing.assert_close(params["a"][index], expected)


def test_no_weight_before_the_learning_rate_rises():
    tx = optcore.schedule_free(optcore.scale(-1.0), lambda count: max(0.0, float(count) - 2), 0.5)
    y, x = train(tx, torch.tensor([0.5]), 2)
    assert x.item() == 0.5  # z has moved, and nothing has been averaged
    assert y.item() != 0.5


@pytest.mark.parametrize("inplace", [True, False])
def test_a_missing_gradient_leaves_that_leaf_alone(inplace):
    tx = optcore.schedule_free_adamw(lr=0.1)
    params = [torch.ones(2), torch.ones(1)]
    grads = [torch.ones(2), torch.ones(1)]
    _, state = tx.update(grads, tx.init(params), params, inplace=inplace)
    before = [field[1].clone() for field in (*state[:4], state.z)]
    (_, none), state = tx.update([grads[0], None], state, params, inplace=inplace)
    assert none is None
    assert all(map(torch.equal, (field[1] for field in (*state[:4], state.z)), before))
    assert [int(count) for count in state.step_count] == [2, 1]
    late, _ = tx.update(grads, state, params, inplace=inplace)
    _, on_time = tx.update(grads, tx.init(params), params, inplace=inplace)
    expected, _ = tx.update(grads, on_time, params, inplace=inplace)
    assert torch.equal(late[1], expected[1])


def test_kept_iterates_are_clones_without_a_graph():
    w = torch.ones(2, requires_grad=True)
    tx = optcore.schedule_free_sgd(lr=0.1)
    state = tx.init([w])
    for _ in range(2):
        updates, state = tx.update([torch.ones(2)], state, [w])
        optcore.apply_updates([w], updates)
    assert w.is_leaf
    assert not state.z[0].requires_grad
    kept = state.z[0].clone()
    w.data.zero_()
    assert torch.equal(state.z[0], kept)


def test_starts_from_the_parameters_of_the_first_update():
    tx = optcore.schedule_free_sgd(lr=0.1)
    state = tx.init([torch.zeros(2)])  # a checkpoint is loaded between init and update
    _, state = tx.update([torch.ones(2)], state, [torch.ones(2)])
    torch.testing.assert_close(state.z[0], torch.full((2,), 0.9))


@pytest.mark.parametrize("inplace", [True, False])
def test_keeps_the_iterate_in_another_dtype(inplace):
    tx = optcore.schedule_free_adamw(lr=0.1, state_dtype=torch.float32)
    params = [torch.ones(2, dtype=torch.bfloat16), torch.ones((), dtype=torch.bfloat16)]
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(params, state, params, inplace=inplace)
        params = optcore.apply_updates(params, updates, inplace=False)
    assert {z.dtype for z in state.z} == {torch.float32}
    assert {u.dtype for u in (*updates, *params)} == {torch.bfloat16}
    x = optcore.schedule_free_eval_params(state, params)
    assert {leaf.dtype for leaf in x} == {torch.bfloat16}


def test_finds_its_state_inside_others():
    tx = optcore.chain(
        optcore.clip(1.0),
        optcore.masked(optcore.schedule_free_sgd(lr=1.0, b1=0.5), {"w": True, "b": False}),
    )
    params = {"w": torch.tensor(4.0), "b": torch.tensor(7.0)}
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update({"w": torch.tensor(1.0), "b": torch.zeros(())}, state, params)
        params = optcore.apply_updates(params, updates, inplace=False)
    x = optcore.schedule_free_eval_params(state, params)
    assert {k: v.item() for k, v in x.items()} == {"w": 2.5, "b": 7.0}
    back = optcore.schedule_free_train_params(state, x)
    torch.testing.assert_close(back, params)


def test_passes_extra_arguments_on():
    def update(updates, state, params, *, inplace, **extra):
        return [-extra["size"] * u for u in updates], state

    base = optcore.GradientTransformation(lambda params: (), update)
    tx = optcore.schedule_free(base, 1.0)
    (u,), _ = tx.update([torch.ones(1)], tx.init([torch.ones(1)]), [torch.ones(1)], size=3.0)
    assert u.item() == -3.0


def test_is_a_value_with_its_schedule():
    def build():
        return optcore.schedule_free(optcore.sgd(lr=rate), rate, fading)

    assert pickle.loads(pickle.dumps(build())) == build()
    assert hash(build()) == hash(build())
    assert build() != optcore.schedule_free(optcore.sgd(lr=rate), fading, fading)


BASE = optcore.sgd(lr=0.1)
ERRORS = [
    (
        lambda: optcore.schedule_free(0.1, 0.1),
        TypeError,
        "schedule_free: expected a GradientTransformation, got float",
    ),
    (
        lambda: optcore.schedule_free(BASE, -0.1),
        ValueError,
        "schedule_free: expected lr >= 0, got -0.1",
    ),
    (
        lambda: optcore.schedule_free(BASE, 0.1, 0.0),
        ValueError,
        "schedule_free: expected b1 in (0, 1], got 0; it could not be undone",
    ),
    (
        lambda: optcore.schedule_free(BASE, 0.1, {"w": 1.1}),
        ValueError,
        "schedule_free: expected b1 in [0, 1], got 1.1",
    ),
    (
        lambda: optcore.schedule_free(BASE, 0.1, weight_lr_power=-1.0),
        ValueError,
        "schedule_free: expected weight_lr_power >= 0, got -1.0",
    ),
    (
        lambda: optcore.schedule_free(BASE, 0.1, state_dtype=torch.int64),
        TypeError,
        "schedule_free: expected state_dtype as a floating torch.dtype or None, got torch.int64",
    ),
    (
        lambda: optcore.schedule_free(BASE, 0.1).init([torch.ones(1, dtype=torch.int64)]),
        TypeError,
        "schedule_free: expected real floating parameters, got i64[1]",
    ),
    (
        lambda: optcore.schedule_free(BASE, 0.1).update([torch.ones(1)], ()),
        ValueError,
        "schedule_free: expected params, got None; call update(updates, state, params)",
    ),
    (
        lambda: optcore.schedule_free_sgd(warmup_steps=1.5),
        TypeError,
        "schedule_free_sgd: expected warmup_steps as an int, got float",
    ),
    (
        lambda: optcore.schedule_free_sgd(lr=rate, warmup_steps=2),
        TypeError,
        "schedule_free_sgd: expected lr as a number or tensor with warmup_steps=2, got a schedule",
    ),
    (
        lambda: optcore.schedule_free_sgd(b1=0),
        ValueError,
        "schedule_free_sgd: expected b1 in (0, 1], got 0",
    ),
    (
        lambda: optcore.schedule_free_adamw(betas=0.9),
        TypeError,
        "schedule_free_adamw: expected betas as a pair, got float",
    ),
    (
        lambda: optcore.schedule_free_adamw(betas=(0.0, 0.9)),
        ValueError,
        "schedule_free_adamw: expected betas[0] in (0, 1], got 0",
    ),
    (
        lambda: optcore.schedule_free_adamw(betas=(0.9, 1.0)),
        ValueError,
        "schedule_free_adamw: expected betas[1] in [0, 1), got 1.0",
    ),
    (
        lambda: optcore.schedule_free_adamw(eps=-1.0),
        ValueError,
        "schedule_free_adamw: expected eps >= 0, got -1.0",
    ),
    (
        lambda: optcore.schedule_free_eval_params(BASE.init([]), []),
        TypeError,
        "schedule_free_eval_params: expected a state with one ScheduleFreeState inside, got tuple "
        "with 0",
    ),
    (
        lambda: optcore.schedule_free_eval_params(
            optcore.schedule_free(BASE, 0.1).init([torch.ones(2)]), [torch.ones(3)]
        ),
        ValueError,
        "schedule_free_eval_params: expected parameters like those of the state, f64[2], got "
        "f64[3], at [0]",
    ),
    (
        lambda: optcore.schedule_free_train_params(
            optcore.schedule_free(BASE, 0.1).init([torch.ones(2)]), {"w": torch.ones(2)}
        ),
        ValueError,
        "schedule_free_train_params: state differs from params: ",
    ),
]


@pytest.mark.parametrize(("build", "error", "message"), ERRORS)
def test_errors(build, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        build()
