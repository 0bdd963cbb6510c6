# SPDX-License-Identifier: Apache-2.0
"""Modules that estimate the gradient of their parameters."""

import copy
import re

import pytest
import torch
from torch import nn

from optdiff import zero_order
from optdiff.nn import ZeroOrderGradientModule

X = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)


class Net(ZeroOrderGradientModule, method="antithetic", num_samples=200, sigma=0.01):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 2)
        self.last = nn.Linear(2, 1)
        self.last.bias.requires_grad_(False)

    def forward(self, batch, *, scale=1.0):
        return self.last(torch.tanh(self.first(batch))).square().mean() * scale

    def sample(self, sample_shape):
        return torch.randn(sample_shape)


class Coordinates(Net, method="finite_difference", sigma=1e-5):
    pass


class Loops(Net, vectorize=False):
    pass


class Twice(Coordinates):
    def forward(self, batch):
        return 2 * super().forward(batch)


def exact(net, scale=1.0):
    plain = net.last(torch.tanh(net.first(X))).square().mean() * scale
    return torch.autograd.grad(plain, [p for p in net.parameters() if p.requires_grad])


def estimate(net, *args, **kwargs):
    wanted = [p for p in net.parameters() if p.requires_grad]
    return torch.autograd.grad(net(*args, **kwargs), wanted)


def test_the_estimate_is_near_the_gradient():
    net = Net()
    truth, found = exact(net), estimate(net, X)
    for a, b in zip(found, truth, strict=True):
        assert (a - b).norm() <= 0.5 * torch.cat([t.flatten() for t in truth]).norm()


@pytest.mark.parametrize(("cls", "factor"), [(Coordinates, 1), (Twice, 2)])
def test_options_are_inherited_and_forward_may_call_its_parent(cls, factor):
    net = cls()
    found = estimate(net, X)
    for a, b in zip(found, exact(net, scale=factor), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_keywords_and_the_value():
    net = Coordinates()
    with torch.no_grad():
        plain = net(X)
    assert net(X, scale=3.0) == 3 * plain
    for a, b in zip(estimate(net, X, scale=3.0), exact(net, scale=3.0), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_loops_and_the_decorator_agree():
    net = Net()
    loops = Loops()
    loops.load_state_dict(net.state_dict())
    parameters = {name: p for name, p in net.named_parameters() if p.requires_grad}

    @zero_order(torch.distributions.Normal(0.0, 1.0), "antithetic", num_samples=200, sigma=0.01)
    def functional(parameters):
        return torch.func.functional_call(plain, parameters, (X,))

    plain = copy.deepcopy(net).requires_grad_(False)

    def seeded(value, module):
        torch.manual_seed(3)
        return torch.autograd.grad(value(), [p for p in module.parameters() if p.requires_grad])

    found = seeded(lambda: net(X), net)
    torch.testing.assert_close(seeded(lambda: loops(X), loops), found)
    by_decorator = seeded(lambda: functional(parameters), net)
    torch.testing.assert_close(by_decorator, found, rtol=1e-4, atol=1e-4)  # noise in float32


def test_functional_calls_under_transforms():
    net = Coordinates()
    parameters = dict(net.named_parameters())
    frozen = {"last.bias": parameters.pop("last.bias")}
    values = {name: p.detach() for name, p in parameters.items()}

    def loss(values, batch):
        return torch.func.functional_call(net, {**values, **frozen}, (batch,))

    found = torch.func.grad(loss)(values, X)
    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(values, torch.stack([X, X]))
    for (name, grad), truth in zip(found.items(), exact(net), strict=True):
        torch.testing.assert_close(grad, truth, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(each[name][1], grad)


class Normalised(ZeroOrderGradientModule, method="antithetic", num_samples=3, vectorize=False):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        return self.norm(x).square().sum()


def test_buffers_count_a_batch_once():
    net = Normalised()
    net(X + 1).backward()
    assert net.norm.num_batches_tracked == 1
    torch.testing.assert_close(net.norm.running_mean, 0.1 * (X + 1).mean(0))
    assert net.norm.weight.grad.shape == (3,)


def test_a_step_per_parameter():
    sigma = {"a": 0.5, "b": torch.tensor(1.0)}

    class Cubes(ZeroOrderGradientModule, method="finite_difference", sigma=sigma):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(2))

        def forward(self):
            return (self.a**3).sum() + (self.b**3).sum()

    a, b = estimate(Cubes())
    torch.testing.assert_close(a, torch.tensor([3.25]))
    torch.testing.assert_close(b, torch.tensor([4.0, 4.0]))


def test_tied_parameters_move_together():
    class Tied(ZeroOrderGradientModule, method="finite_difference", sigma=1e-4):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.full((2,), 3.0))
            self.b = self.a

        def forward(self):
            return (self.a * self.b).sum()

    (found,) = estimate(Tied())
    torch.testing.assert_close(found, torch.full((2,), 6.0))


def test_a_step_for_a_parameter_that_is_frozen_later():
    class Named(Coordinates, sigma={"first.weight": 1e-5, "first.bias": 1e-5, "last.weight": 1e-5}):
        pass

    net = Named()
    net.first.bias.requires_grad_(False)
    for a, b in zip(estimate(net, X), exact(net), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.full((2,), 3.0))

    def forward(self):
        return (self.w**3).sum()


class Halved(Plain):
    def forward(self):
        return super().forward() / 2


class Before(Plain, ZeroOrderGradientModule, method="finite_difference", sigma=1.0):
    pass


class After(ZeroOrderGradientModule, Plain, method="finite_difference", sigma=1.0):
    pass


class Further(After):
    pass


class Diamond(After, Halved):
    pass


@pytest.mark.parametrize(("cls", "factor"), [(Before, 1), (After, 1), (Further, 1), (Diamond, 0.5)])
def test_forward_of_another_class(cls, factor):
    """A step of 1 tells the estimate, 28, from the gradient, 27."""
    net = cls()
    assert net() == 54 * factor
    torch.testing.assert_close(estimate(net)[0], torch.full((2,), 28.0 * factor))


def test_options_are_checked_at_the_definition_only():
    compared = []

    class Count(int):
        def __lt__(self, other):
            compared.append(other)
            return int(self) < other

    class Counted(Net, num_samples=Count(3)):
        pass

    at_definition = len(compared)
    estimate(Counted(), X)
    assert len(compared) == at_definition > 0


def test_a_sample_of_an_instance():
    net = Net()
    net.sample = torch.zeros
    assert all((grad == 0).all() for grad in estimate(net, X))


def listing_of_the_slides():
    class ESModule(ZeroOrderGradientModule):
        def sample(self, batch, labels, sample_shape):
            return torch.randn(sample_shape)

        def forward(self, batch, labels):
            return batch.mean()


def unknown_option():
    class Wrong(ZeroOrderGradientModule, samples=3):
        pass


def wrong_option():
    class Wrong(ZeroOrderGradientModule, sigma=-1.0):
        pass


def forward_of_an_instance():
    Net().forward = lambda batch: batch.sum()


def sample_of_an_instance():
    Net().sample = lambda shape, dtype: torch.randn(shape, dtype=dtype)


def static():
    class Wrong(ZeroOrderGradientModule):
        @staticmethod
        def forward(x):
            return x.sum()


DEFINITIONS = [
    (
        listing_of_the_slides,
        TypeError,
        "ESModule: expected a sampling function of the shape alone, got sample(batch, labels, "
        "sample_shape); write def sample(self, sample_shape) that returns noise of that shape",
    ),
    (unknown_option, TypeError, "Wrong: expected options in ['method', 'num_samples', 'sigma', "),
    (wrong_option, ValueError, "Wrong: expected sigma > 0 and finite, got -1.0"),
    (
        forward_of_an_instance,
        TypeError,
        "Net.assignment: expected forward to be written in a class, got function for an instance, "
        "at 'forward'; write a subclass of Net",
    ),
    (sample_of_an_instance, TypeError, "Net: expected a sampling function of the shape alone"),
    (static, TypeError, "Wrong: expected forward to be a method, got staticmethod; write def for"),
]


@pytest.mark.parametrize(("define", "error", "message"), DEFINITIONS)
def test_definitions(define, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        define()


class Empty(ZeroOrderGradientModule):
    def forward(self, x):
        return x.sum()


class Rows(Net):
    def forward(self, x):
        return self.first(x)


CALLS = [
    (Empty, (X,), ValueError, "Empty: expected a module with parameters, got none"),
    (Rows, (X,), ValueError, "Rows: expected a function that returns a scalar, got f64[4, 2]"),
    (
        Net,
        (X.clone().requires_grad_(),),
        ValueError,
        "Net: expected inputs that require no grad, got f64[4, 3], at ['args'][0], which would get "
        "no gradient; detach it, or decorate a function of parameters and input",
    ),
]


@pytest.mark.parametrize(("cls", "args", "error", "message"), CALLS)
def test_calls(cls, args, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        cls()(*args)


def test_a_second_derivative_is_refused():
    net = Net()
    (grad, *_) = torch.autograd.grad(net(X), [*net.first.parameters()], create_graph=True)
    with pytest.raises(NotImplementedError, match="Net: expected a first derivative, got a second"):
        grad.sum().backward()


class Adapted(ZeroOrderGradientModule, method="finite_difference", sigma=1e-3, vectorize=False):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 1, bias=False, dtype=torch.float64)

    def forward(self, x):
        net = copy.deepcopy(self.fc).requires_grad_()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        net(x).square().sum().backward()
        optimizer.step()
        return net(x).square().sum()


def test_a_copy_of_the_parameters_trains_inside():
    net = Adapted()
    nn.init.ones_(net.fc.weight)
    value = net(torch.eye(2, dtype=torch.float64))  # every weight goes from w to .8 w
    (found,) = torch.autograd.grad(value, net.parameters())
    torch.testing.assert_close(value.item(), 2 * 0.8**2)
    torch.testing.assert_close(found, torch.full_like(found, 2 * 0.8**2))
