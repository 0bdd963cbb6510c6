# SPDX-License-Identifier: Apache-2.0
"""Schedule-free Meta optimizers: outer losses at the average are exact."""

import copy
import re

import pytest
import torch

import optcore
import optdiff

CLASSES = {
    "sgd": (optdiff.MetaScheduleFreeSGD, {"lr": 0.1, "b1": 0.7, "warmup_steps": 2}),
    "adamw": (optdiff.MetaScheduleFreeAdamW, {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-3}),
}


@pytest.fixture(params=CLASSES.values(), ids=CLASSES.keys())
def case(request):
    return request.param


class Product(torch.nn.Module):
    """Two tied owners of one weight, and a gain."""

    def __init__(self, weight, gain):
        super().__init__()
        self.a, self.b = torch.nn.Module(), torch.nn.Module()
        self.a.weight = self.b.weight = torch.nn.Parameter(weight)
        self.gain = torch.nn.Parameter(gain)

    def forward(self, phi):
        return ((self.a.weight * phi).sin() * self.b.weight).sum() * self.gain


def outer(case, phi, weight, gain, steps=3):
    """The loss at the average as a function of everything, by the class."""
    cls, options = case
    net = Product(torch.zeros(2), torch.zeros(()))
    meta = cls(net, **options)
    net.a._parameters["weight"] = net.b._parameters["weight"] = weight
    net._parameters["gain"] = gain
    for _ in range(steps):
        meta.step(net(phi).square())
    with meta.evaluating():
        assert net.a.weight is net.b.weight
        return net(phi + 1).sin()


def inputs():
    values = [0.4, 1.1], [0.7, -0.5], 0.9
    return [torch.tensor(v, requires_grad=True) for v in values]


def test_first_and_second_derivative_at_the_average(case):
    assert torch.autograd.gradcheck(lambda *x: outer(case, *x), inputs())
    assert torch.autograd.gradgradcheck(lambda *x: outer(case, *x, steps=2), inputs())


def test_the_average_is_that_of_the_functional_form(case):
    cls, options = case
    net = Product(torch.tensor([0.7, -0.5]), torch.tensor(0.9))
    params = {"weight": net.a.weight.detach(), "gain": net.gain.detach()}
    meta, tx = cls(net, **options), optcore.OPTIMIZERS[cls.row.name].factory(**options)
    state = tx.init(params)
    for _ in range(4):
        grads = {k: 2 * v for k, v in params.items()}
        updates, state = tx.update(grads, state, params)
        params = optcore.apply_updates(params, updates, inplace=False)
        meta.step(net.a.weight.square().sum() + net.gain.square())
    expected = optcore.schedule_free_eval_params(state, params)
    with meta.evaluating():
        torch.testing.assert_close(net.a.weight.detach(), expected["weight"])
        torch.testing.assert_close(net.gain.detach(), expected["gain"])


def test_training_goes_on_from_the_same_tensors(case):
    cls, options = case
    net = Product(torch.tensor([0.7, -0.5]), torch.tensor(0.9))
    meta = cls(net, **options)
    meta.step(net(1.0))
    before = [net.a.weight, net.gain]
    with pytest.raises(ZeroDivisionError), meta.evaluating():
        net(1 / 0)
    assert net.a.weight is net.b.weight is before[0]
    assert net.gain is before[1]
    meta.step(net(1.0))


@pytest.mark.parametrize("what", ["step", "evaluating"])
def test_nothing_trains_at_the_average(case, what):
    cls, options = case
    net = Product(torch.tensor([0.7, -0.5]), torch.tensor(0.9))
    meta = cls(net, **options)
    calls = {
        "step": lambda: meta.step(net(1.0)),
        "evaluating": lambda: meta.evaluating().__enter__(),
    }
    message = f"{cls.__name__}.{what}: expected parameters to train, got the average; call it after"
    with meta.evaluating(), pytest.raises(RuntimeError, match="^" + re.escape(message)):
        calls[what]()


def test_stopping_inside_leaves_what_was_there_before(case):
    cls, options = case
    net = Product(torch.tensor([0.7, -0.5]), torch.tensor(0.9))
    meta = cls(net, **options)
    meta.step(net(1.0))
    before = [net.a.weight, net.gain]
    with meta.evaluating():
        optdiff.stop_gradient(net, meta)
    assert net.a.weight is net.b.weight is before[0]
    assert net.gain is before[1]
    meta.step(net(1.0))


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, optdiff.module_clone])
def test_no_copy_is_made_at_the_average(case, duplicate):
    cls, options = case
    meta = cls(Product(torch.ones(2), torch.ones(())), **options)
    message = f"^{cls.__name__}.copy: expected parameters to train, got the average; call it after"
    with meta.evaluating(), pytest.raises(RuntimeError, match=message):
        duplicate(meta)
