# SPDX-License-Identifier: Apache-2.0
"""Long runs: memory grows with the logarithm of the steps, derivatives stay exact."""

import importlib
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import optcore
import optdiff
import treeops

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(BENCHMARKS))
    Meter = importlib.import_module("bench_unroll_memory").Meter

N = 2000
# Before torch 2.7 the results of a step stay until it has been differentiated: one copy more.
ENDS = 0 if "ownership_token" in torch.autograd.graph.GradientEdge._fields else 1


def cheap_step(w, i, phi):
    return w - 0.1 * (w * phi).sin()


def leaves_of(tree):
    return treeops.tree_leaves(tree, namespace="optcore")


def copies(num_steps, step=cheap_step, start_of=lambda w: w, **options):
    """Peak in copies of the carry."""
    phi = torch.full((), 0.7, requires_grad=True)
    start = start_of(torch.linspace(-1, 1, N, requires_grad=True))
    size = sum(t.nbytes for t in leaves_of(start))
    with Meter() as meter:
        last = optdiff.replay(step, start, num_steps, phi, **options)
        torch.autograd.grad(leaves_of(last)[0].sum(), phi)
    return meter.peak / size


def test_memory_grows_with_the_logarithm():
    found = [copies(steps) for steps in (10, 100, 1000)]
    kept = [2, 4, 6]
    base = found[0] - kept[0]
    for peak, carries in zip(found, kept, strict=True):
        assert peak <= base + carries + 1
    assert found[2] < 20


@pytest.mark.parametrize("checkpoint", [1, 3, 30])
def test_memory_is_what_is_kept(checkpoint):
    assert copies(100, checkpoint=checkpoint) < checkpoint + 9 + ENDS


def test_carries_in_files_take_no_memory():
    assert copies(100, checkpoint=50, offload="disk") < copies(100, checkpoint=1) + 3


def under_autocast(w, i, phi):
    x = torch.ones(1, 40, dtype=torch.float32)
    return w - 0.1 * phi * nn.functional.linear(x, w).float().sum() * w


@pytest.mark.parametrize(
    ("loop", "bound"), [(optdiff.replay, 20), (partial(optdiff.unroll, checkpoint="sqrt"), 60)]
)
def test_memory_under_autocast_around_the_loop(loop, bound):
    """The cache of autocast does not hold a copy of every carry."""
    w = torch.full((40, 40), 1e-3, dtype=torch.float32, requires_grad=True)
    phi = torch.full((), 0.7, dtype=torch.float32, requires_grad=True)
    with Meter() as meter:
        with torch.autocast("cpu", torch.bfloat16):
            last = loop(under_autocast, w, 200, phi)
        torch.autograd.grad(last.sum(), phi)
    assert meter.peak / w.nbytes < bound


def adamw_step(carry, i, phi):
    w, state = carry
    (grad,) = torch.autograd.grad((w * phi).sin().sum(), w, create_graph=True)
    updates, state = optcore.adamw(1e-3, eps=1e-3).update(grad, state, w)
    return optcore.apply_updates(w, updates), state


@pytest.mark.slow
def test_ten_thousand_steps_of_adamw_take_twenty_copies():
    found = [
        copies(steps, adamw_step, lambda w: (w, optcore.adamw(1e-3).init(w)))
        for steps in (100, 1000, 10_000)
    ]
    assert found[-1] <= 20
    assert max(found[1] - found[0], found[2] - found[1]) <= 3.5


@pytest.mark.slow
def test_a_thousand_steps_against_finite_differences():
    torch.manual_seed(0)
    x, y = torch.randn(32, 6), torch.randint(3, (32,))

    def value(weights, rates):
        torch.manual_seed(1)
        net = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 3)
        )

        def step(carry, i, weights, rates):
            params, state = carry
            rows = torch.arange(i * 16, i * 16 + 16) % 32
            losses = nn.functional.cross_entropy(
                torch.func.functional_call(net, params, (x[rows],)), y[rows], reduction="none"
            )
            found = torch.autograd.grad(
                (weights[rows] * losses).mean(), tuple(params.values()), create_graph=True
            )
            tx = optcore.chain(optcore.clip_by_global_norm(1.0), optcore.adamw(rates[i], eps=1e-3))
            updates, state = tx.update(dict(zip(params, found, strict=True)), state, params)
            return optcore.apply_updates(params, updates), state

        params = dict(net.named_parameters())
        tx = optcore.chain(optcore.clip_by_global_norm(1.0), optcore.adamw(0.1))
        params, _ = optdiff.replay(step, (params, tx.init(params)), 1000, weights, rates)
        net[3].eval()  # statistics are those of the batch: running ones have no derivative
        return nn.functional.cross_entropy(torch.func.functional_call(net, params, (x,)), y)

    weights, rates = torch.ones(32), torch.linspace(2e-3, 2e-4, 1000)
    weights.requires_grad_(), rates.requires_grad_()
    found = optdiff.check_smoothness(lambda p: value(*p), (weights, rates), steps=(1e-5,))
    assert found.slopes.abs().min() > 1e-5
    torch.testing.assert_close(found.ratios, torch.ones(3, 1), rtol=1e-4, atol=0)
