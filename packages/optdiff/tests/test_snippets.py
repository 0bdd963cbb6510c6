# SPDX-License-Identifier: Apache-2.0
"""The snippets of a TorchOpt user run as they are, with the package's name changed."""

import pytest
import torch
from functorch import make_functional

import optcore
import optdiff

X = torch.linspace(-1, 1, 12).reshape(4, 3)


def model():
    torch.manual_seed(2)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))


def by_functional_call():
    net = model().double()
    names = [name for name, _ in net.named_parameters()]

    def fmodel(params, x):
        return torch.func.functional_call(net, dict(zip(names, params, strict=True)), (x,))

    return fmodel, tuple(net.parameters())


def by_make_functional():
    with pytest.warns(FutureWarning, match="make_functional"):
        fmodel, params = make_functional(model().double())
    return fmodel, params


def functional_snippet(fmodel, params, meta_params, create_graph=True):
    x = X.double()
    opt = optcore.adam()
    state = opt.init(params)
    for _ in range(3):
        loss = (fmodel(params, x * meta_params)).square().mean()
        grads = torch.autograd.grad(loss, params, create_graph=create_graph)
        updates, state = opt.update(grads, state, inplace=False)
        params = optcore.apply_updates(params, updates)
    outer_loss = fmodel(params, x).square().mean()
    return torch.autograd.grad(outer_loss, meta_params, allow_unused=not create_graph)[0]


def oop_snippet(meta_params):
    x = X.double()
    net = model().double()
    opt = optdiff.MetaAdam(net)
    for _ in range(3):
        loss = net(x * meta_params).square().mean()
        opt.step(loss)
    outer = net(x).square().mean()
    outer.backward()
    return meta_params.grad


def test_functional_call_make_functional_and_oop_agree():
    phi = torch.tensor([0.5, 1.0, -1.5], dtype=torch.float64, requires_grad=True)
    found = [
        functional_snippet(*by_functional_call(), phi),
        functional_snippet(*by_make_functional(), phi),
        oop_snippet(phi),
    ]
    assert found[0].abs().min() > 0
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(found[2], found[0], rtol=1e-12, atol=0)


def test_dict_of_parameters():
    net = model().double()
    params = dict(net.named_parameters())
    phi = torch.ones(3, dtype=torch.float64, requires_grad=True)
    opt = optcore.adam()
    state = opt.init(params)
    loss = torch.func.functional_call(net, params, (X.double() * phi,)).square().mean()
    found = torch.autograd.grad(loss, tuple(params.values()), create_graph=True)
    updates, state = opt.update(dict(zip(params, found, strict=True)), state, inplace=False)
    params = optcore.apply_updates(params, updates)
    outer = torch.func.functional_call(net, params, (X.double(),)).square().mean()
    assert torch.autograd.grad(outer, phi)[0].abs().min() > 0


def test_without_create_graph_the_snippet_warns_and_says_what_to_do():
    phi = torch.ones(3, dtype=torch.float64, requires_grad=True)
    with pytest.warns(UserWarning, match=r"call torch.autograd.grad\(..., create_graph=True\)"):
        functional_snippet(*by_functional_call(), phi, create_graph=False)
