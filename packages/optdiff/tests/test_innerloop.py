# SPDX-License-Identifier: Apache-2.0
"""innerloop_ctx: a copy of a module, stepped differentiably where an optimizer of torch stands."""

import copy
import re

import pytest
import torch
from torch import nn

import optcore
import optdiff

X, Y = torch.linspace(-1, 1, 24).view(8, 3).double(), torch.linspace(0, 1, 8).view(8, 1).double()


def model():
    torch.manual_seed(9)
    return nn.Sequential(
        nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)
    ).double()


def loss(net):
    return (net(X) - Y).square().mean()


def train(net, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        loss(net).backward()
        optimizer.step()


def groups(net):
    return [{"params": net[0].parameters(), "lr": 0.02}, {"params": net[3].parameters()}]


OPTIMIZERS = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    "Adam": {"lr": 0.1, "amsgrad": True},
    "AdamW": {"lr": 0.1},
    "RMSprop": {"momentum": 0.5},
    "Adagrad": {},
    "Adadelta": {},
    "NAdam": {},
    "RAdam": {},
    "Adamax": {},
    "ASGD": {},
    "Rprop": {},
    "Adafactor": {},
}


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS.items())
@pytest.mark.parametrize("before", [0, 2])
def test_goes_on_where_the_optimizer_stands(name, options, before):
    net = model()
    optimizer = getattr(torch.optim, name)(groups(net), **options)
    train(net, optimizer, before)
    kept = copy.deepcopy(net.state_dict())
    with optdiff.innerloop_ctx(net, optimizer) as (fnet, diffopt):
        for _ in range(3):
            diffopt.step(loss(fnet))
    torch.testing.assert_close(net.state_dict(), kept, rtol=0, atol=0)
    train(net, optimizer, 3)
    torch.testing.assert_close(fnet.state_dict(), net.state_dict(), rtol=1e-8, atol=1e-10)


def test_gradients_reach_the_module_or_the_copy():
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    names = [name for name, _ in net.named_parameters()]
    with optdiff.innerloop_ctx(net, optimizer, copy_initial_weights=False) as (fnet, diffopt):
        new = diffopt.step(loss(fnet))
        assert all(a is b for a, b in zip(new, fnet.parameters(), strict=True))
        loss(fnet).backward()
    found = [p.grad for p in net.parameters()]
    net.zero_grad()
    with optdiff.innerloop_ctx(net, optimizer) as (fnet, diffopt):
        first = list(fnet.parameters())
        diffopt.step(loss(fnet))
        loss(fnet).backward()
    assert all(p.grad is None for p in net.parameters())
    torch.testing.assert_close([p.grad for p in first], found)
    meta = optdiff.MetaSGD(net, lr=0.1)
    start = list(net.parameters())
    meta.step(loss(net))
    expected = torch.autograd.grad(loss(net), start)
    torch.testing.assert_close(dict(zip(names, found)), dict(zip(names, expected)))


def test_learned_hyperparameters():
    net = model()
    optimizer = torch.optim.Adam(groups(net), lr=0.1)
    rates = [torch.tensor(r, requires_grad=True) for r in (0.02, 0.1)]
    decay = torch.tensor(0.1, requires_grad=True)
    override = {"lr": rates, "weight_decay": [decay]}
    with optdiff.innerloop_ctx(net, optimizer, override=override) as (fnet, diffopt):
        for _ in range(2):
            diffopt.step(loss(fnet))
        found = torch.autograd.grad(loss(fnet), [*rates, decay])
    assert all(g.abs() > 0 for g in found)
    assert optimizer.param_groups[0]["lr"] == 0.02


def test_without_higher_gradients_the_graph_is_cut():
    net = model()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    options = {"copy_initial_weights": False, "track_higher_grads": False}
    with optdiff.innerloop_ctx(net, optimizer, **options) as (fnet, diffopt):
        for _ in range(2):
            diffopt.step(loss(fnet))
        assert all(p.is_leaf and p.requires_grad for p in fnet.parameters())
    train(net, optimizer, 2)
    torch.testing.assert_close(fnet.state_dict(), net.state_dict(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "make",
    [
        lambda net: optcore.adam(lr=0.05),
        lambda net: optcore.Adam(net.parameters(), lr=0.05),
        lambda net: optcore.Optimizer(net.parameters(), optcore.adam(lr=0.05)),
    ],
    ids=["transformation", "class", "Optimizer"],
)
def test_optimizers_of_optcore(make):
    net = model()
    with optdiff.innerloop_ctx(net, make(net)) as (fnet, diffopt):
        for _ in range(2):
            diffopt.step(loss(fnet))
    train(net, torch.optim.Adam(net.parameters(), lr=0.05), 2)
    torch.testing.assert_close(fnet.state_dict(), net.state_dict(), rtol=1e-8, atol=1e-10)


def test_parameters_that_the_optimizer_does_not_have_stay():
    net = model()
    optimizer = torch.optim.SGD(net[0].parameters(), lr=0.1)
    with optdiff.innerloop_ctx(net, optimizer, copy_initial_weights=False) as (fnet, diffopt):
        diffopt.step(loss(fnet))
        assert fnet[3].weight is net[3].weight
        assert fnet[0].weight is not net[0].weight


def test_frozen_parameters_in_the_optimizer_are_skipped():
    net = model()
    net[3].requires_grad_(False)
    optimizer = torch.optim.SGD(groups(net), lr=0.1)
    with optdiff.innerloop_ctx(net, optimizer, copy_initial_weights=False) as (fnet, diffopt):
        diffopt.step(loss(fnet))
        assert fnet[3].weight is net[3].weight
        assert torch.autograd.grad(loss(fnet), net[0].weight)[0].abs().sum() > 0


def test_one_value_overrides_every_group():
    net = model()
    lr = torch.tensor(0.3, requires_grad=True)
    results = []
    for given in (lr, [lr]):
        optimizer = torch.optim.SGD(groups(net), lr=0.1)
        with optdiff.innerloop_ctx(net, optimizer, override={"lr": given}) as (fnet, diffopt):
            diffopt.step(loss(fnet))
            results.append(torch.autograd.grad(loss(fnet), lr)[0])
    assert results[0] == results[1] != 0


def test_a_callback_changes_the_gradients():
    net = model()
    results = []
    for lr, callback in ((0.2, None), (0.1, lambda grads: [2 * g for g in grads])):
        optimizer = torch.optim.SGD(net.parameters(), lr=lr)
        with optdiff.innerloop_ctx(net, optimizer, copy_initial_weights=False) as (fnet, diffopt):
            diffopt.step(loss(fnet), grad_callback=callback)
            results.append(torch.autograd.grad(loss(fnet), list(net.parameters())))
    torch.testing.assert_close(results[0], results[1])


def sgd(net, **options):
    return torch.optim.SGD(net.parameters(), lr=0.1, **options)


ERRORS = [
    (lambda net: (3, sgd(net)), {}, TypeError, "expected an nn.Module, got int"),
    (
        lambda net: (net, "sgd"),
        {},
        TypeError,
        "expected a torch.optim.Optimizer or a GradientTransformation, got str",
    ),
    (
        lambda net: (net, sgd(model())),
        {},
        ValueError,
        "expected an optimizer of parameters of the module, got others of shapes [[4, 3], [4], "
        "[4], [1, 4], [1]], in group 0 of SGD",
    ),
    (
        lambda net: (net, sgd(net)),
        {"override": {"rate": [0.1]}},
        ValueError,
        "expected override of one of ['dampening', ",
    ),
    (
        lambda net: (net, sgd(net)),
        {"override": {"lr": [0.1, 0.2]}},
        ValueError,
        "expected override['lr'] of 1 or 1 values, one per group, got 2",
    ),
    (
        lambda net: (net, optcore.sgd(lr=0.1)),
        {"override": {"lr": [0.1]}},
        ValueError,
        "expected no override with a transformation, got ['lr']; give the tensors to the",
    ),
]


@pytest.mark.parametrize(("make", "options", "error", "message"), ERRORS)
def test_errors(make, options, error, message):
    with (
        pytest.raises(error, match="^" + re.escape(f"innerloop_ctx: {message}")),
        optdiff.innerloop_ctx(*make(model()), **options),
    ):
        pass


def test_a_refused_step_changes_nothing():
    net = model()
    with optdiff.innerloop_ctx(net, sgd(net)) as (fnet, diffopt):
        first = list(fnet.parameters())
        with pytest.raises(ValueError, match=r"DifferentiableOptimizer.step: expected a loss that"):
            diffopt.step(loss(net))
        assert all(a is b for a, b in zip(fnet.parameters(), first, strict=True))
