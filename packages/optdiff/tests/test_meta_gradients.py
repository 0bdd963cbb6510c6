# SPDX-License-Identifier: Apache-2.0
"""Meta-gradients equal finite differences and a hand-written loop."""

import pytest
import torch
from torch import nn

import optcore
import optdiff

OPTIMIZERS = {
    "sgd": (optdiff.MetaSGD, {"lr": 0.1}),
    "momentum": (optdiff.MetaSGD, {"lr": 0.05, "momentum": 0.8}),
    "nesterov": (
        optdiff.MetaSGD,
        {"lr": 0.05, "momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
    ),
    "adam": (optdiff.MetaAdam, {"lr": 0.05, "eps": 1e-3}),
    "adamw": (optdiff.MetaAdamW, {"lr": 0.05, "eps": 1e-3, "weight_decay": 0.2}),
}
STEPS = [1, 3, 10]


class Net(nn.Module):
    """A small network with a ragged set of parameters."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 4)
        self.outer = nn.Linear(4, 2, bias=False)
        self.gain = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return self.outer(torch.tanh(self.inner(x))) * self.gain


@pytest.fixture(params=OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def optimizer(request):
    return request.param


def problem():
    torch.manual_seed(5)
    net = Net()
    phi = torch.randn(3).requires_grad_()  # scales the inputs of the inner loss
    data = [torch.randn(6, 3) for _ in range(2)]
    targets = [torch.randn(6, 2) for _ in range(2)]
    return net, phi, data, targets


def inner_loss(net, phi, data, targets):
    return (net(data[0] * phi) - targets[0]).square().mean() + (phi * net.gain).sin().sum() / 9


def outer_loss(net, data, targets):
    return (net(data[1]) - targets[1]).square().mean()


def meta_loss(optimizer, steps, net, phi, data, targets):
    cls, options = optimizer
    meta = cls(net, **options)
    for _ in range(steps):
        meta.step(inner_loss(net, phi, data, targets))
    return outer_loss(net, data, targets)


@pytest.mark.parametrize("steps", STEPS)
def test_equals_central_finite_differences(optimizer, steps):
    net, phi, data, targets = problem()
    inputs = [phi, *net.parameters()]
    start = optdiff.extract_state_dict(net)
    found = torch.autograd.grad(meta_loss(optimizer, steps, net, phi, data, targets), inputs)
    directions = [torch.randn_like(t) for t in inputs]

    def value(h):
        moved = [
            (t + h * d).detach().requires_grad_() for t, d in zip(inputs, directions, strict=True)
        ]
        optdiff.recover_state_dict(net, start)
        for (name, _), new in zip(list(net.named_parameters()), moved[1:], strict=True):
            owner, _, leaf = name.rpartition(".")
            net.get_submodule(owner)._parameters[leaf] = new
        return meta_loss(optimizer, steps, net, moved[0], data, targets).item()

    h = 1e-5
    numeric = (value(h) - value(-h)) / (2 * h)
    exact = sum((g * d).sum() for g, d in zip(found, directions, strict=True)).item()
    assert exact == pytest.approx(numeric, rel=1e-6)
    assert all(g.abs().max() > 0 for g in found)


def hand_written(cls, options, steps, net, phi, data, targets):
    """The same loop in plain torch on a dict of tensors, formulas as the papers print them."""
    params = dict(net.named_parameters())
    lr, decay = options["lr"], options.get("weight_decay", 0.01 if cls is optdiff.MetaAdamW else 0)
    first = {k: torch.zeros_like(p) for k, p in params.items()}
    second = {k: torch.zeros_like(p) for k, p in params.items()}

    def call(x):
        return torch.func.functional_call(net, params, (x,))

    for t in range(1, steps + 1):
        loss = (call(data[0] * phi) - targets[0]).square().mean()
        loss = loss + (phi * params["gain"]).sin().sum() / 9
        grads = dict(
            zip(params, torch.autograd.grad(loss, params.values(), create_graph=True), strict=True)
        )
        for k, p in list(params.items()):
            if cls is optdiff.MetaSGD:
                g = grads[k] + decay * p
                mu = options.get("momentum", 0.0)
                first[k] = mu * first[k] + g
                params[k] = p - lr * (g + mu * first[k] if options.get("nesterov") else first[k])
                continue
            first[k] = 0.9 * first[k] + 0.1 * grads[k]
            second[k] = 0.999 * second[k] + 0.001 * grads[k] ** 2
            m, v = first[k] / (1 - 0.9**t), second[k] / (1 - 0.999**t)
            params[k] = p - lr * decay * p - lr * m / (v.sqrt() + options["eps"])
    return (call(data[1]) - targets[1]).square().mean()


@pytest.mark.parametrize("steps", STEPS)
def test_equals_a_hand_written_loop(optimizer, steps):
    net, phi, data, targets = problem()
    inputs = [phi, *net.parameters()]
    expected = torch.autograd.grad(hand_written(*optimizer, steps, net, phi, data, targets), inputs)
    found = torch.autograd.grad(meta_loss(optimizer, steps, net, phi, data, targets), inputs)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_second_meta_derivative_equals_finite_differences_of_the_first(optimizer):
    net, phi, data, targets = problem()
    start = optdiff.extract_state_dict(net)

    def gradient(at):
        optdiff.recover_state_dict(net, start)
        loss = meta_loss(optimizer, 3, net, at, data, targets)
        return torch.autograd.grad(loss, at, create_graph=True)[0]

    direction = torch.randn(3)
    (found,) = torch.autograd.grad(gradient(phi) @ direction, phi)
    h = 1e-5
    ends = [gradient((phi + s * h * direction).detach().requires_grad_()) for s in (1, -1)]
    torch.testing.assert_close(found, (ends[0] - ends[1]) / (2 * h), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["lr", "eps", "weight_decay", "betas"])
def test_learned_hyperparameters(name):
    net, phi, data, targets = problem()
    start = optdiff.extract_state_dict(net)
    base = {"lr": 0.05, "eps": 1e-3, "weight_decay": 0.2, "betas": (0.9, 0.99)}

    def loss(value):
        optdiff.recover_state_dict(net, start)
        options = {**base, name: (value, 0.99) if name == "betas" else value}
        return meta_loss((optdiff.MetaAdamW, options), 3, net, phi, data, targets)

    at = base[name][0] if name == "betas" else base[name]
    h = 1e-6 * max(at, 1e-2)
    value = torch.tensor(at, requires_grad=True)
    (found,) = torch.autograd.grad(loss(value), value)
    numeric = (loss(at + h) - loss(at - h)).item() / (2 * h)
    assert found.item() == pytest.approx(numeric, rel=1e-6)


def test_first_order_takes_inner_gradients_as_constants():
    net, phi, data, targets = problem()
    start = list(net.parameters())
    meta = optdiff.MetaAdam(net, lr=0.05, first_order=True)
    for _ in range(3):
        meta.step(inner_loss(net, phi, data, targets))
    end = list(net.parameters())
    loss = outer_loss(net, data, targets)
    at_end = torch.autograd.grad(loss, end, retain_graph=True)
    for a, b in zip(torch.autograd.grad(loss, start), at_end, strict=True):
        assert torch.equal(a, b)
    assert not any(leaf.requires_grad for leaf in meta.state_dict()[0][0].mu.values())


def test_exactly_zero_gradient_coordinate_is_finite_and_equal_to_the_limit():
    net = nn.Linear(3, 1, bias=False)
    x = torch.tensor([[1.0, 0.0, -2.0]])  # the middle weight never gets a gradient
    phi = torch.ones(3, requires_grad=True)
    init = net.weight
    meta = optdiff.MetaAdam(net, lr=0.1)
    for _ in range(3):
        meta.step((net.weight * phi * x).square().sum())
    found = torch.autograd.grad(net.weight.square().sum(), [phi, init])
    assert all(g.isfinite().all() for g in found)
    # its update is 0 whatever phi is, so phi has no effect and the weight passes through
    assert found[0][1] == 0
    assert found[1][0, 1] == 2 * init[0, 1]


@pytest.mark.parametrize("tx", [optcore.adam(lr=0.1, eps=1e-3), optcore.sgd(lr=0.1, momentum=0.9)])
def test_any_transformation_makes_a_meta_optimizer(tx):
    net, phi, data, targets = problem()
    meta = optdiff.MetaOptimizer(net, optcore.chain(optcore.scale(0.5), tx))
    meta.step(inner_loss(net, phi, data, targets))
    assert torch.autograd.grad(outer_loss(net, data, targets), phi)[0].abs().min() > 0


# Muon takes matrices only; noise and signs go by the order of the leaves, and a dict is sorted
NOT_HERE = ("MetaMuon", "MetaNoisySGD", "MetaSophia")
ROWS = {n for n, value in vars(optdiff).items() if getattr(value, "row", None) is not None}
EVERY = sorted(ROWS - {*NOT_HERE})


@pytest.mark.parametrize("name", EVERY)
def test_every_meta_class_takes_the_step_of_its_functional_form(name):
    net, phi, data, targets = problem()
    cls = getattr(optdiff, name)
    before = dict(net.named_parameters())
    meta = cls(net, lr=0.05)
    loss = inner_loss(net, phi, data, targets)
    grads = torch.autograd.grad(loss, before.values(), create_graph=True)
    tx = cls.row.factory(lr=0.05)
    named = dict(zip(before, grads, strict=True))
    updates, _ = tx.update(named, tx.init(before), before, inplace=False, value=loss)
    expected = optcore.apply_updates(before, updates)
    meta.step(loss)
    for key, value in net.named_parameters():
        torch.testing.assert_close(value, expected[key], rtol=1e-12, atol=1e-12)
        assert not value.is_leaf


def test_meta_sophia_is_told_the_objective_of_parameters_by_name():
    net = nn.Linear(2, 1, bias=False)
    start, rate = net.weight, torch.tensor(0.1, requires_grad=True)
    meta = optdiff.MetaSophia(
        net, lr=rate, eps=1e-3, gamma=1.0, weight_decay=0.0, clip_threshold=None, update_interval=1
    )
    for _ in range(2):  # the first estimate serves the second step
        loss = net.weight.pow(4).sum()
        meta.step(loss, obj_fn=lambda params: params["weight"].pow(4).sum())
    found = torch.autograd.grad(net.weight.sum(), (start, rate))
    assert all(g.isfinite().all() and g.abs().min() > 0 for g in found)
