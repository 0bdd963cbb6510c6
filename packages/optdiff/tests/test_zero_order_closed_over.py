# SPDX-License-Identifier: Apache-2.0
"""zero_order refuses what would get no gradient in silence, wherever the function has it from."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

import optdiff


def leaf():
    return torch.ones(3, dtype=torch.float64, requires_grad=True)


def linear():
    return nn.Linear(3, 1, dtype=torch.float64)


class Sum(nn.Module):
    def forward(self, x):
        return x.sum()


class Holder:
    def __init__(self):
        self.w = leaf()

    def loss(self, p):
        return (self.w * p).sum()


def of_object(holder):
    return lambda p: (holder.w * p).sum()


def with_default(p, w=leaf()):  # noqa: B008
    return (w * p).sum()


GLOBAL = leaf()


def with_global(p):
    return (GLOBAL * p).sum()


READERS = {
    "tensor": lambda w: lambda p: (w * p).sum(),
    "result": lambda w: lambda p, y=2 * w: (y * p).sum(),
    "parameter": lambda w: partial(lambda net, p: net(p).sum(), linear()),
    "object of a module": lambda w: of_object(SimpleNamespace(w=linear().weight)),
    "module": lambda w: nn.Sequential(linear(), Sum()),
    "object": lambda w: of_object(SimpleNamespace(w=w)),
    "bound": lambda w: Holder().loss,
    "default": lambda w: with_default,
    "global": lambda w: with_global,
    "partial": lambda w: partial(lambda w, p: (w * p).sum(), w),
    "called": lambda w: lambda p: with_global(p) + 1,
    "list": lambda w: lambda p: torch.stack([p, w]).sum(),
    "inside": lambda w: lambda p: grad(lambda q: (w * q**2).sum())(p).sum(),
    "detached later": lambda w: lambda p: (p * (w * p).detach()).sum(),
    "no_graph": lambda w: lambda p: ((w * p) > 0).double().sum(),
}
NUMBERS = {
    "number": lambda w: lambda p: (w * p).sum().item(),
    "factor": lambda w: lambda p: w[0].item() * p.sum(),
    "argmax": lambda w: lambda p: float((w * p).argmax()),
}
CALLS = [
    lambda fn: fn(leaf()),
    lambda fn: fn(torch.ones(3)),
    lambda fn: grad(fn)(torch.ones(3)),
]
BATCHED = [
    lambda fn: vmap(fn, randomness="same")(torch.ones(2, 3, requires_grad=True)),
    lambda fn: vmap(grad(fn), randomness="different")(torch.ones(2, 3)),
]
MESSAGE = (
    r"zero_order: expected a function that gets every tensor that requires grad as an argument, "
    r"got one in which an operation reads f64\[.*\] past them, which would get no gradient; pass "
    r"that tensor in args and list its position in argnums, or make it a constant before the "
    r"operation: torch.no_grad\(\) in the function, module.requires_grad_\(False\) or "
    r"tensor.detach\(\)"
)


@pytest.mark.parametrize(
    ("name", "call"),
    [(name, call) for name in READERS for call in CALLS + BATCHED]
    + [(name, call) for name in NUMBERS for call in CALLS],
)
def test_a_tensor_that_requires_grad_past_the_arguments(name, call):
    fn = {**READERS, **NUMBERS}[name](leaf())
    estimated = optdiff.zero_order(torch.randn, num_samples=2, vectorize=name not in NUMBERS)(fn)
    with pytest.raises(ValueError, match=MESSAGE):
        call(estimated)


def slope_inside(p):
    at = p.detach().requires_grad_()
    net = linear()
    (g,) = torch.autograd.grad(net(at).square().sum(), at, create_graph=True)
    return (g.detach() * p).sum()


NET = linear()


def in_place_of_its_own(p):
    return functional_call(NET, {"weight": p[None], "bias": p[:1]}, (torch.ones(3),)).sum()


@torch.no_grad()
def marked_constant(p):
    return NET(p).sum()


CONSTANT = [
    lambda p: (GLOBAL.detach() * p).sum(),
    lambda p: (GLOBAL.data * p).sum(),
    lambda p: p.sum() + torch.zeros_like(GLOBAL).sum() + GLOBAL.shape[0],
    in_place_of_its_own,
    marked_constant,
    nn.Sequential(linear().requires_grad_(False), Sum()),
]


@pytest.mark.parametrize("call", CALLS + BATCHED)
@pytest.mark.parametrize("fn", CONSTANT)
def test_what_gets_no_gradient_is_no_fault(fn, call):
    assert call(optdiff.zero_order(torch.randn, num_samples=2)(fn)).isfinite().all()


def leaf_inside(p):
    at = p.detach().requires_grad_()
    return at.square().sum()


def trained_inside(p):
    net = linear()
    with torch.no_grad():
        net.weight.copy_(p[None])
        net.bias.zero_()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    loss = net(torch.eye(3, dtype=p.dtype)).square().sum()
    loss.backward()
    optimizer.step()
    return net(torch.eye(3, dtype=p.dtype)).square().sum()


def parameter_inside(p):
    own = nn.Parameter(torch.ones(3, dtype=p.dtype))
    return (own * p).square().sum()


def exact(fn, **options):
    return optdiff.zero_order(None, "finite_difference", sigma=1e-3, **options)(fn)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("fn", [slope_inside, leaf_inside, trained_inside, parameter_inside])
def test_tensors_of_the_functions_own(fn, call):
    result = call(exact(fn, vectorize=False))
    assert result.isfinite().all()


@pytest.mark.parametrize("vectorize", [False, True])
@pytest.mark.parametrize("call", BATCHED)
def test_tensors_of_the_functions_own_under_vmap(call, vectorize):
    assert call(exact(parameter_inside, vectorize=vectorize)).isfinite().all()


def test_a_loss_with_a_graph_of_the_functions_own():
    at, again = leaf(), leaf()
    value = exact(leaf_inside, vectorize=False)(at)
    value.backward()
    assert value.item() == 3.0
    torch.testing.assert_close(at.grad, torch.full_like(at, 2.0))
    trained = exact(trained_inside, vectorize=False)(again)
    (found,) = torch.autograd.grad(trained, again)
    # one step makes .8 w of w and -.2 sum(w) of the bias 0
    torch.testing.assert_close(trained.item(), 3 * 0.2**2)
    torch.testing.assert_close(found, torch.full_like(found, 2 * 0.2 * 0.2))


def test_a_value_where_no_gradient_is_asked_for_has_no_graph():
    assert not exact(leaf_inside)(torch.ones(3)).requires_grad


@pytest.mark.parametrize(
    "call",
    [
        lambda loss: grad(lambda w: loss(SimpleNamespace(w=w)))(torch.ones(3)),
        lambda loss: vmap(grad(lambda w: loss(SimpleNamespace(w=w))))(torch.ones(2, 3)),
    ],
)
def test_a_tensor_of_a_transform_past_the_arguments(call):
    def loss(holder):
        return exact(of_object(holder))(torch.ones(3))

    with pytest.raises(
        ValueError, match="expected a function that gets every tensor that requires"
    ):
        call(loss)


def test_nothing_is_refused_where_no_gradient_can_be_asked_for():
    with torch.no_grad():
        assert optdiff.zero_order(torch.randn)(with_global)(leaf()).item() == 3.0


# Noise under vmap


def gradients(randomness, **options):
    fn = optdiff.zero_order(torch.randn, "antithetic", num_samples=2, **options)(
        lambda p: (p**2).sum()
    )
    return vmap(lambda i: grad(fn)(torch.ones(3)) + 0 * i, randomness=randomness)(torch.zeros(4))


def distinct(rows):
    return len({tuple(row.tolist()) for row in rows.reshape(-1, rows.shape[-1])})


@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize(("randomness", "count"), [("different", 4), ("same", 1)])
def test_noise_of_examples_without_a_batched_argument(randomness, count, seed):
    options = {} if seed is None else {"generator": torch.Generator().manual_seed(seed)}
    assert distinct(gradients(randomness, **options)) == count


def test_every_level_of_vmap_counts():
    fn = optdiff.zero_order(torch.randn, "antithetic", num_samples=2)(lambda p: (p**2).sum())

    def inner(randomness):
        one = lambda i: grad(fn)(torch.ones(3)) + 0 * i  # noqa: E731
        return vmap(
            lambda j: vmap(one, randomness=randomness)(torch.zeros(4)) + j, randomness="different"
        )(torch.zeros(3))

    assert distinct(inner("different")) == 12
    assert distinct(inner("same")) == 3


def test_a_generator_makes_them_reproducible_and_leaves_torchs_own_alone():
    before = torch.get_rng_state()
    first = gradients("different", generator=torch.Generator().manual_seed(5))
    assert torch.equal(torch.get_rng_state(), before)
    second = gradients("different", generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("seed", [None, 5])
def test_vmap_is_told_about_the_noise(seed):
    options = {} if seed is None else {"generator": torch.Generator().manual_seed(seed)}
    message = r"zero_order: expected vmap\(randomness='same'\) or 'different', got 'error'"
    with pytest.raises(RuntimeError, match=message):
        gradients("error", **options)


def test_finite_differences_need_no_noise():
    fn = optdiff.zero_order(None, "finite_difference", sigma=1e-3)(lambda p: (p**2).sum())
    found = vmap(lambda i: grad(fn)(torch.ones(3)) + i)(torch.zeros(2))
    torch.testing.assert_close(found, torch.full((2, 3), 2.0))
