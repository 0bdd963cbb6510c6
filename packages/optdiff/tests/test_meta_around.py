# SPDX-License-Identifier: Apache-2.0
"""Meta optimizers around any other, and the one whose bases are constants."""

import re

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

import optcore
import optdiff

X, Y = torch.linspace(-1, 1.5, 12).view(4, 3).double(), torch.linspace(0, 2, 8).view(4, 2).double()


def problem():
    torch.manual_seed(0)
    net = nn.Linear(3, 2).double()
    weight, phi = net.weight.detach().clone().requires_grad_(), torch.full((3,), 0.9)
    numbers = (torch.tensor(v).requires_grad_() for v in (0.05, 0.2))
    return net, optdiff.extract_state_dict(net), (weight, phi.requires_grad_(), *numbers)


def inner(net, phi):
    return (net(X * phi).tanh() - Y).square().mean()


def outer(net):
    return (net(X) - Y).square().mean()


def bases(lr):
    return {
        "momentum": optcore.sgd(lr=lr, momentum=0.7, weight_decay=0.1),
        "adam": optcore.adam(lr=lr, eps=1e-2),
        "told": optcore.polyak_sgd(lr=lr, max_lr=9.0),
    }


def by_sam(base, net, start, weight, phi, lr, rho, **options):
    optdiff.recover_state_dict(net, start)
    net._parameters["weight"] = weight
    meta = optdiff.MetaSAM(net, bases(lr)[base], rho=rho, **options)
    for _ in range(2):
        meta.step(lambda: inner(net, phi))
    return outer(net)


@pytest.mark.parametrize("base", bases(0.1))
def test_sam_is_differentiated_through_both_gradients(base):
    net, start, at = problem()
    assert gradcheck(lambda *at: by_sam(base, net, start, *at), at)
    assert gradgradcheck(lambda *at: by_sam(base, net, start, *at), at)


def test_sam_takes_the_steps_of_the_paper():
    net, start, (_, phi, lr, rho) = problem()
    params = dict(net.named_parameters())
    meta = optdiff.MetaSAM(net, optcore.sgd(lr=lr), rho=rho)
    for _ in range(3):

        def slopes(params):
            scores = nn.functional.linear(X * phi, params["weight"], params["bias"])
            value = (scores.tanh() - Y).square().mean()
            found = torch.autograd.grad(value, [*params.values()], create_graph=True)
            return dict(zip(params, found, strict=True))

        first = slopes(params)
        norm = sum(g.square().sum() for g in first.values()).sqrt()
        second = slopes({k: p + rho * first[k] / norm for k, p in params.items()})
        params = {k: p - lr * second[k] for k, p in params.items()}
        meta.step(lambda: inner(net, phi))
    torch.testing.assert_close(dict(net.named_parameters()), params, rtol=1e-12, atol=1e-12)
    optdiff.recover_state_dict(net, start)


def test_the_radius_of_sam_may_follow_a_schedule():
    net, start, (_, phi, lr, _) = problem()
    scheduled = optdiff.MetaSAM(net, optcore.sgd(lr=lr), rho=lambda count: 0.1 * (count + 1))
    for _ in range(3):
        scheduled.step(lambda: inner(net, phi))
    found = net.weight
    optdiff.recover_state_dict(net, start)
    for rho in (0.1, 0.2, 0.3):
        optdiff.MetaSAM(net, optcore.sgd(lr=lr), rho=rho).step(lambda: inner(net, phi))
    torch.testing.assert_close(found, net.weight, rtol=1e-12, atol=1e-12)


def test_sam_of_first_order_takes_both_gradients_as_constants():
    net, start, at = problem()
    found = torch.autograd.grad(by_sam("adam", net, start, *at, first_order=True), at[0])
    expected = torch.autograd.grad(outer(net), net.weight)  # the step is the identity
    torch.testing.assert_close(found, expected)


def test_sam_evaluates_twice_and_leaves_the_module_at_the_new_parameters():
    net, _, (_, phi, *_) = problem()
    seen = []

    def loss():
        seen.append(net.weight)
        return inner(net, phi)

    meta = optdiff.MetaSAM(net, optcore.sgd(lr=0.1))
    before = net.weight
    meta.step(loss)
    assert seen[0] is before
    assert not torch.equal(seen[1], before)
    assert len(seen) == 2
    assert net.weight is not seen[1]
    assert torch.autograd.grad(net.weight.sum(), before)[0].abs().sum() > 0


def test_a_loss_that_fails_uphill_leaves_module_and_state_of_sam():
    net, _, (_, phi, *_) = problem()
    meta = optdiff.MetaSAM(net, optcore.adam(lr=0.1))
    before, state, calls = dict(net.named_parameters()), meta.state_dict(), []

    def loss():
        calls.append(1)
        return [inner(net, phi), torch.ones(2)][len(calls) - 1]

    with pytest.raises(ValueError, match=r"^MetaSAM\.step: expected a scalar loss, got f64\[2\]"):
        meta.step(loss)
    assert all(p is before[name] for name, p in net.named_parameters())
    assert all(a is b for a, b in zip(meta.state_dict(), state, strict=True))


def test_sam_keeps_tied_parameters_tied():
    net = nn.Sequential(nn.Linear(3, 3).double(), nn.Linear(3, 3).double())
    net[1].weight = net[0].weight
    meta = optdiff.MetaSAM(net, optcore.sgd(lr=0.1))
    for _ in range(2):
        meta.step(lambda: net(X).square().mean())
    assert net[1].weight is net[0].weight


def test_around_parameters_without_elements():
    net = nn.Linear(3, 1, bias=False).double()
    net.nothing = nn.Parameter(torch.zeros(0, 2))
    start, steep = net.weight, optdiff.MetaSAM(net, optcore.adam(lr=0.1))
    flat = optdiff.MetaReduceOnPlateau(net, optcore.adam(lr=0.1))
    for _ in range(2):
        steep.step(lambda: net(X).square().mean() + net.nothing.sum())
        flat.step(net(X).square().mean() + net.nothing.sum())
    assert net.nothing.shape == (0, 2)
    assert torch.autograd.grad(net(X).sum(), start)[0].isfinite().all()


ERRORS = [
    (
        lambda net: optdiff.MetaSAM(net, optcore.sgd()).step(net(X).sum()),
        TypeError,
        "MetaSAM.step: expected the loss as a function, got f64[]; it is evaluated twice: step(",
    ),
    (
        lambda net: optdiff.MetaSAM(net, optcore.sgd()).step(lambda: 1.0),
        TypeError,
        "MetaSAM.step: expected a scalar loss tensor, got float",
    ),
    (
        lambda net: optdiff.MetaSAM(net, optcore.sgd()).add_param_group(nn.Linear(1, 1)),
        ValueError,
        "MetaSAM: expected one module, got another: the norm of the gradient is that of all",
    ),
    (
        lambda net: optdiff.MetaSAM(net, "sgd"),
        TypeError,
        "MetaSAM: expected a GradientTransformation, got str; e.g. optcore.adam(lr=0.1)",
    ),
    (
        lambda net: optdiff.MetaSAM(net, optcore.sgd(), rho=-1),
        ValueError,
        "MetaSAM: expected rho >= 0, got -1",
    ),
    (
        lambda net: optdiff.MetaSAM(net, optcore.sgd(), rho="far"),
        TypeError,
        "MetaSAM: expected rho as a number, schedule, tensor or tree of such, got str",
    ),
    (
        lambda net: optdiff.MetaSAM(net, optcore.sgd()).step(lambda: net(X).sum(), grad_fn=3),
        TypeError,
        "MetaSAM.step: expected no grad_fn, got int; the gradients uphill come from loss",
    ),
    (
        lambda net: optdiff.MetaReduceOnPlateau(net, 3),
        TypeError,
        "MetaReduceOnPlateau: expected a GradientTransformation, got int; e.g. optcore.adam(",
    ),
    (
        lambda net: optdiff.MetaReduceOnPlateau(net, optcore.sgd(), factor=2.0),
        ValueError,
        "reduce_on_plateau: expected factor in (0, 1), got 2.0",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), ERRORS)
def test_errors_name_what_was_expected(call, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        call(nn.Linear(3, 2).double())


def by_plateau(net, start, weight, phi, lr, decay):
    optdiff.recover_state_dict(net, start)
    net._parameters["weight"] = weight
    base = optcore.adamw(lr=lr, eps=1e-2, weight_decay=decay)
    meta = optdiff.MetaReduceOnPlateau(net, base, factor=0.5, patience=1, atol=9.0)
    for _ in range(3):
        meta.step(inner(net, phi))
    assert meta.state_dict()[0][1].scale == 0.25  # smaller after all steps but the first
    return outer(net)


def test_a_plateau_is_differentiated_in_all_but_its_scale():
    net, start, at = problem()
    assert gradcheck(lambda *at: by_plateau(net, start, *at), at)
    assert gradgradcheck(lambda *at: by_plateau(net, start, *at), at)


def by_soap(net, start, weight, phi, lr, decay, kept=None, steps=5):
    """The outer loss, and the bases of every step; ``kept`` are bases to take instead."""
    optdiff.recover_state_dict(net, start)
    net._parameters["weight"] = weight
    meta = optdiff.MetaSOAP(net, lr=lr, weight_decay=decay, eps=1e-2, precondition_frequency=2)
    bases = []
    for step in range(steps):
        meta.step(inner(net, phi))
        ((own, *rest),) = meta.state_dict()
        bases.append(own.bases)
        frozen = own.bases if kept is None else kept[step]
        meta.load_state_dict([(own._replace(bases=frozen), *rest)])
    return outer(net), bases


def test_soap_is_differentiated_with_its_bases_as_constants():
    net, start, at = problem()
    value, bases = by_soap(net, start, *at)
    matrix = bases[-1]["weight"][0]
    assert not matrix.requires_grad
    assert not torch.allclose(matrix, bases[0]["weight"][0])  # they have turned
    found = torch.autograd.grad(value, at)
    frozen, _ = by_soap(net, start, *at, bases)
    torch.testing.assert_close(found, torch.autograd.grad(frozen, at), rtol=1e-12, atol=1e-12)
    assert gradcheck(lambda *at: by_soap(net, start, *at, bases)[0], at)
    assert gradgradcheck(lambda *at: by_soap(net, start, *at, bases)[0], at)


def test_the_derivative_of_soap_is_not_that_of_the_whole_step():
    net, start, (weight, phi, *numbers) = problem()
    (found,) = torch.autograd.grad(by_soap(net, start, weight, phi, *numbers)[0], phi)
    direction, h = torch.tensor([1.0, -2.0, 0.5]), 1e-5
    ends = [
        by_soap(net, start, weight, (phi + s * h * direction).detach(), *numbers)[0].item()
        for s in (1, -1)
    ]
    assert (ends[0] - ends[1]) / (2 * h) != pytest.approx((found @ direction).item(), rel=1e-2)
