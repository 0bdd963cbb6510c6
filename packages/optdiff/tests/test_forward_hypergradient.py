# SPDX-License-Identifier: Apache-2.0
"""Forward mode gives the hypergradient of the unrolled loop."""

import re

import pytest
import torch
from torch import nn

import optcore
import optdiff

X, Y = (torch.linspace(-1, 1, 24) ** 2).view(8, 3), torch.linspace(0, 1, 8).view(8, 1)


def problem():
    torch.manual_seed(7)
    parts = [nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 1)]
    net = nn.Sequential(*parts).double()
    hyper = {"lr": 0.05, "b1": 0.8, "wd": 0.1}
    hyper = {k: torch.tensor(v, requires_grad=True) for k, v in hyper.items()}
    phi = torch.ones(3, requires_grad=True)
    x, y = X.double(), Y.double()

    def call(params, x):
        return torch.func.functional_call(net, params, (x,))

    def step(carry, i, hyper, phi):
        params, state, n = carry
        tx = optcore.adam(hyper["lr"], (hyper["b1"], 0.99), 1e-3, hyper["wd"])
        loss = (call(params, x * phi) - y).square().mean()
        grads = torch.autograd.grad(loss, tuple(params.values()), create_graph=True)
        updates, state = tx.update(dict(zip(params, grads, strict=True)), state, params)
        return optcore.apply_updates(params, updates), state, n + 1

    def objective(carry, hyper, phi):
        return (call(carry[0], x) - y).square().mean() + hyper["wd"] ** 2

    params = dict(net.named_parameters())
    init = (params, optcore.adam(weight_decay=0.1).init(params), 0)
    torch.manual_seed(8)
    return net, objective, step, init, hyper, phi


def test_equals_reverse_mode_with_dropout_and_batch_norm():
    net, objective, step, init, hyper, phi = problem()
    last = optdiff.unroll(step, init, 6, hyper, phi)
    expected = objective(last, hyper, phi)
    reverse = torch.autograd.grad(expected, [*hyper.values(), phi])
    buffers = list(net.buffers())
    net, objective, step, init, hyper, phi = problem()
    value, (by_name, by_phi) = optdiff.forward_hypergradient(
        objective, step, init, 6, hyper, phi, argnums=(0, 1)
    )
    torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=0)
    assert list(by_name) == list(hyper)
    torch.testing.assert_close((*by_name.values(), by_phi), reverse, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(list(net.buffers()), buffers)
    assert not value.requires_grad
    assert not any(g.requires_grad for g in by_name.values())


@pytest.mark.parametrize("steps", [0, 1, 50])
def test_closed_form(steps):
    def step(w, i, lr, target):  # w - target shrinks by 1 - lr
        return w - lr * torch.func.grad(lambda w: ((w - target) ** 2).sum() / 2)(w)

    w, lr, target = torch.tensor([2.0, 3.0]), torch.tensor(0.1), torch.tensor([1.0, -1.0])
    value, (by_lr, by_target) = optdiff.forward_hypergradient(
        lambda w, lr, target: w.sum() + lr**2, step, w, steps, lr, target, argnums=[0, 1]
    )
    left, ones = 0.9**steps, torch.ones(2)
    torch.testing.assert_close(value, ((w - target) * left + target).sum() + 0.01)
    torch.testing.assert_close(by_lr, -steps * left / 0.9 * (w - target).sum() + 0.2)
    torch.testing.assert_close(by_target, (1 - left) * ones)


def test_ties_complex_numbers_and_expanded_leaves():
    """Whatever reverse mode takes, with the same derivative."""

    def step(carry, i, lr, m):
        w, z = carry
        (g,) = torch.autograd.grad((w.sin() * m).sum(), w, create_graph=True)
        return w - lr * g, z * (1 + 1j * lr.mean())

    def objective(carry, lr, m):
        return carry[0].sin().sum() + carry[1].abs().square().sum() + carry[1].real.sum()

    w = torch.tensor([0.5, -1.0, 2.0], requires_grad=True)
    z = torch.tensor([1 + 2j, 0.5 - 1j], dtype=torch.complex128)
    lr = torch.tensor(0.1).expand(3).requires_grad_()
    expected = objective(optdiff.unroll(step, (w, z), 4, lr, w), lr, w)
    reverse = torch.autograd.grad(expected, lr)[0]
    value, found = optdiff.forward_hypergradient(objective, step, (w, z), 4, lr, w)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(found, reverse, rtol=1e-10, atol=1e-12)


def shrink(w, i, lr):
    return w * (1 - lr)


def total(w, *args):
    return w.sum()


W, LR = torch.ones(2), torch.tensor(0.1)
ERRORS = [
    ((total, 3, W, 2, LR), {}, TypeError, "expected a callable step, got int"),
    ((None, shrink, W, 2, LR), {}, TypeError, "expected a callable objective, got NoneType"),
    (
        (total, shrink, nn.Linear(1, 1), 2, LR),
        {},
        TypeError,
        "expected a carry of tensors, got",
    ),
    ((total, shrink, W, -1, LR), {}, ValueError, "expected num_steps >= 0, got -1"),
    ((total, shrink, W, 2, 0.1), {}, TypeError, "expected floating tensors in args[0], got float"),
    (
        (total, shrink, W, 2, torch.tensor(1)),
        {},
        TypeError,
        "expected floating tensors in args[0], got torch.int64",
    ),
    ((total, shrink, W, 2, LR), {"argnums": 1}, ValueError, "expected argnums among 1 args, got 1"),
    (
        (total, shrink, W, 2, LR),
        {"argnums": ("lr",)},
        TypeError,
        "expected argnums as positions, got str",
    ),
    ((total, shrink, W, 2, []), {}, ValueError, "expected hyperparameters in args[0], got none"),
    (
        (lambda w, lr: w, shrink, W, 2, LR),
        {},
        ValueError,
        "expected a scalar loss, got f",
    ),
    (
        (total, lambda w, i, lr: [w], W, 2, LR),
        {},
        ValueError,
        "expected step to return a carry like the one it got, ",
    ),
]


@pytest.mark.parametrize(("args", "options", "error", "message"), ERRORS)
def test_errors(args, options, error, message):
    with pytest.raises(error, match="^" + re.escape(f"forward_hypergradient: {message}")):
        optdiff.forward_hypergradient(*args, **options)


def test_refused_inside_a_transform():
    def outer(lr):
        return optdiff.forward_hypergradient(total, shrink, W, 2, lr)[0]

    with pytest.raises(RuntimeError, match=r"expected no torch.func transform around it, got one"):
        torch.func.grad(outer)(LR)
