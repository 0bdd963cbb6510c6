# SPDX-License-Identifier: Apache-2.0
"""Shampoo's roots where rounding, rank and precision make them hard."""

import re

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import optcore


def low_rank(shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(shape[0], 4, generator=generator)
    grad = left @ torch.randn(4, shape[1], generator=generator)
    return (100 * grad / grad.norm()).to(dtype)


def run(tx, grads):
    params = [torch.zeros_like(grads[0])]
    state = tx.init(params)
    for grad in grads:
        updates, state = tx.update([grad], state, params)
    return updates[0], state


@pytest.mark.parametrize("decay", [1.0, 0.95])
@pytest.mark.parametrize("shape", [(64, 32), (32, 64), (100, 100)], ids=str)
def test_float32_takes_low_rank_gradients_far_above_eps(shape, decay):
    # the sums have norm 1e4: their smallest eigenvalues come out as +-1e-3, eps is 1e-4
    grads = [low_rank(shape) * (1 + 0.1 * k) for k in range(4)]
    tx = optcore.scale_by_shampoo(decay=decay)
    found, _ = run(tx, grads)
    expected, _ = run(tx, [g.double() for g in grads])
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-3)


def test_vectors_too():
    grad = 100 * torch.ones(256, dtype=torch.float32) / 16
    found, _ = run(optcore.scale_by_shampoo(), [grad, grad])
    torch.testing.assert_close(found, grad / 2e4**0.5, rtol=0, atol=4e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_keeps_its_sums_in_float64(dtype):
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(32, 16, generator=generator).to(dtype) for _ in range(10)]
    found, state = run(optcore.scale_by_shampoo(), grads)
    expected, _ = run(optcore.scale_by_shampoo(), [g.double() for g in grads])
    assert found.dtype == dtype
    assert {sums.dtype for sums in state.statistics[0] + state.roots[0]} == {torch.float64}
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=4e-3)


@pytest.mark.parametrize("scale", [1.0, 100.0, 5000.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_takes_constant_gradients_of_rank_one(dtype, scale):
    # what the dtype rounds off is of full rank, its squares 1e-6 and less of the largest
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(32, generator=generator) for _ in range(2))
    grads = [(scale * torch.outer(left, right)).to(dtype)] * 10
    found, _ = run(optcore.scale_by_shampoo(), grads)
    expected, _ = run(optcore.scale_by_shampoo(), [g.double() for g in grads])
    rounding = torch.finfo(dtype).eps * expected.abs().max().item()
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=rounding)


def test_a_loaded_state_of_half_precision_is_still_in_float64():
    w = torch.nn.Parameter(torch.ones(3, 2, dtype=torch.bfloat16))
    optimizer, again = optcore.Shampoo([w]), optcore.Shampoo([w])
    w.grad = torch.full_like(w, 0.3)
    optimizer.step()
    again.load_state_dict(optimizer.state_dict())
    kept, loaded = (o.state[w]["0.statistics"] for o in (optimizer, again))
    assert [s.dtype for s in loaded] == [torch.float64] * 2
    torch.testing.assert_close(loaded, kept, rtol=0, atol=0)
    assert loaded[0] is not kept[0]


RANKS = {
    "full": torch.tensor([[1.0, 0.2], [0.3, -0.8], [0.1, 0.4]]),
    "one": torch.outer(torch.tensor([1.0, -0.5, 0.2]), torch.tensor([0.3, 0.9])),
    "equal eigenvalues": torch.eye(3),
    "zero": torch.zeros(2, 2),
}


@pytest.mark.parametrize("grad", RANKS.values(), ids=RANKS)
def test_derivatives_of_every_rank_equal_finite_differences(grad):
    def step(g, eps, decay):
        tx = optcore.scale_by_shampoo(eps, decay)
        state = tx.init([g.detach()])
        _, state = tx.update([g], state, inplace=False)
        return tx.update([g.sin()], state, inplace=False)[0][0].sin()

    inputs = [grad.clone(), torch.tensor(0.3), torch.tensor(0.7)]
    inputs = [x.double().requires_grad_() for x in inputs]
    assert gradcheck(step, inputs, check_forward_ad=True)
    assert gradgradcheck(step, inputs)


ERRORS = [
    (
        lambda: optcore.shampoo(eps=0.0),
        "shampoo: expected eps > 0, got 0.0",
    ),
    (
        lambda: optcore.scale_by_shampoo(eps=0),
        "scale_by_shampoo: expected eps > 0, got 0",
    ),
    (
        lambda: optcore.shampoo(decay=2.0),
        "shampoo: expected decay in [0, 1], got 2.0",
    ),
    (
        lambda: run(optcore.scale_by_shampoo(torch.ones(2)), [torch.ones(2, 2)]),
        "scale_by_shampoo: expected eps as one value for a parameter, got f64[2]; give a number",
    ),
]


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_errors_name_what_was_expected(call, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        call()
