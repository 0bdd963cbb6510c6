# SPDX-License-Identifier: Apache-2.0
"""Projections and proximal operators: closed forms, optax, and Jacobians by finite differences."""

import re

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch.autograd import gradcheck, gradgradcheck

import optcore

SCALED = [
    optcore.projection_simplex,
    optcore.projection_l1_sphere,
    optcore.projection_l1_ball,
    optcore.projection_l2_sphere,
    optcore.projection_l2_ball,
    optcore.projection_linf_sphere,
    optcore.projection_linf_ball,
    optcore.projection_hypercube,
]
scaled = pytest.mark.parametrize("projection", SCALED, ids=lambda f: f.__name__)


def tree(size=1.0):
    generator = torch.Generator().manual_seed(4)
    leaves = {"w": torch.randn(2, 3, generator=generator), "b": torch.randn(4, generator=generator)}
    return {name: size * leaf for name, leaf in leaves.items()}


def flat(tree):
    return torch.cat([tree["w"].flatten(), tree["b"]])


@scaled
@pytest.mark.parametrize("size", [1.0, 0.05], ids=["far", "near"])
def test_jacobians_equal_finite_differences(projection, size):
    def run(w, b, scale):
        out = projection({"w": w, "none": None, "b": b}, scale)
        return out["w"].sin(), out["b"].sin()

    leaves = [leaf.requires_grad_() for leaf in tree(size).values()]
    inputs = (*leaves, torch.tensor(0.9, requires_grad=True))
    assert gradcheck(run, inputs)
    assert gradgradcheck(run, inputs)


def nearest(constraints, x, bounds=None):
    """By a solver for constrained problems that knows nothing of projections."""
    start = np.full(x.shape, 0.05)
    options = {"ftol": 1e-14, "maxiter": 500}
    return torch.from_numpy(
        minimize(
            lambda y: 0.5 * ((y - x) ** 2).sum(),
            start,
            jac=lambda y: y - x,
            constraints=constraints,
            bounds=bounds,
            method="SLSQP",
            options=options,
        ).x
    )


def test_simplex_is_the_nearest_point():
    x, n = flat(tree()).numpy(), 10
    total = {"type": "eq", "fun": lambda y: y.sum() - 0.7}
    expected = nearest([total], x, [(0, None)] * n)
    found = flat(optcore.projection_simplex(tree(), 0.7))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert found.sum().item() == pytest.approx(0.7, abs=1e-14)


def test_l1_ball_is_the_nearest_point():
    x = flat(tree()).numpy()
    # y = p - q with p and q not negative
    halves = np.concatenate([x, -x])
    within = {"type": "ineq", "fun": lambda y: 0.7 - y.sum()}
    expected = nearest([within], halves, [(0, None)] * 20)
    found = flat(optcore.projection_l1_ball(tree(), 0.7))
    torch.testing.assert_close(found, expected[:10] - expected[10:], rtol=0, atol=1e-6)


def norms(x):
    return x.abs().sum().item(), x.norm().item(), x.abs().max().item()


CLOSED = {
    "l2_sphere": lambda x: 0.7 * x / x.norm(),
    "l2_ball": lambda x: x * min(1.0, 0.7 / x.norm().item()),
    "linf_ball": lambda x: x.clamp(-0.7, 0.7),
    "hypercube": lambda x: x.clamp(0, 0.7),
}


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize("size", [1.0, 0.05], ids=["far", "near"])
def test_closed_forms(name, size):
    found = flat(getattr(optcore, f"projection_{name}")(tree(size), 0.7))
    torch.testing.assert_close(found, CLOSED[name](flat(tree(size))), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("size", [1.0, 0.05], ids=["far", "near"])
def test_spheres_are_reached_and_nothing_else_moves_from_inside(size):
    x = tree(size)
    assert norms(flat(optcore.projection_l1_sphere(x, 0.7)))[0] == pytest.approx(0.7, abs=1e-14)
    assert norms(flat(optcore.projection_l2_sphere(x, 0.7)))[1] == pytest.approx(0.7, abs=1e-14)
    found = flat(optcore.projection_linf_sphere(x, 0.7))
    assert norms(found)[2] == pytest.approx(0.7, abs=1e-14)
    changed = (found != flat(x)).sum().item()
    assert changed == {1.0: (flat(x).abs() > 0.7).sum().item(), 0.05: 1}[size]


@scaled
def test_a_projection_of_a_projection_is_itself(projection):
    once = projection(tree(), 0.7)
    torch.testing.assert_close(projection(once, 0.7), once, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("projection", SCALED[:-1], ids=lambda f: f.__name__)
def test_equals_optax_where_optax_has_it(projection):
    optax = pytest.importorskip("optax", reason="the oracle of this test")
    jax = pytest.importorskip("jax", reason="the oracle of this test")
    name = projection.__name__.replace("linf_sphere", "linf_ball")  # far out they are the same
    with jax.enable_x64(True):
        x = {k: jax.numpy.asarray(v.numpy()) for k, v in tree().items()}
        expected = {k: np.array(v) for k, v in getattr(optax.projections, name)(x, 0.7).items()}
    found = {k: v.numpy() for k, v in projection(tree(), 0.7).items()}
    np.testing.assert_allclose(found["w"], expected["w"], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found["b"], expected["b"], rtol=1e-12, atol=1e-14)


def test_bounds_may_be_trees_and_learned():
    lower = {"w": torch.full((3,), -0.2, requires_grad=True), "b": -0.1}
    found = optcore.projection_box(tree(), lower, 0.5)
    torch.testing.assert_close(found["b"], tree()["b"].clamp(-0.1, 0.5))
    (slope,) = torch.autograd.grad(found["w"].sum(), lower["w"])
    torch.testing.assert_close(slope, (tree()["w"] < -0.2).sum(0).double())


def test_what_has_no_gradient_is_not_moved_nor_seen():
    tx = optcore.keep_params_in(optcore.projection_simplex)
    params = [torch.ones(2), torch.ones(3)]
    updates, _ = tx.update([torch.zeros(2), None], tx.init(params), params)
    assert updates[1] is None
    torch.testing.assert_close(updates[0], torch.full((2,), -0.5))


def test_projected_descent_stays_in_the_set_and_finds_the_minimum():
    tx = optcore.chain(optcore.sgd(lr=0.2), optcore.keep_params_in(optcore.projection_simplex))
    target, params = torch.tensor([0.9, 0.5, -0.3]), [torch.full((3,), 1 / 3)]
    state = tx.init(params)
    for _ in range(60):
        updates, state = tx.update([params[0] - target], state, params)
        params = optcore.apply_updates(params, updates)
        assert params[0].sum().item() == pytest.approx(1.0, abs=1e-12)
    torch.testing.assert_close(params[0], torch.tensor([0.7, 0.3, 0.0]), rtol=0, atol=1e-5)


PENALTIES = {
    "l1": (optcore.prox_l1, {}, lambda y: np.abs(y).sum()),
    "elastic_net": (
        optcore.prox_elastic_net,
        {"ridge": 0.8},
        lambda y: np.abs(y).sum() + 0.4 * (y**2).sum(),
    ),
    "group_lasso": (optcore.prox_group_lasso, {}, np.linalg.norm),
    "non_negative_l1": (
        optcore.prox_non_negative_l1,
        {},
        lambda y: np.where(y < -1e-12, np.inf, y).sum(),
    ),
}
penalties = pytest.mark.parametrize(
    ("prox", "options", "penalty"), PENALTIES.values(), ids=PENALTIES.keys()
)


@penalties
def test_a_proximal_operator_minimizes_what_it_says(prox, options, penalty):
    x, generator = torch.tensor([1.7, -0.9, 0.2, 0.6]), np.random.default_rng(0)
    found = prox(x, 0.5, scaling=0.7, **options).numpy()

    def objective(y):
        return 0.5 * ((y - x.numpy()) ** 2).sum() + 0.35 * penalty(y)

    around = found + 10.0 ** generator.uniform(-5, 0, (400, 1)) * generator.normal(size=(400, 4))
    assert min(objective(y) for y in around) > objective(found)


@penalties
def test_jacobians_of_proximal_operators(prox, options, penalty):
    def run(w, b, strength, scaling):
        out = prox({"w": w, "b": b}, strength, scaling=scaling, **options)
        return out["w"].sin(), out["b"].sin()

    inputs = [leaf.requires_grad_() for leaf in tree().values()]
    inputs += [torch.tensor(value, requires_grad=True) for value in (0.5, 0.7)]
    assert gradcheck(run, inputs)
    assert gradgradcheck(run, inputs)


def test_groups_along_an_axis():
    x = torch.tensor([[3.0, 0.3], [4.0, 0.4]])
    found = optcore.prox_group_lasso([x], 1.0, axis=0)[0]
    torch.testing.assert_close(found, torch.tensor([[2.4, 0.0], [3.2, 0.0]]))


NARROW = {
    torch.bfloat16: {"rtol": 2**-7, "atol": 1e-5},
    torch.float16: {"rtol": 2**-10, "atol": 1e-5},
}


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("projection", SCALED[:7], ids=lambda f: f.__name__)
def test_half_precision_is_rounded_once(projection, dtype):
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(2)).to(dtype)
    found, expected = projection(x, 100.0), projection(x.double(), 100.0)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, **NARROW[dtype])


@pytest.mark.parametrize("x", [[0.25, 0.0], [0.0, 0.0], [-0.1, 0.0, 0.0], [3.0, 0.0]], ids=str)
def test_the_sphere_of_absolute_values_is_reached_where_elements_are_zero(x):
    x = torch.tensor(x)
    found = optcore.projection_l1_sphere(x)
    assert found.abs().sum().item() == pytest.approx(1.0, abs=1e-15)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * len(x))
    others = torch.stack([s * optcore.projection_simplex(s * x) for s in signs])
    assert (found - x).norm() <= (others - x).norm(dim=1).min() + 1e-15


def test_parameters_are_in_their_set_up_to_one_rounding():
    tx = optcore.keep_params_in(optcore.projection_box, lower=-0.3, upper=0.7)
    generator = torch.Generator().manual_seed(0)
    params = [1000 * torch.rand(1000, generator=generator, dtype=torch.float32)]
    state, excess = tx.init(params), []
    for _ in range(2):
        updates, state = tx.update([torch.zeros(1000, dtype=torch.float32)], state, params)
        params = optcore.apply_updates(params, updates)
        excess.append((params[0].double() - 0.7).max().item())
    assert 0 < excess[0] < 1000 * 2**-24
    assert excess[1] < 2**-24


def test_bounds_may_be_infinite():
    x = torch.tensor([-3.0, 0.5])
    found = optcore.projection_box(x, -float("inf"), 0.0)
    torch.testing.assert_close(found, torch.tensor([-3.0, 0.0]))
    tx = optcore.keep_params_in(optcore.projection_box, lower=0.0, upper=float("inf"))
    updates, _ = tx.update([torch.zeros(2)], tx.init([x]), [x])
    torch.testing.assert_close(updates[0], torch.tensor([3.0, 0.0]))


def test_an_option_of_a_step_may_be_scheduled():
    tx = optcore.keep_params_in(optcore.projection_linf_ball, scale=lambda count: 1.0 / (1 + count))
    params = [torch.tensor([2.0])]
    state = tx.init(params)
    for expected in (1.0, 0.5):
        updates, state = tx.update([torch.zeros(1)], state, params)
        params = optcore.apply_updates(params, updates)
        torch.testing.assert_close(params[0], torch.tensor([expected]))


X = [torch.ones(2, 3)]
BOX, BALL, LASSO = optcore.projection_box, optcore.projection_l2_ball, optcore.prox_group_lasso

ERRORS = [
    (
        lambda: optcore.projection_simplex([torch.ones(2, dtype=torch.int64)]),
        "projection_simplex: expected real floating tensors, got i64[2]",
    ),
    (
        lambda: optcore.keep_params_in(3),
        "keep_params_in: expected projection as a function, got int",
    ),
    (
        lambda: optcore.proximal_step("l1"),
        "proximal_step: expected prox as a function, got str",
    ),
    (
        lambda: optcore.proximal_step(optcore.prox_l1, strength="much"),
        "proximal_step: expected strength as a number, schedule, tensor or tree of such, got str",
    ),
    *(
        (
            lambda f=f: f(X, -1.0),
            f"{f.__name__}: expected scale {'>' if '_l1' in f.__name__ else '>='} 0, got -1.0",
        )
        for f in SCALED[1:]
    ),
    (
        lambda: optcore.projection_simplex(X, 0.0),
        "projection_simplex: expected scale > 0, got 0.0",
    ),
    *(
        (
            lambda f=f: f(X, "1"),
            f"{f.__name__}: expected scale as a number, schedule, tensor or tree of such, got str",
        )
        for f in SCALED
    ),
    *(
        (
            lambda f=f: f(X, torch.ones(2)),
            f"{f.__name__}: expected scale as one value for all parameters, got f64[2]",
        )
        for f in SCALED[:6]
    ),
    *(
        (
            lambda f=f: f([torch.ones(2, dtype=torch.int64)]),
            f"{f.__name__}: expected real floating tensors, got i64[2]",
        )
        for f in (*SCALED, optcore.projection_non_negative, optcore.prox_l1, LASSO)
    ),
    (
        lambda: BALL(X, lambda count: 1.0),
        "projection_l2_ball: expected scale as a number or tensor, got a schedule",
    ),
    (
        lambda: BOX(X, 1.0, 0.0),
        "projection_box: expected lower <= upper, got 1.0 and 0.0",
    ),
    (
        lambda: BOX({"a": X[0], "b": X[0]}, 0.5, {"a": 1.0, "b": 0.0}),
        "projection_box: expected lower <= upper, got 0.5 and 0.0",
    ),
    (
        lambda: BOX(X, float("nan"), 0.0),
        "projection_box: expected lower finite, got nan",
    ),
    (
        lambda: optcore.prox_l1(X, -1.0),
        "prox_l1: expected strength >= 0, got -1.0",
    ),
    (
        lambda: optcore.prox_elastic_net(X, 1.0, -1.0),
        "prox_elastic_net: expected ridge >= 0, got -1.0",
    ),
    (
        lambda: optcore.prox_non_negative_l1(X, scaling="a"),
        "prox_non_negative_l1: expected scaling as a number, schedule, tensor or tree of such, got",
    ),
    (
        lambda: LASSO(X, axis=5),
        "prox_group_lasso: expected axes of f32[2, 3], each once, got axis=5, at [0]",
    ),
    (
        lambda: LASSO(X, axis=(0, -2)),
        "prox_group_lasso: expected axes of f32[2, 3], each once, got axis=(0, -2), at [0]",
    ),
    (
        lambda: optcore.proximal_step(LASSO, axis="rows"),
        "proximal_step: expected axis as an int, a tuple of ints or None, got 'rows'",
    ),
    (
        lambda: optcore.keep_params_in(BALL, scale=-1.0),
        "keep_params_in: expected scale >= 0, got -1.0",
    ),
    (
        lambda: optcore.keep_params_in(optcore.projection_simplex, scale={"a": 1.0}),
        "keep_params_in: expected scale as one value for all parameters, got dict",
    ),
    (
        lambda: optcore.keep_params_in(BALL, radius=1.0),
        "keep_params_in: expected options of projection_l2_ball (scale), but got an unexpected",
    ),
    (
        lambda: optcore.keep_params_in(BOX, lower=0.0),
        "keep_params_in: expected options of projection_box (lower, upper), but missing a",
    ),
    (
        lambda: optcore.keep_params_in(BOX, lower=2.0, upper=1.0),
        "keep_params_in: expected lower <= upper, got 2.0 and 1.0",
    ),
    (
        lambda: optcore.proximal_step(optcore.prox_l1, strength=-1.0),
        "proximal_step: expected strength >= 0, got -1.0",
    ),
]


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_errors_name_what_was_expected(call, message):
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}"):
        call()
