# SPDX-License-Identifier: Apache-2.0
"""Clipping equals torch's and the formulas, with the derivative of the clipped gradient."""

import re

import pytest
import torch

import optcore

NAN, INF = float("nan"), float("inf")
G = {"w": torch.tensor([[3.0, -4.0], [0.0, 12.0]]).double(), "b": torch.tensor([-84.0]).double()}


def update(tx, grads, params=None):
    return tx.update(grads, tx.init(grads), params)[0]


@pytest.mark.parametrize("norm_type", [0.5, 1, 1.5, 2, 2.0, 3, 7.5, INF, "inf"])
@pytest.mark.parametrize("max_norm", [0.0, 0.3, 85.0, 1e3])
def test_clip_grad_norm_equals_torch(norm_type, max_norm):
    updates = update(optcore.clip_grad_norm(max_norm, norm_type), G)
    leaves = [g.clone().requires_grad_() for g in G.values()]
    for leaf, g in zip(leaves, G.values(), strict=True):
        leaf.grad = g.clone()
    torch.nn.utils.clip_grad_norm_(leaves, max_norm, float(norm_type))
    for u, leaf in zip(updates.values(), leaves, strict=True):
        torch.testing.assert_close(u, leaf.grad, rtol=1e-13, atol=0)


def test_the_derivative_goes_through_the_coefficient():
    # u = g / |g|, so d(u_0)/dg = (g_1^2, -g_0 g_1) / |g|^3
    g = torch.tensor([3.0, 4.0], requires_grad=True)
    for tx in (optcore.clip_by_global_norm(1.0), optcore.clip_grad_norm(1.0)):
        (u,) = update(tx, [g])
        (found,) = torch.autograd.grad(u[0], g)
        torch.testing.assert_close(found, torch.tensor([0.128, -0.096]), rtol=1e-6, atol=0)


def test_second_derivative_reaches_a_leaf_that_is_zero():
    # |(g, h)| has the second derivative 1 / |g| in h at h = 0
    g, h = torch.tensor([2.0]), torch.zeros(1, requires_grad=True)
    (first,) = torch.autograd.grad(optcore.global_norm([g, h]), h, create_graph=True)
    assert torch.autograd.grad(first, h)[0].item() == 0.5


@pytest.mark.parametrize("error_if_nonfinite", [False, True])
def test_nothing_happens_below_the_norm(error_if_nonfinite):
    tx = optcore.clip_grad_norm(1e3, error_if_nonfinite=error_if_nonfinite)
    assert torch.equal(update(tx, G)["w"], G["w"])


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("norm_type", [2, "inf"])
def test_a_norm_that_is_not_finite_raises_if_asked(bad, norm_type):
    tx = optcore.clip_grad_norm(1.0, norm_type, error_if_nonfinite=True)
    message = "clip_grad_norm: expected a finite norm of order"
    with pytest.raises(RuntimeError, match=message):
        update(tx, [torch.tensor([1.0, bad])])


TOGETHER = [
    optcore.clip_by_global_norm(1.0),
    optcore.clip_grad_norm(1.0),
    optcore.clip_grad_norm(1.0, INF),
    optcore.clip_grad_norm(1.0, 1),
]


@pytest.mark.parametrize("tx", TOGETHER, ids=repr)
def test_a_nan_is_not_hidden(tx):
    updates = update(tx, [torch.tensor([1.0, NAN]), torch.ones(2)])
    assert all(u.isnan().all() for u in updates)


NUMBERS = [
    (optcore.clip(3.5), lambda g: g.clamp(-3.5, 3.5)),
    (optcore.clip(torch.tensor(3.5)), lambda g: g.clamp(-3.5, 3.5)),
    (optcore.clip(0), lambda g: 0 * g),
    (optcore.clip_by_global_norm(8.5), lambda g: g * 8.5 / 85.0**1 * 85 / (7225**0.5)),
    (optcore.clip_by_global_norm(85.0), lambda g: g),
    (optcore.clip_by_global_norm({"w": 8.5, "b": 17.0}), lambda g: g * 0.1 * (1 + (g.ndim == 1))),
    (optcore.clip_by_block_rms(2.0), lambda g: g * (2.0 / g.square().mean().sqrt()).clamp(max=1)),
]


@pytest.mark.parametrize(("tx", "formula"), NUMBERS)
def test_numbers(tx, formula):
    for key, u in update(tx, G).items():
        torch.testing.assert_close(u, formula(G[key]), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(
    ("shape", "axis", "dims"),
    [
        ((), None, ()),
        ((5,), None, (0,)),
        ((5, 1), None, (0, 1)),
        ((4, 3), None, (1,)),
        ((4, 3), 0, (0,)),
        ((4, 3, 2), None, (1, 2)),
        ((4, 3, 2, 2), None, (1, 2, 3)),
        ((4, 3, 2, 2), (0, 1, 2), (0, 1, 2)),
        ((4, 3, 2, 2, 2), None, (1, 2, 3, 4)),
    ],
)
def test_adaptive_grad_clip_bounds_each_unit(shape, axis, dims):
    grad, param = torch.randn(shape), torch.randn(shape)
    unit = {"dim": dims, "keepdim": True}
    g_norm = torch.linalg.vector_norm(grad, **unit) if dims else grad.abs()
    p_norm = torch.linalg.vector_norm(param, **unit) if dims else param.abs()
    torch.testing.assert_close(optcore.unitwise_norm(grad, axis), g_norm.expand(shape))
    (u,) = update(optcore.adaptive_grad_clip(0.8, 1e-2, axis), [grad], [param])
    factor = (0.8 * p_norm.clamp(min=1e-2) / g_norm).clamp(max=1)
    torch.testing.assert_close(u, grad * factor)


def test_global_norm():
    assert optcore.global_norm({**G, "c": None}).item() == 85.0
    assert optcore.global_norm({}).item() == 0.0
    assert optcore.global_norm([torch.zeros(0), torch.zeros(2)]).item() == 0.0
    assert optcore.global_norm([torch.full((4,), 300.0, dtype=torch.float16)]).item() == 600.0
    assert optcore.global_norm([torch.ones(1).float(), torch.ones(3).double()]).item() == 2.0


def test_global_norm_refuses_what_is_no_gradient():
    with pytest.raises(TypeError, match=re.escape("global_norm: expected a tree of tensors")):
        optcore.global_norm([3.0])
