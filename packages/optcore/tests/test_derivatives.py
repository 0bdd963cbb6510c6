# SPDX-License-Identifier: Apache-2.0
"""Unrolled steps have exact derivatives, first and second order, at zero gradients too."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import optcore

BUILDERS = {
    "sgd": lambda h: optcore.sgd(lr=h[0], weight_decay=h[1]),
    "momentum": lambda h: optcore.sgd(lr=h[0], momentum=h[1], dampening=h[2]),
    "nesterov": lambda h: optcore.sgd(lr=h[0], momentum=h[1], nesterov=True),
    "adam": lambda h: optcore.adam(lr=h[0], betas=(h[1], h[2]), eps=1e-3),
    "adam-eps": lambda h: optcore.adam(lr=h[0], eps=h[1], eps_root=h[2]),
    "adam-decay": lambda h: optcore.adam(lr=h[0], weight_decay=h[1], eps=1e-3),
    "adamw": lambda h: optcore.adamw(lr=h[0], weight_decay=h[1], eps=h[2]),
    "adamax": lambda h: optcore.adamax(lr=h[0], betas=(h[1], h[2]), eps=1e-3),
    "adabelief": lambda h: optcore.adabelief(lr=h[0], betas=(h[1], h[2]), eps=1e-3),
    "yogi": lambda h: optcore.yogi(lr=h[0], betas=(h[1], h[2])),
    "amsgrad": lambda h: optcore.amsgrad(lr=h[0], betas=(h[1], h[2]), eps=1e-3),
    "amsgrad-corrected": lambda h: optcore.amsgrad(lr=h[0], eps=h[1], correct_max=True),
    "radam": lambda h: optcore.radam(lr=h[0], betas=(h[1], 0.95), eps=h[2]),
    "radam-on": lambda h: optcore.chain(
        optcore.scale_by_radam(h[1], 0.99, 1e-3, threshold=4.0), optcore.scale(-h[0])
    ),
    "nadam": lambda h: optcore.nadam(lr=h[0], betas=(h[1], h[2]), eps=1e-3),
    "nadam-decay": lambda h: optcore.nadam(lr=h[0], eps=h[1], momentum_decay=h[2]),
    "rmsprop": lambda h: optcore.rmsprop(lr=h[0], alpha=h[1], eps=h[2], momentum=0.5),
    "rmsprop-centered": lambda h: optcore.rmsprop(lr=h[0], alpha=h[1], eps=h[2], centered=True),
    "adagrad": lambda h: optcore.adagrad(lr=h[0], lr_decay=h[1], eps=h[2]),
    "adadelta": lambda h: optcore.adadelta(lr=h[0], rho=h[1], eps=h[2]),
    "adan": lambda h: optcore.adan(lr=h[0], betas=(h[1], h[2], 0.9), eps=1e-3),
    "novograd": lambda h: optcore.novograd(lr=h[0], betas=(h[1], h[2]), weight_decay=0.1),
    "asgd": lambda h: optcore.asgd(lr=h[0], lambd=h[1], alpha=h[2]),
    "adafactor": lambda h: optcore.adafactor(lr=h[0], beta2_decay=-h[1], weight_decay=h[2]),
    "lamb": lambda h: optcore.lamb(lr=h[0], eps=h[1], weight_decay=h[2]),
    "lars": lambda h: optcore.lars(lr=h[0], weight_decay=h[1], trust_coefficient=h[2]),
    "sm3": lambda h: optcore.sm3(lr=h[0], momentum=h[1]),
    "sm3-decay": lambda h: optcore.scale_by_sm3(b1=h[0], b2=h[1], eps=h[2]),
    "fromage": lambda h: optcore.fromage(lr=h[0]),
    "schedule-free-sgd": lambda h: optcore.schedule_free_sgd(
        lr=h[0], b1=h[1], weight_decay=h[2], warmup_steps=2
    ),
    "schedule-free-adamw": lambda h: optcore.schedule_free_adamw(
        lr=h[0], betas=(h[1], h[2]), eps=1e-3
    ),
    "schedule-free-changing": lambda h: optcore.schedule_free(
        optcore.sgd(lr=h[0]), lambda t: h[0] * t, lambda t: h[1] / (1 + t), weight_lr_power=h[2]
    ),
    "schedule": lambda h: optcore.adam(lr=lambda t: h[0] / (1 + h[1] * t), eps=1e-3),
    "tree": lambda h: optcore.adam(lr={"w": h[0], "b": h[1]}, eps=1e-3),
    "per-element": lambda h: optcore.sgd(lr={"w": h[:2], "b": h[2]}),
}


@pytest.fixture(params=BUILDERS.values(), ids=BUILDERS.keys())
def build(request):
    return request.param


def unroll(tx, w, b, c, steps):
    params = {"w": w, "b": b}
    state = tx.init(params)
    for _ in range(steps):
        loss = ((params["w"] * c).sin().sum() + params["b"] * params["w"].prod()).square()
        keys = list(params)
        grads = torch.autograd.grad(loss, [params[k] for k in keys], create_graph=True)
        updates, state = tx.update(dict(zip(keys, grads, strict=True)), state, params)
        params = optcore.apply_updates(params, updates)
    return torch.stack([params["w"].square().sum(), params["b"].sin()])


def inputs():
    w = torch.tensor([0.7, -1.1], requires_grad=True)
    b = torch.tensor(0.4, requires_grad=True)
    c = torch.tensor([1.3, 0.6], requires_grad=True)
    h = torch.tensor([0.11, 0.37, 0.53], requires_grad=True)
    return w, b, c, h


@pytest.mark.parametrize("steps", [1, 3])
def test_first_derivative_against_finite_differences(build, steps):
    assert gradcheck(lambda w, b, c, h: unroll(build(h), w, b, c, steps), inputs())


def test_second_derivative_against_finite_differences(build):
    assert gradgradcheck(lambda w, b, c, h: unroll(build(h), w, b, c, 2), inputs())


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


def test_dead_unit_gives_a_finite_meta_gradient_equal_to_the_limit():
    def outer(phi, w):
        params = [w]
        tx = optcore.adam(lr=0.1, eps=1e-3)
        state = tx.init(params)
        for _ in range(3):
            inner = (params[0] * phi * torch.tensor([1.0, 0.0, -2.0])).square().sum()
            grads = torch.autograd.grad(inner, params, create_graph=True)
            updates, state = tx.update(list(grads), state, params)
            params = optcore.apply_updates(params, updates)
        return params[0].square().sum()

    phi, w = (torch.ones(3, requires_grad=True), torch.tensor([1.0, 2.0, 3.0], requires_grad=True))
    found = torch.autograd.grad(outer(phi, w), [phi, w])
    h = 1e-6
    for index in range(2):
        for k in range(3):
            args = [[phi.detach().clone(), w.detach().clone().requires_grad_()] for _ in range(2)]
            with torch.no_grad():
                args[0][index][k] += h
                args[1][index][k] -= h
            numeric = (outer(*args[0]) - outer(*args[1])).item() / (2 * h)
            assert found[index][k].item() == pytest.approx(numeric, rel=1e-6, abs=1e-8)


def test_a_missing_gradient_leaves_that_leaf_and_its_count_alone():
    tx = optcore.adam(lr=0.1)
    a, b = torch.ones(2), torch.full((2,), 3.0)
    state = tx.init([a, b])
    grads = [torch.tensor([1.0, -2.0]), torch.tensor([0.5, 4.0])]
    _, state = tx.update(grads, state, inplace=False)
    (u, none), skipped = tx.update([grads[0], None], state, inplace=False)
    assert none is None
    assert skipped[0].mu[1] is state[0].mu[1]
    assert (int(skipped[0].count[0]), int(skipped[0].count[1])) == (2, 1)
    late, _ = tx.update(grads, skipped, inplace=False)
    on_time, _ = tx.update(grads, state, inplace=False)
    assert torch.equal(late[1], on_time[1])
    assert optcore.apply_updates([a, b], [u, None], inplace=False)[1] is b


@pytest.mark.parametrize("shape", [(3, 2), (2, 4)])
def test_orthogonalised_momentum_in_float64(shape):
    def steps(first, second, momentum):
        tx = optcore.scale_by_muon(momentum, ns_dtype=None)
        state = tx.init([first])
        _, state = tx.update([first], state)
        return tx.update([second], state)[0][0]

    inputs = [torch.randn(shape, requires_grad=True) for _ in range(2)]
    inputs.append(torch.tensor(0.7, requires_grad=True))
    assert gradcheck(steps, inputs)
    assert gradgradcheck(steps, inputs)
