# SPDX-License-Identifier: Apache-2.0
"""Derivatives besides those of every row, which test_conformance checks."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import optcore


def steps(tx, w, b):
    """Two numbers after three steps; the gradients are smooth in the parameters."""
    params = {"w": w, "b": b}
    state = tx.init(params)
    for step in range(3):
        grads = {name: (p * (1 + step)).sin() + 0.2 for name, p in params.items()}
        updates, state = tx.update(grads, state, params, inplace=False)
        params = optcore.apply_updates(params, updates)
    return torch.stack([params["w"].square().sum(), params["b"].sin()])


BUILDERS = {
    "schedule": lambda h: optcore.adam(lr=lambda t: h[0] / (1 + h[1] * t), eps=1e-3),
    "tree": lambda h: optcore.adam(lr={"w": h[0], "b": h[1]}, eps=1e-3),
    "per-element": lambda h: optcore.sgd(lr={"w": h[:2], "b": h[2]}, momentum=0.5),
    "tree of schedules": lambda h: optcore.sgd(lr={"w": lambda t: h[0] + t, "b": h[1]}),
}


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS.keys())
def test_hyperparameters_of_every_form(build):
    inputs = [torch.tensor([0.7, -1.1]), torch.tensor(0.4), torch.tensor([0.11, 0.37, 0.53])]
    inputs = [x.requires_grad_() for x in inputs]
    assert gradcheck(lambda w, b, h: steps(build(h), w, b), inputs)
    assert gradgradcheck(lambda w, b, h: steps(build(h), w, b), inputs)


def test_state_is_differentiated_too():
    tx = optcore.scale_by_adam(eps=1e-3)

    def step(g, mu, nu):
        count = torch.tensor(3)
        state = optcore.ScaleByAdamState([count], [mu], [nu])
        (u,), new = tx.update([g], state)
        return u, new.mu[0], new.nu[0]

    g, mu = (torch.randn(4, requires_grad=True) for _ in range(2))
    nu = torch.rand(4).add(0.1).requires_grad_()
    assert gradcheck(step, (g, mu, nu))
    assert gradgradcheck(step, (g, mu, nu))


def test_a_learned_start_of_the_moments_gets_its_derivative():
    tx = optcore.scale_by_adam(eps=1e-3, moment_requires_grad=True)
    state = tx.init([torch.ones(2)])
    (u,), _ = tx.update([torch.tensor([0.5, -0.2])], state)
    assert all(d.ne(0).all() for d in torch.autograd.grad(u.sum(), [state.mu[0], state.nu[0]]))


@pytest.mark.parametrize("eps", [1e-8, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_derivative_at_an_exactly_zero_gradient_is_the_limit(eps, dtype):
    tx = optcore.adam(lr=1.0, eps=eps)
    g = torch.zeros(2, dtype=dtype, requires_grad=True)
    state = tx.init([g])
    total = 0.0
    for _ in range(3):  # u_t = m_t / (c1 (sqrt(v_t / c2) + eps)), and v stays 0
        (update,), state = tx.update([g], state)
        total = total - update
    (first,) = torch.autograd.grad(total.sum(), g, create_graph=True)
    torch.testing.assert_close(first, torch.full_like(g, 3 / eps), rtol=1e-5, atol=0)
    (second,) = torch.autograd.grad(first.sum(), g)
    assert torch.equal(second, torch.zeros_like(g))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_first_and_second_derivative_of_muon_at_zero_are_finite_in_every_precision(dtype):
    g = torch.zeros(3, 2, requires_grad=True)
    tx = optcore.scale_by_muon(ns_dtype=dtype)
    (u,), _ = tx.update([g], tx.init([g]))
    (first,) = torch.autograd.grad(u.square().sum() + u.sum(), g, create_graph=True)
    assert first.isfinite().all()
    assert torch.autograd.grad(first.sum(), g)[0].isfinite().all()
