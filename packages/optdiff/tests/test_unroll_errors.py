# SPDX-License-Identifier: Apache-2.0
"""Bad input of unroll gets one clear error; nothing is silently constant."""

import re
from collections import deque
from contextvars import ContextVar
from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

import optdiff

W = torch.ones(3, dtype=torch.float64)


def halve(w, i, *args):
    return w / 2


OPTIONS = [
    ((3, W, 2), {}, TypeError, "unroll: expected a callable step, got int"),
    ((halve, W, -1), {}, ValueError, "unroll: expected num_steps >= 0, got -1"),
    ((halve, W, 2.0), {}, TypeError, "unroll: expected num_steps as an integer >= 0, got float"),
    ((halve, W, True), {}, TypeError, "unroll: expected num_steps as an integer >= 0, got bool"),
    (
        (halve, W, 0),
        {"has_aux": True},
        ValueError,
        "unroll: expected num_steps >= 1, got 0",
    ),
    ((halve, W, 2), {"truncate": 0}, ValueError, "unroll: expected truncate >= 1, got 0"),
    ((halve, W, 2), {"checkpoint": 0}, ValueError, "unroll: expected checkpoint >= 1, got 0"),
    (
        (halve, W, 2),
        {"checkpoint": "log"},
        TypeError,
        "unroll: expected checkpoint as None, 'sqrt' or an integer >= 1, got 'log'",
    ),
    (
        (lambda w, i: [w], W, 2),
        {},
        ValueError,
        "unroll: expected step to return a carry like the one it got, ",
    ),
    (
        (lambda w, i: (w, w), W, 2),
        {"checkpoint": 1},
        ValueError,
        "unroll: expected step to return a carry like the one it got, ",
    ),
    (
        (halve, W, 2),
        {"has_aux": True},
        TypeError,
        "unroll: expected step to return (carry, output) for has_aux=True, got Tensor, at step 0",
    ),
    (
        (lambda w, i: (w, 1.0), W, 2),
        {"has_aux": True},
        TypeError,
        "unroll: expected outputs as trees of tensors, got a float leaf",
    ),
    (
        (lambda w, i: (w, w[:i]), W, 2),
        {"has_aux": True},
        ValueError,
        "unroll: expected outputs of one shape in every step, got [(0,), (1,)]; put what grows",
    ),
    (
        (lambda w, i: None, W, 2),
        {},
        TypeError,
        "unroll: expected step to return a tensor where init has one, got None, at step 0; return",
    ),
    (
        (lambda c, i: {"w": c["w"] if i < 1 else 3.0, "k": None}, {"w": W, "k": None}, 2),
        {"checkpoint": 2},
        TypeError,
        "unroll: expected step to return a tensor where init has one, got float, at ['w'], at step",
    ),
]


@pytest.mark.parametrize(("args", "options", "error", "message"), OPTIONS)
def test_options(args, options, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        optdiff.unroll(*args, **options)


def test_a_changed_structure_names_the_step():
    with pytest.raises(ValueError, match=r"at step 2; to return \(carry, output\) set has_aux"):
        optdiff.unroll(lambda w, i: {0: w, 1: w, 2: [w]}[i], W, 5, checkpoint="sqrt")


PHI = torch.ones(3, dtype=torch.float64, requires_grad=True)
DERIVED = PHI * 2
NET = nn.Linear(3, 3, dtype=torch.float64)
HELD = {"list": [PHI]}


class Bound:
    def __init__(self, phi):
        self.phi = phi

    def step(self, w, i):
        return w * self.phi


CLOSED_OVER = {
    "leaf": lambda w, i: w * PHI,
    "derived": lambda w, i: w * DERIVED,
    "in a container": lambda w, i: w * HELD["list"][0],
    "returned": lambda w, i: PHI,
    "module": lambda w, i: NET(w),
    "method": Bound(PHI).step,
    "partial": partial(lambda phi, w, i: w * phi, PHI),
    "through gradients only": lambda w, i: w - torch.func.grad(lambda w: (w * PHI).sum())(w),
}


@pytest.mark.parametrize("step", CLOSED_OVER.values(), ids=CLOSED_OVER.keys())
@pytest.mark.parametrize("w", [W, W.clone().requires_grad_()], ids=["constant", "learned"])
def test_closed_over_tensors_under_checkpoint(step, w):
    message = (
        "unroll: expected a step that under checkpoint gets everything to be differentiated from "
        "its carry and args, got one that reads another tensor f"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        optdiff.unroll(step, w, 4, checkpoint=2)
    assert optdiff.unroll(step, w, 4).requires_grad


def test_a_module_in_args_under_checkpoint():
    message = (
        "unroll: expected the tensors of args in trees under checkpoint, got a step that reads "
        "'weight' float64[3, 3] of the module Linear in args, at step 0; pass "
        "dict(module.named_parameters()) too, and call the module by torch.func.functional_call"
    )
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        optdiff.unroll(lambda w, i, net: net(w), W, 4, NET, checkpoint=2)


def test_a_module_in_args_that_is_called_with_other_parameters():
    def step(w, i, net, params):
        return torch.func.functional_call(net, params, (w,)).tanh()

    params = dict(NET.named_parameters())
    found, expected = (
        torch.autograd.grad(
            optdiff.unroll(step, W, 4, NET, params, checkpoint=c).sum(), params["weight"]
        )
        for c in (2, None)
    )
    torch.testing.assert_close(found, expected)


def test_a_closed_over_tensor_in_a_later_step():
    with pytest.raises(ValueError, match=r"float64\[3\] that requires grad, at step 3; pass that"):
        optdiff.unroll(lambda w, i: w * (1, 1, 1, PHI)[i], W, 4, checkpoint=2)


def over(step_of):
    return lambda phi: optdiff.unroll(step_of(phi), torch.ones(3), 4, checkpoint=2).sum()


def in_a_dual_level(f):
    with forward_ad.dual_level():
        return f(forward_ad.make_dual(W.clone(), W))


def by_level(f):
    """A sum over a vmap, to be differentiated around it."""
    return lambda w: torch.func.vmap(f)(torch.stack([w, w])).sum()


UNDER = {
    "grad": lambda f: torch.func.grad(f)(W),
    "jvp": lambda f: torch.func.jvp(f, (W,), (W,)),
    "dual level": in_a_dual_level,
    "vmap": lambda f: torch.func.vmap(f)(torch.ones(2, 3)),
    "vmap of grad": lambda f: torch.func.vmap(torch.func.grad(f))(torch.ones(2, 3)),
    "vmap of jacfwd": lambda f: torch.func.vmap(torch.func.jacfwd(f))(torch.ones(2, 3)),
    "grad of vmap": lambda f: torch.func.grad(by_level(f))(W),
    "hessian": lambda f: torch.func.hessian(f)(W),
}


class Slot:
    __slots__ = ("phi",)

    def __init__(self, phi):
        self.phi = phi

    def __call__(self, w, i):
        return w * self.phi


SHELF = {}
CONTEXT = ContextVar("phi")


def on_the_shelf(phi):
    SHELF["phi"] = phi
    return lambda w, i: w * SHELF["phi"]


def in_the_context(phi):
    CONTEXT.set(phi)
    return lambda w, i: w * CONTEXT.get()


def in_a_deque(phi):
    held = deque([phi])
    return lambda w, i: w * held[0]


@pytest.mark.parametrize("transform", UNDER.values(), ids=UNDER.keys())
@pytest.mark.parametrize(
    "step_of",
    [
        lambda phi: lambda w, i: w * phi,
        lambda phi: Bound(phi).step,
        lambda phi: partial(lambda held, w, i: w * held[0], [phi * 2]),
        lambda phi: lambda w, i, phi=phi: w * phi,
        Slot,
        on_the_shelf,
        in_the_context,
        in_a_deque,
        lambda phi: lambda w, i: phi,
        lambda phi: lambda w, i: w - torch.func.grad(lambda w: (w * phi).sum())(w),
        lambda phi: lambda w, i: torch.func.vmap(torch.mul)(w[None], phi[None])[0],
    ],
    ids=[
        "closure",
        "method",
        "partial",
        "default",
        "slot",
        "global",
        "context",
        "deque",
        "result",
        "grad",
        "vmap",
    ],
)
def test_closed_over_tensors_of_a_transform(transform, step_of):
    with pytest.raises(ValueError, match="expected a step that under checkpoint gets everything"):
        transform(over(step_of))


def test_closed_over_parameters_under_vmap():
    with pytest.raises(ValueError, match="expected a step that under checkpoint gets everything"):
        torch.func.vmap(lambda w: optdiff.unroll(lambda w, i: w * PHI, w, 4, checkpoint=2))(
            torch.ones(2, 3)
        )


def test_what_a_step_makes_for_itself_is_its_own():
    def step(w, i):
        inner = w.detach().requires_grad_()
        (g,) = torch.autograd.grad((inner**2).sum(), inner, create_graph=True)
        return w - 0.1 * g * inner

    w = W.clone().requires_grad_()
    found = torch.autograd.grad(optdiff.unroll(step, w, 4, checkpoint=2).sum(), w)
    torch.testing.assert_close(found, (torch.ones(3),))


def test_parameters_of_a_net_that_is_called_with_others_are_no_matter():
    frozen = {name: p.detach() for name, p in NET.named_parameters()}

    def step(w, i):
        return torch.func.functional_call(NET, frozen, (w,)).tanh()

    w = W.clone().requires_grad_()
    found, expected = (
        torch.autograd.grad(optdiff.unroll(step, w, 4, checkpoint=c).sum(), w) for c in (2, None)
    )
    torch.testing.assert_close(found, expected)


def test_a_frozen_parameter_that_changes_before_the_backward_pass():
    net = nn.Linear(3, 3).requires_grad_(False)
    w = W.clone().requires_grad_()
    last = optdiff.unroll(lambda w, i: net(w), w, 4, checkpoint=2)
    net.weight.mul_(2)
    message = (
        "unroll: expected parameters that steps read to stay as they were until the backward "
        "pass, got one overwritten, at 'weight' of Linear; go backward before changing it"
    )
    with pytest.raises(RuntimeError, match=re.escape(message)):
        last.sum().backward()


def test_a_start_that_is_overwritten_before_the_backward_pass():
    w = W.clone().requires_grad_()
    last = optdiff.unroll(halve, w * 2, 4, torch.ones(1).requires_grad_(), checkpoint=2)
    torch.autograd.grad(last.sum(), w)
    start = w * 2
    last = optdiff.unroll(halve, start, 4, checkpoint=2)
    start.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        last.sum().backward()


NEAR = "unroll: expected a carry of tensors, got the module Linear; carry dict(module.named_p"


@pytest.mark.parametrize("options", [{"checkpoint": "sqrt"}, {"truncate": 1}], ids=str)
def test_a_module_in_the_carry(options):
    with pytest.raises(TypeError, match="^" + re.escape(NEAR)):
        optdiff.unroll(lambda net, i: net, nn.Linear(3, 1), 3, **options)


def test_a_module_that_a_step_trains():
    net = nn.Linear(3, 1)
    before = list(net.parameters())

    def step(total, i, lr):
        loss = net(W).square().sum()
        optdiff.MetaSGD(net, lr=lr).step(loss)
        return total + loss.detach()

    lr = torch.tensor(0.1, requires_grad=True)
    message = (
        "unroll: expected steps that leave the parameters of modules as they are, got one replaced,"
        " at 'weight' of Linear; carry dict(module.named_parameters()), and call the module by"
    )
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        optdiff.unroll(step, torch.zeros(()), 3, lr, checkpoint="sqrt")
    assert before[0] is not net.weight


def test_a_module_trained_before_may_be_called_with_other_parameters():
    net = nn.Linear(3, 1)
    optdiff.MetaSGD(net, lr=0.1).step(net(W).square().sum())

    def step(params, i):
        value = torch.func.functional_call(net, params, (W,)).square().sum()
        grads = torch.autograd.grad(value, tuple(params.values()), create_graph=True)
        return {k: p - 0.1 * g for (k, p), g in zip(params.items(), grads, strict=True)}

    params = {name: p.detach().requires_grad_() for name, p in net.named_parameters()}
    last = [optdiff.unroll(step, params, 4, checkpoint=c)["weight"].sum() for c in (None, 2)]
    found = [torch.autograd.grad(value, params["weight"]) for value in last]
    torch.testing.assert_close(found[1], found[0])
