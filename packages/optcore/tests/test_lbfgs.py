# SPDX-License-Identifier: Apache-2.0
"""Directions of L-BFGS against optax, a dense BFGS matrix and finite differences."""

import copy
import pickle
import re

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import optcore

SIZES = {"w": (2, 3), "b": (5,), "s": ()}


def tree(vector):
    parts = vector.split([torch.Size(shape).numel() for shape in SIZES.values()])
    return {k: p.reshape(shape) for (k, shape), p in zip(SIZES.items(), parts, strict=True)}


def vector(tree):
    return torch.cat([tree[k].reshape(-1) for k in SIZES])


def convex_path(steps):
    """Points and gradients of a convex function at them, on a path of no optimizer."""
    a = torch.randn(12, 12)
    x = torch.randn(12)
    for _ in range(steps):
        x = x + 0.3 * torch.randn(12)
        yield x, a.T @ (a @ x) / 12 + x**3


def directions(tx, path):
    state = None
    for x, g in path:
        state = tx.init(tree(x)) if state is None else state
        update, state = tx.update(tree(g), state, tree(x))
        yield vector(update)


@pytest.mark.parametrize(("memory_size", "scale_init_precond"), [(4, False), (10, True)])
def test_is_optax_s_over_30_steps(memory_size, scale_init_precond):
    optax = pytest.importorskip("optax", reason="optax is the reference")
    jax = pytest.importorskip("jax", reason="optax is the reference")
    jnp = jax.numpy
    path = list(convex_path(30))
    with jax.enable_x64(True):
        reference = optax.scale_by_lbfgs(memory_size, scale_init_precond)
        update = jax.jit(reference.update)
        state = reference.init(jnp.asarray(path[0][0].numpy()))
        expected = []
        for x, g in path:
            u, state = update(jnp.asarray(g.numpy()), state, jnp.asarray(x.numpy()))
            expected.append(torch.tensor(u.tolist()))
    found = directions(optcore.scale_by_lbfgs(memory_size, scale_init_precond), path)
    for u, v in zip(found, expected, strict=True):
        assert ((u - v).norm() / v.norm()).item() <= 1e-9


@pytest.mark.parametrize("memory_size", [1, 3, 20])
def test_is_the_matrix_of_the_last_pairs(memory_size):
    path = list(convex_path(8))
    found = list(directions(optcore.scale_by_lbfgs(memory_size), path))
    for k in range(1, 8):
        pairs = [
            (path[j + 1][0] - path[j][0], path[j + 1][1] - path[j][1])
            for j in range(max(0, k - memory_size), k)
        ]
        s, y = pairs[-1]
        p = torch.eye(12) * (s @ y) / (y @ y)
        for s, y in pairs:
            v = torch.eye(12) - torch.outer(y, s) / (s @ y)
            p = v.T @ p @ v + torch.outer(s, s) / (s @ y)
        torch.testing.assert_close(found[k], p @ path[k][1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("size", "expected"), [(0.5, 0.5), (4.0, 1.0), (0.0, 0.0)])
def test_first_direction_is_no_longer_than_one(size, expected):
    g = torch.tensor([size, 0.0])
    tx = optcore.scale_by_lbfgs()
    (u,), _ = tx.update([g], tx.init([g]), [torch.ones(2)])
    assert torch.equal(u, torch.tensor([expected, 0.0]))


def test_memory_fills_and_wraps():
    tx = optcore.scale_by_lbfgs(memory_size=2)
    state = tx.init([torch.zeros(1)])
    counts, steps = [], []
    for x in (1.0, 2.0, 4.0, 7.0):
        _, state = tx.update([torch.tensor([3 * x])], state, [torch.tensor([x])])
        counts.append(int(state.weights_memory.count_nonzero()))
        steps.append([s[0].item() for s in state.diff_params_memory])
    assert counts == [0, 1, 2, 2]
    assert steps == [[0, 0], [0, 1], [1, 2], [2, 3]]
    assert [y[0].item() for y in state.diff_updates_memory] == [6, 9]


# gradient after the step from x = 0, g = 1 to x = 1
FLAT = {"negative": 0.5, "zero": 1.0, "rounding": 1.0 + 2**-52, "nan": torch.nan, "inf": torch.inf}


@pytest.mark.parametrize("second", FLAT.values(), ids=FLAT.keys())
def test_a_pair_without_curvature_is_left_out(second):
    sign = -1.0  # gradients fall where the curvature is not positive
    tx = optcore.scale_by_lbfgs(memory_size=3)
    state = tx.init([torch.zeros(1)])
    for x, g in ((-2.0, -5.0), (0.0, 1.0)):
        _, state = tx.update([torch.tensor([g])], state, [torch.tensor([x])])
    before = state
    step = {1.0 + 2**-52: 2.0**60}.get(second, 1.0)
    g = 1.0 + sign * abs(second - 1.0)
    _, after = tx.update([torch.tensor([g])], before, [torch.tensor([step * 1.0])])
    for kept, old in zip(after[3:5], before[3:5], strict=True):
        assert [k[0].item() for k in kept] == [o[0].item() for o in old]
    assert torch.equal(after.weights_memory, before.weights_memory)


def test_standing_still_keeps_the_memory():
    tx = optcore.scale_by_lbfgs()
    state = tx.init([torch.zeros(1)])
    for x in (1.0, 2.0, 2.0, 2.0):
        (u,), state = tx.update([torch.tensor([4 * x])], state, [torch.tensor([x])])
    assert u.item() == 2.0
    assert int(state.weights_memory.count_nonzero()) == 1


def test_a_leaf_without_gradient_stays_and_does_not_count():
    tx = optcore.scale_by_lbfgs(memory_size=3)
    full, part = tx.init([torch.zeros(1), torch.zeros(1)]), tx.init([torch.zeros(1)])
    for x in (1.0, 3.0):
        g, p = torch.tensor([2 * x]), torch.tensor([x])
        (u, none), full = tx.update([g, None], full, [p, torch.ones(1)])
        (alone,), part = tx.update([g], part, [p])
        assert none is None
        assert torch.equal(u, alone)
    assert int(full.count[1]) == 0
    late = torch.tensor([5.0])
    (_, first), full = tx.update([2 * late, late], full, [late, late])
    assert [s[0].item() for s in full.diff_params_memory] == [0.0, 2.0, 2.0]
    assert all(s[1].item() == 0.0 for s in full.diff_params_memory)
    assert all(y[1].item() == 0.0 for y in full.diff_updates_memory)
    assert first.item() == pytest.approx(5.0 / 2)  # the others' scale, no pair of its own


def test_none_parameters_and_empty_trees():
    tx = optcore.lbfgs(linesearch=None)
    (u, none), _ = tx.update([torch.ones(1), None], tx.init([torch.ones(1), None]), [u0(), None])
    assert none is None
    assert u.item() == -1.0
    assert tx.update({}, tx.init({}), {})[0] == {}


def u0():
    return torch.ones(1)


@pytest.mark.parametrize("inplace", [True, False, None])
def test_modes_agree_and_overwrite_nothing(inplace):
    path = list(convex_path(6))
    tx = optcore.scale_by_lbfgs(3)
    state, expected = tx.init(tree(path[0][0])), list(directions(tx, path))
    for (x, g), u in zip(path, expected, strict=True):
        params, grads = tree(x.clone()), tree(g.clone())
        found, state = tx.update(grads, state, params, inplace=inplace)
        assert torch.equal(vector(found), u)
        assert torch.equal(vector(grads), g)
        vector(grads).zero_()
        for leaf in (*grads.values(), *params.values()):
            leaf.zero_()  # the state holds copies
    assert torch.equal(vector(state.params), path[-1][0])
    assert torch.equal(vector(state.updates), path[-1][1])


def test_half_precision_sums_in_float32():
    x = torch.full((3000,), 2.0, dtype=torch.bfloat16)
    tx = optcore.scale_by_lbfgs()
    _, state = tx.update([x], tx.init([x]), [x])
    (u,), state = tx.update([2 * x], state, [2 * x])
    assert u.dtype == torch.bfloat16
    assert state.weights_memory.dtype == torch.float32
    assert state.weights_memory[-1].item() == pytest.approx(1 / 12000)


def quartic(params, c):
    return ((params["w"] * c).sin() + params["w"].square()).sum() + params["b"] ** 4


def unrolled(w, b, c, lr, tx=None, steps=3):
    params = {"w": w, "b": b}
    tx = optcore.lbfgs(lr=lr, linesearch=None) if tx is None else tx
    state = tx.init(params)
    for _ in range(steps):
        grads = torch.autograd.grad(quartic(params, c), list(params.values()), create_graph=True)
        updates, state = tx.update(dict(zip(params, grads, strict=True)), state, params)
        params = optcore.apply_updates(params, updates)
    return torch.cat([params["w"], params["b"].reshape(1)])


def inputs():
    values = ([0.7, -1.1], 0.9, [1.3, 0.6], 0.4)
    return tuple(torch.tensor(v, requires_grad=True) for v in values)


def test_derivatives_of_three_steps():
    assert gradcheck(unrolled, inputs())
    assert gradgradcheck(unrolled, inputs())


@pytest.mark.parametrize("scale_init_precond", [True, False])
def test_derivatives_in_the_gradients(scale_init_precond):
    tx = optcore.scale_by_lbfgs(2, scale_init_precond)

    def third(*grads):
        state = tx.init([torch.zeros(3)])
        for g, x in zip(grads, (0.0, 1.0, 3.0), strict=True):
            (u,), state = tx.update([g], state, [torch.full((3,), x)])
        return u

    grads = tuple((torch.rand(3) + k).requires_grad_() for k in range(3))
    assert gradcheck(third, grads)
    assert gradgradcheck(third, grads)


def test_derivative_at_a_zero_gradient_is_finite():
    tx = optcore.scale_by_lbfgs()
    g = torch.zeros(2, requires_grad=True)
    (u,), _ = tx.update([g], tx.init([g]), [torch.zeros(2)])
    (first,) = torch.autograd.grad(u.sum(), g, create_graph=True)
    assert torch.equal(first, torch.ones(2))
    assert torch.equal(torch.autograd.grad(first.sum(), g)[0], torch.zeros(2))


def test_vmap_is_the_loop_where_some_pairs_are_left_out():
    tx = optcore.lbfgs(lr=0.5, memory_size=2, linesearch=None)
    grads = torch.tensor([[1.0, -2.0], [2.0, 1.0], [0.5, 3.0], [4.0, 3.5]])

    def run(xs, scale):
        state = tx.init([xs[0]])
        for x, g in zip(xs, grads, strict=True):
            (u,), state = tx.update([g * scale], state, [x])
        return u, state

    points = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3.5]])
    lanes = torch.stack([points, -points, points.flip(1), points**2])
    scales = torch.tensor([1.0, 2.0, 3.0, 4.0])
    found, state = torch.func.vmap(run, randomness="error")(lanes, scales)
    assert len(set(state[0].weights_memory.count_nonzero(1).tolist())) > 1
    for k in range(4):
        torch.testing.assert_close(found[k], run(lanes[k], scales[k])[0], rtol=1e-13, atol=0)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's
def test_func_grad_and_jvp_are_autograd_s():
    w, b, c, lr = inputs()
    expected = torch.autograd.grad(unrolled(w, b, c, lr).sum(), lr)[0]
    held = [t.detach() for t in (w, b, c)]

    def out(lr):
        params = {"w": held[0], "b": held[1]}
        tx = optcore.lbfgs(lr=lr, linesearch=None)
        state = tx.init(params)
        for _ in range(3):
            grads = torch.func.grad(quartic)(params, held[2])
            updates, state = tx.update(grads, state, params)
            params = optcore.apply_updates(params, updates)
        return params["w"].sum() + params["b"]

    torch.testing.assert_close(torch.func.grad(out)(lr.detach()), expected, rtol=1e-12, atol=0)
    _, tangent = torch.func.jvp(out, (lr.detach(),), (torch.ones(()),))
    torch.testing.assert_close(tangent, expected, rtol=1e-12, atol=0)


def test_generic_class_keeps_state_per_parameter():
    w, v = (torch.nn.Parameter(torch.tensor([x, 2.0])) for x in (1.0, 3.0))
    optimizer = optcore.Optimizer([w, v], optcore.lbfgs(lr=0.1, linesearch=None))
    params, tx = [w.detach().clone(), v.detach().clone()], optcore.lbfgs(lr=0.1, linesearch=None)
    state = tx.init(params)
    for _ in range(4):
        optimizer.zero_grad()
        (w**4).sum().add((v**2).sum()).backward()
        optimizer.step()
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        grads = [4 * params[0] ** 3, 2 * params[1]]
        updates, state = tx.update(grads, state, params)
        params = optcore.apply_updates(params, updates, inplace=False)
    torch.testing.assert_close([w.detach(), v.detach()], params, rtol=1e-13, atol=0)


@pytest.mark.parametrize("linesearch", ["zoom", "backtracking", None])
def test_is_a_value(linesearch):
    tx = optcore.lbfgs(memory_size=3, linesearch=linesearch)
    assert tx == optcore.lbfgs(memory_size=3, linesearch=linesearch)
    assert tx != optcore.lbfgs(memory_size=4, linesearch=linesearch)
    assert pickle.loads(pickle.dumps(tx)) == tx


ERRORS = [
    (
        lambda: optcore.scale_by_lbfgs(0),
        ValueError,
        "scale_by_lbfgs: expected memory_size >= 1, got 0",
    ),
    (
        lambda: optcore.scale_by_lbfgs(2.0),
        TypeError,
        "scale_by_lbfgs: expected memory_size as an int, got float",
    ),
    (lambda: optcore.lbfgs(lr=-1.0), ValueError, "lbfgs: expected lr >= 0, got -1.0"),
    (
        lambda: optcore.lbfgs(linesearch="wolfe"),
        ValueError,
        'lbfgs: expected linesearch "zoom", "backtracking", None or a GradientTransformation, '
        "got 'wolfe'",
    ),
    (
        lambda: optcore.lbfgs(linesearch=3),
        TypeError,
        'lbfgs: expected linesearch "zoom", "backtracking", None or a GradientTransformation, '
        "got int",
    ),
    (
        lambda: optcore.scale_by_lbfgs().update([u0()], optcore.scale_by_lbfgs().init([u0()])),
        ValueError,
        "scale_by_lbfgs: expected params, got None; call update(updates, state, params)",
    ),
    (
        lambda: optcore.scale_by_lbfgs().update(
            [torch.ones(2)], optcore.scale_by_lbfgs().init([u0()]), [u0()]
        ),
        ValueError,
        "scale_by_lbfgs: expected a gradient like its parameter f64[1], got f64[2], at [0]",
    ),
    (
        lambda: optcore.scale_by_lbfgs().init([torch.ones(1, dtype=torch.int64)]),
        TypeError,
        "scale_by_lbfgs: expected real floating parameters, got i64[1]",
    ),
]


@pytest.mark.parametrize(("build", "error", "message"), ERRORS)
def test_errors(build, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        build()
