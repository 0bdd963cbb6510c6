# SPDX-License-Identifier: Apache-2.0
"""What a function under zero_order may do: write, draw random numbers, hold things, be rounded."""

import gc
import threading
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.distributions import Normal
from torch.func import grad, vmap
from torch.nn import functional as F

import optdiff

NOISE = Normal(0.0, 1.0)
METHODS = ["naive", "forward", "antithetic", "finite_difference"]

# Writing


def descend_in_place(w):
    for _ in range(3):
        w -= 0.1 * 2 * w
    return (w**2).sum()


@pytest.mark.parametrize("vectorize", [True, False])
def test_a_function_may_write_to_what_moves(vectorize):
    fn = optdiff.zero_order(None, "finite_difference", sigma=1e-4, vectorize=vectorize)
    x = torch.ones(2, requires_grad=True)
    value = fn(descend_in_place)(x)
    (found,) = torch.autograd.grad(value, x)
    torch.testing.assert_close(found, torch.full((2,), 2 * 0.8**6), rtol=1e-7, atol=0)
    with torch.no_grad():
        assert fn(descend_in_place)(x) == value
    rows = torch.ones(3, 2)
    each = vmap(grad(fn(descend_in_place)))(rows)
    torch.testing.assert_close(each, found.expand(3, 2), rtol=1e-7, atol=0)
    assert (x == 1).all()
    assert (rows == 1).all()


@pytest.mark.parametrize("call", [lambda f, p, b: f(p, b), lambda f, p, b: grad(f)(p.detach(), b)])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("vectorize", [True, False])
def test_writing_to_what_does_not_move_is_refused(method, vectorize, call):
    @optdiff.zero_order(NOISE, method, vectorize=vectorize)
    def drifting(p, b):
        b.add_(1)
        return (p * b).sum()

    with pytest.raises(
        ValueError,
        match=r"^zero_order: expected a function that writes to no argument but those in argnums, "
        r"which it gets as copies, got one that writes to f64\[2\], which would drift with every "
        "sample; clone it in the function",
    ):
        call(drifting, torch.ones(2, requires_grad=True), torch.zeros(2))


# Memory


class Net(optdiff.nn.ZeroOrderGradientModule, method="antithetic", num_samples=2):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x):
        return self.linear(x).sum()


def keep_the_loss(net):
    net.last = 2 * net(torch.ones(2, 3))
    net.last.backward()


def step_a_meta_optimizer(net):
    optdiff.MetaSGD(net, lr=0.1).step(net(torch.ones(2, 3)))


@pytest.mark.parametrize("use", [keep_the_loss, step_a_meta_optimizer])
def test_no_module_outlives_its_last_name(use):
    net = Net()
    use(net)
    watch = weakref.ref(net)
    del net
    gc.collect()
    assert watch() is None


# Random numbers


def with_dropout(p):
    return F.dropout(p, 0.5).square().sum()


HOW = [(method, *how) for method in METHODS for how in ((True, None), (True, 3), (False, None))]


@pytest.mark.parametrize(("method", "vectorize", "chunk_size"), HOW)
def test_every_evaluation_draws_what_the_value_drew(method, vectorize, chunk_size):
    """Then the estimate is that of a function without random numbers."""
    at = torch.linspace(0.5, 1.5, 8)
    generator = torch.Generator()
    estimated = optdiff.zero_order(
        NOISE, method, num_samples=8, sigma=0.5, generator=generator,
        vectorize=vectorize, chunk_size=chunk_size,
    )  # fmt: skip
    torch.manual_seed(4)
    mask = F.dropout(torch.ones(8), 0.5)
    after = torch.get_rng_state()
    generator.manual_seed(7)
    wanted = grad(estimated(lambda p: (mask * p).square().sum()))(at)
    generator.manual_seed(7)
    torch.manual_seed(4)
    found = grad(estimated(with_dropout))(at)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert torch.equal(torch.get_rng_state(), after)  # as after one plain call


@pytest.mark.parametrize("method", METHODS)
def test_random_numbers_go_on_as_after_one_plain_call(method):
    def drawing(p):
        return p.sum() + torch.rand(3 if p == 1 else 7).sum()

    generator = torch.Generator().manual_seed(7)
    fn = optdiff.zero_order(NOISE, method, vectorize=False, generator=generator)(drawing)
    at = torch.ones(1)
    torch.manual_seed(4)
    drawing(at)
    after = torch.get_rng_state()
    torch.manual_seed(4)
    grad(fn)(at)
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize(("randomness", "count"), [("different", 4), ("same", 1)])
def test_examples_have_random_numbers_of_their_own_or_share_them(randomness, count, vectorize):
    """By the signs of the differences along coordinates, which show the mask."""
    fn = optdiff.zero_order(None, "finite_difference", sigma=1e-3, vectorize=vectorize)
    rows = torch.ones(4, 32)
    found = vmap(grad(fn(with_dropout)), randomness=randomness)(rows)
    assert len({tuple(row.tolist()) for row in found > 1}) == count
    torch.testing.assert_close(found, 8.0 * (found > 1), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("method", ["forward", "antithetic"])
def test_dropout_does_not_drown_small_steps(method):
    """One estimate per mask; masks that differed between evaluations would add some 1 / sigma."""
    fn = optdiff.zero_order(NOISE, method, num_samples=16, sigma=0.01)(with_dropout)
    found = vmap(grad(fn), randomness="different")(torch.ones(500, 3))
    assert (found.std(0) < 8).all()
    torch.testing.assert_close(found.mean(0), torch.full((3,), 4.0), rtol=0.2, atol=0)


def test_threads_with_generators_of_their_own_agree():
    def noise(shape):
        torch.randn(shape)
        threading.Event().wait(0.002)  # another thread would draw here
        return torch.randn(shape)

    found = []

    def work():
        generator = torch.Generator().manual_seed(5)
        fn = optdiff.zero_order(noise, "antithetic", num_samples=3, generator=generator)
        for _ in range(5):
            found.append(grad(fn(lambda p: (p**2).sum()))(torch.ones(4)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({tuple(each.tolist()) for each in found}) == 5


# Rounding


@pytest.mark.parametrize(("dtype", "sigma"), [(torch.bfloat16, 0.04), (torch.float16, 0.004)])
@pytest.mark.parametrize("method", ["forward", "antithetic", "finite_difference"])
def test_half_precision_is_unbiased_where_it_is_accepted(method, dtype, sigma):
    fn = optdiff.zero_order(NOISE, method, num_samples=500, sigma=sigma)(lambda p: 3 * p.double())
    found = vmap(grad(fn), randomness="different")(torch.full((200,), 1.0, dtype=dtype))
    torch.testing.assert_close(found.double().mean(), torch.tensor(3.0), rtol=0.02, atol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("dtype", "sigma", "name"),
    [
        (torch.bfloat16, 1e-2, "bf16"),
        (torch.bfloat16, torch.tensor([1.0, 1.0, 1e-3]), "bf16"),
        (torch.float16, 1e-3, "f16"),
        (torch.float32, 1e-8, "f32"),
    ],
)
def test_steps_that_rounding_would_change_are_refused(method, dtype, sigma, name):
    fn = optdiff.zero_order(NOISE, method, sigma=sigma)(lambda p: p.sum())
    message = rf"expected sigma of at least 4 units in the last place of .* for {name}\[3\]; take a"
    with pytest.raises(ValueError, match=message):
        grad(fn)(torch.ones(3, dtype=dtype))


# Tensors of transforms


def attribute(fn):
    """Of an object that no search looks into."""
    return lambda scale: fn(SimpleNamespace(scale=scale))


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_of_a_transform_in_an_object(method):
    def slope(holder):
        fn = optdiff.zero_order(NOISE, method)(lambda p: (holder.scale * p).sum())
        return grad(fn)(torch.ones(2))

    message = (
        "^zero_order: expected a function that gets every tensor of a torch.func transform as an "
        "argument, got one that reads such a tensor from elsewhere; pass it as an argument"
    )
    with pytest.raises(ValueError, match=message):
        grad(lambda scale: attribute(slope)(scale).sum())(torch.tensor(2.0))


def test_a_batched_tensor_in_an_object():
    def slope(holder):
        fn = optdiff.zero_order(None, "finite_difference")(lambda p: (holder.scale * p).sum())
        return grad(fn)(torch.ones(2))

    with pytest.raises(ValueError, match="that reads such a tensor from elsewhere; pass it as an"):
        vmap(attribute(slope))(torch.ones(2))


def test_sigma_of_a_transform_is_refused():
    def slope(sigma):
        return grad(optdiff.zero_order(NOISE, sigma=sigma)(lambda p: p.sum()))(torch.ones(2))

    message = r"expected sigma from outside torch.func transforms, got f64\[\] of one; loop over it"
    with pytest.raises(ValueError, match=message):
        vmap(slope, randomness="same")(torch.ones(3))


@pytest.mark.parametrize(
    ("noise", "dtype"),
    [
        (lambda shape: torch.randint(0, 2, shape) * 2 - 1, torch.float64),
        (lambda shape: torch.randn(shape, dtype=torch.float16), torch.float16),
    ],
)
def test_orthogonal_directions_of_any_type(noise, dtype):
    fn = optdiff.zero_order(noise, "antithetic", num_samples=3, orthogonal=True)
    found = grad(fn(lambda p: p.double().sum()))(torch.zeros(5, dtype=dtype))
    assert found.dtype == dtype
    assert found.isfinite().all()
