# SPDX-License-Identifier: Apache-2.0
"""Transformations are values: they compare, hash, pickle, unpack and carry no state."""

import copy
import pickle

import pytest
import torch

import optcore


def decay_only_matrices(params):
    return {name: p.ndim > 1 for name, p in params.items()}


def half_life(count):
    return 0.5**count


FACTORIES = {
    "identity": lambda: optcore.identity(),
    "scale": lambda: optcore.scale(0.5),
    "schedule": lambda: optcore.scale_by_schedule(half_life),
    "adam": lambda: optcore.adam(lr=0.1, weight_decay=0.1),
    "adamw": lambda: optcore.adamw(mask=decay_only_matrices),
    "sgd": lambda: optcore.sgd(lr=0.1, momentum=0.9, dampening=0.5),
    "tree": lambda: optcore.sgd(lr={"w": 0.1, "b": 0.2}),
    "sm3": lambda: optcore.sm3(lr=half_life),
    "fromage": lambda: optcore.fromage(lr=half_life),
    "schedule_free_sgd": lambda: optcore.schedule_free_sgd(warmup_steps=3),
    "schedule_free_adamw": lambda: optcore.schedule_free_adamw(lr=half_life),
}


@pytest.fixture(params=FACTORIES.values(), ids=FACTORIES.keys())
def factory(request):
    return request.param


def test_equal_fields_make_equal_values(factory):
    assert factory() == factory()
    assert hash(factory()) == hash(factory())
    assert factory() != optcore.scale(0.123)
    assert factory() != 3


def test_pickles_and_copies_to_an_equal_value(factory):
    assert pickle.loads(pickle.dumps(factory())) == factory()
    assert copy.deepcopy(factory()) == factory()


def test_is_frozen_and_unpacks(factory):
    tx = factory()
    with pytest.raises(AttributeError, match="frozen"):
        tx.update = None
    init, update = tx
    assert (init, update) == (tx.init, tx.update)


def test_tensors_compare_by_identity():
    lr = torch.tensor(0.1)
    assert optcore.sgd(lr=lr) == optcore.sgd(lr=lr)
    assert optcore.sgd(lr=lr) != optcore.sgd(lr=lr.clone())
    assert list(optcore.chain(optcore.sgd(lr=lr)).tensors()) == [lr]


def test_a_transformation_keeps_nothing_between_uses():
    tx = optcore.sgd(lr=0.1, momentum=0.9)
    params = [torch.ones(2)]
    first, _ = tx.update([torch.ones(2)], tx.init(params))
    again, _ = tx.update([torch.ones(2)], tx.init(params))
    assert torch.equal(first[0], again[0])


def test_repr_names_hyperparameters_without_contents():
    tx = optcore.chain(optcore.scale(torch.rand(3, 4)), optcore.trace(0.5))
    assert repr(tx) == (
        "chain(transformations=[scale(step_size=f64[3, 4]), trace(decay=0.5, dampening=0.0, "
        "nesterov=False, moment_requires_grad=False, use_accelerated_op=False)])"
    )


def test_user_functions_make_a_transformation_and_get_extra_arguments_if_they_ask():
    def init(params):
        return torch.zeros(())

    def update(updates, state, params, *, inplace, **extra):
        return [u * extra["loss"] for u in updates], state + 1

    tx = optcore.chain(optcore.scale(2.0), optcore.GradientTransformation(init, update))
    updates, state = tx.update([torch.ones(1)], tx.init([torch.ones(1)]), loss=5.0)
    assert updates[0].item() == 10.0
    assert state[1].item() == 1.0


@pytest.mark.parametrize("row", optcore.OPTIMIZERS.values(), ids=optcore.OPTIMIZERS.keys())
def test_extra_arguments_pass_by_every_optimizer(row):
    tx, params = row.factory(), [torch.ones(2, 2)]
    state = tx.init(params)
    expected, _ = tx.update(params, state, params, inplace=False)
    found, _ = tx.update(params, state, params, inplace=False, loss=5.0)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_chain_method_is_chain():
    a, b = optcore.scale(2.0), optcore.scale(3.0)
    assert a.chain(b) == optcore.chain(a, b)
