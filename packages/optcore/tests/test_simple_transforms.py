# SPDX-License-Identifier: Apache-2.0
"""The numbers and the errors of the simple transformations."""

import pickle
import re

import pytest
import torch

import optcore

NAN, INF = float("nan"), float("inf")


def doubled(grad):
    return 2 * grad


def tree(seed=1):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (2, 3), "b": (3, 1), "c": (2,)}
    return {k: torch.randn(s, generator=generator) for k, s in shapes.items()}


SCHEDULED = {
    "clip": optcore.clip,
    "clip_by_global_norm": optcore.clip_by_global_norm,
    "clip_grad_norm": optcore.clip_grad_norm,
    "clip_by_block_rms": optcore.clip_by_block_rms,
    "adaptive_grad_clip": optcore.adaptive_grad_clip,
    "normalize_by_update_norm": optcore.normalize_by_update_norm,
    "scale_by_param_block_norm": optcore.scale_by_param_block_norm,
    "scale_by_param_block_rms": optcore.scale_by_param_block_rms,
    "scale_by_trust_ratio": optcore.scale_by_trust_ratio,
}


def eased(count):
    return 0.4 / (1.0 + count)


@pytest.mark.parametrize("factory", SCHEDULED.values(), ids=SCHEDULED.keys())
def test_hyperparameters_may_be_schedules(factory):
    params, grads = tree(seed=2), tree()
    tx = factory(eased)
    state = tx.init(params)
    for value in (0.4, 0.2):
        updates, state = tx.update(grads, state, params)
        constant = factory(value)
        expected, _ = constant.update(grads, constant.init(params), params)
        torch.testing.assert_close(updates, expected)


def update(tx, grads, params=None, count=1):
    state = tx.init(grads if params is None else params)
    for _ in range(count):
        updates, state = tx.update(grads, state, params)
    return updates


X = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)
P = torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
NUMBERS = [
    (optcore.centralize(), X, X - X.mean(1, keepdim=True)),
    (optcore.centralize(), X[0], X[0]),
    (optcore.normalize(), X, X / X.norm()),
    (optcore.normalize(), 0 * X, 0 * X),
    (optcore.normalize_by_update_norm(2.0, 0.5), X, 2 * X / (X.norm() + 0.5)),
    (optcore.normalize_by_update_norm(2.0, 0.0), 0 * X, 0 * X),
    (optcore.scale_by_trust_ratio(), X, X * 5 / X.norm()),
    (optcore.scale_by_trust_ratio(0.0, 0.1, 0.5), X, X * 0.5 / (X.norm() + 0.5)),
    (optcore.scale_by_trust_ratio(10.0), X, X),
    (optcore.scale_by_trust_ratio(), 0 * X, 0 * X),
    (optcore.scale_by_param_block_norm(), X, 5 * X),
    (optcore.scale_by_param_block_norm(7.0), X, 7 * X),
    (optcore.scale_by_param_block_rms(), X, 2.5 * X),
    (optcore.scale_by_param_block_rms(7.0), X, 7 * X),
    (optcore.keep_params_nonnegative(), X - 2, torch.maximum(X - 2, -P)),
    (optcore.zero_nans(), X / torch.tensor([0.0, 1.0]), X / torch.tensor([0.0, 1.0])),
    (optcore.zero_nans(), torch.tensor([NAN, -INF, 1.0]), torch.tensor([0.0, -INF, 1.0])),
    (
        optcore.nan_to_num(1.0, 2.0, 3.0),
        torch.tensor([NAN, INF, -INF, 5.0]),
        torch.tensor([1.0, 2.0, 3.0, 5.0]),
    ),
    (optcore.register_hook(doubled), X, X),
]


@pytest.mark.parametrize(("tx", "grad", "expected"), NUMBERS)
def test_numbers(tx, grad, expected):
    params = [P if grad.shape == P.shape else torch.ones_like(grad)]
    torch.testing.assert_close(update(tx, [grad], params)[0].double(), expected.double())


@pytest.mark.parametrize("debias", [True, False])
def test_ema_is_the_weighted_sum_of_its_history(debias):
    history = [torch.randn(4) for _ in range(5)]
    tx = optcore.ema(0.8, debias=debias)
    state = tx.init([history[0]])
    for g in history:
        (found,), state = tx.update([g], state)
    weights = [0.2 * 0.8 ** (4 - i) for i in range(5)]
    expected = sum(w * g for w, g in zip(weights, history, strict=True))
    expected = expected / (sum(weights) if debias else 1)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-15)
    assert int(state.count[0]) == 5


@pytest.mark.parametrize(("dtype", "own"), [("float32", "bfloat16"), ("bfloat16", "float32")])
@pytest.mark.parametrize("inplace", [True, False])
def test_ema_accumulates_in_another_dtype(dtype, own, inplace):
    dtype, own = getattr(torch, dtype), getattr(torch, own)
    grads = [torch.tensor([1.0, 3.0], dtype=dtype), torch.tensor([1.0, 3.0], dtype=dtype)]
    tx = optcore.ema(0.5, accumulator_dtype=own)
    state = tx.init(grads)
    updates, state = tx.update(grads, state, inplace=inplace)
    updates, state = tx.update(grads, state, inplace=inplace)
    assert (updates[0].dtype, state.ema[0].dtype) == (dtype, own)
    assert [x.tolist() for x in updates] == [[1.0, 3.0]] * 2


def test_ema_skips_a_missing_gradient():
    tx = optcore.ema(0.5)
    one = torch.ones(1)
    _, state = tx.update([one, one], tx.init([one, one]), inplace=False)
    _, skipped = tx.update([one, None], state, inplace=False)
    assert skipped.ema[1] is state.ema[1]
    assert [int(count) for count in skipped.count] == [2, 1]


def test_zero_nans_reports_where_it_found_some():
    tx = optcore.zero_nans()
    params = {"x": torch.ones(2), "y": torch.ones(2)}
    state = tx.init(params)
    assert [bool(x) for x in state.found_nan.values()] == [False, False]
    _, state = tx.update({"x": torch.tensor([NAN, 1.0]), "y": None}, state)
    assert [bool(x) for x in state.found_nan.values()] == [True, False]
    _, state = tx.update(params, state)
    assert [bool(x) for x in state.found_nan.values()] == [False, False]


@pytest.mark.parametrize("tx", [optcore.zero_nans(), optcore.nan_to_num()])
def test_no_gradient_passes_where_something_was_repaired(tx):
    g = torch.tensor([NAN, 2.0], requires_grad=True)
    (u,) = update(tx, [g])
    assert torch.autograd.grad(u.square().sum(), g)[0].tolist() == [0.0, 4.0]


# --- noise


def test_hook_changes_what_flows_back_through_the_update_only():
    g = torch.tensor([1.0, 2.0], requires_grad=True)
    (u,) = update(optcore.register_hook(doubled), [g])
    assert torch.autograd.grad((u * 3 + g).sum(), g)[0].tolist() == [7.0, 7.0]
    assert torch.autograd.grad(g.sum(), g)[0].tolist() == [1.0, 1.0]


def test_hook_may_return_none_and_see_the_gradient():
    seen = []
    g = torch.tensor([1.0, 2.0], requires_grad=True)
    (u,) = update(optcore.register_hook(seen.append), [g])
    assert torch.autograd.grad((u * 3).sum(), g)[0].tolist() == [3.0, 3.0]
    assert [x.tolist() for x in seen] == [[3.0, 3.0]]


def test_hook_is_differentiated_too():
    g = torch.tensor([2.0], requires_grad=True)
    (u,) = update(optcore.register_hook(torch.square), [g])
    (first,) = torch.autograd.grad(u.pow(3).sum(), g, create_graph=True)  # (3 u^2)^2
    assert first.item() == pytest.approx(144.0)
    (second,) = torch.autograd.grad(first, g)  # (36 u^3)^2: what flows to g passes the hook again
    assert second.item() == pytest.approx(288.0**2)


def test_hook_runs_inside_torch_func():
    tx = optcore.register_hook(doubled)
    derivative = torch.func.grad(lambda g: update(tx, [g])[0].sin().sum())
    x = torch.randn(3, 2)
    torch.testing.assert_close(derivative(x), 2 * x.cos())
    torch.testing.assert_close(torch.vmap(derivative)(x), 2 * x.cos())


@pytest.mark.parametrize("inplace", [None, True, False])
def test_hook_without_a_graph_does_nothing(inplace):
    tx = optcore.register_hook(doubled)
    (u,), _ = tx.update([X], tx.init([X]), inplace=inplace)
    assert torch.equal(u, X)
    assert not u.requires_grad


def test_ready_made_hooks():
    bad = torch.tensor([NAN, INF, -INF, 1.0])
    assert optcore.zero_nan_hook(bad).tolist() == [0.0, INF, -INF, 1.0]
    hook = optcore.nan_to_num_hook(2.0, 3.0, 4.0)
    assert hook(bad).tolist() == [2.0, 3.0, 4.0, 1.0]
    assert hook == pickle.loads(pickle.dumps(hook)) == optcore.nan_to_num_hook(2.0, 3.0, 4.0)
    assert hook != optcore.nan_to_num_hook()


# --- in a chain, and errors


NEED_PARAMS = [
    optcore.scale_by_trust_ratio(),
    optcore.scale_by_param_block_norm(),
    optcore.scale_by_param_block_rms(),
    optcore.keep_params_nonnegative(),
    optcore.adaptive_grad_clip(0.1),
]


@pytest.mark.parametrize("tx", NEED_PARAMS, ids=repr)
def test_params_are_asked_for(tx):
    with pytest.raises(ValueError, match="expected params, got None; call update"):
        tx.update([X], tx.init([X]))


@pytest.mark.parametrize("tx", [optcore.clip(0.5), optcore.normalize(), optcore.ema(0.9)], ids=repr)
def test_a_leaf_that_is_no_real_tensor_is_refused(tx):
    state = tx.init(tree())
    for leaf, message in (
        ("x", "expected a tree of tensors and None, got a str leaf"),
        (torch.ones(3, 1) * 1j, "expected real floating gradients, got c128[3, 1]"),
        (torch.ones(3, 1).to_sparse(), "expected dense gradients, got torch.sparse_coo"),
    ):
        with pytest.raises(TypeError, match=re.escape(message)):
            tx.update({**tree(), "b": leaf}, state, tree(), inplace=False)


ERRORS = [
    (lambda: optcore.clip(-1.0), ValueError, "clip: expected max_delta >= 0, got -1.0"),
    (lambda: optcore.clip("1"), TypeError, "clip: expected max_delta as a number, schedule"),
    (
        lambda: optcore.clip_by_global_norm(NAN),
        ValueError,
        "clip_by_global_norm: expected max_norm >= 0, got nan",
    ),
    (
        lambda: optcore.clip_by_block_rms(-1),
        ValueError,
        "clip_by_block_rms: expected threshold >= 0, got -1",
    ),
    (
        lambda: optcore.clip_grad_norm(-1),
        ValueError,
        "clip_grad_norm: expected max_norm >= 0, got -1",
    ),
    (
        lambda: optcore.clip_grad_norm(1, norm_type="fro"),
        TypeError,
        "clip_grad_norm: expected norm_type as a number or 'inf', got str",
    ),
    (
        lambda: optcore.clip_grad_norm(1, norm_type=0),
        ValueError,
        "clip_grad_norm: expected norm_type > 0, got 0",
    ),
    (
        lambda: optcore.adaptive_grad_clip(-1),
        ValueError,
        "adaptive_grad_clip: expected clipping >= 0, got -1",
    ),
    (
        lambda: optcore.adaptive_grad_clip(1, -1),
        ValueError,
        "adaptive_grad_clip: expected eps >= 0, got -1",
    ),
    (
        lambda: optcore.normalize_by_update_norm(INF),
        ValueError,
        "normalize_by_update_norm: expected scale_factor finite, got inf",
    ),
    (
        lambda: optcore.normalize_by_update_norm(1, -1),
        ValueError,
        "normalize_by_update_norm: expected eps >= 0, got -1",
    ),
    (
        lambda: optcore.scale_by_trust_ratio(-1),
        ValueError,
        "scale_by_trust_ratio: expected min_norm >= 0, got -1",
    ),
    (
        lambda: optcore.scale_by_trust_ratio(0, NAN),
        ValueError,
        "scale_by_trust_ratio: expected trust_coefficient finite, got nan",
    ),
    (
        lambda: optcore.scale_by_trust_ratio(0, 1, -1),
        ValueError,
        "scale_by_trust_ratio: expected eps >= 0, got -1",
    ),
    (
        lambda: optcore.scale_by_param_block_norm(-1),
        ValueError,
        "scale_by_param_block_norm: expected min_scale >= 0, got -1",
    ),
    (
        lambda: optcore.scale_by_param_block_rms(-1),
        ValueError,
        "scale_by_param_block_rms: expected min_scale >= 0, got -1",
    ),
    (lambda: optcore.ema(1.0), ValueError, "ema: expected decay in [0, 1), got 1.0"),
    (
        lambda: optcore.ema(0.9, accumulator_dtype=torch.int64),
        TypeError,
        "ema: expected accumulator_dtype as a floating torch.dtype, got torch.int64",
    ),
    (lambda: optcore.add_noise(-1, 0.5, 0), ValueError, "add_noise: expected eta >= 0, got -1"),
    (lambda: optcore.add_noise(1, NAN, 0), ValueError, "add_noise: expected gamma finite, got nan"),
    (
        lambda: optcore.add_noise(1, 0.5, 0.5),
        TypeError,
        "add_noise: expected seed as an int or i64[], got float",
    ),
    (
        lambda: optcore.add_noise(1, 0.5, torch.ones(2)),
        TypeError,
        "add_noise: expected seed as an int or i64[], got f64[2]",
    ),
    (
        lambda: optcore.nan_to_num(None),
        TypeError,
        "nan_to_num: expected nan as a number, got NoneType",
    ),
    (
        lambda: optcore.nan_to_num(0.0, "1"),
        TypeError,
        "nan_to_num: expected posinf as a number or None, got str",
    ),
    (
        lambda: optcore.nan_to_num_hook(0.0, None, True),
        TypeError,
        "nan_to_num_hook: expected neginf as a number or None, got bool",
    ),
    (
        lambda: optcore.register_hook(None),
        TypeError,
        "register_hook: expected a function grad -> grad, got NoneType",
    ),
]


@pytest.mark.parametrize(("build", "error", "message"), ERRORS)
def test_errors(build, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        build()


def test_zero_nans_refuses_a_state_of_other_parameters():
    tx = optcore.zero_nans()
    with pytest.raises(ValueError, match="zero_nans: state differs from updates"):
        tx.update({"a": X}, tx.init({"b": X}))
