# SPDX-License-Identifier: Apache-2.0
"""Sophia, SAM, plateaus, Shampoo and SOAP: optax's steps, the papers' algorithms, classes."""

import re

import numpy as np
import pytest
import torch

import optcore
from optcore import testing


def start():
    generator = torch.Generator().manual_seed(1)
    shapes = {"w": (3, 4), "k": (2, 3, 2), "b": (4,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def loss(p, sin):
    """A quadratic, waves and couplings; ``p`` holds torch or jax arrays."""
    mixed = (p["w"] * p["b"]).sum(0) + p["k"].sum(0).sum(0)[0]
    return (
        sum((x**2).sum() for x in p.values()) / 2 + sin(p["w"]).sum() + (sin(mixed) ** 2).sum() / 3
    )


def slopes(params):
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in params.items()}
    value = loss(leaves, torch.sin)
    grads = torch.autograd.grad(value, list(leaves.values()))
    return value.detach(), dict(zip(leaves, grads, strict=True))


def ours(tx, steps, inplace=False):
    params = start()
    state = tx.init(params)
    for _ in range(steps):
        value, grads = slopes(params)
        extra = {"value": value, "grad_fn": lambda p, i: slopes(p)[1]}
        updates, state = tx.update(grads, state, params, inplace=inplace, **extra)
        params = optcore.apply_updates(params, updates, inplace=False)
    return params, state


def squared(updates, params):
    return optcore.map_tensors(torch.square, updates)


def sophia(library, lr, **options):
    """With the squares of gradients in the place of the Hessian: they need no random signs."""
    if library is optcore:
        return optcore.sophia(lr=lr, hessian_diagonal_fn=optcore.stateless(squared), **options)
    b1, b2 = options.pop("betas", (0.965, 0.99))
    estimate = library.stateless(lambda u, p: library.tree.mul(u, u))
    return library.contrib.sophia(lr, b1, b2, hessian_diagonal_fn=estimate, **options)


def sam(library, period, reset, opaque=False):
    if library is optcore:
        up = optcore.chain(optcore.normalize(), optcore.sgd(lr=0.1))
        return optcore.sam(optcore.adam(0.05), up, period, reset, opaque)
    up = library.chain(library.contrib.normalize(), library.sgd(0.1, momentum=0.0))
    return library.contrib.sam(library.adam(0.05), up, period, reset, opaque)


def plateau(library, **options):
    module = library if library is optcore else library.contrib
    return library.chain(library.sgd(0.1), module.reduce_on_plateau(**options))


CASES = {
    "sophia": lambda o: sophia(o, 0.05, gamma=0.5),
    "sophia-odd": lambda o: sophia(
        o, 0.05, betas=(0.6, 0.7), eps=0.1, gamma=0.5, clip_threshold=None, update_interval=3
    ),
    "sam": lambda o: sam(o, 2, True),
    "sam-odd": lambda o: sam(o, 3, False),
    "plateau": lambda o: plateau(o, factor=0.5, patience=2, rtol=1e-3),
    "plateau-odd": lambda o: plateau(
        o,
        factor=0.3,
        patience=1,
        rtol=0.0,
        atol=0.05,
        cooldown=2,
        accumulation_size=3,
        min_scale=0.05,
    ),
}


TOLD = {"plateau": ("value",), "plateau-odd": ("value",)}  # optax's others take no value


@pytest.mark.parametrize("name", CASES)
def test_takes_the_steps_of_optax(name):
    optax = pytest.importorskip("optax", reason="the oracle of this test")
    jax = pytest.importorskip("jax", reason="the oracle of this test")
    with jax.enable_x64(True):
        tx = CASES[name](optax)

        @jax.jit
        def step(params, state):
            value, grads = jax.value_and_grad(loss)(params, jax.numpy.sin)
            extra = {key: {"value": value}[key] for key in TOLD.get(name, ())}
            updates, state = tx.update(grads, state, params, **extra)
            return optax.apply_updates(params, updates), state

        expected = {name: jax.numpy.asarray(leaf.numpy()) for name, leaf in start().items()}
        state = tx.init(expected)
        for _ in range(60):
            expected, state = step(expected, state)
    found, _ = ours(CASES[name](optcore), 60)
    for key, leaf in found.items():
        np.testing.assert_allclose(leaf.numpy(), expected[key], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(found["w"], start()["w"], atol=0.1)


@pytest.mark.parametrize("reset", [True, False])
def test_an_opaque_round_is_as_many_transparent_steps(reset):
    opaque, _ = ours(sam(optcore, 3, reset, opaque=True), 10)
    transparent, _ = ours(sam(optcore, 3, reset), 30)
    torch.testing.assert_close(opaque, transparent, rtol=1e-12, atol=1e-12)


def test_sam_of_one_gradient_is_its_optimizer():
    plain, _ = ours(optcore.adam(0.05), 10)
    torch.testing.assert_close(ours(sam(optcore, 1, True), 10)[0], plain)


def test_hutchinsons_estimate_is_exact_for_a_diagonal_and_unbiased_beside():
    matrix = torch.tensor([[3.0, 1.0], [1.0, 2.0]])
    tx = optcore.hutchinson_estimator_diag_hessian(seed=1)
    params, seen = [torch.tensor([0.3, -1.0])], []
    state = tx.init(params)
    for _ in range(400):
        found, state = tx.update(params, state, params, obj_fn=lambda p: p[0] @ matrix @ p[0] / 2)
        seen.append(found[0])
    assert {tuple(h.tolist()) for h in seen} == {(4.0, 3.0), (2.0, 1.0)}
    torch.testing.assert_close(torch.stack(seen).mean(0), matrix.diagonal(), rtol=0, atol=0.15)
    exact, _ = tx.update([params[0], None], tx.init(params), [params[0], None], obj_fn=quartic)
    torch.testing.assert_close(exact[0], 12 * params[0] ** 2)
    assert exact[1] is None


def quartic(params):
    return params[0].pow(4).sum()


def test_sophia_climbs_as_it_descends_the_negated_objective():
    options = {"lr": 0.1, "update_interval": 1, "gamma": 0.5, "weight_decay": 0.1}
    ends = []
    for sign in (1.0, -1.0):
        params = [torch.tensor([1.0, -2.0])]
        tx = optcore.sophia(**options, maximize=sign < 0)
        state = tx.init(params)
        for _ in range(4):
            updates, state = tx.update(
                [sign * 4 * params[0] ** 3], state, params, obj_fn=lambda p, s=sign: s * quartic(p)
            )
            params = optcore.apply_updates(params, updates)
        ends.append(params[0])
    torch.testing.assert_close(ends[1], ends[0])
    assert (ends[0].abs() < torch.tensor([1.0, 2.0])).all()


def test_the_class_of_sophia_is_told_the_objective_by_place():
    w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    options = {"lr": 0.1, "weight_decay": 0.0, "update_interval": 1, "gamma": 0.5}
    optimizer, params = optcore.Sophia([w], **options), [w.detach().clone()]
    tx = optcore.sophia(**options)
    state = tx.init(params)
    for _ in range(4):
        optimizer.zero_grad()
        quartic([w]).backward()
        optimizer.step(obj_fn=quartic)
        grad = [4 * params[0] ** 3]
        updates, state = tx.update(grad, state, params, obj_fn=quartic)
        params = optcore.apply_updates(params, updates)
    torch.testing.assert_close(w.detach(), params[0])


def test_a_class_reduces_its_steps_when_its_closure_stops_falling():
    w = torch.nn.Parameter(torch.ones(1))
    tx = optcore.chain(optcore.scale(-0.1), optcore.reduce_on_plateau(0.5, patience=1))
    optimizer = optcore.Optimizer([w], tx)

    def closure():
        w.grad = torch.ones(1)
        return torch.tensor(3.0)

    for _ in range(3):  # steps of 0.1, 0.05, 0.025
        optimizer.step(closure)
    assert w.item() == pytest.approx(1 - 0.175)


def along_all_axes(g, matrices):
    for axis, matrix in enumerate(matrices):
        g = torch.einsum("ij,j...->i...", matrix, g.movedim(axis, 0)).movedim(0, axis)
    return g


def unfolded(g, axis):
    return g.movedim(axis, 0).reshape(g.shape[axis], -1)


def shampoo_of_tensors(steps, lr=0.05, eps=0.01):
    """Gupta et al., 2018, Algorithm 2."""
    params = start()
    sums = {k: [eps * torch.eye(n) for n in p.shape] for k, p in params.items()}
    for _ in range(steps):
        grads = slopes(params)[1]
        for name, g in grads.items():
            sums[name] = [
                h + unfolded(g, axis) @ unfolded(g, axis).T for axis, h in enumerate(sums[name])
            ]
            roots = []
            for h in sums[name]:
                values, vectors = torch.linalg.eigh(h)
                roots.append(vectors @ torch.diag(values ** (-0.5 / g.ndim)) @ vectors.T)
            params[name] = params[name] - lr * along_all_axes(g, roots)
    return params


def soap_of_tensors(steps, lr=0.05, b1=0.9, b2=0.8, beta=0.7, eps=1e-3, every=3):
    """Vyas et al., 2024, Algorithms 3 and 4, with a basis for each axis, sorted as their code."""
    params = start()
    m = {k: torch.zeros_like(p) for k, p in params.items()}
    v = {k: torch.zeros_like(p) for k, p in params.items()}
    sums = {k: [torch.zeros(n, n) for n in p.shape] for k, p in params.items()}
    bases = {k: [torch.eye(n) for n in p.shape] for k, p in params.items()}
    for t in range(steps):
        grads = slopes(params)[1]
        for name, g in grads.items():
            q = bases[name]
            if t > 0:
                m[name] = b1 * m[name] + (1 - b1) * g
                v[name] = b2 * v[name] + (1 - b2) * along_all_axes(g, [b.T for b in q]) ** 2
                top = along_all_axes(m[name], [b.T for b in q]) / (1 - b1**t)
                step = top / ((v[name] / (1 - b2**t)).sqrt() + eps)
                params[name] = params[name] - lr * along_all_axes(step, q)
            if g.ndim == 1:
                continue
            sums[name] = [
                beta * h + (1 - beta) * unfolded(g, axis) @ unfolded(g, axis).T
                for axis, h in enumerate(sums[name])
            ]
            if t == 0:
                bases[name] = [torch.linalg.eigh(h)[1].flip(1) for h in sums[name]]
            elif t % every == 0:
                for axis, (h, b) in enumerate(zip(sums[name], q, strict=True)):
                    order = (b.T @ h @ b).diagonal().argsort(descending=True)
                    v[name] = v[name].index_select(axis, order)
                    bases[name][axis] = torch.linalg.qr(h @ b[:, order])[0]
    return params


def test_shampoo_equals_the_algorithm_of_its_paper():
    found, _ = ours(optcore.shampoo(lr=0.05, eps=0.01), 40)
    torch.testing.assert_close(found, shampoo_of_tensors(40), rtol=1e-9, atol=1e-9)
    assert loss(found, torch.sin) < loss(start(), torch.sin) - 1


def test_soap_equals_the_algorithm_of_its_paper():
    tx = optcore.soap(0.05, (0.9, 0.8), 1e-3, 0.0, shampoo_beta=0.7, precondition_frequency=3)
    found, _ = ours(tx, 40)
    torch.testing.assert_close(found, soap_of_tensors(40), rtol=1e-8, atol=1e-8)
    assert loss(found, torch.sin) < loss(start(), torch.sin) - 1


def test_the_basis_of_soap_stays_in_the_order_of_falling_eigenvalues():
    scales = torch.logspace(0, -2, 6)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))[0]
    tx, params = optcore.scale_by_soap(precondition_frequency=2), {"w": torch.zeros(6, 40)}
    state, generator = tx.init(params), torch.Generator().manual_seed(1)
    for step in range(30):  # halfway, the smallest becomes the largest
        own = scales if step < 15 else scales.flip(0)
        grads = {"w": turn * own @ torch.randn(6, 40, generator=generator)}
        _, state = tx.update(grads, state, params)
    basis, sums = state.bases["w"][0], state.statistics["w"][0]
    found = (basis.T @ sums @ basis).diagonal()
    assert torch.equal(found, found.sort(descending=True).values)
    cosines = (basis.T @ torch.linalg.eigh(sums)[1].flip(1)).diagonal().abs()
    assert cosines.min() > 0.9


def test_the_first_update_of_soap_is_the_decay_alone():
    opt = optcore.soap(lr=0.1, weight_decay=0.5)
    params = [torch.full((2, 2), 4.0)]
    updates, _ = opt.update([torch.ones(2, 2)], opt.init(params), params)
    torch.testing.assert_close(updates[0], torch.full((2, 2), -0.2))


def test_long_axes_keep_diagonals_or_are_not_turned():
    params = {"w": torch.ones(2, 5)}
    grads = {"w": torch.arange(1.0, 11.0).view(2, 5)}
    tx = optcore.scale_by_shampoo(eps=0.1, max_size=3)
    updates, state = tx.update(grads, tx.init(params), params)
    assert [tuple(h.shape) for h in state.statistics["w"]] == [(2, 2), (5,)]
    g = grads["w"]
    values, vectors = torch.linalg.eigh(g @ g.T + 0.1 * torch.eye(2))
    left = vectors @ torch.diag(values**-0.25) @ vectors.T
    torch.testing.assert_close(updates["w"], left @ g * (g.square().sum(0) + 0.1) ** -0.25)
    state = optcore.scale_by_soap(max_size=3).init(params)
    assert [h is None for h in state.bases["w"]] == [False, True]


def test_the_derivative_of_shampoo_is_finite_where_eigenvalues_coincide():
    case = testing.Case(
        "shampoo", optcore.shampoo, {"lr": 0.05, "eps": 0.1}, reference=testing.reference.shampoo
    )
    g = torch.ones(4, 1, requires_grad=True)  # three of four eigenvalues are eps
    updates, _ = case.build().update([g], case.build().init([g]), inplace=False)
    (slope,) = torch.autograd.grad(updates[0].square().sum(), g, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.square().sum(), g)
    assert slope.isfinite().all()
    assert curvature.isfinite().all()


ERRORS = [
    (
        lambda: optcore.reduce_on_plateau(factor=1.5),
        "reduce_on_plateau: expected factor in (0, 1), got 1.5",
    ),
    (
        lambda: optcore.reduce_on_plateau(rtol=0.0),
        "reduce_on_plateau: expected rtol in [0, 1], and rtol or atol positive, got rtol=0.0",
    ),
    (
        lambda: optcore.reduce_on_plateau(min_scale=2.0),
        "reduce_on_plateau: expected min_scale in [0, 1], got 2.0",
    ),
    (
        lambda: optcore.reduce_on_plateau().update([], optcore.reduce_on_plateau().init([])),
        "reduce_on_plateau: expected value=, got None; call update(updates, state, params, value=",
    ),
    (
        lambda: ours(optcore.sam(optcore.sgd(), optcore.sgd(), 0), 1),
        "sam: expected sync_period >= 1, got 0",
    ),
    (
        lambda: sam(optcore, 2, True, opaque=True).update([], (), []),
        "sam: expected grad_fn= with opaque_mode=True, got None; call update(updates, state,",
    ),
    (
        lambda: ours(optcore.sophia(), 1),
        "hutchinson_estimator_diag_hessian: expected obj_fn=, got None; call update(updates, ",
    ),
    (
        lambda: optcore.scale_by_shampoo().update(
            [torch.ones(3)], optcore.scale_by_shampoo().init([torch.ones(2)])
        ),
        "scale_by_shampoo: expected a gradient of the parameter's shape [2], got f64[3], at [0]",
    ),
]


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_errors_name_what_was_expected(call, message):
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}"):
        call()
