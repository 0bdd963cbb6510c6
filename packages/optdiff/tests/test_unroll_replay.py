# SPDX-License-Identifier: Apache-2.0
"""Recomputed steps see what they saw the first time: random numbers, modules, autocast."""

import random
import re
from functools import partial

import pytest
import torch
from torch import nn

import optdiff

DTYPE = torch.float32  # autocast leaves float64 alone


def network(**options):
    torch.manual_seed(0)
    parts = [nn.Linear(3, 4), nn.BatchNorm1d(4, **options), nn.Dropout(0.4), nn.Linear(4, 1)]
    return nn.Sequential(*parts).to(DTYPE)


def sgd_step(net, x, y):
    def step(params, i, phi):
        value = (torch.func.functional_call(net, params, (x * phi,)) - y).square().mean()
        grads = torch.autograd.grad(value, tuple(params.values()), create_graph=True)
        return {k: p - 0.2 * g for (k, p), g in zip(params.items(), grads, strict=True)}

    return step


def run(net, checkpoint, between=lambda: None, cast=False):
    """Derivatives of the loop, and what it leaves behind."""
    torch.manual_seed(4)
    x, y = torch.randn(8, 3, dtype=DTYPE), torch.randn(8, 1, dtype=DTYPE)
    phi = torch.ones(3, dtype=DTYPE, requires_grad=True)
    params = dict(net.named_parameters())
    step = sgd_step(net, x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cast):
        last = optdiff.unroll(step, params, 7, phi, checkpoint=checkpoint)
    after = [buffer.clone() for buffer in net.buffers()]
    following = torch.rand(3)
    between()
    value = sum(p.square().sum() for p in last.values())
    found = torch.autograd.grad(value, [phi, *params.values()])
    return found, after, list(net.buffers()), following, torch.rand(3)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("checkpoint", ["sqrt", 1, 7])
def test_dropout_and_batch_norm(checkpoint, momentum):
    found, after, final, *random = run(network(momentum=momentum), checkpoint)
    plain, expected, _, *expected_random = run(network(momentum=momentum), None)
    close(found, plain)
    assert found[0].abs().max() > 1e-2
    close(after, expected)
    close(final, expected)  # going backward counted nothing twice
    assert all(torch.equal(a, b) for a, b in zip(random, expected_random, strict=True))


def test_running_statistics_are_those_of_the_step():
    """In eval mode the buffers enter the derivative; they change before the backward pass."""
    results = []
    for checkpoint in (None, "sqrt"):
        net = network().eval()
        net[1].running_mean.fill_(0.5)
        replace = partial(setattr, net[1], "running_mean", torch.full((4,), 9.0, dtype=DTYPE))
        results.append(run(net, checkpoint, replace)[0])
    close(results[1], results[0])


def test_the_training_flag_is_that_of_the_step():
    nets = [network(), network()]
    results = [
        run(net, checkpoint, net.eval) for net, checkpoint in zip(nets, (None, "sqrt"), strict=True)
    ]
    close(results[1][0], results[0][0])
    assert not nets[1].training
    assert not nets[1][2].training


def test_autocast():
    plain, _, _, *_ = run(network(), None, cast=True)
    found, _, _, *_ = run(network(), "sqrt", cast=True)
    exact, _, _, *_ = run(network(), "sqrt")
    close(found, plain)
    assert (found[1] - exact[1]).abs().max() > 1e-4


@pytest.mark.parametrize("inner", ["autograd", "func"])
def test_statistics_that_change_and_then_count(inner):
    """Batch normalisation overwrites its statistics without a new version."""

    def derivative(loss, w):
        return torch.autograd.grad(loss(w), w, create_graph=True)[0]

    take = {"autograd": derivative, "func": lambda loss, w: torch.func.grad(loss)(w)}[inner]
    x = torch.randn(6, 4) + 2

    def loop(run):
        torch.manual_seed(0)
        parts = [nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1)]
        net = nn.Sequential(*parts).requires_grad_(False)
        net[1].running_mean.fill_(0.5)
        last = 4 if inner == "autograd" else 0  # torch.func.grad refuses to train it

        def step(w, i, lr):
            net.train(i < last)
            return w - lr * take(lambda w: net(x * w).square().mean(), w)

        lr = torch.tensor(0.1, requires_grad=True)
        return run(step, torch.full((4,), 0.3, requires_grad=True), 8, lr)

    def reverse(checkpoint):
        def run(step, w, steps, lr):
            value = optdiff.unroll(step, w, steps, lr, checkpoint=checkpoint).pow(3).sum()
            return value.detach(), torch.autograd.grad(value, lr)[0]

        return run

    def forward(step, w, steps, lr):
        return optdiff.forward_hypergradient(lambda w, lr: w.pow(3).sum(), step, w, steps, lr)

    expected = loop(reverse(None))
    for run in (reverse("sqrt"), reverse(1), reverse(8), forward):
        torch.testing.assert_close(loop(run), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("checkpoint", ["sqrt", 2])
def test_buffers_in_the_carry_are_left_alone(checkpoint):
    def loop(checkpoint):
        net = network()
        torch.manual_seed(4)
        x = torch.randn(8, 3, dtype=DTYPE)
        phi = torch.ones(3, dtype=DTYPE, requires_grad=True)
        state = {name: buffer.clone() for name, buffer in net.named_buffers()}
        first = {name: buffer.clone() for name, buffer in state.items()}

        def step(carry, i, phi):
            total, buffers = carry
            out = torch.func.functional_call(net, {**frozen, **buffers}, (x * phi,))
            return total + out.square().mean(), buffers

        frozen = {name: p.detach() for name, p in net.named_parameters()}
        zero = torch.zeros((), dtype=DTYPE)
        total, buffers = optdiff.unroll(step, (zero, state), 5, phi, checkpoint=checkpoint)
        return torch.autograd.grad(total, phi)[0], buffers, state, first

    found, buffers, state, first = loop(checkpoint)
    plain, expected, _, _ = loop(None)
    close(found, plain)
    close(buffers, expected)
    assert all(torch.equal(state[name], first[name]) for name in state)


def test_a_generator_in_args():
    def loop(checkpoint):
        generator = torch.Generator().manual_seed(5)
        w = torch.ones(3, requires_grad=True)

        def step(w, i, generator):
            return w * torch.rand(3, generator=generator)

        last = optdiff.unroll(step, w, 5, generator, checkpoint=checkpoint)
        torch.rand(2, generator=generator)
        return torch.autograd.grad(last.sum(), w)[0], torch.rand(2, generator=generator)

    assert all(torch.equal(a, b) for a, b in zip(loop(None), loop(2), strict=True))


def test_a_buffer_that_two_modules_share():
    class Count(nn.Module):
        def __init__(self, seen):
            super().__init__()
            self.register_buffer("seen", seen)

        def forward(self, x):
            self.seen += 1
            return x * self.seen.clone()

    def loop(checkpoint):
        seen = torch.zeros(())
        a, b = Count(seen), Count(seen)
        w = torch.ones(2, requires_grad=True)
        last = optdiff.unroll(lambda w, i: a(w) + b(w).sin(), w, 6, checkpoint=checkpoint)
        (found,) = torch.autograd.grad(last.sum(), w)
        assert a.seen is seen
        assert b.seen is seen
        return found, seen

    torch.testing.assert_close(loop(2), loop(None), rtol=1e-12, atol=0)


def test_unrolls_inside_unrolls():
    def loop(outer, inner):
        net = network()
        torch.manual_seed(6)
        phi = torch.ones(3, dtype=DTYPE, requires_grad=True)
        x, y = torch.randn(8, 3, dtype=DTYPE), torch.randn(8, 1, dtype=DTYPE)
        step = sgd_step(net, x, y)

        def outer_step(params, i, phi):
            return optdiff.unroll(step, params, 3, phi, checkpoint=inner)

        params = dict(net.named_parameters())
        last = optdiff.unroll(outer_step, params, 4, phi, checkpoint=outer)
        value = sum(p.square().sum() for p in last.values())
        return torch.autograd.grad(value, phi)[0], list(net.buffers())

    close(loop("sqrt", 2), loop(None, None))


SCALE = torch.linspace(0.5, 2, 3, dtype=torch.float64)


def of_an_iterator():
    batches = iter([SCALE * k for k in range(99)])
    return (lambda w, i, lr: w - lr * next(batches) * w.sin()), (), lambda: None


def of_python():
    draw = random.Random(0).random
    return (lambda w, i, lr: w - lr * draw() * w.sin()), (), lambda: None


def of_a_generator():
    own = torch.Generator().manual_seed(0)
    return (lambda w, i, lr: w - lr * w.sin() * torch.rand(3, generator=own)), (), lambda: None


def of_data():
    scale = SCALE.clone()
    return (lambda w, i, lr: w - lr * scale.clone() * w.sin()), (), lambda: scale.mul_(3)


def of_a_buffer():
    seen = SCALE.clone()
    return (lambda w, i, lr: w - lr * w.sin() * seen.add_(1).clone()), (), lambda: None


def of_args():
    def step(w, i, lr, seen):
        return w - lr * w.sin() * seen.add_(1).clone()

    return step, (SCALE.clone(),), lambda: None


def of_a_method():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.ones(()))

        def loss(self, w):  # no __call__, so no hook sees it
            return self.scale.mul_(1.5).clone() * w.sin()

    net = Net()
    return (lambda w, i, lr: w - lr * net.loss(w)), (), lambda: None


CHANGING = [of_an_iterator, of_python, of_a_generator, of_data, of_a_buffer, of_args, of_a_method]


@pytest.mark.parametrize("make", CHANGING)
@pytest.mark.parametrize("checkpoint", [1, 2, 4])
def test_a_step_that_does_not_repeat_itself(make, checkpoint):
    step, args, afterwards = make()
    w, lr = torch.ones(3, requires_grad=True), torch.tensor(0.1, requires_grad=True)
    last = optdiff.unroll(step, w, 4, lr, *args, checkpoint=checkpoint)
    afterwards()
    message = (
        "unroll: expected step to repeat itself when it is run again, got another carry at step 3; "
        "pass random numbers and data through args, and leave what steps read as it is until the"
    )
    with pytest.raises(RuntimeError, match="^" + re.escape(message)):
        torch.autograd.grad(last.sum(), lr)


def test_a_step_that_does_not_repeat_itself_in_forward_mode():
    step, _, _ = of_python()
    with pytest.raises(RuntimeError, match=r"^forward_hypergradient: expected step to repeat itse"):
        optdiff.forward_hypergradient(
            lambda w, lr: w.sum(), step, torch.ones(3), 4, torch.tensor([0.1, 0.2, 0.3])
        )


def test_what_is_no_number_repeats_itself():
    strange = torch.tensor([1.0, float("nan"), float("inf")])
    w = torch.ones(3, requires_grad=True)
    last = optdiff.unroll(lambda w, i: w * strange + 0 * torch.rand(3), w, 4, checkpoint=2)
    assert torch.autograd.grad(last[0], w)[0][0] == 1


def test_a_result_may_be_overwritten():
    w = torch.ones(3, requires_grad=True)
    last = optdiff.unroll(lambda w, i: w * 2, w, 4, checkpoint=2)
    last.mul_(3)
    assert torch.equal(torch.autograd.grad(last.sum(), w)[0], torch.full((3,), 48.0))
