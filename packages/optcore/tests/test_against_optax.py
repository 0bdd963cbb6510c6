# SPDX-License-Identifier: Apache-2.0
"""Optimizers whose rule is optax's take its steps, in float64."""

import numpy as np
import pytest
import torch

import optcore

optax = pytest.importorskip("optax", reason="the oracle of this file")
jax = pytest.importorskip("jax", reason="the oracle of this file")
jnp = jax.numpy

STEPS = 50


def rising(count):
    return 0.02 * (1 + count % 3)


def falling(count):
    return 0.5 / (1 + count)


def slowing(count):
    return 0.9 + 0.05 * (count > 4)


# name: (ours, theirs); optax computes a warm-up in float32, where 1/32 and its eighths are exact
CASES = {
    "sm3": (lambda: optcore.sm3(lr=0.05), lambda: optax.sm3(0.05)),
    "sm3-odd": (
        lambda: optcore.chain(optcore.scale_by_sm3(0.5, 0.8, 1e-3), optcore.scale(-0.02)),
        lambda: optax.chain(optax.scale_by_sm3(0.5, 0.8, 1e-3), optax.scale(-0.02)),
    ),
    "sm3-momentum": (lambda: optcore.sm3(lr=0.1, momentum=0.3), lambda: optax.sm3(0.1, 0.3)),
    "fromage": (lambda: optcore.fromage(lr=0.01), lambda: optax.fromage(0.01)),
    "fromage-odd": (
        lambda: optcore.fromage(lr=0.03, min_norm=1.5),
        lambda: optax.fromage(0.03, 1.5),
    ),
    "fromage-schedule": (lambda: optcore.fromage(lr=falling), lambda: optax.fromage(falling)),
    "schedule_free_sgd": (
        lambda: optcore.schedule_free_sgd(lr=0.05),
        lambda: optax.contrib.schedule_free_sgd(0.05),
    ),
    "schedule_free_sgd-warmup": (
        lambda: optcore.schedule_free_sgd(lr=1 / 32, warmup_steps=8),
        lambda: optax.contrib.schedule_free_sgd(1 / 32, warmup_steps=8),
    ),
    "schedule_free_sgd-odd": (
        lambda: optcore.schedule_free_sgd(0.05, 0.6, 0.1, weight_lr_power=0.5),
        lambda: optax.contrib.schedule_free_sgd(0.05, None, 0.6, 0.1, 0.5),
    ),
    "schedule_free_adamw": (
        lambda: optcore.schedule_free_adamw(),
        lambda: optax.contrib.schedule_free_adamw(),
    ),
    "schedule_free_adamw-odd": (
        lambda: optcore.schedule_free_adamw(
            1 / 32, (0.7, 0.9), 1e-3, 0.1, warmup_steps=8, weight_lr_power=1.0
        ),
        lambda: optax.contrib.schedule_free_adamw(1 / 32, 8, 0.7, 0.9, 1e-3, 0.1, 1.0),
    ),
    "schedule_free-rising": (
        lambda: optcore.schedule_free(optcore.adam(rising, (0.0, 0.9)), rising, 0.95),
        lambda: optax.contrib.schedule_free(optax.adam(rising, 0.0, 0.9), rising, 0.95),
    ),
    "optimistic_adam": (
        lambda: optcore.optimistic_adam(lr=0.02),
        lambda: optax.optimistic_adam_v2(0.02),
    ),
    "ademamix": (lambda: optcore.ademamix(lr=0.02), lambda: optax.contrib.ademamix(0.02)),
    "ademamix-schedules": (
        lambda: optcore.ademamix(0.02, (0.9, 0.99, slowing), alpha=rising),
        lambda: optax.contrib.ademamix(0.02, 0.9, 0.99, slowing, rising),
    ),
    "adopt": (lambda: optcore.adopt(lr=0.02), lambda: optax.contrib.adopt(0.02)),
    "madgrad": (lambda: optcore.madgrad(), lambda: optax.contrib.madgrad(1e-2)),
    "dadapt_adamw": (lambda: optcore.dadapt_adamw(), lambda: optax.contrib.dadapt_adamw()),
    "prodigy": (lambda: optcore.prodigy(), lambda: optax.contrib.prodigy()),
}


def start():
    rng = np.random.default_rng(0)
    return {"a": rng.normal(size=(3, 4)), "b": rng.normal(size=5), "c": rng.normal(size=(2, 3, 2))}


def loss(p, sin):
    """Waves, a Rosenbrock function and a quadratic; ``p`` holds torch or jax arrays."""
    waves = sin(p["a"] @ p["a"].T).sum() / 3 + sin(p["c"].sum(0) @ p["a"][:2, :2]).sum()
    head, tail = p["b"][:-1], p["b"][1:]
    return (
        waves + ((1 - head) ** 2).sum() + ((tail - head**2) ** 2).sum() / 10 + (p["c"] ** 2).sum()
    )


def ours(tx, inplace):
    params = {k: torch.tensor(v, requires_grad=True) for k, v in start().items()}
    state = tx.init(params)
    for _ in range(STEPS):
        grads = torch.autograd.grad(loss(params, torch.sin), list(params.values()))
        grads = dict(zip(params, grads, strict=True))
        updates, state = tx.update(grads, state, params, inplace=inplace)
        moved = optcore.apply_updates(params, updates, inplace=inplace)
        params = {k: v.detach().requires_grad_() for k, v in moved.items()}
    return params, state


def theirs(tx):
    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params, jnp.sin), state, params)
        return optax.apply_updates(params, updates), state

    params = {k: jnp.asarray(v) for k, v in start().items()}
    # counts of 32 bits make optax compute in float32
    state = jax.tree.map(lambda a: a.astype("int64") if a.dtype == "int32" else a, tx.init(params))
    for _ in range(STEPS):
        params, state = step(params, state)
    return params, state


def assert_same(found, expected):
    for key, value in expected.items():
        np.testing.assert_allclose(found[key].detach().numpy(), value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("build", "oracle"), CASES.values(), ids=CASES.keys())
@pytest.mark.filterwarnings("ignore:.*expected gradients with a graph")
def test_takes_the_steps_of_optax(build, oracle):
    with jax.enable_x64(True):
        expected, _ = theirs(oracle())
        for inplace in (True, False, None):
            assert_same(ours(build(), inplace)[0], expected)


AVERAGED = {k: v for k, v in CASES.items() if k.startswith("schedule_free")}


@pytest.mark.parametrize(("build", "oracle"), AVERAGED.values(), ids=AVERAGED.keys())
def test_evaluates_where_optax_does(build, oracle):
    with jax.enable_x64(True):
        params, state = theirs(oracle())
        expected = optax.contrib.schedule_free_eval_params(state, params)
    params, state = ours(build(), None)
    assert_same(optcore.schedule_free_eval_params(state, params), expected)
