# SPDX-License-Identifier: Apache-2.0
"""Hyperparameters in the state: read, set, scheduled, learned."""

import re

import pytest
import torch

import optcore


def one():
    return [torch.ones(1)]


def halving(count):
    return 0.5**count


def test_numbers_become_tensors_of_the_state():
    state = optcore.inject_hyperparams(optcore.adam)(lr=1, betas=(0.8, 0.9)).init(one())
    assert sorted(state.hyperparams) == ["betas", "eps", "lr"]
    lr = state.hyperparams["lr"]
    assert (lr.item(), lr.dtype, lr.shape, lr.device.type) == (1.0, torch.float64, (), "cpu")
    assert [b.item() for b in state.hyperparams["betas"]] == [0.8, 0.9]


@pytest.mark.parametrize("inplace", [True, False, None])
def test_equals_the_factory(inplace):
    options = {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}
    plain, injected = optcore.adam(**options), optcore.inject_hyperparams(optcore.adam)(**options)
    params = [torch.linspace(-1, 1, 5), torch.tensor(0.3, dtype=torch.float32)]
    states = [plain.init(params), injected.init(params)]
    for step in range(4):
        grads = [p * (step + 1) for p in params]
        expected, states[0] = plain.update(grads, states[0], params, inplace=inplace)
        found, states[1] = injected.update(grads, states[1], params, inplace=inplace)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("value", [0.25, torch.tensor(0.25), 2**-2])
def test_what_is_set_counts_from_the_next_update(value):
    tx = optcore.inject_hyperparams(optcore.sgd)(lr=0.5)
    _, state = tx.update(one(), tx.init(one()))
    state.hyperparams["lr"] = value
    (u,), state = tx.update(one(), state)
    assert u.item() == -0.25
    (u,), state = tx.update(one(), state)
    assert u.item() == -0.25
    assert state.count == 3


def test_a_schedule_is_seen_in_the_state_and_cannot_be_set():
    tx = optcore.inject_hyperparams(optcore.sgd)(lr=halving, momentum=0.0)
    state = tx.init(one())
    seen = []
    for _ in range(3):
        state.hyperparams["lr"] = 9.0
        (u,), state = tx.update(one(), state)
        seen.append((u.item(), state.hyperparams["lr"].item()))
    assert seen == [(-1.0, 1.0), (-0.5, 0.5), (-0.25, 0.25)]


def test_trees_and_pairs_may_mix_numbers_and_schedules():
    tx = optcore.inject_hyperparams(optcore.sgd)(lr={"a": halving, "b": 0.125})
    tree = {"a": torch.ones(()), "b": torch.ones(())}
    _, state = tx.update(tree, tx.init(tree))
    updates, state = tx.update(tree, state)
    assert (updates["a"], updates["b"]) == (-0.5, -0.125)


def test_a_learned_tensor_stays_itself():
    lr = torch.tensor(0.5, requires_grad=True)
    tx = optcore.inject_hyperparams(optcore.sgd)(lr=lr)
    state = tx.init(one())
    assert state.hyperparams["lr"] is lr
    (u,), state = tx.update(one(), state)
    assert state.hyperparams["lr"] is lr
    assert torch.autograd.grad(u.sum(), lr)[0] == -1.0


def test_a_learned_tensor_may_be_set():
    tx = optcore.inject_hyperparams(optcore.adam)(lr=0.5)
    state = tx.init(one())
    lr = torch.tensor(0.25, requires_grad=True)
    state.hyperparams["lr"] = lr
    (u,), _ = tx.update(one(), state)
    assert torch.autograd.grad(u.sum(), lr)[0].item() == pytest.approx(-1.0)


def test_a_schedule_with_a_learned_tensor_keeps_its_derivative_after_steps_in_place():
    start = torch.tensor(0.5, requires_grad=True)
    tx = optcore.inject_hyperparams(optcore.sgd)(lr=lambda count: start / (1 + count))
    _, state = tx.update(one(), tx.init(one()), inplace=True)
    assert not state.hyperparams["lr"].requires_grad
    (u,), _ = tx.update(one(), state)
    assert torch.autograd.grad(u.sum(), start)[0] == -0.5


@pytest.mark.parametrize("inplace", [True, False])
def test_updates_leave_the_old_hyperparameters_alone(inplace):
    tx = optcore.inject_hyperparams(optcore.sgd)(lr=halving)
    old = tx.init(one())
    tx.update(one(), tx.update(one(), old, inplace=inplace)[1], inplace=inplace)
    assert old.hyperparams["lr"] == 1.0


def test_vmap_over_what_is_set():
    tx = optcore.inject_hyperparams(optcore.sgd)(lr=0.5, momentum=0.5)

    def two_steps(lr):
        state = tx.init(one())
        state.hyperparams["lr"] = lr
        (first,), state = tx.update(one(), state)
        (second,), _ = tx.update(one(), state)
        return first + second

    lrs = torch.tensor([0.1, 0.2])
    torch.testing.assert_close(torch.vmap(two_steps)(lrs), -2.5 * lrs[:, None])


def test_defaults_of_zero_stay_off_unless_written_out():
    tx = optcore.inject_hyperparams(optcore.sgd)(lr=0.1, momentum=0.9, nesterov=True)
    assert sorted(tx.init(one()).hyperparams) == ["lr", "momentum"]
    assert not tx.needs_params
    decays = optcore.inject_hyperparams(optcore.sgd)(lr=0.5, weight_decay=0.0)
    assert decays.needs_params
    state = decays.init(one())
    state.hyperparams["weight_decay"] = 3.0
    assert decays.update(one(), state, one())[0][0].item() == -2.0


def counting(lr, times, scale_by=None):
    rate = sum(lr for _ in range(times))
    return optcore.chain(optcore.scale(-rate), *([scale_by()] if scale_by else []))


@pytest.mark.parametrize("static", [("times", "scale_by"), ["scale_by", "times"]])
def test_static_arguments_go_to_the_factory_as_they_are(static):
    tx = optcore.inject_hyperparams(counting, static)(0.5, 3, scale_by=optcore.identity)
    state = tx.init(one())
    assert list(state.hyperparams) == ["lr"]
    assert tx.update(one(), state)[0][0].item() == -1.5


def test_one_static_argument_by_its_name():
    tx = optcore.inject_hyperparams(counting, "times")(lr=0.5, times=2)
    assert tx.update(one(), tx.init(one()))[0][0].item() == -1.0


def test_dtype_of_the_tensors_made_from_numbers():
    lr = torch.tensor(0.1, dtype=torch.float64)
    tx = optcore.inject_hyperparams(optcore.sgd, hyperparam_dtype=torch.float32)(
        lr=lr, momentum=0.9
    )
    state = tx.init(one())
    assert state.hyperparams["momentum"].dtype == torch.float32
    assert state.hyperparams["lr"] is lr


def test_keeps_the_name_and_signature_of_the_factory():
    made = optcore.inject_hyperparams(optcore.adam)
    assert (made.__name__, made.__wrapped__) == ("adam", optcore.adam)
    assert repr(made()).startswith("inject_hyperparams(adam)(")


def set_to(name, value):
    tx = optcore.inject_hyperparams(optcore.sgd)(lr=0.1)
    state = tx.init(one())
    state.hyperparams[name] = value
    tx.update(one(), state)


ERRORS = [
    (
        lambda: optcore.inject_hyperparams(optcore.adam()),
        TypeError,
        "inject_hyperparams: expected a factory such as optcore.adam, got GradientTransformation",
    ),
    (
        lambda: optcore.inject_hyperparams(lambda *args: optcore.adam(*args)),
        TypeError,
        "inject_hyperparams: expected a factory of named arguments, got *args in its signature",
    ),
    (
        lambda: optcore.inject_hyperparams(optcore.sgd, "learning_rate"),
        ValueError,
        "inject_hyperparams: expected static_args among ['lr', 'momentum', 'dampening', "
        "'weight_decay', 'nesterov', 'moment_requires_grad', 'maximize', "
        "'use_accelerated_op'], got ['learning_rate']",
    ),
    (
        lambda: optcore.inject_hyperparams(lambda lr: lr)(0.1),
        TypeError,
        "inject_hyperparams: expected a factory that makes a GradientTransformation, got float",
    ),
    (
        lambda: optcore.inject_hyperparams(optcore.adam)(lr=-1.0),
        ValueError,
        "adam: expected lr >= 0, got -1.0",
    ),
    (
        lambda: optcore.inject_hyperparams(optcore.adamw)(mask=lambda params: {"w": True}),
        TypeError,
        "inject_hyperparams: expected schedule mask to give a number or a tensor, got dict; name "
        "it in static_args if it is no schedule",
    ),
    (lambda: set_to("lr", -1.0), ValueError, "sgd: expected lr >= 0, got -1.0"),
    (
        lambda: set_to("momentum", 0.9),
        ValueError,
        "inject_hyperparams: expected state.hyperparams with ['lr'], got ['lr', 'momentum']; give",
    ),
]


@pytest.mark.parametrize(("build", "error", "message"), ERRORS)
def test_errors(build, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        build()


def test_numbers_that_no_factory_takes_otherwise_stay_out_of_the_state():
    state = optcore.inject_hyperparams(optcore.yogi)(lr=0.1).init(one())
    assert sorted(state.hyperparams) == ["betas", "eps", "lr"]
