# SPDX-License-Identifier: Apache-2.0
"""Meta-gradients through several steps, and what the graph of such steps holds."""

import gc
import weakref

import pytest
import torch

import optcore

X = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(6, 2)
Y = (X.sin().sum(1) * 3).detach()

CHAINS = {
    "descent": lambda lr, fast: optcore.sgd(lr, use_accelerated_op=fast),
    "momentum": lambda lr, fast: optcore.sgd(lr, momentum=0.9, use_accelerated_op=fast),
    "adam": lambda lr, fast: optcore.adam(lr, eps=1e-3, use_accelerated_op=fast),
    "adamw": lambda lr, fast: optcore.adamw(lr, eps=1e-3, use_accelerated_op=fast),
    "amsgrad": lambda lr, fast: optcore.amsgrad(lr, eps=1e-3, use_accelerated_op=fast),
    "rmsprop": lambda lr, fast: optcore.rmsprop(lr, eps=1e-3, use_accelerated_op=fast),
    "adagrad": lambda lr, fast: optcore.adagrad(lr, eps=1e-3, use_accelerated_op=fast),
    "lion": lambda lr, fast: optcore.lion(lr, use_accelerated_op=fast),
}


def network(device="cpu"):
    generator = torch.Generator().manual_seed(5)
    shapes = [(2, 4), (4,), (4, 1), (1,)]
    return [
        torch.randn(s, generator=generator, dtype=torch.float64).to(device).requires_grad_()
        for s in shapes
    ]


def error(params, scale=1.0):
    w, b, v, c = params
    out = ((X.to(w.device) @ w + b).tanh() @ v + c).squeeze(1)
    return (out * scale - Y.to(w.device)).square().mean()


def trained(make, steps, rate, scale, params, fast=True):
    """The error after training with a learned rate and a learned scale of the outputs."""
    tx = make(rate, fast)
    state = tx.init(params)
    for _ in range(steps):
        grads = list(torch.autograd.grad(error(params, scale), params, create_graph=True))
        params, state = tx.step(grads, state, params, inplace=False)
    return error(params)


def difference(function, values, step=1e-5):
    """The derivatives of a function of numbers by central differences of fourth order."""
    slopes = []
    for k, value in enumerate(values):
        at = [function(*values[:k], value + m * step, *values[k + 1 :]) for m in (-2, -1, 1, 2)]
        slopes.append((at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * step))
    return slopes


@pytest.mark.parametrize("steps", [1, 3, 10])
@pytest.mark.parametrize("name", CHAINS)
def test_meta_gradients_equal_finite_differences_and_the_formula(name, steps, device):
    make = CHAINS[name]
    meta = [torch.tensor(x, requires_grad=True) for x in (0.03, 1.1)]
    params = network(device)
    exact = [
        torch.autograd.grad(trained(make, steps, *meta, params, fast), [*meta, *params])
        for fast in (True, False)
    ]
    torch.testing.assert_close(*exact, rtol=1e-9, atol=1e-11)

    def at(rate, scale):
        return trained(make, steps, rate, torch.tensor(scale), params).item()

    slopes = difference(at, [0.03, 1.1])
    found = [x.item() for x in exact[0][:2]]
    assert found == pytest.approx(slopes, rel=1e-6, abs=1e-8)


def test_ten_steps_of_an_mlp_with_a_large_eps_equal_the_finite_difference(device):
    """A backward that divides by the root where root and eps are due misses this by a third."""
    params = network(device)
    rate = torch.tensor(0.1, requires_grad=True)
    one = torch.ones(())
    (exact,) = torch.autograd.grad(trained(CHAINS["adam"], 10, rate, one, params), rate)
    (slope,) = difference(lambda r: trained(CHAINS["adam"], 10, r, one, params).item(), [0.1])
    assert exact.item() == pytest.approx(slope, rel=1e-8)


@pytest.mark.parametrize("name", CHAINS)
def test_the_second_order_meta_gradient_has_the_right_sign_and_value(name, device):
    make, params = CHAINS[name], network(device)

    def first(rate, scale):
        meta = [torch.tensor(x, requires_grad=True) for x in (rate, scale)]
        loss = trained(make, 4, *meta, params)
        return meta, torch.autograd.grad(loss, meta, create_graph=True)

    meta, slopes = first(0.05, 1.1)
    rows = [torch.autograd.grad(slope, meta, retain_graph=True) for slope in slopes]
    found = torch.tensor(rows)
    expected = [difference(lambda *at, k=k: first(*at)[1][k].item(), [0.05, 1.1]) for k in range(2)]
    expected = torch.tensor(expected)
    assert torch.equal(found.sign(), expected.sign())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_a_zero_gradient_poisons_nothing(device):
    """One coordinate never has a gradient: every derivative is finite at the default eps."""
    for make in (optcore.adam, optcore.amsgrad, optcore.rmsprop, optcore.adagrad, optcore.adamw):
        rate = torch.tensor(0.1, requires_grad=True)
        w = torch.ones(3, device=device, requires_grad=True)
        tx = make(lr=rate, use_accelerated_op=True)
        params, state = [w], tx.init([w])
        for _ in range(3):
            loss = (params[0] * torch.tensor([1.0, 0.0, 2.0], device=device)).square().sum()
            grads = list(torch.autograd.grad(loss, params, create_graph=True))
            params, state = tx.step(grads, state, params, inplace=False)
        first = torch.autograd.grad(params[0].square().sum(), [rate, w], create_graph=True)
        twice = torch.autograd.grad(sum(x.sum() for x in first), [rate, w])
        assert all(x.isfinite().all() for x in (*first, *twice))


# ---- the graph ----------------------------------------------------------------------------------

# bytes an element that a float32 step saves, the inner gradient's own parameter included
BYTES = {
    "descent": 4,
    "momentum": 4,  # linear: with numbers for hyperparameters nothing else matters
    "adam": 16,
    "adamw": 16,
    "amsgrad": 20,
    "rmsprop": 12,
    "adagrad": 12,
    "lion": 4,
}


@pytest.mark.parametrize("name", BYTES)
def test_a_step_saves_what_an_exact_backward_needs(name, device):
    saved = {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    size, steps = 10_000, 5
    factor = torch.ones((), dtype=torch.float32, device=device, requires_grad=True)
    params = [torch.rand(size, dtype=torch.float32, device=device, requires_grad=True)]
    tx = CHAINS[name](1e-3, True)
    state = tx.init(params)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        for _ in range(steps):
            params, state = tx.step([factor * params[0]], state, params, inplace=False)
    assert sum(saved.values()) <= (BYTES[name] * size + 100) * steps
    torch.autograd.grad(params[0].sum(), factor)


@pytest.mark.parametrize("name", ["descent", "momentum", "lion"])
def test_a_linear_step_keeps_nothing(name, device):
    """Neither its gradients nor its parameters, buffers or results, whatever errors would tell."""
    factor = torch.ones((), device=device, requires_grad=True)
    params = [torch.ones(3, device=device) * factor, torch.ones(2, device=device)]
    grads = [torch.ones_like(p) * factor for p in params]
    tx = CHAINS[name](0.1, True)
    moved, state = tx.step(grads, tx.init(params), params, inplace=False)
    total = moved[0].sum()
    kept = [weakref.ref(x) for x in (*params, *grads, *moved)]
    del params, grads, state, moved
    assert [ref() for ref in kept] == [None] * 6
    assert torch.autograd.grad(total, factor)[0].isfinite()


def test_unrolled_runs_leave_nothing_behind():
    def run():
        rate = torch.tensor(0.1, requires_grad=True)
        loss = trained(CHAINS["adam"], 3, rate, torch.ones(()), network())
        (first,) = torch.autograd.grad(loss, rate, create_graph=True)
        torch.autograd.grad(first, rate)
        return weakref.ref(loss)

    def tensors():
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    run()  # what torch imports only now may hold frames in cycles
    gc.collect()
    gc.disable()  # not even cycles
    try:
        dead = [run() for _ in range(3)]
        assert all(ref() is None for ref in dead)
    finally:
        gc.enable()
    before = tensors()
    for _ in range(200):
        run()
    assert tensors() <= before


def test_a_graph_that_is_retained_gives_the_same_twice(device):
    rate = torch.tensor(0.1, requires_grad=True)
    loss = trained(CHAINS["adamw"], 3, rate, torch.ones(()), network(device))
    once = torch.autograd.grad(loss, rate, retain_graph=True)
    again = torch.autograd.grad(loss, rate)
    assert once == again
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, rate)


def one_step(device="cpu"):
    params = network(device)
    tx = CHAINS["adam"](0.1, True)
    state = tx.init(params)
    grads = [torch.ones_like(p).requires_grad_() for p in params]
    moved, after = tx.step(grads, state, params, inplace=False)
    return params, grads, state, moved, after


def test_a_saved_gradient_that_is_overwritten_is_noticed(device):
    _, grads, _, moved, _ = one_step(device)
    with torch.no_grad():
        grads[2].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(moved[0].sum(), grads[0])


def test_a_saved_buffer_that_a_step_in_place_overwrites_is_noticed(device):
    params, grads, _, moved, after = one_step(device)
    tx = CHAINS["adam"](0.1, True)
    later, _ = tx.step(grads, after, moved, inplace=False)
    with torch.no_grad():
        tx.step([g.detach() for g in grads], after, [p.detach() for p in moved], inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(later[0].sum(), grads[0])
    assert params[0].grad is None


def test_a_parameter_that_is_only_added_to_may_be_overwritten():
    params, grads, _, moved, _ = one_step()
    with torch.no_grad():
        params[0].zero_()
    assert torch.autograd.grad(moved[0].sum(), [params[0], grads[0]])[0].eq(1).all()


def test_hooks_see_the_cotangents():
    params, grads, _, moved, _ = one_step()
    seen = []
    moved[1].register_hook(lambda g: seen.append(g) or g * 2)
    grads[1].register_hook(seen.append)
    sum(p.sum() for p in moved).backward()
    assert len(seen) == 2
    assert params[1].grad.eq(2).all()
    assert torch.equal(grads[1].grad, seen[1])


def test_only_what_is_asked_for_is_differentiated():
    params, grads, _, moved, after = one_step()
    assert torch.autograd.grad(moved[0].sum(), grads[0])[0].shape == grads[0].shape
    _, _, _, moved, after = one_step()
    buffers = list(after[0].mu)
    assert buffers[0].requires_grad
    assert moved[0].requires_grad
    fixed, tx = [p.detach() for p in params], CHAINS["adam"](0.1, True)
    still, _ = tx.step([g.detach() for g in grads], tx.init(fixed), fixed, inplace=False)
    assert not any(p.requires_grad for p in still)


def test_a_lazily_negated_cotangent_is_resolved(device):
    """Complex arithmetic after the step gives such gradients."""
    _, grads, _, moved, _ = one_step(device)
    cotangent = torch.imag(torch.ones_like(moved[0]).mul(1j).conj())
    assert cotangent.is_neg()
    (found,) = torch.autograd.grad(moved[0], grads[0], cotangent, retain_graph=True)
    (expected,) = torch.autograd.grad(moved[0], grads[0], -torch.ones_like(moved[0]))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("lay", [lambda t: t.T.contiguous().T, lambda t: t[:1].expand(t.shape)])
def test_cotangents_lie_as_they_like(lay, device):
    _, grads, _, moved, _ = one_step(device)
    cotangent = lay(torch.randn(2, 4, device=device))
    (found,) = torch.autograd.grad(moved[0], grads[0], cotangent, retain_graph=True)
    (expected,) = torch.autograd.grad(moved[0], grads[0], cotangent.clone().contiguous())
    assert torch.equal(found, expected)
