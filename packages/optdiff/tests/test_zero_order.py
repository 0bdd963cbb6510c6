# SPDX-License-Identifier: Apache-2.0
"""Zero-order estimates have the mean and the variance that theory says, however they are made."""

import math

import pytest
import torch
from torch.distributions import Laplace, Normal, Uniform
from torch.func import grad, jacrev, vmap

import optdiff

NOISE = Normal(0.0, 1.0)
METHODS = ["naive", "forward", "antithetic", "finite_difference"]
COPIES = 4000


def rademacher(sample_shape):
    return torch.randint(0, 2, sample_shape) * 2 - 1


def linear(p):
    return (3 * p).sum()


def squares(p):
    return (p**2).sum()


def network(p):
    x = torch.linspace(-1, 1, 12).reshape(4, 3)
    hidden = torch.tanh(x @ p[:6].reshape(3, 2))
    return (hidden @ p[6:8] + p[8]).square().mean()


def independent(fn, p):
    """Mean, variance and standard error of many independent estimates."""
    copies = p.expand(COPIES, *p.shape)
    found = vmap(grad(fn), randomness="different")(copies)
    return found.mean(0), found.var(0), found.std(0) / math.sqrt(COPIES)


def assert_mean(found, error, truth, others=0.0):
    """Within four standard errors, which are small enough to see a tenth of the truth missing."""
    assert 4 * (error.square() + others**2).sum().sqrt() < 0.1 * truth.norm()
    assert ((found - truth).abs() <= 4 * (error.square() + others**2).sqrt() + 1e-12).all()


def smoothed_gradient(fn, p, sigma):
    """Of f_sigma, by derivatives at random points: its mean and standard error."""
    points = p + sigma * torch.randn(20 * COPIES, *p.shape)
    found = vmap(grad(fn))(points)
    return found.mean(0), found.std(0) / math.sqrt(20 * COPIES)


HOW = [
    ("naive", {"num_samples": 64}),
    ("forward", {"num_samples": 16}),
    ("antithetic", {"num_samples": 16}),
    ("naive", {"num_samples": 16, "baseline": 2.0}),
    ("naive", {"num_samples": 16, "baseline": "mean"}),
    ("naive", {"num_samples": 64, "baseline": "mean", "chunk_size": 7}),
    ("antithetic", {"num_samples": 20, "orthogonal": True}),
    ("forward", {"num_samples": 18, "orthogonal": True}),
    ("naive", {"num_samples": 24, "orthogonal": True, "baseline": "mean"}),
]
FUNCTIONS = [
    (linear, torch.tensor(0.7, dtype=torch.float64)),
    (squares, torch.tensor([0.3, -1.2, 0.0, 2.0], dtype=torch.float64)),
    (network, torch.linspace(-1, 1, 9, dtype=torch.float64)),
]


@pytest.mark.parametrize(("fn", "at"), FUNCTIONS)
@pytest.mark.parametrize(("method", "options"), HOW)
def test_the_mean_is_the_gradient_of_the_smoothed_function(fn, at, method, options):
    estimated = optdiff.zero_order(NOISE, method, sigma=0.7, **options)(fn)
    mean, _, error = independent(estimated, at)
    assert_mean(mean, error, *smoothed_gradient(fn, at, 0.7))


@pytest.mark.parametrize(("fn", "at"), FUNCTIONS)
@pytest.mark.parametrize("method", ["forward", "antithetic"])
def test_the_mean_at_a_small_sigma_is_the_gradient(fn, at, method):
    estimated = optdiff.zero_order(NOISE, method, sigma=1e-4, num_samples=16)(fn)
    mean, _, error = independent(estimated, at)
    assert_mean(mean, error, grad(fn)(at), others=1e-5)


@pytest.mark.parametrize(("fn", "at"), FUNCTIONS)
def test_finite_differences(fn, at):
    estimated = optdiff.zero_order(None, "finite_difference", sigma=1e-5)(fn)
    torch.testing.assert_close(grad(estimated)(at), grad(fn)(at), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("sigma", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("method", METHODS)
def test_three_x_at_every_sigma(method, sigma):
    estimated = optdiff.zero_order(NOISE, method, sigma=sigma, num_samples=16)(lambda x: 3 * x)
    mean, _, error = independent(estimated, torch.tensor(0.01))
    assert_mean(mean, error, torch.tensor(3.0), others=1e-9)


def test_what_is_estimated_is_the_gradient_of_the_smoothed_function():
    estimated = optdiff.zero_order(NOISE, "forward", sigma=0.8, num_samples=16)(lambda x: x**3)
    mean, _, error = independent(estimated, torch.tensor(0.5))
    smoothed = 3 * (0.5**2 + 0.8**2)  # E (x + sigma e)^3 = x^3 + 3 x sigma^2
    assert_mean(mean, error, torch.tensor(smoothed))


@pytest.mark.parametrize(
    "noise", [rademacher, Laplace(0.0, 0.5**0.5), Uniform(-(3**0.5), 3**0.5), torch.randn]
)
@pytest.mark.parametrize("method", ["naive", "forward", "antithetic"])
def test_any_noise_of_mean_0_and_variance_1_is_unbiased_for_linear_functions(noise, method):
    decorate = optdiff.zero_order(noise, method, sigma=0.5, num_samples=16)
    slope = torch.tensor([1.0, -2.0, 0.5])
    mean, _, error = independent(decorate(lambda p: (p * slope).sum()), torch.ones(3))
    assert_mean(mean, error, slope)


@pytest.mark.parametrize(
    ("method", "options", "extra"),
    [
        ("naive", {}, 2.0**2 / 0.5**2),
        ("naive", {"baseline": 1.5}, 0.5**2 / 0.5**2),
        ("forward", {}, 0.0),
        ("antithetic", {}, 0.0),
    ],
)
def test_variance_on_a_linear_function_with_gaussian_noise(method, options, extra):
    slope = torch.tensor([1.0, -2.0, 0.5])
    decorate = optdiff.zero_order(NOISE, method, sigma=0.5, **options)
    fn = decorate(lambda p: (p * slope).sum() + 2.5)
    at = torch.ones(3)  # where the value is 2
    _, variance, _ = independent(fn, at)
    theory = slope.square().sum() + slope.square() + extra
    torch.testing.assert_close(variance, theory, rtol=0.15, atol=0)


@pytest.mark.parametrize("method", ["naive", "forward", "antithetic"])
def test_variance_falls_as_the_number_of_samples(method):
    one = optdiff.zero_order(NOISE, method)(squares)
    many = optdiff.zero_order(NOISE, method, num_samples=16)(squares)
    at = torch.tensor([0.3, -1.2])
    ratio = independent(one, at)[1] / independent(many, at)[1]
    torch.testing.assert_close(ratio, torch.full((2,), 16.0), rtol=0.2, atol=0)


def test_orthogonal_directions_of_one_length_leave_no_variance():
    def sphere(shape):
        noise = torch.randn(shape)
        return noise / noise.norm(dim=-1, keepdim=True) * shape[-1] ** 0.5

    slope = torch.tensor([1.0, -2.0, 0.5, 3.0])
    fn = optdiff.zero_order(sphere, "antithetic", num_samples=8, orthogonal=True)
    found = grad(fn(lambda p: (p * slope).sum()))(torch.ones(4))
    torch.testing.assert_close(found, slope, rtol=1e-12, atol=1e-12)


def test_the_baseline_takes_the_variance_of_a_constant_away():
    at = torch.tensor([0.3, -1.2])
    plain = optdiff.zero_order(NOISE, "naive", num_samples=8)
    based = optdiff.zero_order(NOISE, "naive", num_samples=8, baseline="mean")
    raised = [how(lambda p: linear(p) + 100) for how in (plain, based)]
    without, with_it = (independent(fn, at)[1] for fn in raised)
    assert (with_it * 50 < without).all()


# Rank shaping


def seeded(fn, at, seed=3):
    torch.manual_seed(seed)
    return grad(fn)(at)


@pytest.mark.parametrize("method", ["naive", "forward", "antithetic"])
def test_ranks_see_no_monotone_change_of_the_function(method):
    ranked = optdiff.zero_order(NOISE, method, num_samples=20, rank_shaping=True)
    at = torch.tensor([0.3, -1.2, 0.5])
    found = seeded(ranked(squares), at)
    assert found @ grad(squares)(at) > 0
    torch.testing.assert_close(seeded(ranked(lambda p: 7 + squares(p).exp()), at), found)


def test_ranks_written_out():
    ranked = optdiff.zero_order(NOISE, "naive", num_samples=3, sigma=0.5, rank_shaping=True)
    found = seeded(ranked(lambda p: p[0]), torch.zeros(2))
    torch.manual_seed(3)
    noise = NOISE.sample((3, 2)).double()
    weights = torch.empty(3)
    weights[noise[:, 0].argsort()] = torch.tensor([-0.5, 0.0, 0.5])
    torch.testing.assert_close(found, weights @ noise / 3 / 0.5)


def test_equal_values_rank_equally_and_nan_is_seen():
    ranked = optdiff.zero_order(NOISE, "naive", num_samples=6, rank_shaping=True)
    assert (grad(ranked(lambda p: 0 * p.sum()))(torch.ones(2)) == 0).all()
    assert grad(ranked(lambda p: p.log().sum()))(torch.zeros(2)).isnan().all()


# The same estimate, in whatever way it is made


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "options", [{"chunk_size": 1}, {"chunk_size": 4}, {"chunk_size": 99}, {"vectorize": False}]
)
def test_chunks_and_loops_change_nothing(method, options):
    at = torch.linspace(-1, 1, 9)
    whole = seeded(optdiff.zero_order(NOISE, method, num_samples=10)(network), at)
    found = seeded(optdiff.zero_order(NOISE, method, num_samples=10, **options)(network), at)
    torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-12)


def test_same_seed_same_estimate():
    fn = optdiff.zero_order(NOISE, "forward", num_samples=3)(squares)
    at = torch.ones(3)
    assert (seeded(fn, at, 1) == seeded(fn, at, 1)).all()
    assert (seeded(fn, at, 1) != seeded(fn, at, 2)).all()


@pytest.mark.parametrize("noise", [NOISE, rademacher, Laplace(0.0, 0.5**0.5)])
def test_a_generator_decides_alone(noise):
    def estimates(seed):
        generator = torch.Generator().manual_seed(7)
        fn = optdiff.zero_order(noise, "forward", num_samples=3, generator=generator)(network)
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found = [grad(fn)(torch.linspace(-1, 1, 9)) for _ in range(2)]
        assert (torch.get_rng_state() == before).all()
        return found

    first, second = estimates(1)
    assert (first != second).any()
    torch.testing.assert_close(estimates(2), [first, second], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("method", "calls"),
    [("naive", 6), ("forward", 6), ("antithetic", 11), ("finite_difference", 7)],
)
def test_how_often_the_function_is_called(method, calls):
    seen = []

    @optdiff.zero_order(NOISE, method, num_samples=5, vectorize=False)
    def fn(p):
        seen.append(p)
        return p.sum()

    p = torch.ones(3, requires_grad=True)
    fn(p).backward()
    assert len(seen) == calls
    assert (seen[0] == p).all()
    with torch.no_grad():
        fn(p)
    fn(p.detach())
    assert len(seen) == calls + 2


def test_the_value_is_the_plain_one_and_the_cotangent_scales():
    fn = optdiff.zero_order(NOISE, "antithetic", num_samples=4)(squares)
    p = torch.tensor([1.0, 2.0], requires_grad=True)
    torch.manual_seed(3)
    value = fn(p)
    assert value == 5
    (found,) = torch.autograd.grad(value.square(), p, create_graph=True)
    torch.testing.assert_close(found.detach(), 10 * seeded(fn, p.detach()))


def test_black_boxes():
    @optdiff.zero_order(NOISE, "antithetic", num_samples=2000, vectorize=False)
    def count(p):
        return sum(number > 0 for number in p.tolist())  # an int

    p = torch.zeros(2, requires_grad=True)
    (found,) = torch.autograd.grad(count(p), p)
    truth = torch.full((2,), (2 * math.pi) ** -0.5)  # of the normal distribution function
    torch.testing.assert_close(found, truth, rtol=0.1, atol=0)


def test_an_inner_loop_may_differentiate():
    @optdiff.zero_order(NOISE, "finite_difference", sigma=1e-4)
    def adapted(start, target):
        theta = start - 0.1 * grad(lambda t: (t - target).square().sum())(start)
        return (theta - target).square().sum()

    @optdiff.zero_order(NOISE, "finite_difference", sigma=1e-4, vectorize=False)
    def by_autograd(start, target):
        theta = start.clone().requires_grad_()
        (slope,) = torch.autograd.grad((theta - target).square().sum(), theta)
        return (start - 0.1 * slope - target).square().sum()

    start, target = torch.ones(2), torch.tensor([3.0, -1.0])
    truth = 2 * 0.64 * (start - target)
    torch.testing.assert_close(grad(adapted)(start, target), truth, rtol=1e-7, atol=0)
    torch.testing.assert_close(grad(by_autograd)(start, target), truth, rtol=1e-7, atol=0)


# Arguments


def cubes(params, *, scale):
    return scale * ((params["a"] ** 3).sum() + (params["b"][0] ** 3).sum()) * params["n"]


def test_trees_keywords_and_a_step_per_parameter():
    params = {"a": torch.ones(2), "b": (torch.tensor(2.0),), "n": torch.tensor(1)}
    sigma = {"a": torch.tensor([0.5, 1.0]), "b": 2.0, "n": 1.0}
    fn = optdiff.zero_order(None, "finite_difference", sigma=sigma)(cubes)
    leaves = [params["a"].requires_grad_(), params["b"][0].requires_grad_()]
    found = torch.autograd.grad(fn(params=params, scale=2.0), leaves)
    # the central difference of x^3 is 3 x^2 + sigma^2
    torch.testing.assert_close(found[0], 2 * (3 + torch.tensor([0.25, 1.0])))
    torch.testing.assert_close(found[1], torch.tensor(2 * (3 * 2.0**2 + 4)))


@pytest.mark.parametrize("method", ["naive", "forward", "antithetic"])
def test_a_step_per_parameter_is_unbiased(method):
    sigma = torch.tensor([0.1, 1.0, 3.0])
    decorate = optdiff.zero_order(NOISE, method, sigma=sigma, num_samples=256)
    slope = torch.tensor([1.0, -2.0, 0.5])
    mean, _, error = independent(decorate(lambda p: (p * slope).sum()), torch.ones(3))
    assert_mean(mean, error, slope)


def test_several_arguments():
    fn = optdiff.zero_order(None, "finite_difference", argnums=(2, 0), sigma=(0.5, [1.0, 2.0]))(
        lambda a, text, c: (a[0] ** 3 + 2 * a[1] ** 3 + c**3) * len(text)
    )
    *a, c = (torch.ones((), requires_grad=True) for _ in range(3))
    found = torch.autograd.grad(fn(a, "xx", c=c), [*a, c])
    torch.testing.assert_close(torch.stack(found), torch.tensor([8.0, 28.0, 6.5]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_have_the_type_of_their_parameter(dtype, method):
    p = torch.ones(3, dtype=dtype, requires_grad=True)
    empty = torch.ones(0, dtype=dtype, requires_grad=True)
    fn = optdiff.zero_order(NOISE, method, num_samples=3)(lambda p: p[0].sum().to(torch.float64))
    found = torch.autograd.grad(fn((p, empty)), (p, empty))
    assert [(g.dtype, g.shape) for g in found] == [(dtype, p.shape), (dtype, empty.shape)]


# torch.func

TASKS = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], dtype=torch.float64)


def task_loss(p, x):
    return (p * x).sum() ** 2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("vectorize", [True, False])
def test_tasks_that_share_their_noise(method, vectorize):
    fn = optdiff.zero_order(NOISE, method, num_samples=4, vectorize=vectorize)(task_loss)
    at = torch.tensor([0.5, -1.0])
    torch.manual_seed(3)
    found = vmap(grad(fn), (None, 0), randomness="same")(at, TASKS)
    alone = [seeded(lambda p, x=x: fn(p, x), at) for x in TASKS]
    torch.testing.assert_close(found, torch.stack(alone))
    torch.manual_seed(3)
    total = grad(lambda p: vmap(fn, (None, 0), randomness="same")(p, TASKS).sum())(at)
    torch.testing.assert_close(total, found.sum(0))
    torch.manual_seed(3)
    torch.testing.assert_close(
        jacrev(lambda p: vmap(fn, (None, 0), randomness="same")(p, TASKS))(at), found
    )


@pytest.mark.parametrize("vectorize", [True, False])
def test_tasks_that_the_function_closes_over(vectorize):
    def slope(task):
        @optdiff.zero_order(None, "finite_difference", sigma=1e-4, vectorize=vectorize)
        def loss(p):
            return task_loss(p, task)

        return grad(loss)(torch.tensor([0.5, -1.0]))

    found = vmap(slope)(TASKS)
    torch.testing.assert_close(found, torch.stack([slope(task) for task in TASKS]))


def test_a_transformed_tensor_that_the_function_closes_over():
    def value(scale):
        fn = optdiff.zero_order(NOISE)(lambda p: (scale * p).sum())
        return fn(torch.ones(2, requires_grad=True))

    message = r"expected no other tensor that requires grad, got f64\[\], at \['closed over'\]\[0\]"
    with pytest.raises(ValueError, match=message):
        grad(value)(torch.tensor(2.0))


def test_tasks_with_noise_of_their_own():
    fn = optdiff.zero_order(NOISE, "antithetic", num_samples=4)(task_loss)
    starts = torch.ones(2, 2)
    inner = vmap(grad(fn), (None, 0), randomness="different")
    found = vmap(inner, (0, None), randomness="same")(starts, TASKS[2].expand(3, 2))
    assert (found[0] == found[1]).all()
    assert (found[0, 0] != found[0, 1]).all()


def test_vmap_is_told_about_the_noise():
    fn = optdiff.zero_order(NOISE)(task_loss)
    with pytest.raises(RuntimeError, match=r"zero_order: expected vmap\(randomness='same'\) or"):
        vmap(grad(fn), (None, 0))(torch.ones(2), TASKS)


SECOND = [
    lambda fn, p: torch.autograd.grad(torch.autograd.grad(fn(p), p, create_graph=True)[0].sum(), p),
    lambda fn, p: grad(lambda q: grad(fn)(q).sum())(p.detach()),
    lambda fn, p: grad(fn)(p).sum().backward(),
    lambda fn, p: vmap(grad(fn), randomness="same")(p.expand(2, 2)).sum().backward(),
]


@pytest.mark.parametrize("second", SECOND)
def test_a_second_derivative_is_refused(second):
    fn = optdiff.zero_order(NOISE, "antithetic")(squares)
    p = torch.ones(2, requires_grad=True)
    with pytest.raises(NotImplementedError, match="zero_order: expected a first derivative, got"):
        second(fn, p)
    assert p.grad is None


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own
@pytest.mark.parametrize(
    "forward",
    [
        lambda fn, p: torch.func.jvp(fn, (p,), (p,)),
        lambda fn, p: torch.func.hessian(fn)(p),
        lambda fn, p: torch.func.jacfwd(fn, randomness="same")(p),
    ],
)
def test_forward_mode_is_refused(forward):
    fn = optdiff.zero_order(NOISE, "antithetic")(squares)
    with pytest.raises(NotImplementedError, match="zero_order: expected reverse mode, got forward"):
        forward(fn, torch.ones(2))
