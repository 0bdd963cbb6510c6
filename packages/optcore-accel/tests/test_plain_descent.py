# SPDX-License-Identifier: Apache-2.0
"""Gradient descent without momentum: whole steps are a kernel's, the numbers torch.optim's."""

import pytest
import torch
from torch import nn

import optcore
from optcore_accel import _function

OPTIONS = [
    {"lr": 0.03},
    {"lr": 0.03, "weight_decay": 0.1},
    {"lr": 0.003, "maximize": True},
    {"lr": 0.003, "weight_decay": 0.02, "maximize": True},
]


def start(device="cpu"):
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randn(s, generator=generator) for s in [(3, 2), (2,), ()]]
    return [tensor.to(device).requires_grad_() for tensor in drawn]


def loss_of(params, step=0):
    return sum((p.sin() + (p - step / 10).square() / 3).sum() for p in params)


def walk(optimizer, params, steps=50):
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(params, step).backward()
        optimizer.step()


@pytest.fixture
def calls(monkeypatch):
    """The names of the rules that kernels ran, out of place."""
    found = []
    compute = _function.compute

    def counted(who, rule, *rest):
        found.append(rule.name)
        return compute(who, rule, *rest)

    monkeypatch.setattr(_function, "compute", counted)
    return found


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_classes_equal_torch(options, device):
    params, twins = start(device), start(device)
    groups = [[{"params": p[:1], "lr": 0.01}, {"params": p[1:]}] for p in (params, twins)]
    walk(optcore.SGD(groups[0], **options, use_accelerated_op=True), params)
    walk(torch.optim.SGD(groups[1], **options), twins)
    torch.testing.assert_close(params, twins, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_functions_equal_torch(options, inplace, calls, device):
    params, twins = start(device), start(device)
    tx = optcore.sgd(**options, use_accelerated_op=True)
    state = tx.init(params)
    for step in range(50):
        grads = list(torch.autograd.grad(loss_of(params, step), params))
        params, state = tx.step(grads, state, params, inplace=inplace)
        params = [p.detach().requires_grad_() for p in params]
    walk(torch.optim.SGD(twins, **options), twins)
    torch.testing.assert_close(params, twins, rtol=1e-12, atol=1e-12)
    assert calls == ["gradient descent"] * 50 * (not inplace)


def test_an_update_alone_is_a_multiplication():
    tx, plain = (optcore.sgd(0.1, weight_decay=0.1, use_accelerated_op=f) for f in (True, False))
    params = start()
    found = [each.update(params, each.init(params), params)[0] for each in (tx, plain)]
    assert all(map(torch.equal, *found))
    assert tx.init(params) == plain.init(params)  # a state of one goes on with the other


EACH = [{0: 0.1}, torch.full((3,), 0.1)]


@pytest.mark.parametrize("value", EACH, ids=["per parameter", "per element"])
@pytest.mark.parametrize("name", ["lr", "weight_decay"])
def test_a_class_refuses_values_of_several(name, value):
    w = torch.ones(3, requires_grad=True)
    optimizer = optcore.SGD([w], **{"lr": 0.1, name: value}, use_accelerated_op=True)
    w.grad = torch.ones(3)
    message = rf"^SGD\(use_accelerated_op=True\): expected {name} as one number or 0-d tensor"
    with pytest.raises(NotImplementedError, match=message):
        optimizer.step()
    assert torch.equal(w, torch.ones(3))


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("lr", [[0.1], torch.full((3,), 0.1), lambda count: torch.full((3,), 0.1)])
def test_a_function_refuses_values_of_several(lr, inplace):
    tx = optcore.sgd(lr, use_accelerated_op=True)
    params = [torch.ones(3)]
    state = tx.init(params)
    message = r"^sgd\(use_accelerated_op=True\): expected lr as one number"
    with pytest.raises(NotImplementedError, match=message):
        tx.step(params, state, params, inplace=inplace)
    assert torch.equal(params[0], torch.ones(3))


HELD = {
    "in a chain": lambda tx: optcore.chain(optcore.clip(0.5), tx),
    "masked": lambda tx: optcore.masked(tx, True),
    "accumulated": lambda tx: optcore.multi_steps(tx, 1),
    "if finite": lambda tx: optcore.apply_if_finite(tx, 3),
}


@pytest.mark.parametrize("name", HELD)
def test_inside_other_transformations_it_is_a_multiplication(name):
    found = []
    for fast in (True, False):
        tx = HELD[name](optcore.sgd(0.1, use_accelerated_op=fast))
        params = [torch.arange(3.0), torch.ones(2)]
        found.append(tx.step(list(params), tx.init(params), params, inplace=True)[0])
    assert all(map(torch.equal, *found))


class Net(nn.Module):
    def __init__(self, device):
        super().__init__()
        self.w, self.b, _ = map(nn.Parameter, start(device))

    def forward(self, scale=1.0):
        return ((self.w * scale) @ self.w.T).sin().sum() + (self.w * self.b).sin().square().sum()


def derivatives(options, fast, device):
    optdiff = pytest.importorskip("optdiff")
    net, scale = Net(device), torch.tensor(1.2, requires_grad=True)
    optimizer = optdiff.MetaSGD(net, **options, use_accelerated_op=fast)
    for _ in range(4):
        optimizer.step(net(scale))
    first = torch.autograd.grad(net(), scale, create_graph=True)
    return net.w, net.b, *first, *torch.autograd.grad(first, scale)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_meta_steps_equal_those_without_kernels(options, calls, device):
    found = [derivatives(options, fast, device) for fast in (True, False)]
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
    assert calls == ["gradient descent"] * 4


def test_a_momentum_set_to_zero_in_mid_training(device):
    params, twins = start(device), start(device)
    ours = optcore.SGD(params, lr=0.03, momentum=0.9, use_accelerated_op=True)
    theirs = torch.optim.SGD(twins, lr=0.03, momentum=0.9)
    for optimizer, own in ((ours, params), (theirs, twins)):
        walk(optimizer, own, 5)
        optimizer.param_groups[0]["momentum"] = 0.0
        walk(optimizer, own, 5)
    torch.testing.assert_close(params, twins, rtol=1e-12, atol=1e-12)
