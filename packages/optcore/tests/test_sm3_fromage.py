# SPDX-License-Identifier: Apache-2.0
"""SM3 and Fromage: what they keep, and what they do where the formula has an edge."""

import io
import re

import pytest
import torch

import optcore


def test_sm3_keeps_one_vector_per_axis():
    params = [torch.ones(2, 3, 4), torch.ones(5), torch.ones(()), torch.ones(0, 3), None]
    state = optcore.scale_by_sm3().init(params)
    shapes = [[tuple(axis.shape) for axis in axes] for axes in state.mu[:4]]
    assert shapes == [[(2, 1, 1), (1, 3, 1), (1, 1, 4)], [(5,)], [()], [(0, 1), (1, 3)]]
    assert state.mu[4] is None


def test_sm3_is_the_paper_s_loop_over_elements():
    tx = optcore.scale_by_sm3(b1=0.0, eps=0.0)
    state = tx.init([torch.zeros(2, 3)])
    rows, columns = [0.0] * 2, [0.0] * 3
    for step in range(4):
        g = torch.randn(2, 3) * (step + 1)
        cover = torch.tensor([[min(rows[i], columns[j]) for j in range(3)] for i in range(2)])
        nu = cover + g**2
        rows, columns = nu.amax(1).tolist(), nu.amax(0).tolist()
        (update,), state = tx.update([g], state)
        torch.testing.assert_close(update, g / nu.sqrt())


@pytest.mark.parametrize("b2", [1.0, torch.tensor(1.0)])
def test_sm3_sums_at_a_decay_of_one(b2):
    tx = optcore.scale_by_sm3(b1=0.0, b2=b2, eps=0.0)
    state = tx.init([torch.zeros(1)])
    for _ in range(4):
        (update,), state = tx.update([torch.full((1,), 3.0)], state)
    assert update.item() == pytest.approx(0.5)
    assert state.mu[0][0].item() == 36.0


@pytest.mark.parametrize("inplace", [True, False])
def test_sm3_takes_zero_over_zero_as_zero(inplace):
    tx = optcore.scale_by_sm3(eps=0.0)
    (update,), _ = tx.update([torch.zeros(2, 2)], tx.init([torch.zeros(2, 2)]), inplace=inplace)
    assert torch.equal(update, torch.zeros(2, 2))


def test_sm3_derivative_at_a_zero_gradient_is_the_limit():
    tx = optcore.scale_by_sm3(b1=0.0, eps=0.25)
    g = torch.zeros(2, 2, requires_grad=True)
    (update,), _ = tx.update([g], tx.init([g]))
    (found,) = torch.autograd.grad(update.sum(), g)
    assert torch.equal(found, torch.full((2, 2), 2.0))


def test_sm3_class_saves_its_accumulators_and_goes_on():
    w, twin = (torch.nn.Parameter(torch.linspace(-1, 1, 6).reshape(2, 3)) for _ in range(2))
    optimizer, resumed = optcore.SM3([w], lr=0.1), optcore.SM3([twin], lr=0.9)

    def step(param, optimizer):
        param.grad = param.detach().sin()
        optimizer.step()

    step(w, optimizer)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert [tuple(x.shape) for x in resumed.state[twin]["accumulators"]] == [(2, 1), (1, 3)]
    twin.data.copy_(w.data)
    for _ in range(3):
        step(w, optimizer)
        step(twin, resumed)
    assert torch.equal(w, twin)


@pytest.mark.parametrize("lr", [0.75, torch.tensor(0.75)])
def test_fromage_rotates_and_keeps_the_length_of_an_orthogonal_step(lr):
    params, grads = [torch.tensor([2.0, 0.0])], [torch.tensor([0.0, -9.0])]
    tx = optcore.fromage(lr=lr)
    updates, _ = tx.update(grads, tx.init(params), params)
    (moved,) = optcore.apply_updates(params, updates, inplace=False)
    torch.testing.assert_close(moved, torch.tensor([1.6, 1.2]))  # 2 (0.8, 0.6)


@pytest.mark.parametrize("lr", [1e-3, torch.tensor(1e-3, dtype=torch.float32)])
def test_fromage_shrinks_exactly_in_float32(lr):
    params = [torch.full((1,), 2.0, dtype=torch.float32)]
    tx = optcore.fromage(lr=lr, min_norm=1.0)
    ((update,), _) = tx.update([torch.zeros(1, dtype=torch.float32)], tx.init(params), params)
    assert update.item() == pytest.approx(2 * ((1 + 1e-6) ** -0.5 - 1), rel=1e-6)


def test_fromage_maximizes():
    params = [torch.tensor([2.0])]
    tx = optcore.fromage(lr=0.75, maximize=True)
    updates, _ = tx.update([torch.tensor([5.0])], tx.init(params), params)
    torch.testing.assert_close(updates[0], torch.tensor([0.8]))  # to (2 + 1.5) / 1.25


def test_sm3_maximizes_and_takes_schedules():
    tx = optcore.sm3(lr=lambda count: 0.5 / (1 + count), momentum=0.0, maximize=True)
    state = tx.init([torch.zeros(())])
    for expected in (0.5, 0.25 / 2**0.5):
        (update,), state = tx.update([torch.tensor(3.0)], state)
        assert update.item() == pytest.approx(expected)


ERRORS = [
    (lambda: optcore.sm3(lr=-1.0), ValueError, "sm3: expected lr >= 0, got -1.0"),
    (lambda: optcore.sm3(momentum=1.0), ValueError, "sm3: expected momentum in [0, 1), got 1.0"),
    (
        lambda: optcore.scale_by_sm3(b1=1.0),
        ValueError,
        "scale_by_sm3: expected b1 in [0, 1), got 1.0",
    ),
    (
        lambda: optcore.scale_by_sm3(b2=1.5),
        ValueError,
        "scale_by_sm3: expected b2 in [0, 1], got 1.5",
    ),
    (
        lambda: optcore.scale_by_sm3(eps=-1),
        ValueError,
        "scale_by_sm3: expected eps >= 0, got -1",
    ),
    (
        lambda: optcore.scale_by_sm3().init([torch.ones(1) * 1j]),
        TypeError,
        "scale_by_sm3: expected real floating parameters, got c128[1]",
    ),
    (
        lambda: optcore.scale_by_sm3().update(
            [torch.ones(2)], optcore.scale_by_sm3().init([torch.ones(3)])
        ),
        ValueError,
        "scale_by_sm3: expected a gradient like its parameter f64[3], got f64[2], at [0]",
    ),
    (lambda: optcore.fromage(lr=-1.0), ValueError, "fromage: expected lr >= 0, got -1.0"),
    (
        lambda: optcore.fromage(min_norm=-1.0),
        ValueError,
        "fromage: expected min_norm >= 0, got -1.0",
    ),
    (
        lambda: optcore.fromage().update([torch.ones(1)], ()),
        ValueError,
        "fromage: expected params, got None; call update(updates, state, params)",
    ),
]


@pytest.mark.parametrize(("build", "error", "message"), ERRORS)
def test_errors(build, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        build()
