# SPDX-License-Identifier: Apache-2.0
"""What holds for every transformation that holds another: one table, many properties."""

import copy
import functools
import pickle

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import optcore
from optcore import _accumulation, _adapters, _control, _inject, _lookahead, _masking, _partition


def is_matrix(params):
    return optcore.map_tensors(lambda p: p.ndim > 0, params)


def by_rank(params):
    return optcore.map_tensors(lambda p: "high" if p.ndim else "low", params)


def odd(step):
    return step % 2 == 1


def growing(step):
    return 1 + step


def halving(count):
    return 0.1 * 0.5**count


def doubled(update, param):
    return 2 * update


def adam(lr=0.1):
    return optcore.adam(lr=lr, eps=1e-2)


def injected(lr=0.1):
    return _inject.inject_hyperparams(optcore.adam)(lr=lr, eps=1e-2)


quiet = functools.partial(_control.skip_large_updates, max_squared_norm=50.0)
BUILDERS = {  # from a learning rate
    "masked": lambda lr: _masking.masked(adam(lr), {"w": True, "b": False, "e": True}),
    "masked-function": lambda lr: _masking.masked(adam(lr), is_matrix),
    "freeze": lambda lr: optcore.chain(
        adam(lr), _masking.freeze({"w": True, "b": False, "e": False})
    ),
    "partition": lambda lr: _partition.partition(
        {"high": adam(lr), "low": optcore.sgd(lr=0.2, momentum=0.9)}, by_rank
    ),
    "selective": lambda lr: _partition.selective_transform(adam(lr), freeze_mask=is_matrix),
    "multi_steps": lambda lr: _accumulation.multi_steps(adam(lr), 2),
    "multi_steps-schedule": lambda lr: _accumulation.multi_steps(adam(lr), growing, False),
    "multi_steps-skip": lambda lr: _accumulation.multi_steps(adam(lr), 2, True, quiet),
    "apply_every": lambda lr: optcore.chain(adam(lr), _accumulation.apply_every(3)),
    "apply_if_finite": lambda lr: _control.apply_if_finite(adam(lr), 2),
    "conditionally_transform": lambda lr: _control.conditionally_transform(adam(lr), odd),
    "conditionally_mask": lambda lr: _control.conditionally_mask(adam(lr), odd),
    "lookahead": lambda lr: _lookahead.lookahead(adam(lr), 2, 0.5),
    "lookahead-reset": lambda lr: _lookahead.lookahead(adam(0.1), 2, lr, reset_state=True),
    "flatten": lambda lr: _adapters.flatten(adam(lr)),
    "named_chain": lambda lr: _adapters.named_chain(
        ("adam", adam(lr)), ("half", optcore.scale(0.5))
    ),
    "stateless_with_tree_map": lambda lr: optcore.chain(
        _adapters.stateless_with_tree_map(doubled), optcore.scale(lr)
    ),
    "inject_hyperparams": injected,
    "inject_hyperparams-schedule": lambda lr: optcore.chain(injected(halving), optcore.scale(lr)),
}
NO_NONE = {"flatten"}  # refuses None leaves: see test_adapters
FOR_THESE_LEAVES = {"masked", "freeze"}  # their masks are trees
NO_VALUE = {"multi_steps-skip"}  # a functools.partial compares by identity


@pytest.fixture(params=BUILDERS.values(), ids=BUILDERS.keys())
def build(request):
    return request.param


def start():
    return {
        "w": torch.tensor([[1.0, -2.0], [0.5, 3.0]]),
        "b": torch.tensor(0.7),
        "e": torch.ones(0, 3),
    }


def run(tx, params, inplace=None, steps=5, scale=1.0):
    state = tx.init(params)
    for step in range(steps):
        grads = {k: (p * (scale + step)).sin() for k, p in params.items()}
        updates, state = tx.update(grads, state, params, inplace=inplace)
        params = optcore.apply_updates(params, updates, inplace=False)
    return params


def test_modes_agree(build):
    expected = run(build(0.1), start(), inplace=False)
    for inplace in (True, None):
        torch.testing.assert_close(
            run(build(0.1), start(), inplace), expected, rtol=1e-13, atol=1e-14
        )


def test_gradients_and_parameters_are_never_overwritten(build):
    tx, params = build(0.1), start()
    state = tx.init(params)
    grads = [{k: torch.randn_like(p) for k, p in params.items()} for _ in range(6)]
    kept = copy.deepcopy((grads, params))
    seen = []
    for grad in grads:
        updates, state = tx.update(grad, state, params, inplace=True)
        seen.append((updates, copy.deepcopy(updates)))
    torch.testing.assert_close((grads, params), kept, rtol=0, atol=0)
    for updates, before in seen:  # nor updates handed out before
        torch.testing.assert_close(updates, before, rtol=0, atol=0)


def test_out_of_place_leaves_the_state_alone(build):
    tx, params = build(0.1), start()
    _, state = tx.update(params, tx.init(params), params, inplace=False)
    kept = copy.deepcopy(state)
    tx.update(params, state, params, inplace=False)
    torch.testing.assert_close(state, kept, rtol=0, atol=0)


def test_vmap_equals_the_loop(build):
    scales, lrs = torch.tensor([0.3, 1.0, 7.0]), torch.tensor([0.01, 0.1, 0.5])
    together = torch.vmap(lambda s, lr: run(build(lr), start(), scale=s))(scales, lrs)
    alone = [run(build(lr), start(), scale=s) for s, lr in zip(scales, lrs, strict=True)]
    for key in ("w", "b", "e"):
        expected = torch.stack([params[key] for params in alone])
        torch.testing.assert_close(together[key], expected, rtol=1e-12, atol=1e-13)


def unrolled(build, w, b, lr):
    params = run(build(lr), {"w": w, "b": b, "e": torch.ones(0, 3)}, inplace=False, steps=3)
    return params["w"].sin().sum() * params["b"]


def leaves():
    w, b = start()["w"][0].clone().requires_grad_(), torch.tensor(0.7, requires_grad=True)
    return w, b, torch.tensor(0.3, requires_grad=True)


def test_first_and_second_derivative_against_finite_differences(build):
    assert gradcheck(lambda w, b, lr: unrolled(build, w, b, lr), leaves())
    assert gradgradcheck(lambda w, b, lr: unrolled(build, w, b, lr), leaves())


def test_transform_grad_equals_autograd(build):
    # under torch.func every condition is decided by torch.where instead of by Python
    at = leaves()
    expected = torch.autograd.grad(unrolled(build, *at), at)
    found = torch.func.grad(lambda *x: unrolled(build, *x), argnums=(0, 1, 2))(*at)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def test_learned_learning_rate_keeps_its_derivative_by_default(build):
    lr = torch.tensor(0.3, requires_grad=True)
    moved = run(build(lr), start())
    (derivative,) = torch.autograd.grad(moved["w"].sum() + moved["b"], lr)
    assert derivative != 0


@pytest.mark.parametrize("name", sorted(BUILDERS.keys() - NO_NONE))
@pytest.mark.parametrize("inplace", [True, False])
def test_a_missing_gradient_leaves_that_leaf_alone(name, inplace):
    tx, params = BUILDERS[name](0.1), start()
    state = tx.init(params)
    for _ in range(4):
        updates, state = tx.update({**params, "w": None}, state, params, inplace=inplace)
        assert updates["w"] is None
    fresh = buffers_like(params["w"], tx.init(params))
    for kept, new in zip(buffers_like(params["w"], state), fresh, strict=True):
        assert torch.equal(kept, new)


def buffers_like(param, state):
    """Tensors of the shape of one parameter, which no other parameter has."""
    found = []
    optcore.map_tensors(lambda t: found.append(t) if t.shape == param.shape else t, state)
    return found


@pytest.mark.parametrize("name", sorted(BUILDERS.keys() - FOR_THESE_LEAVES))
def test_no_parameters_at_all(name):
    tx = BUILDERS[name](0.1)
    assert tx.update({}, tx.init({}), {})[0] == {}


@pytest.mark.parametrize("name", sorted(BUILDERS.keys() - NO_VALUE))
def test_is_a_value(name):
    tx = BUILDERS[name](0.1)
    assert tx == BUILDERS[name](0.1)
    assert hash(tx) == hash(BUILDERS[name](0.1))
    assert tx != BUILDERS[name](0.2)
    again = pickle.loads(pickle.dumps(tx))
    assert again == tx
    assert type(again) is type(tx)
    assert again.needs_params == tx.needs_params


def test_extra_arguments_reach_the_inner_transformation():
    def init(params):
        return ()

    def update(updates, state, params, *, inplace, **extra):
        return optcore.map_tensors(lambda u: u * extra["factor"], updates), state

    asks = optcore.GradientTransformation(init, update)
    nested = _adapters.named_chain(
        ("masked", _masking.masked(asks, True)),
        ("partition", _partition.partition({0: asks}, 0)),
        ("multi", _accumulation.multi_steps(asks, 1)),
        ("finite", _control.apply_if_finite(asks, 0)),
        ("transform", _control.conditionally_transform(asks, lambda step: True)),
        ("mask", _control.conditionally_mask(asks, lambda step: True)),
        ("lookahead", _lookahead.lookahead(asks, 2, 0.5)),
        ("flatten", _adapters.flatten(asks)),
        ("inject", _inject.inject_hyperparams(lambda: asks)()),
    )
    params = [torch.ones(2)]
    updates, _ = nested.update(params, nested.init(params), params, factor=2.0)
    assert torch.equal(updates[0], torch.full((2,), 2.0**9))
