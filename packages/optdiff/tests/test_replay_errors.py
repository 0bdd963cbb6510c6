# SPDX-License-Identifier: Apache-2.0
"""Bad input of replay gets one clear error; nothing is silently constant."""

import importlib.util
import random
import re

import pytest
import torch
from torch import nn

import optdiff

W = torch.ones(3, dtype=torch.float64)


def halve(w, i, *args):
    return w / 2


OPTIONS = [
    ((3, W, 2), {}, TypeError, "replay: expected a callable step, got int"),
    ((halve, W, -1), {}, ValueError, "replay: expected num_steps >= 0, got -1"),
    ((halve, W, 2.0), {}, TypeError, "replay: expected num_steps as an integer >= 0, got float"),
    ((halve, W, 2), {"checkpoint": 0}, ValueError, "replay: expected checkpoint >= 1, got 0"),
    (
        (halve, W, 2),
        {"checkpoint": "sqrt"},
        TypeError,
        "replay: expected checkpoint as 'log' or an integer >= 1, got 'sqrt'",
    ),
    ((halve, W, 2), {"branching": 1}, ValueError, "replay: expected branching >= 2, got 1"),
    (
        (halve, W, 2),
        {"offload": "tape"},
        ValueError,
        "replay: expected offload=None, 'cpu' or 'disk', got 'tape'",
    ),
    (
        (halve, W, 2),
        {"offload": "cpu", "directory": "somewhere"},
        ValueError,
        "replay: expected a directory with offload='disk' only, got one with offload='cpu'",
    ),
    (
        (halve, W, 2),
        {"offload": "disk", "directory": 3},
        TypeError,
        "replay: expected directory as a path, got int",
    ),
    (
        (halve, nn.Linear(1, 1), 2),
        {},
        TypeError,
        "replay: expected a carry of tensors, got the module Linear; carry "
        "dict(module.named_parameters()), and call it by torch.func.functional_call",
    ),
    (
        (lambda w, i: [w], W, 2),
        {},
        ValueError,
        "replay: expected step to return a carry like the one it got, PyTreeSpec(*, NoneIsLeaf), "
        "got PyTreeSpec([*], NoneIsLeaf), at step 0; "
        "put what else is wanted into the carry",
    ),
    (
        (lambda w, i: None, W, 2),
        {},
        TypeError,
        "replay: expected step to return a tensor where init has one, got None, at step 0",
    ),
]


@pytest.mark.parametrize(("args", "options", "error", "message"), OPTIONS)
def test_options(args, options, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        optdiff.replay(*args, **options)


def test_a_bar_without_rich(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = r"replay\(progress=True\): rich is not installed; pip install 'optdiff\[progress\]'"
    with pytest.raises(ImportError, match="^" + message):
        optdiff.replay(halve, W, 2, progress=True)


def test_a_closed_over_tensor():
    phi = torch.tensor([2.0, 3.0], requires_grad=True)
    message = (
        "replay: expected a step that under checkpoint gets everything to be differentiated from "
        "its carry and args, got one that reads another tensor float64[2] that requires grad, at "
        "step 4; pass that tensor in args, or detach it"
    )

    def step(w, i):
        return w * phi if i == 4 else w * 2

    with pytest.raises(ValueError, match="^" + re.escape(message)):
        optdiff.replay(step, torch.ones(2, requires_grad=True), 9)


def test_parameters_of_a_module_in_args():
    net = nn.Linear(3, 3, bias=False)
    message = "replay: expected the tensors of args in trees under checkpoint, got a step that re"
    with pytest.raises(ValueError, match="^" + message):
        optdiff.replay(lambda w, i, net: net(w), torch.ones(3), 2, net)


def test_what_a_step_makes_for_itself_is_its_own():
    def step(w, i):
        own = torch.full((2,), 3.0, requires_grad=True)
        (found,) = torch.autograd.grad((w * own).sum(), own, create_graph=True)
        return w + found

    w = torch.ones(2, requires_grad=True)
    (found,) = torch.autograd.grad(optdiff.replay(step, w, 3).sum(), w)
    assert torch.equal(found, torch.full((2,), 8.0))


@pytest.mark.parametrize(
    "transform",
    [
        lambda f: torch.func.grad(f)(W),
        lambda f: torch.vmap(f)(W.expand(2, 3)),
        lambda f: torch.func.jvp(f, (W,), (W,)),
    ],
)
def test_transforms(transform):
    message = (
        r"replay: expected no transform of torch.func and no forward mode around it, got one; take "
        r"unroll\(checkpoint='sqrt'\)"
    )
    with pytest.raises(RuntimeError, match="^" + message):
        transform(lambda w: optdiff.replay(halve, w, 3).sum())


def decayed(carry, i, phi):
    return carry.mul_(0.9).add_(phi)


@torch.no_grad()
def decayed_without_a_graph(carry, i, phi):
    return carry.mul_(0.9)


@pytest.mark.parametrize(
    "loop", [optdiff.replay, lambda *args: optdiff.unroll(*args, checkpoint="sqrt")]
)
@pytest.mark.parametrize(
    ("body", "start", "number"),
    [(decayed, W, 1), (decayed_without_a_graph, W.clone().requires_grad_(), 0)],
)
def test_a_step_that_overwrites_its_carry(loop, body, start, number):
    message = (
        r"(replay|unroll): expected step to leave tensors that require grad as they are, got one "
        rf"of its carry or args overwritten, at step {number}; compute a new one, or overwr"
    )
    with pytest.raises(RuntimeError, match="^" + message):
        loop(body, start, 9, torch.ones(3, requires_grad=True))


def last_of(step, num_steps=9, *args):
    w = torch.ones(3, requires_grad=True)
    return w, optdiff.replay(step, w, num_steps, *args).sum()


def test_second_derivatives():
    w, last = last_of(lambda w, i: w.sin())
    message = r"replay: expected a first derivative, got create_graph=True; take unroll\(checkpoin"
    with pytest.raises(RuntimeError, match="^" + message):
        torch.autograd.grad(last, w, create_graph=True)


def test_batches_of_derivatives():
    w, _ = last_of(halve)
    last = optdiff.replay(halve, w, 4)
    message = "replay: expected one derivative at a time, got a batch "
    with pytest.raises(RuntimeError, match=message):
        torch.autograd.grad(last, w, torch.eye(3), is_grads_batched=True)


def of_python():
    draw = random.Random(0).random
    return lambda w, i: w * draw()


def of_an_iterator():
    batches = iter([torch.full((3,), 1 + k / 10) for k in range(99)])
    return lambda w, i: next(batches) * w.sin()


@pytest.mark.parametrize("make", [of_python, of_an_iterator])
def test_a_step_that_does_not_repeat_itself(make):
    w, last = last_of(make())
    message = (
        "replay: expected step to repeat itself when it is run again, got another carry at step 8; "
        "pass random numbers and data through args, and leave what steps read as it is until the"
    )
    with pytest.raises(RuntimeError, match="^" + message):
        torch.autograd.grad(last, w)


def test_data_that_changes_before_the_backward_pass():
    data = torch.linspace(1, 2, 3)
    w, last = last_of(lambda w, i: (w * data.clone()).sin())
    data.mul_(2)
    with pytest.raises(RuntimeError, match=r"^replay: expected step to repeat itself"):
        torch.autograd.grad(last, w)


def test_arguments_that_are_overwritten_before_the_backward_pass():
    phi = torch.tensor([0.5, 1.0, 2.0])
    w, last = last_of(lambda w, i, phi: (w * phi).sin(), 9, phi)
    phi.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(last, w)


def test_a_step_that_overwrites_its_arguments():
    w, last = last_of(lambda w, i, seen: w * seen.add_(0.1).clone(), 9, torch.ones(3))
    with pytest.raises(RuntimeError, match=r"^replay: expected step to repeat itself"):
        torch.autograd.grad(last, w)


def test_a_second_pass_after_the_graph_is_gone():
    w, last = last_of(halve)
    torch.autograd.grad(last, w)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(last, w)


def test_an_error_in_the_backward_pass_can_be_mended():
    broken = []

    def step(w, i):
        if i in broken:
            raise KeyError("lost")
        return w.sin()

    w, last = last_of(step)
    (expected,) = torch.autograd.grad(last, w, retain_graph=True)
    broken.append(3)
    with pytest.raises(KeyError, match="lost"):
        torch.autograd.grad(last, w, retain_graph=True)
    broken.clear()
    assert torch.equal(torch.autograd.grad(last, w)[0], expected)
