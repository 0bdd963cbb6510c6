# SPDX-License-Identifier: Apache-2.0
"""Optimizers whose update asks for the value of the loss: function, class and Meta class."""

import re

import numpy as np
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


@pytest.mark.parametrize("variant", ["sps", "sps+"])
def test_polyak_sgd_climbs_as_it_descends_the_negated_objective(variant):
    ends = []
    for sign in (1.0, -1.0):
        tx = optcore.polyak_sgd(
            lr=0.7, max_lr=0.3, f_min=-0.1 * sign, variant=variant, maximize=sign < 0
        )
        params = start()
        state = tx.init(params)
        for _ in range(20):
            leaves = {k: v.detach().requires_grad_() for k, v in params.items()}
            value = sign * loss(leaves, torch.sin)
            grads = torch.autograd.grad(value, [*leaves.values()])
            updates, state = tx.update(
                dict(zip(leaves, grads, strict=True)), state, params, value=value.detach()
            )
            params = optcore.apply_updates(params, updates)
        ends.append(params)
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(ends[0]["a"], start()["a"], atol=0.1)


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


VALUES = [
    3,
    np.float32(3),
    np.float64(3),
    np.int64(3),
    torch.tensor(3),
    torch.tensor([[3.0]]),
    torch.tensor(3.0, dtype=torch.bfloat16),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_the_value_is_any_real_scalar(value):
    tx = optcore.chain(optcore.scale_by_polyak(), optcore.reduce_on_plateau())
    updates, _ = tx.update([2 * torch.ones(3)], tx.init([torch.ones(3)]), value=value)
    torch.testing.assert_close(updates[0], torch.full((3,), 0.5))


def groups(transformation):
    return optcore.Optimizer(
        [{"params": [torch.nn.Parameter(torch.ones(n))]} for n in (2, 3)], transformation
    )


def test_parts_that_look_at_one_parameter_take_groups():
    assert len(groups(optcore.sam(optcore.adam(), optcore.sgd())).param_groups) == 2


def test_places_in_one_group_do_what_groups_would():
    w = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = optcore.Sophia(w, lr={0: 0.1, 1: 0.2}, weight_decay={0: 0.5, 1: 0.0}, gamma=1.0)
    w[0].grad = w[1].grad = torch.zeros(2)
    optimizer.step(obj_fn=lambda p: p[0].sum() + p[1].sum())
    torch.testing.assert_close(w[0].detach(), torch.full((2,), 0.95))
    torch.testing.assert_close(w[1].detach(), torch.ones(2))


TWO = [{"params": [torch.nn.Parameter(torch.ones(n))]} for n in (2, 3)]
IN_ONE = "; put them all into one group, with hyperparameters by place in it"

ERRORS = [
    (
        lambda: optcore.PolyakSGD(TWO),
        "PolyakSGD: expected one group of parameters, got group 1: of scale_by_polyak, the gap of "
        f"the whole loss belongs to the norm of the whole gradient{IN_ONE}",
    ),
    (
        lambda: optcore.Sophia(TWO),
        "Sophia: expected one group of parameters, got group 1: of hutchinson_estimator_diag_"
        f"hessian, obj_fn is a function of all parameters{IN_ONE}",
    ),
    (
        lambda: groups(optcore.sam(optcore.sgd(), optcore.chain(optcore.normalize()))),
        "Optimizer: expected one group of parameters, got group 1: of normalize, it divides by the "
        f"norm of all gradients{IN_ONE}",
    ),
    (
        lambda: optcore.polyak_sgd().update(
            [torch.ones(2)], optcore.polyak_sgd().init([]), [torch.ones(3)], value=1.0
        ),
        "scale_by_polyak: expected a gradient like its parameter f64[3], got f64[2], at [0]",
    ),
    (
        lambda: optcore.noisy_sgd().update(
            [torch.ones(2)], optcore.noisy_sgd().init([]), [torch.ones(3)]
        ),
        "add_noise: expected a gradient like its parameter f64[3], got f64[2], at [0]",
    ),
    (
        lambda: optcore.scale_by_polyak().update([], optcore.EmptyState(), value=True),
        "scale_by_polyak: expected value= as a real scalar, got bool",
    ),
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
        "adopt: expected clip_value_fn as a function count -> bound, got int",
    ),
    (
        lambda: optcore.ademamix(betas=(0.9, 0.99)),
        "ademamix: expected betas as a triple, got tuple",
    ),
    (
        lambda: optcore.madgrad(lr=-1),
        "madgrad: expected lr >= 0, got -1",
    ),
    (
        lambda: optcore.madgrad(eps=-1),
        "madgrad: expected eps >= 0, got -1",
    ),
]


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_errors_name_what_was_expected(call, message):
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}"):
        call()
