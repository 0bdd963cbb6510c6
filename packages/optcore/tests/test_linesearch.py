# SPDX-License-Identifier: Apache-2.0
"""Line searches: the conditions they promise, optax's steps and failures."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import optcore
from optcore import scale_by_backtracking_linesearch, scale_by_zoom_linesearch

SEARCHES = {
    "zoom": lambda: scale_by_zoom_linesearch(30),
    "backtracking": lambda: scale_by_backtracking_linesearch(30, store_grad=True),
}


@pytest.fixture(params=SEARCHES.values(), ids=SEARCHES.keys())
def search(request):
    return request.param


def value_and_grad(f, params):
    leaves = {k: p.detach().requires_grad_() for k, p in params.items()}
    value = f(leaves)
    return value.detach(), dict(
        zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True)
    )


def one_step(tx, f, params, updates=None, state=None, **extra):
    value, grad = value_and_grad(partial(f, **extra), params)
    updates = {k: -g for k, g in grad.items()} if updates is None else updates
    state = tx.init(params) if state is None else state
    return tx.update(updates, state, params, value=value, grad=grad, value_fn=f, **extra)


def bumpy(seed):
    """A smooth function bounded below, with many minima, and a point."""
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(6, 4, generator=generator), 3 * torch.randn(6, generator=generator)
    scale = 10 ** (3 * torch.rand((), generator=generator) - 1)

    def f(params):
        x = torch.cat([params["w"].reshape(-1), params["b"].reshape(1)])
        z = a[:, : x.numel()] @ x * scale + b
        return (z.sin() + 0.1 * z.square() + torch.nn.functional.softplus(z)).sum()

    return f, {
        "w": torch.randn(3, generator=generator),
        "b": torch.randn((), generator=generator),
    }


def slope(grad, updates):
    return sum((grad[k] * updates[k]).sum() for k in updates)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    length=st.sampled_from([1e-4, 1e-2, 1.0, 100.0]),
    c2=st.sampled_from([0.1, 0.5, 0.9]),
)
def test_zoom_satisfies_the_strong_wolfe_conditions(seed, length, c2):
    f, params = bumpy(seed)
    value, grad = value_and_grad(f, params)
    u = {k: -length * g for k, g in grad.items()}
    tx = scale_by_zoom_linesearch(60, curv_rtol=c2, approx_dec_rtol=None, stepsize_precision=0.0)
    updates, state = one_step(tx, f, params, u)
    eta = state.learning_rate.item()
    new = optcore.apply_updates(params, updates)
    new_value, new_grad = value_and_grad(f, new)
    assert new_value <= value + 1e-4 * eta * slope(grad, u) + 1e-13 * abs(value)
    assert abs(slope(new_grad, u)) <= c2 * abs(slope(grad, u)) * (1 + 1e-9)
    assert (state.info.decrease_error.item(), state.info.curvature_error.item()) == (0.0, 0.0)
    torch.testing.assert_close(state.grad, new_grad, rtol=1e-12, atol=1e-12)
    assert state.value.item() == pytest.approx(new_value.item(), rel=1e-14)
    torch.testing.assert_close(updates, {k: eta * x for k, x in u.items()}, rtol=1e-15, atol=0)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), length=st.sampled_from([1e-3, 1.0, 30.0]))
def test_backtracking_satisfies_armijo_s_and_the_step_before_does_not(seed, length):
    f, params = bumpy(seed)
    value, grad = value_and_grad(f, params)
    u = {k: -length * g for k, g in grad.items()}
    tx = scale_by_backtracking_linesearch(200, slope_rtol=0.1, decrease_factor=0.5)
    updates, state = one_step(tx, f, params, u)

    def excess(eta):
        moved = {k: p + eta * u[k] for k, p in params.items()}
        return (f(moved) - value - 0.1 * eta * slope(grad, u)).item()

    eta, tried = state.learning_rate.item(), int(state.info.num_linesearch_steps)
    assert eta == 0.5 ** (tried - 1)
    assert excess(eta) <= 1e-13 * abs(value)
    assert all(excess(0.5**k) > 0 for k in range(tried - 1))
    assert state.grad is None
    assert state.value.item() == f(optcore.apply_updates(params, updates)).item()


def test_is_optax_s():
    optax = pytest.importorskip("optax", reason="optax is the reference")
    jax = pytest.importorskip("jax", reason="optax is the reference")

    def f(params):
        x, y = params["x"], params["y"]
        return (1 - x) ** 2 + 10 * (y - x**2) ** 2 + 0.1 * x**4

    def run(update, state, params, differentiate, apply_updates):
        steps = []
        for _ in range(6):
            value, grad = differentiate(f, params)
            u, state = update(grad, state, params, value, grad)
            params = apply_updates(params, u)
            steps.append((float(state[1].learning_rate), int(state[1].info.num_linesearch_steps)))
        return steps

    def theirs(search):
        tx = optax.chain(optax.sgd(0.3), search)
        start = {"x": jax.numpy.asarray(-1.2), "y": jax.numpy.asarray(2.0)}
        update = jax.jit(lambda g, s, p, v, d: tx.update(g, s, p, value=v, grad=d, value_fn=f))
        both = jax.jit(lambda p: jax.value_and_grad(f)(p))
        return run(update, tx.init(start), start, lambda _, p: both(p), optax.apply_updates)

    def ours(search):
        tx = optcore.chain(optcore.sgd(lr=0.3), search)
        start = {"x": torch.tensor(-1.2), "y": torch.tensor(2.0)}

        def update(g, s, p, v, d):
            return tx.update(g, s, p, value=v, grad=d, value_fn=f)

        return run(update, tx.init(start), start, value_and_grad, optcore.apply_updates)

    for name, steps, options in (
        ("scale_by_zoom_linesearch", 30, {"curv_rtol": 0.1}),
        ("scale_by_backtracking_linesearch", 30, {}),
    ):
        with jax.enable_x64(True):
            expected = theirs(getattr(optax, name)(steps, **options))
        found = ours(getattr(optcore, name)(steps, **options))
        assert [n for _, n in found] == [n for _, n in expected]
        assert [eta for eta, _ in found] == pytest.approx([eta for eta, _ in expected], rel=1e-9)


def test_trees_none_leaves_and_data(search):
    def f(params, batch, weight=1.0):
        return weight * ((params["a"]["w"] * batch).sum() ** 2 + params["c"][0].sum() ** 4)

    params = {
        "a": {"w": torch.ones(2, 2), "frozen": None},
        "c": (torch.ones(3),),
        "d": torch.ones(1),
    }
    grads = {
        "a": {"w": torch.full((2, 2), 80.0), "frozen": None},
        "c": (torch.full((3,), 108.0),),
        "d": None,
    }
    tx = optcore.lbfgs(linesearch=search())
    extra = {"batch": 2.0, "weight": 0.5}
    value = f(params, **extra)
    updates, state = tx.update(
        grads, tx.init(params), params, value=value, grad=grads, value_fn=f, **extra
    )
    assert updates["a"]["frozen"] is None
    assert updates["d"] is None
    assert state[-1].grad["d"] is None
    new = optcore.apply_updates(params, updates)
    assert f(new, **extra) < value
    assert new["d"] is params["d"]
    assert f(new, **extra).item() == state[-1].value.item()


def test_the_step_is_a_constant_of_the_derivatives(search):
    def f(params):
        return (params["x"] ** 4).sum() + params["x"].prod()

    def update(lr, x):
        params = {"x": x}
        value = f(params)
        grad = torch.autograd.grad(value, x, create_graph=True)[0]
        tx = optcore.chain(optcore.sgd(lr=lr), search())
        return tx.update(
            {"x": grad}, tx.init(params), params, value=value, grad={"x": grad}, value_fn=f
        )

    lr, x = torch.tensor(0.8, requires_grad=True), torch.tensor([1.0, 2.0], requires_grad=True)
    updates, state = update(lr, x)
    eta = state[1].learning_rate
    for kept in (eta, state[1].value, state[1].grad["x"]):
        assert not kept.requires_grad
    found = torch.autograd.grad(updates["x"].sum(), [lr, x])
    grad = 4 * x**3 + x.flip(0)
    expected = torch.autograd.grad((-eta * lr * grad).sum(), [lr, x])
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)


def cubic(params):
    return (params["x"] ** 2).sum()


def start():
    return {"x": torch.tensor([3.0, -4.0])}


def fails(tx, f, updates=None):
    updates, state = one_step(tx, f, start(), updates)
    value, grad = value_and_grad(f, start())
    assert torch.equal(updates["x"], torch.zeros(2))
    assert state.learning_rate.item() == 0.0
    assert state.value.item() == value.item()
    assert torch.equal(state.grad["x"], grad["x"])
    return state.info


def test_a_direction_that_leads_up_is_not_searched(search):
    info = fails(search(), cubic, {"x": start()["x"]})
    assert (int(info.num_linesearch_steps), info.decrease_error.item()) == (0, math.inf)


def test_a_direction_along_a_level_is_not_searched(search):
    info = fails(search(), cubic, {"x": torch.tensor([4.0, 3.0])})
    assert (int(info.num_linesearch_steps), info.decrease_error.item()) == (0, math.inf)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_not_accepted(search, bad):
    def f(params):
        here = torch.equal(params["x"].detach(), start()["x"])
        return cubic(params) * (1.0 if here else bad)

    info = fails(search(), f)
    assert int(info.num_linesearch_steps) >= 30
    assert info.decrease_error.item() == math.inf


def test_the_edge_of_the_domain_is_backed_away_from(search):
    def f(params):
        return params["x"].sum() - params["x"].log().sum()  # NaN at x < 0

    _, state = one_step(
        search(), f, {"x": torch.tensor([0.01, 5.0])}, {"x": torch.tensor([9.0, -90.0])}
    )
    assert 0 < state.learning_rate < 5 / 90
    assert state.info.decrease_error.item() == 0.0


def test_a_start_that_is_not_finite_is_not_searched(search):
    tx = search()
    grad = {"x": torch.ones(2)}
    updates, state = tx.update(
        {"x": -torch.ones(2)}, tx.init(start()), start(), value=math.nan, grad=grad, value_fn=cubic
    )
    assert torch.equal(updates["x"], torch.zeros(2))
    assert state.info.decrease_error.item() == math.inf


@pytest.mark.parametrize(
    "tx",
    [scale_by_zoom_linesearch(2), scale_by_backtracking_linesearch(1, store_grad=True)],
    ids=["zoom", "backtracking"],
)
def test_too_few_steps_take_none_and_the_next_search_starts_afresh(tx):
    far = {"x": -1e6 * start()["x"]}
    info = fails(tx, cubic, far)
    assert int(info.num_linesearch_steps) == 2
    assert 0 < info.decrease_error.item() < math.inf
    _, state = one_step(tx, cubic, start(), far)
    _, state = one_step(tx, cubic, start(), {"x": -start()["x"]}, state)
    assert state.learning_rate.item() == 1.0


def test_a_zero_gradient_is_no_failure(search):
    params = {"x": torch.zeros(2)}
    updates, state = one_step(search(), cubic, params)
    assert torch.equal(updates["x"], torch.zeros(2))
    assert (int(state.info.num_linesearch_steps), state.info.decrease_error.item()) == (0, 0.0)
    assert state.value.item() == 0.0


def test_a_step_that_decreases_enough_is_taken_where_the_slope_cannot_be_met():
    tx = scale_by_zoom_linesearch(20, max_learning_rate=1e-3)
    _, state = one_step(tx, cubic, start())
    assert state.learning_rate.item() == 1e-3
    assert state.info.decrease_error.item() == 0.0
    assert state.info.curvature_error.item() > 0.0
    tx = scale_by_zoom_linesearch(20, curv_rtol=math.inf)
    _, state = one_step(tx, cubic, start(), {"x": -1e-3 * start()["x"]})
    assert (state.learning_rate.item(), state.info.curvature_error.item()) == (1.0, 0.0)


@pytest.mark.parametrize(("strategy", "first"), [("one", 1.0), ("keep", 0.5)])
def test_the_first_step_tried(strategy, first):
    tx = scale_by_zoom_linesearch(20, initial_guess_strategy=strategy)
    tried = []

    def f(params):
        tried.append(round((params["x"][0].item() - 3.0) / -0.6, 6))
        return cubic(params)

    _, state = one_step(tx, cubic, start())
    assert state.learning_rate.item() == 0.5
    value, grad = value_and_grad(cubic, start())
    short = {"x": -0.1 * grad["x"]}
    tx.update(short, state, start(), value=value, grad=grad, value_fn=f)
    assert tried[0] == first


def test_float32_and_bfloat16(search):
    for dtype in (torch.float32, torch.bfloat16):
        params = {"x": start()["x"].to(dtype)}
        updates, state = one_step(search(), cubic, params)
        assert updates["x"].dtype == dtype
        assert cubic(optcore.apply_updates(params, updates)).item() == state.value.item() < 25


@pytest.mark.parametrize(
    "tx",
    [
        scale_by_zoom_linesearch(10, verbose=True),
        scale_by_backtracking_linesearch(10, verbose=True),
    ],
    ids=["zoom", "backtracking"],
)
def test_verbose_warns_of_a_failure(tx):
    with pytest.warns(UserWarning, match="took no step after 0 evaluations; value 25"):
        one_step(tx, cubic, start(), {"x": start()["x"]})
