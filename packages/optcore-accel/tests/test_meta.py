# SPDX-License-Identifier: Apache-2.0
"""The Meta classes of optdiff take their steps with kernels, derivatives included."""

import pytest
import torch
from torch import nn

import optcore

optdiff = pytest.importorskip("optdiff")

STEPS = 50
# name: torch's class and its options, ours
CASES = {
    "SGD": (torch.optim.SGD, {}, {"lr": 0.03, "momentum": 0.8, "dampening": 0.3}),
    "Adam": (torch.optim.Adam, {}, {"lr": 0.03, "weight_decay": 0.1, "eps": 1e-3}),
    "AdamW": (torch.optim.AdamW, {}, {"lr": 0.03, "weight_decay": 0.1, "maximize": True}),
    "AMSGrad": (torch.optim.Adam, {"amsgrad": True}, {"lr": 0.05, "betas": (0.9, 0.6)}),
    "RMSprop": (torch.optim.RMSprop, {}, {"lr": 0.01, "momentum": 0.5, "centered": True}),
    "Adagrad": (torch.optim.Adagrad, {}, {"lr": 0.1, "lr_decay": 0.05}),
}


class Net(nn.Module):
    def __init__(self, device):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.w = nn.Parameter(torch.randn(3, 2, generator=generator).to(device))
        self.b = nn.Parameter(torch.randn(2, generator=generator).to(device))

    def forward(self, scale=1.0):
        w, b = self.w * scale, self.b
        return ((w @ w.T).sin().sum() + (w * b).sin().square().sum() + b.cos().sum()) / 3


@pytest.mark.parametrize("name", CASES)
def test_steps_equal_torch(name, device):
    theirs, extra, options = CASES[name]
    net, twin = Net(device), Net(device)
    optimizer = getattr(optdiff, "Meta" + name)(net, **options, use_accelerated_op=True)
    other = theirs(twin.parameters(), **options, **extra)
    for _ in range(STEPS):
        optimizer.step(net())
        optdiff.stop_gradient(net)
        optdiff.stop_gradient(optimizer)
        other.zero_grad()
        twin().backward()
        other.step()
    for a, b in zip((net.w, net.b), twin.parameters(), strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-12, atol=1e-12)


def derivatives(name, options, device, fast):
    """First and second derivative of a loss after four steps in a factor of the inner loss."""
    net = Net(device)
    scale = torch.tensor(1.2, device=device, requires_grad=True)
    optimizer = getattr(optdiff, "Meta" + name)(net, **options, use_accelerated_op=fast)
    for _ in range(4):
        optimizer.step(net(scale))
    first = torch.autograd.grad(net(), scale, create_graph=True)
    return *first, *torch.autograd.grad(first, scale)


@pytest.mark.parametrize("name", CASES)
def test_derivatives_equal_those_without_kernels(name, device):
    fast, plain = (derivatives(name, CASES[name][2], device, f) for f in (True, False))
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-12)


def test_a_learned_rate(device):
    found = []
    for fast in (True, False):
        net, rate = Net(device), torch.tensor(0.1, device=device, requires_grad=True)
        optimizer = optdiff.MetaOptimizer(
            net, optcore.adamw(lr=rate, eps=1e-3, use_accelerated_op=fast)
        )
        for _ in range(3):
            optimizer.step(net())
        first = torch.autograd.grad(net(), rate, create_graph=True)
        found.append((*first, *torch.autograd.grad(first, rate)))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)
