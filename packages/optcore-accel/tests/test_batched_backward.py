# SPDX-License-Identifier: Apache-2.0
"""Backward passes over a batch of cotangents: ``is_grads_batched``, ``vectorize=True``."""

import pytest
import torch
from torch.autograd.functional import hessian, jacobian

import optcore

CHAINS = {
    "descent": lambda lr, fast: optcore.sgd(lr, weight_decay=0.1, use_accelerated_op=fast),
    "momentum": lambda lr, fast: optcore.sgd(
        lr, momentum=0.9, weight_decay=0.1, nesterov=True, use_accelerated_op=fast
    ),
    "adamw": lambda lr, fast: optcore.adamw(lr, eps=1e-2, use_accelerated_op=fast),
    "amsgrad": lambda lr, fast: optcore.amsgrad(lr, eps=1e-2, use_accelerated_op=fast),
    "rmsprop": lambda lr, fast: optcore.rmsprop(lr, momentum=0.5, use_accelerated_op=fast),
    "adagrad": lambda lr, fast: optcore.adagrad(lr, eps=1e-2, use_accelerated_op=fast),
    "lion": lambda lr, fast: optcore.lion(lr, use_accelerated_op=fast),
}
START = torch.linspace(-1.5, 2, 4, dtype=torch.float64)
RATE = torch.tensor(0.1, dtype=torch.float64)


def walked(name, fast, device):
    """Three steps as a function of the start and of the rate.

    The steps run on the device, what comes in and goes out is on the CPU.
    """

    def run(w, rate=0.1):
        w = w.to(device)
        tx = CHAINS[name](rate, fast)
        params, state = [w, w.cos().sum()], tx.init([w, w.sum()])
        for _ in range(3):
            grads = [p.sin() + p * p.cos() for p in params]
            params, state = tx.step(grads, state, params, inplace=False)
        return (params[0] * params[1]).cpu()

    return run


def summed(f):
    return lambda *x: f(*x).cos().sum()


def twice(f):
    """A batch of first derivatives, with a graph, and their derivative."""
    w = START.clone().requires_grad_()
    rows = torch.eye(4, dtype=torch.float64).requires_grad_()
    (batch,) = torch.autograd.grad(f(w), w, rows, is_grads_batched=True, create_graph=True)
    return batch, *torch.autograd.grad(batch.sin().sum(), [w, rows])


USES = {
    "jacobian": lambda f: jacobian(f, START, vectorize=True),
    "forward jacobian": lambda f: jacobian(f, START, vectorize=True, strategy="forward-mode"),
    "hessian": lambda f: hessian(summed(f), START, vectorize=True),
    "forward hessian": lambda f: hessian(
        summed(f), START, vectorize=True, outer_jacobian_strategy="forward-mode"
    ),
    "jacobian and its derivative": twice,
    "jacobian in the rate": lambda f: jacobian(f, (START, RATE), vectorize=True),
    "hessian in the rate": lambda f: hessian(summed(f), (START, RATE), vectorize=True),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("name", CHAINS)
def test_batches_equal_those_of_the_formula(name, use, device):
    ours, theirs = (USES[use](walked(name, fast, device)) for fast in (True, False))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Please use `torch.vmap`")  # of gradcheck in torch 2.6
@pytest.mark.parametrize("name", CHAINS)
def test_batches_equal_one_by_one(name, device):
    run, point = walked(name, True, device), START.clone().requires_grad_()
    assert torch.autograd.gradcheck(run, point, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(run, point, check_batched_grad=True)


def test_some_cotangents_of_a_batch(device):
    """Of several results one is asked for: the others have no cotangent."""
    found = []
    for fast in (True, False):
        params = [x.to(device, copy=True).requires_grad_() for x in (START, START[:2])]
        tx = CHAINS["momentum"](0.1, fast)
        moved, state = tx.step([p.sin() for p in params], tx.init(params), params, inplace=False)
        rows, given = torch.eye(2, device=device), [moved[1], state[1].trace[1]]
        found.append(torch.autograd.grad(given, params[1], [rows, rows + 1], is_grads_batched=True))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
