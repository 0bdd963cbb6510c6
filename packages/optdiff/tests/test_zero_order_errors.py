# SPDX-License-Identifier: Apache-2.0
"""What zero_order refuses, and what it says."""

import math
import re

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Laplace, MultivariateNormal, Normal, Poisson

import optdiff

NOISE = Normal(0.0, 1.0)


def slides_sample(params, batch, labels, shape):
    return torch.randn(shape)


CONSTRUCTION = [
    (
        ("naive", torch.randn),
        {},
        TypeError,
        "zero_order: expected the distribution first and the method second, got 'naive' first; "
        "write zero_order(sample, 'naive')",
    ),
    (
        (slides_sample,),
        {},
        TypeError,
        "zero_order: expected a sampling function of the shape alone, got slides_sample(params, "
        "batch, labels, shape); write def slides_sample(sample_shape) that returns noise of",
    ),
    ((3,), {}, TypeError, "zero_order: expected a sampling function or a distribution, got int"),
    ((Normal,), {}, TypeError, "zero_order: expected a sampling function or a distribution, got N"),
    ((None,), {}, TypeError, "zero_order: expected a distribution, got None; only method='finite"),
    (
        (Normal(0.0, 0.1),),
        {},
        ValueError,
        "zero_order: expected a distribution with mean 0 and variance 1, got Normal with others; "
        "scale the noise by sigma=",
    ),
    ((Poisson(1.0),), {}, ValueError, "zero_order: expected a distribution with mean 0 and varia"),
    ((Bernoulli(0.5),), {}, ValueError, "zero_order: expected a distribution with mean 0 and var"),
    (
        (MultivariateNormal(torch.zeros(3), torch.eye(3)),),
        {},
        ValueError,
        "zero_order: expected a distribution of scalars, got MultivariateNormal of shape [3]; wri",
    ),
    ((NOISE, "central"), {}, ValueError, "zero_order: expected method in ('naive', 'forward', 'an"),
    ((NOISE, "naive", -1), {}, ValueError, "zero_order: expected argnums as different positions f"),
    ((NOISE, "naive", (0, 0)), {}, ValueError, "zero_order: expected argnums as different positi"),
    ((NOISE, "naive", ()), {}, ValueError, "zero_order: expected argnums as different positions f"),
    ((NOISE,), {"num_samples": 0}, ValueError, "zero_order: expected num_samples >= 1, got 0"),
    ((NOISE,), {"num_samples": 2.0}, TypeError, "zero_order: expected num_samples as an int, got"),
    ((NOISE,), {"chunk_size": 0}, ValueError, "zero_order: expected chunk_size >= 1, got 0"),
    ((NOISE,), {"sigma": 0.0}, ValueError, "zero_order: expected sigma > 0 and finite, got 0.0"),
    ((NOISE,), {"sigma": {"a": -1}}, ValueError, "zero_order: expected sigma > 0 and finite, got"),
    (
        (NOISE,),
        {"sigma": torch.tensor([1.0, 0.0])},
        ValueError,
        "zero_order: expected sigma > 0 and finite, got f32[2] with others",
    ),
    ((NOISE,), {"sigma": {"a": torch.tensor(-1.0)}}, ValueError, "zero_order: expected sigma > 0"),
    ((NOISE,), {"sigma": torch.tensor(math.nan)}, ValueError, "zero_order: expected sigma > 0 and"),
    ((NOISE,), {"sigma": torch.tensor(math.inf)}, ValueError, "zero_order: expected sigma > 0 and"),
    (
        (NOISE,),
        {"argnums": None},
        TypeError,
        "zero_order: expected argnums as an int or a tuple, got None",
    ),
    (
        (NOISE,),
        {"baseline": np.ones(2)},
        ValueError,
        "zero_order: expected baseline as 'mean' or a finite number, got ",
    ),
    (
        (NOISE, np.ones(2)),
        {},
        ValueError,
        "zero_order: expected method in ('naive', 'forward', 'antithetic', 'finite_difference'), ",
    ),
    ((NOISE,), {"sigma": "big"}, TypeError, "zero_order: expected sigma as a number, floating ten"),
    ((NOISE,), {"sigma": {}}, TypeError, "zero_order: expected sigma as a number, got an empty"),
    (
        (NOISE,),
        {"sigma": torch.ones((), dtype=torch.float64, requires_grad=True)},
        ValueError,
        "zero_order: expected sigma without a gradient, got f64[] that requires grad; detach it",
    ),
    ((NOISE,), {"generator": 3}, TypeError, "zero_order: expected a torch.Generator, got int"),
    ((NOISE,), {"orthogonal": 1}, TypeError, "zero_order: expected orthogonal as a bool, got int"),
    (
        (NOISE, "finite_difference"),
        {"orthogonal": True},
        ValueError,
        "zero_order: expected no rank_shaping and no orthogonal with method='finite_difference'",
    ),
    (
        (NOISE, "forward"),
        {"rank_shaping": True},
        ValueError,
        "zero_order: expected num_samples >= 2 for rank_shaping, got 1; draw more, or take",
    ),
    ((NOISE,), {"baseline": "best"}, ValueError, "zero_order: expected baseline as 'mean' or a fi"),
    ((NOISE,), {"baseline": "mean"}, ValueError, "zero_order: expected num_samples >= 2 for base"),
    (
        (NOISE, "forward"),
        {"baseline": 1.0},
        ValueError,
        "zero_order: expected a baseline with method='naive' and without rank_shaping only, got m",
    ),
    (
        (Laplace(0.0, 0.5**0.5),),
        {"orthogonal": True},
        ValueError,
        "zero_order: expected a spherically symmetric distribution for orthogonal directions, got",
    ),
]


@pytest.mark.parametrize(("args", "options", "error", "message"), CONSTRUCTION)
def test_construction(args, options, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        optdiff.zero_order(*args, **options)


def test_only_functions_are_decorated():
    with pytest.raises(TypeError, match="zero_order: expected a function to decorate, got f64"):
        optdiff.zero_order(NOISE)(torch.ones(2))


P = torch.ones(2, dtype=torch.float64, requires_grad=True)
CALLS = [
    (
        lambda p: p * 2,
        {},
        (P,),
        {},
        ValueError,
        "expected a function that returns a scalar, got f",
    ),
    (lambda p: {"loss": 1}, {}, (P,), {}, TypeError, "expected a function that returns a floating"),
    (lambda p: (p > 0).sum(), {}, (P,), {}, TypeError, "expected a function that returns a floati"),
    (lambda p: 1.0, {}, (), {}, TypeError, "expected an argument 0 to differentiate in, got 0 arg"),
    (lambda p: 1.0, {}, (3,), {}, TypeError, "expected floating tensors to differentiate in, got "),
    (
        lambda p, x: (p * x["y"]).sum(),
        {},
        (P.detach(), {"y": P}),
        {},
        ValueError,
        "expected no other tensor that requires grad, got f64[2], at [1]['y'], which would "
        "get no gradient; differentiate in it too or detach it",
    ),
    (
        lambda p, *, x: (p * x).sum(),
        {},
        (P,),
        {"x": P * 2},
        ValueError,
        "expected no other tensor that requires grad, got f64[2], at ['x'], which would",
    ),
    (
        lambda p: (p["a"] * p["b"].abs()).sum(),
        {},
        ({"a": P, "b": torch.ones(2, dtype=torch.complex128, requires_grad=True)},),
        {},
        TypeError,
        "expected real tensors to differentiate in, got c128[2], at [0]['b']; pass its real and "
        "imaginary parts (torch.view_as_real), or detach it",
    ),
    (
        lambda p: p.abs().sum(),
        {},
        (torch.ones(2, dtype=torch.complex64, requires_grad=True),),
        {},
        TypeError,
        "expected real tensors to differentiate in, got c64[2], at [0]; pass its real",
    ),
    (
        lambda p: p.sum(),
        {"sigma": {"a": 1.0}},
        (P,),
        {},
        ValueError,
        "sigma is not a prefix of the argument: ",
    ),
    (
        lambda p: p.sum(),
        {"sigma": torch.ones(3, dtype=torch.float64)},
        (P,),
        {},
        ValueError,
        "expected sigma that broadcasts to f64[2], got f64[3]",
    ),
    (
        lambda p: torch.tensor(p.sum().item()),
        {},
        (P,),
        {},
        RuntimeError,
        "expected a function that vmap can evaluate at all samples at once, got one that fails (vm",
    ),
]


@pytest.mark.parametrize(("fn", "options", "args", "kwargs", "error", "message"), CALLS)
def test_calls(fn, options, args, kwargs, error, message):
    with pytest.raises(error, match="^" + re.escape("zero_order: " + message)):
        optdiff.zero_order(NOISE, **options)(fn)(*args, **kwargs)


@pytest.mark.parametrize(
    ("sample", "error", "message"),
    [
        (
            lambda shape: torch.ones(3),
            ValueError,
            "expected noise of the sample shape [4, 2], got f64[3]; draw it",
        ),
        (
            lambda shape: None,
            TypeError,
            "expected noise as a tensor or an array, got NoneType; return what is drawn",
        ),
        (
            lambda shape: [[1.0], [1.0, 2.0]],
            TypeError,
            "expected noise as a tensor or an array, got list",
        ),
        (lambda shape: torch.ones(shape) > 0, TypeError, "expected real noise, got bool[4, 2]"),
    ],
)
def test_noise(sample, error, message):
    fn = optdiff.zero_order(sample, num_samples=4)(lambda p: p.sum())
    with pytest.raises(error, match="^" + re.escape("zero_order: " + message)):
        fn(P)
