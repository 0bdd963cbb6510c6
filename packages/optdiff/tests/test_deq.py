# SPDX-License-Identifier: Apache-2.0
"""The equilibrium example: its hidden layer is a fixed point, its gradient that of one."""

import importlib
from pathlib import Path

import pytest
import torch
from torch.func import functional_call

EXAMPLES = Path(__file__).parents[1] / "examples"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(EXAMPLES))
    deq, equilibrium = map(importlib.import_module, ("deq", "equilibrium"))

EXACT = equilibrium.equilibrium(tol=1e-13, maxiter=200, backward=1e-13)


@pytest.fixture
def net():
    net = equilibrium.Tied(EXACT, 5, 4)
    with torch.no_grad():
        net.recurrent.weight *= 4  # beyond the bound, which then is part of the derivative
    return net


x = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(3, 5).sin()


def test_the_hidden_layer_does_not_move(net):
    weight, given = net.weight(), net.input(x)
    z = net.hidden(weight, given)
    torch.testing.assert_close(equilibrium.moved(z, weight, given), z, rtol=1e-12, atol=1e-12)


def test_the_bound_holds_and_small_weights_are_left_alone(net):
    norm = torch.linalg.matrix_norm(net.recurrent.weight, 2)
    assert norm > equilibrium.BOUND
    torch.testing.assert_close(torch.linalg.matrix_norm(net.weight(), 2).item(), equilibrium.BOUND)
    with torch.no_grad():
        net.recurrent.weight *= 0.5 * equilibrium.BOUND / norm
    assert torch.equal(net.weight(), net.recurrent.weight)


def test_the_gradient_is_that_of_finite_differences(net):
    names, values = zip(*net.named_parameters(), strict=True)
    start = [value.detach().clone().requires_grad_() for value in values]

    def logits(*parts):
        return functional_call(net, dict(zip(names, parts, strict=True)), (x,))

    assert torch.autograd.gradcheck(logits, start, rtol=1e-6, atol=1e-8, fast_mode=True)


@pytest.mark.parametrize("checkpoint", [None, "sqrt"])
def test_the_gradient_is_that_of_many_unrolled_steps(net, checkpoint):
    weights = list(net.parameters())
    found = torch.autograd.grad(net(x).square().sum(), weights)
    net.hidden = equilibrium.unrolled(800, checkpoint)
    expected = torch.autograd.grad(net(x).square().sum(), weights)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_networks_of_one_shape_have_as_many_weights():
    counts = {
        sum(p.numel() for p in one.parameters())
        for one in (equilibrium.Tied(EXACT, 64, 48), equilibrium.plain(64, 48))
    }
    assert len(counts) == 1


def test_residuals_fall_and_anderson_is_ahead(net):
    falling = deq.residuals(net, x, 12)
    plain, anderson, each = falling.values()
    assert [len(values) for values in falling.values()] == [12, 12, 12]
    assert anderson[-1] < 0.1 * plain[-1]
    assert each[-1] < 0.1 * plain[-1]


def test_memory_grows_with_steps_that_are_unrolled_only():
    images = deq.load(0)[0]

    def peak(hidden):
        return deq.memory(equilibrium.Tied(hidden, 64, 8), images)

    assert peak(equilibrium.unrolled(40)) > 4 * peak(equilibrium.unrolled(5))
    assert peak(equilibrium.equilibrium(0.0, 40)) < 1.1 * peak(equilibrium.equilibrium(0.0, 10))


def test_accuracy_is_the_share_of_test_images_read_correctly():
    net = torch.nn.Linear(10, 10)
    with torch.no_grad():
        net.weight.copy_(100 * torch.eye(10))  # it reads one image of each class, and keeps to it
    images, labels = torch.eye(10), torch.arange(10)
    told = torch.tensor([0, 1, 2, 3, 4, 5, 6, 9, 7, 8])
    data = [deq.Images(images, labels), deq.Images(images, told)]
    assert deq.train(net, data, 1, 0).accuracy == pytest.approx(0.7)
