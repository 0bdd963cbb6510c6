# SPDX-License-Identifier: Apache-2.0
"""Transformations, optimizers, schedules and norms take the steps of optax 0.2.8, in float64."""

import jax
import numpy as np
import optax
import pytest
import torch

import optcore
from optcore import testing

STEPS = 50


@pytest.fixture(autouse=True)
def _jax_in_float64():
    with jax.enable_x64(True):
        yield


def problem(params):
    """A quadratic, a Rosenbrock valley and a small network, side by side in one tree."""
    x, y = params["rosenbrock"][0], params["rosenbrock"][1]
    slopes = torch.tensor([1.0, 0.3, 3.0])
    data = torch.linspace(-1, 1, 12).reshape(4, 3)
    hidden = (data @ params["net"]["w"] + params["net"]["b"]).tanh()
    out = hidden @ params["net"]["out"]
    return (
        (slopes * (params["quadratic"] - 0.5) ** 2).sum()
        + 0.1 * ((1 - x) ** 2 + 10 * (y - x**2) ** 2)
        + (out - data.sum(1).sin()).square().mean()
    )


def start():
    generator = torch.Generator().manual_seed(2)
    return {
        "quadratic": torch.tensor([2.0, -1.0, 0.7]),
        "rosenbrock": torch.tensor([-0.6, 0.8]),
        "net": {
            "w": torch.randn(3, 2, generator=generator),
            "b": torch.randn(2, generator=generator),
            "out": torch.randn(2, generator=generator),
        },
    }


def gradient(params):
    leaves = optcore.map_tensors(lambda p: p.detach().requires_grad_(), params)
    flat, spec = optcore.tree_flatten_as_tuple(leaves)
    return spec.unflatten(torch.autograd.grad(problem(leaves), flat))


def ours(tx, steps=STEPS):
    params = start()
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(gradient(params), state, params)
        params = optcore.apply_updates(params, updates)
    return params


def to_jax(tree):
    return jax.tree.map(lambda t: jax.numpy.asarray(t.numpy()), tree)


def to_torch(tree):
    return jax.tree.map(lambda a: torch.from_numpy(np.array(a)), tree)


def theirs(tx, steps=STEPS):
    params = to_jax(start())
    # schedules compute in float32 where the count has 32 bits
    state = jax.tree.map(lambda a: a.astype("int64") if a.dtype == "int32" else a, tx.init(params))
    update = jax.jit(tx.update)
    for _ in range(steps):
        grads = to_jax(gradient(to_torch(params)))
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return to_torch(params)


def assert_equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def slowed(case):
    """Behind a small rate, so that a bare rule goes downhill in small steps."""
    if case.factory in {row.factory for row in optcore.OPTIMIZERS.values()}:
        return case.build(), case.optax(optax, **case.options)
    rule = case.build(), case.optax(optax, **case.options)
    return optcore.chain(rule[0], optcore.scale(-0.02)), optax.chain(rule[1], optax.scale(-0.02))


CASES = {name: case for name, case in testing.CASES.items() if case.optax is not None}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_row_with_a_counterpart(case):
    mine, other = slowed(case)
    assert_equal(ours(mine), theirs(other))


def odd(step):
    return step % 2 == 1


def is_matrix(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)


def by_rank(params):
    return jax.tree.map(lambda p: "high" if p.ndim > 1 else "low", params)


def every(step):
    return 1 + step // 2


WIDE = {optcore: torch.float64, optax: jax.numpy.float64}  # optax accumulates in float32 otherwise


def accumulate(library, **options):
    inner = library.sgd(0.05, momentum=0.9)
    return library.MultiSteps(inner, accumulator_dtype=WIDE[library], **options)


COMBINED = {
    "chain": lambda o: o.chain(o.clip_by_global_norm(0.6), o.adam(0.05)),
    "masked": lambda o: o.masked(o.adam(0.05), is_matrix),
    "partition": lambda o: o.partition({"high": o.adam(0.05), "low": o.sgd(0.01)}, by_rank),
    "multi_steps": lambda o: accumulate(o, every_k_schedule=3),
    "multi_steps-schedule": lambda o: accumulate(o, every_k_schedule=every),
    "multi_steps-sum": lambda o: accumulate(o, every_k_schedule=2, use_grad_mean=False),
    "apply_every": lambda o: o.chain(o.adam(0.02), o.apply_every(4)),
    "apply_if_finite": lambda o: o.apply_if_finite(o.adam(0.05), 2),
    "conditionally_transform": lambda o: o.chain(
        o.conditionally_transform(o.scale(3.0), odd), o.sgd(0.02)
    ),
    "conditionally_mask": lambda o: o.conditionally_mask(o.adam(0.05), odd),
    "flatten": lambda o: o.flatten(o.adam(0.05)),
    "schedule": lambda o: o.adam(o.cosine_decay_schedule(0.1, 40, 0.1)),
    "warmup": lambda o: o.sgd(o.warmup_cosine_decay_schedule(0.0, 0.02, 10, 45, 0.001)),
    "ema-of-updates": lambda o: o.chain(o.adam(0.05), o.ema(0.8)),
    "selected": lambda o: o.chain(
        o.adaptive_grad_clip(0.3, 0.05, axis=-1), o.sgd(0.02, momentum=0.5)
    ),
}


@pytest.mark.parametrize("build", COMBINED.values(), ids=COMBINED.keys())
def test_combinators(build):
    assert_equal(ours(build(optcore)), theirs(build(optax)))


def test_lookahead_with_both_parameters():
    fast = optcore.lookahead(optcore.sgd(0.02), 3, 0.4)
    expected = to_jax(start())
    tx = optax.lookahead(optax.sgd(0.02), 3, 0.4)
    pair = optax.LookaheadParams.init_synced(expected)
    state = tx.init(pair)
    for _ in range(30):
        grads = to_jax(gradient(to_torch(pair.fast)))
        updates, state = tx.update(grads, state, pair)
        pair = optax.apply_updates(pair, updates)
    assert_equal(ours(fast, 30), to_torch(pair.fast))


def test_inject_hyperparams():
    mine = optcore.inject_hyperparams(optcore.adam)(lr=optcore.linear_schedule(0.1, 0.01, 30))
    other = optax.inject_hyperparams(optax.adam, hyperparam_dtype=jax.numpy.float64)(
        optax.linear_schedule(0.1, 0.01, 30)
    )
    assert_equal(ours(mine), theirs(other))


def test_norms():
    tree = start()
    assert optcore.global_norm(tree).item() == pytest.approx(
        float(optax.tree.norm(to_jax(tree))), rel=1e-13
    )


def cycle(peak, steps):
    return {"init_value": 0.1, "peak_value": peak, "warmup_steps": 3, "decay_steps": steps}


SCHEDULES = {
    "constant": lambda o: o.constant_schedule(0.3),
    "linear": lambda o: o.linear_schedule(0.3, 1.7, 10, 3),
    "polynomial": lambda o: o.polynomial_schedule(0.3, -1.7, 2.5, 10, 3),
    "polynomial-root": lambda o: o.polynomial_schedule(3.0, 1.0, 0.5, 7),
    "exponential": lambda o: o.exponential_decay(0.3, 5, 0.7, 2),
    "exponential-stairs": lambda o: o.exponential_decay(
        0.3, 5, 0.7, 2, staircase=True, end_value=0.11
    ),
    "exponential-up": lambda o: o.exponential_decay(0.3, 5, 1.7, end_value=0.9),
    "cosine": lambda o: o.cosine_decay_schedule(0.3, 15, 0.2, 1.7),
    "warmup-constant": lambda o: o.warmup_constant_schedule(0.3, 2.0, 6),
    "warmup-cosine": lambda o: o.warmup_cosine_decay_schedule(0.3, 2.0, 6, 20, 0.1, 1.3),
    "warmup-exponential": lambda o: o.warmup_exponential_decay_schedule(
        0.3, 2.0, 6, 4, 0.6, 3, end_value=0.4
    ),
    "onecycle-linear": lambda o: o.linear_onecycle_schedule(30, 0.7, 0.1, 0.5, 3.0, 7.0),
    "onecycle-cosine": lambda o: o.cosine_onecycle_schedule(20, 0.7),
    "piecewise": lambda o: o.piecewise_constant_schedule(0.7, {3: 0.5, 10: 2.0, 17: 0.1}),
    "interpolate-linear": lambda o: o.piecewise_interpolate_schedule(
        "linear", 0.7, {3: 0.5, 10: 2.0, 17: 0.1}
    ),
    "interpolate-cosine": lambda o: o.piecewise_interpolate_schedule(
        "cosine", 0.7, {0: 0.5, 10: 2.0, 17: 0.0}
    ),
    "sgdr": lambda o: o.sgdr_schedule([cycle(2.0, 10), cycle(1.0, 5), cycle(0.5, 15)]),
    "joined": lambda o: o.join_schedules(
        [o.linear_schedule(0.0, 1.0, 5), o.exponential_decay(1.0, 2, 0.8)], [5]
    ),
}


@pytest.mark.parametrize("build", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_schedules(build):
    mine, other = build(optcore), build(optax)
    counts = [0, 1, 2, 3, 4, 5, 6, 9, 10, 11, 15, 17, 20, 25, 30, 31, 100]
    expected = [float(other(jax.numpy.asarray(count))) for count in counts]
    found = [mine(count) for count in counts]
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-14)
