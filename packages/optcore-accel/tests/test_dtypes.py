# SPDX-License-Identifier: Apache-2.0
"""Narrow numbers: arithmetic in float32, each result rounded once; dtypes mixed in every way."""

import copy
import itertools

import pytest
import torch

import optcore

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
DTYPES = [F64, F32, BF16, F16]
CHAINS = {
    "momentum": lambda fast: optcore.sgd(0.125, momentum=0.5, use_accelerated_op=fast),
    "adamw": lambda fast: optcore.adamw(0.125, eps=0.1, use_accelerated_op=fast),
    "amsgrad": lambda fast: optcore.amsgrad(0.125, eps=0.1, use_accelerated_op=fast),
    "rmsprop": lambda fast: optcore.rmsprop(0.125, eps=0.1, momentum=0.5, use_accelerated_op=fast),
    "adagrad": lambda fast: optcore.adagrad(0.125, eps=0.1, use_accelerated_op=fast),
    "lion": lambda fast: optcore.lion(0.125, use_accelerated_op=fast),
}
SIZE = 1500


def start(dtype, device="cpu", seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SIZE, generator=generator, dtype=F64).to(device, dtype)


def floats(state):
    leaves = []
    optcore.map_tensors(lambda x: leaves.append(x) or x, state)
    return [x for x in leaves if x.is_floating_point()]


def cast(state, dtype):
    return optcore.map_tensors(
        lambda x: x.to(dtype, copy=True) if x.is_floating_point() else x, state
    )


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("name", CHAINS)
def test_half_is_float32_rounded_once(name, dtype, inplace, device):
    """Bit for bit, for parameters and for every buffer."""
    tx = CHAINS[name](True)
    params, grads = [start(dtype, device)], [start(dtype, device, 2)]
    state = tx.init(params)
    params, state = tx.step(grads, state, params, inplace=inplace)  # so that buffers are filled
    wide = [p.to(F32) for p in params], cast(state, F32), [g.to(F32) for g in grads]
    narrow, after = tx.step(grads, state, params, inplace=inplace)
    exact, exact_after = tx.step(wide[2], wide[1], wide[0], inplace=inplace)
    pairs = zip((*narrow, *floats(after)), (*exact, *floats(exact_after)), strict=True)
    for a, b in pairs:
        assert a.dtype == dtype
        assert torch.equal(a, b.to(dtype))


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize(("of_param", "of_state"), [*itertools.product(DTYPES, DTYPES)])
def test_parameters_and_state_of_different_dtypes(of_param, of_state, inplace, device):
    """As in float64 from the same numbers, as far as the narrowest can tell."""
    tx = CHAINS["adamw"](True)
    params, grads = [start(of_param, device)], [start(of_param, device, 2)]
    state = cast(tx.init(params), of_state)
    exact = [p.to(F64, copy=True) for p in params], cast(state, F64), [g.to(F64) for g in grads]
    moved, after = tx.step(grads, state, params, inplace=inplace)
    expected, expected_after = tx.step(exact[2], exact[1], exact[0], inplace=False)
    assert [p.dtype for p in moved] == [of_param]
    assert {x.dtype for x in floats(after)} == {of_state}
    for a, b in zip((*moved, *floats(after)), (*expected, *floats(expected_after)), strict=True):
        eps = max(torch.finfo(a.dtype).eps, 1e-6 if F64 not in (of_param, of_state) else 0.0)
        torch.testing.assert_close(a.to(F64), b, rtol=eps, atol=eps * 1e-2)


@pytest.mark.parametrize("inplace", [True, False])
def test_lists_of_all_dtypes(inplace, device):
    dtypes = [*DTYPES, *reversed(DTYPES)]
    starts = [start(dtype, device, k) for k, dtype in enumerate(dtypes)]
    grads = [start(dtype, device, 9 + k) for k, dtype in enumerate(dtypes)]
    tx = CHAINS["adamw"](True)
    together, _ = tx.step(grads, tx.init(starts), [s.clone() for s in starts], inplace=inplace)
    for s, g, moved in zip(starts, grads, together, strict=True):
        alone, _ = tx.step([g], tx.init([s]), [s.clone()], inplace=inplace)
        assert torch.equal(moved, alone[0])
        assert moved.dtype == s.dtype


@pytest.mark.parametrize("value", [0.1, -0.1, 1e-8, 6e-8, 3e38, 65519.0, 65520.0, 1e-40, 2.0**-133])
@pytest.mark.parametrize("dtype", [BF16, F16, F32])
def test_rounding_is_that_of_torch(dtype, value, device):
    """Ties, subnormal numbers, numbers that are too large."""
    near = [value * (1 + k * 2.0**-12) for k in range(-40, 41)] * 30
    wide = torch.tensor(near, dtype=F32, device=device)
    grad = torch.zeros(len(near), dtype=dtype, device=device)
    # v' = 0.5 v + 0: the halves of float32 numbers, rounded
    tx = optcore.trace(0.5, use_accelerated_op=True)
    state = tx.init([grad])
    updates, _ = tx.update([grad], cast(state, F32)._replace(trace=[wide]), inplace=False)
    assert torch.equal(updates[0], (wide * 0.5).to(dtype))


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_half_backward_is_that_of_float32_rounded_once(dtype, device):
    found = []
    for own in (dtype, F32):
        tx = CHAINS["adamw"](True)
        w, g = (start(dtype, device, k).to(own).requires_grad_() for k in (1, 2))
        moved, _ = tx.step([g], tx.init([w]), [w], inplace=False)
        cotangent = start(dtype, device, 3).to(own)
        found.append(torch.autograd.grad(moved[0], [w, g], cotangent))
    assert all(torch.equal(a, b.to(dtype)) for a, b in zip(*found, strict=True))


def test_state_dict_of_half_parameters_goes_on():
    w = start(BF16).requires_grad_()
    optimizer = optcore.AdamW([w], use_accelerated_op=True)
    for _ in range(3):
        w.grad = start(BF16, seed=4)
        optimizer.step()
    v = w.detach().clone().requires_grad_()
    twin = optcore.AdamW([v], use_accelerated_op=True)
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for own, each in ((w, optimizer), (v, twin)):
        own.grad = start(BF16, seed=5)
        each.step()
    assert torch.equal(w, v)


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_a_module_converted_in_mid_training(dtype):
    net = torch.nn.Linear(4, 3)
    optimizer = optcore.Adam(net.parameters(), lr=0.01, use_accelerated_op=True)
    for own in (F64, dtype):
        net.to(own)
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.ones(2, 4, dtype=own)).square().sum().backward()
            optimizer.step()
    assert {p.dtype for p in net.parameters()} == {dtype}
    assert all(p.isfinite().all() for p in net.parameters())
