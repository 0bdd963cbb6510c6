# SPDX-License-Identifier: Apache-2.0
"""replay gives the derivatives of the plain loop, whatever it keeps and wherever."""

import importlib.util
import itertools
from functools import partial
from math import comb

import pytest
import torch
from torch import nn

import optcore
import optdiff

ACCELERATED = pytest.param(
    True,
    marks=pytest.mark.skipif(
        importlib.util.find_spec("optcore_accel") is None, reason="optcore-accel is not installed"
    ),
)
ROWS, BATCH = 24, 8


def network(*parts):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), *parts, nn.Linear(5, 2))


OPTIMIZERS = {
    "sgd": lambda lr, **options: optcore.sgd(lr, **options),
    "momentum": lambda lr, **options: optcore.sgd(lr, momentum=0.9, **options),
    "adamw": lambda lr, **options: optcore.adamw(lr, eps=1e-3, **options),
    "clipped": lambda lr, **options: optcore.chain(
        optcore.clip_by_global_norm(0.3), optcore.adamw(lr, eps=1e-3, **options)
    ),
}


def training(net, optimizer, num_steps, **options):
    """A step, its start, and its arguments: weights of examples and a learning rate schedule."""
    torch.manual_seed(1)
    x, y = torch.randn(ROWS, 3), torch.randint(2, (ROWS,))
    weights = torch.ones(ROWS, requires_grad=True)
    rates = torch.linspace(0.05, 0.01, num_steps).requires_grad_()

    def step(carry, i, weights, rates):
        params, state = carry
        rows = torch.arange(i * BATCH, (i + 1) * BATCH) % ROWS
        out = torch.func.functional_call(net, params, (x[rows],))
        losses = nn.functional.cross_entropy(out, y[rows], reduction="none")
        found = torch.autograd.grad(
            (weights[rows] * losses).mean(), tuple(params.values()), create_graph=True
        )
        tx = OPTIMIZERS[optimizer](rates[i], **options)
        updates, state = tx.update(dict(zip(params, found, strict=True)), state, params)
        return optcore.apply_updates(params, updates), state

    params = dict(net.named_parameters())
    init = params, OPTIMIZERS[optimizer](0.1, **options).init(params)
    return step, init, (weights, rates)


def metagradient(loop, make, num_steps, **options):
    """Value and derivatives of the loop, the buffers it leaves, and the next random number."""
    step, init, args = make(num_steps)
    torch.manual_seed(2)
    params, _ = loop(step, init, num_steps, *args, **options)
    value = sum((p.square() * (k + 1)).sum() for k, p in enumerate(params.values()))
    after = torch.rand(2)
    found = torch.autograd.grad(value, [*args, *init[0].values()])
    return value.detach(), found, after, torch.rand(2)


def agree(make, num_steps, **options):
    expected = metagradient(optdiff.unroll, make, num_steps)
    found = metagradient(optdiff.replay, make, num_steps, **options)
    assert expected[1][0].abs().max() > 1e-4
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


BODIES = {
    "dropout": lambda: network(nn.Tanh(), nn.Dropout(0.3)),
    "batch norm": lambda: network(nn.BatchNorm1d(5), nn.ReLU()),
    "both": lambda: network(nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.3)),
}


@pytest.mark.parametrize("num_steps", [1, 2, 8])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_equals_the_plain_loop(optimizer, num_steps):
    agree(lambda steps: training(BODIES["both"](), optimizer, steps), num_steps)


@pytest.mark.parametrize("body", BODIES)
def test_bodies(body):
    agree(lambda steps: training(BODIES[body](), "clipped", steps), 37)


def test_two_hundred_steps():
    agree(lambda steps: training(BODIES["both"](), "clipped", steps), 200)


@pytest.mark.slow
@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_two_hundred_steps_of_each(optimizer, body):
    agree(lambda steps: training(BODIES[body](), optimizer, steps), 200)


@pytest.mark.parametrize("accelerated", [False, ACCELERATED])
@pytest.mark.parametrize("num_steps", [8, 37, pytest.param(200, marks=pytest.mark.slow)])
def test_accelerated_operations(accelerated, num_steps):
    def make(steps):
        net = BODIES["both"]()
        return training(net, "adamw", steps, use_accelerated_op=accelerated)

    agree(make, num_steps)


WAYS = [
    {"checkpoint": 1},
    {"checkpoint": 3},
    {"checkpoint": 100},
    {"branching": 7},
    {"offload": "cpu"},
    {"offload": "disk"},
]


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_what_is_kept_changes_nothing(options):
    agree(lambda steps: training(BODIES["both"](), "clipped", steps), 23, **options)


def test_autocast():
    torch.set_default_dtype(torch.float32)  # autocast leaves float64 alone

    def make(steps):
        return training(network(nn.Tanh()), "sgd", steps)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = metagradient(optdiff.unroll, make, 9)
        step, init, args = make(9)
        params, _ = optdiff.replay(step, init, 9, *args)
        value = sum((p.square() * (k + 1)).sum() for k, p in enumerate(params.values()))
    found = torch.autograd.grad(value, [*args, *init[0].values()])  # outside of autocast
    torch.testing.assert_close(found, plain[1], rtol=1e-5, atol=1e-7)
    exact = metagradient(optdiff.unroll, make, 9)
    assert (found[0] - exact[1][0]).abs().max() > 1e-5


def test_a_generator_in_args():
    def run(loop):
        own = torch.Generator().manual_seed(5)
        w = torch.ones(3, requires_grad=True)
        last = loop(lambda w, i, own: w.sin() * torch.rand(3, generator=own) + w, w, 9, own)
        return torch.autograd.grad(last.sum(), w)[0], torch.rand(2, generator=own)

    torch.testing.assert_close(run(optdiff.replay), run(optdiff.unroll), rtol=1e-12, atol=0)


def test_buffers_are_those_of_the_step_and_stay_those_of_the_first_run():
    """Statistics that later steps read enter the derivative; going backward counts none twice."""

    def run(loop):
        net = nn.Sequential(nn.BatchNorm1d(3), nn.Tanh()).requires_grad_(False)
        x = torch.linspace(-1, 2, 12).reshape(4, 3)

        def step(w, i, lr):
            net.train(i % 3 < 2)
            return w - lr * net(x * w).square().mean(0)

        lr = torch.tensor(0.1, requires_grad=True)
        last = loop(step, torch.full((3,), 0.5, requires_grad=True), 11, lr)
        before = [buffer.clone() for buffer in net.buffers()]
        net.eval()
        (found,) = torch.autograd.grad(last.pow(3).sum(), lr)
        return found, before, list(net.buffers()), torch.tensor(net[0].training)

    # the plain loop is no reference: batch normalisation overwrites what its graph has saved
    expected = run(partial(optdiff.unroll, checkpoint=1))
    torch.testing.assert_close(run(optdiff.replay), expected, rtol=1e-10, atol=0)


def test_a_buffer_in_the_carry_that_the_step_overwrites():
    def run(loop, **options):
        def step(carry, i, phi):
            w, seen = carry
            seen += 1
            return (w * phi).sin() + seen.clone(), seen

        phi, seen = torch.tensor(0.7, requires_grad=True), torch.zeros(3)
        w = torch.ones(3, requires_grad=True)
        last, total = loop(step, (w, seen), 9, phi, **options)
        return *torch.autograd.grad(last.sum(), [w, phi]), total.clone(), seen

    *expected, _ = run(optdiff.unroll, checkpoint=1)
    *found, untouched = run(optdiff.replay)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert torch.equal(untouched, torch.zeros(3))


def test_trees_of_all_sorts():
    def run(loop):
        both = torch.full((2,), 0.9, requires_grad=True)  # in the carry and in the args
        tied = torch.ones(2, requires_grad=True)
        count = torch.tensor(3)

        def step(carry, i, phi, extra):
            (a, b), n, none, name = carry
            return (b * phi["scale"], a + both_of(phi)), n + 1, none, name

        def both_of(phi):
            return phi["both"] * 2

        phi = {"scale": torch.tensor(0.8, requires_grad=True), "both": both}
        init = (tied, tied), count, None, "name"
        (a, b), n, *rest = loop(step, init, 6, phi, "extra")
        found = torch.autograd.grad((a + 2 * b).sum(), [tied, phi["scale"], both])
        first, *_ = loop(lambda w, i, p: w * p, both, 3, both)
        return found, n, torch.autograd.grad(first, both)[0], len(rest)

    torch.testing.assert_close(run(optdiff.replay), run(optdiff.unroll), rtol=1e-12, atol=0)


def test_what_a_step_hands_through():
    def run(loop):
        anchor, phi = torch.full((2,), 0.5, requires_grad=True), torch.ones(2, requires_grad=True)

        def step(carry, i, phi):
            w, anchor, _ = carry
            return w - 0.1 * (w - anchor * phi).sin(), anchor, phi

        last = loop(step, (torch.ones(2, requires_grad=True), anchor, anchor), 9, phi)
        return torch.autograd.grad(
            sum((k + 1) * t.sum() for k, t in enumerate(last)), [anchor, phi]
        )

    torch.testing.assert_close(run(optdiff.replay), run(optdiff.unroll), rtol=1e-12, atol=0)


def test_arguments_are_not_copied():
    data, seen = torch.ones(3), []

    def step(w, i, data):
        seen.append(data.data_ptr())
        return w * data

    optdiff.replay(step, torch.ones(3, requires_grad=True), 9, data).sum().backward()
    assert set(seen) == {data.data_ptr()}


def test_unrolls_and_replays_inside_steps():
    def run(outer, inner):
        def step(w, i, phi):
            return inner(lambda w, j, phi: (w * phi + 0.1 * j).sin() + torch.rand(2), w, 3, phi)

        torch.manual_seed(3)
        phi = torch.tensor(0.7, requires_grad=True)
        last = outer(step, torch.ones(2, requires_grad=True), 7, phi)
        return torch.autograd.grad(last.sum(), phi)[0]

    def checkpointed(*args):
        return optdiff.unroll(*args, checkpoint=2)

    expected = run(optdiff.unroll, optdiff.unroll)
    for inner in (checkpointed, optdiff.replay):
        torch.testing.assert_close(run(optdiff.replay, inner), expected, rtol=1e-12, atol=0)


def test_several_backward_passes():
    net = BODIES["both"]()
    step, init, args = training(net, "adamw", 13)
    params, _ = optdiff.replay(step, init, 13, *args)
    values = [p.square().sum() for p in params.values()]
    one_by_one = [torch.autograd.grad(v, args, retain_graph=True) for v in values]
    at_once = torch.autograd.grad(sum(values), args)
    for index, expected in enumerate(at_once):
        found = sum(grads[index] for grads in one_by_one)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


def test_backward_accumulates():
    w, lr = torch.ones(2, requires_grad=True), torch.tensor(0.1, requires_grad=True)
    optdiff.replay(lambda w, i, lr: w - lr * w, w, 5, lr).sum().backward()
    torch.testing.assert_close(w.grad, torch.full((2,), 0.9**5))
    torch.testing.assert_close(lr.grad, torch.tensor(-10 * 0.9**4))


def test_gradcheck():
    def loop(w, phi):
        return optdiff.replay(lambda w, i, phi: (w * phi + 0.2 * i).sin() + w, w, 7, phi)

    inputs = torch.ones(3, requires_grad=True), torch.tensor(0.6, requires_grad=True)
    assert torch.autograd.gradcheck(loop, inputs)


def test_nothing_to_differentiate():
    w = torch.ones(2)
    assert not optdiff.replay(lambda w, i: w + 1, w, 3).requires_grad
    assert optdiff.replay(lambda w, i: w + 1, w, 0) is w
    with torch.no_grad():
        last = optdiff.replay(lambda w, i: w + 1, w.requires_grad_(), 3)
    assert not last.requires_grad


def test_a_loss_without_the_arguments():
    w, phi = torch.ones(2, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    last = optdiff.replay(lambda c, i, phi: (c[0] + 1, c[1] * phi), (w, w * 1), 4, phi)
    found = torch.autograd.grad(last[0].sum(), [w, phi])
    assert torch.equal(found[0], torch.ones(2))
    assert found[1] == 0


def steps_run(num_steps, kept):
    """How often steps run forward, by the best plan there is for so many kept carries."""
    best = {(1, k): 0 for k in range(kept + 1)}
    best |= {(n, 0): n * (n - 1) // 2 for n in range(1, num_steps + 1)}
    for n, k in itertools.product(range(2, num_steps + 1), range(1, kept + 1)):
        best[n, k] = min(m + best[n - m, k - 1] + best[m, k] for m in range(1, n))
    return best[num_steps, kept]


@pytest.mark.parametrize(("num_steps", "kept"), [(1, 1), (2, 1), (9, 2), (30, 1), (47, 3), (60, 9)])
def test_no_plan_runs_fewer_steps(num_steps, kept):
    ran = []

    def step(w, i):
        ran.append(i)
        return w.sin()

    last = optdiff.replay(step, torch.ones(1, requires_grad=True), num_steps, checkpoint=kept)
    assert len(ran) == num_steps
    last.backward(retain_graph=True)
    ran.clear()
    last.backward()  # from the start again: to each step, and once with a graph
    assert len(ran) == steps_run(num_steps, kept) + num_steps


@pytest.mark.parametrize(("branching", "levels"), [(2, 7), (3, 5), (10, 3)])
def test_branching_trades_memory_for_time(branching, levels):
    ran = [0] * 1000

    def step(w, i):
        ran[i] += 1
        return w + 1

    optdiff.replay(step, torch.ones(1, requires_grad=True), 1000, branching=branching).backward()
    assert comb(branching * levels, levels) >= 1000
    assert max(ran) <= levels + 2  # towards steps after it, and once with a graph


def grad_in(at, value):
    return torch.autograd.grad(value, at, create_graph=True)[0]


def by_args(c, a):
    return 0.5 * c + 0.1 * grad_in(a, (c * a.exp()).sum())


def by_average(carry, a):
    w, average = carry
    g = grad_in(w, ((w * a - 1).square() + (w - 2 * average).square()).sum())
    w = w - 0.1 * g
    return w, 0.9 * average + 0.1 * w


def apart(tree):
    """The carry as replay gives it to a step: each leaf without a way to the others."""
    if isinstance(tree, tuple):
        return tuple(map(torch.clone, tree))
    return tree.clone()


@pytest.mark.parametrize(
    ("body", "start"), [(by_args, lambda w: w), (by_average, lambda w: (w, w * 2))]
)
def test_gradients_inside_a_step_are_of_that_step_alone(body, start):
    """As in a plain loop with fresh tensors in every step, whose gradients stay in it too."""

    def run(loop, fresh):
        w, a = torch.linspace(0.5, 1, 3).requires_grad_(), torch.full((3,), 0.8, requires_grad=True)

        def step(carry, i, a):
            return body(apart(carry), a.clone()) if fresh else body(carry, a)

        last = loop(step, start(w.clone()), 5, a)
        last = last[0] if isinstance(last, tuple) else last
        return last.detach(), *torch.autograd.grad(last.sum(), [w, a])

    expected = run(optdiff.unroll, True)
    torch.testing.assert_close(run(optdiff.replay, False), expected, rtol=1e-12, atol=0)
    assert not torch.allclose(run(optdiff.unroll, False)[0], expected[0])
