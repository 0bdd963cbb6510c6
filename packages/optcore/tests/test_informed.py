# SPDX-License-Identifier: Apache-2.0
"""Optimizers whose update asks for the value of the loss: function, class and Meta class."""

import re

import pytest
import torch

import optcore

optax = pytest.importorskip("optax", reason="the oracle of this file")
jax = pytest.importorskip("jax", reason="the oracle of this file")

STEPS = 60


def loss(p, sin):
    """A quadratic, waves and a coupling, 0 at best; ``p`` holds torch or jax arrays."""
    waves = (p["b"] ** 2).sum() + 0.3 * (sin(p["b"]) ** 2).sum()
    return (p["a"] ** 2).sum() + waves + 0.3 * (p["a"].sum() - p["b"][0]) ** 2


def start():
    return {"a": torch.tensor([1.5, -2.0, 0.3]), "b": torch.tensor([0.4, -1.0])}


def by_function(tx, params, steps=STEPS):
    state = tx.init(params)
    for _ in range(steps):
        leaves = {k: v.detach().requires_grad_() for k, v in params.items()}
        value = loss(leaves, torch.sin)
        grads = dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))
        updates, state = tx.update(grads, state, params, value=value.detach())
        params = optcore.apply_updates(params, updates)
    return params


def by_optax(tx, params, steps=STEPS):
    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params, jax.numpy.sin)
        updates, state = tx.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state

    params = {k: jax.numpy.asarray(v.numpy()) for k, v in params.items()}
    state = tx.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return {k: torch.from_numpy(jax.numpy.asarray(v).__array__().copy()) for k, v in params.items()}


POLYAK = {
    "defaults": ({}, {}),
    "odd": (
        {"lr": 0.7, "max_lr": 0.2, "f_min": -0.1, "eps": 0.1, "variant": "sps+"},
        {"scaling": 0.7, "max_learning_rate": 0.2, "f_min": -0.1, "eps": 0.1, "variant": "sps+"},
    ),
}


@pytest.mark.parametrize(("ours", "theirs"), POLYAK.values(), ids=POLYAK)
def test_polyak_sgd_takes_the_steps_of_optax(ours, theirs):
    with jax.enable_x64(True):
        expected = by_optax(optax.polyak_sgd(**theirs), start())
    found = by_function(optcore.polyak_sgd(**ours), start())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(found["a"], start()["a"], atol=0.1)


def test_no_step_where_the_gradient_is_zero_or_the_value_below_the_smallest():
    still, below = optcore.scale_by_polyak(), optcore.scale_by_polyak(variant="sps+")
    (u,), _ = still.update([torch.zeros(2)], optcore.EmptyState(), value=1.0)
    assert u.tolist() == [0.0, 0.0]
    (u,), _ = below.update([torch.ones(2)], optcore.EmptyState(), value=-1.0)
    assert u.tolist() == [0.0, 0.0]


def closure_of(params, optimizer):
    def closure():
        optimizer.zero_grad()
        value = loss(params, torch.sin)
        value.backward()
        return value

    return closure


@pytest.mark.parametrize("how", ["closure", "argument"])
def test_the_class_takes_the_value_from_the_closure_or_as_an_argument(how):
    params = {k: torch.nn.Parameter(v) for k, v in start().items()}
    optimizer = optcore.PolyakSGD(params.values(), max_lr=0.3)
    closure = closure_of(params, optimizer)
    take = {
        "closure": lambda: optimizer.step(closure),
        "argument": lambda: optimizer.step(value=closure().item()),
    }[how]
    for _ in range(5):
        take()
    expected = by_function(optcore.polyak_sgd(max_lr=0.3), start(), 5)
    torch.testing.assert_close({k: p.detach() for k, p in params.items()}, expected)


@pytest.mark.parametrize("inplace", [None, False])
def test_a_func_optimizer_tells_the_loss(inplace):
    optimizer = optcore.FuncOptimizer(optcore.polyak_sgd(max_lr=0.3))
    params = {k: v.requires_grad_() for k, v in start().items()}
    for _ in range(3):
        params = optimizer.step(loss(params, torch.sin), params, inplace=inplace)
    expected = by_function(optcore.polyak_sgd(max_lr=0.3), start(), 3)
    torch.testing.assert_close({k: p.detach() for k, p in params.items()}, expected)


ERRORS = [
    (
        lambda: optcore.scale_by_polyak().update([torch.ones(1)], optcore.EmptyState()),
        "scale_by_polyak: expected value=, got None; call update(updates, state, params, value=",
    ),
    (
        lambda: optcore.scale_by_polyak().update(
            [torch.ones(1)], optcore.EmptyState(), value=torch.ones(2)
        ),
        "scale_by_polyak: expected value= as a real scalar, got f64[2]",
    ),
    (
        lambda: optcore.scale_by_polyak(variant="fast"),
        "scale_by_polyak: expected variant in ('sps', 'sps+'), got 'fast'",
    ),
    (
        lambda: optcore.polyak_sgd(max_lr={"a": 0.1}),
        "polyak_sgd: expected max_lr as one value for all parameters, got dict",
    ),
    (
        lambda: optcore.prodigy(lr=torch.ones(3)),
        "prodigy: expected lr as one value for all parameters, got f64[3]",
    ),
    (
        lambda: optcore.prodigy(estim_lr0=0.0),
        "prodigy: expected estim_lr0 > 0, got 0.0",
    ),
    (
        lambda: optcore.adopt(clip_value_fn=3),
        "scale_by_adopt: expected clip_value_fn as a function count -> bound, got int",
    ),
    (
        lambda: optcore.ademamix(betas=(0.9, 0.99)),
        "ademamix: expected betas as a triple, got tuple",
    ),
]


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_errors_name_what_was_expected(call, message):
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}"):
        call()
