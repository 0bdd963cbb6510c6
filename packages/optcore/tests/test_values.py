# SPDX-License-Identifier: Apache-2.0
"""Transformations are values: they compare, hash, pickle, unpack and carry no state."""

import pytest
import torch

import optcore


def test_is_frozen_and_unpacks():
    tx = optcore.adam()
    with pytest.raises(AttributeError, match="frozen"):
        tx.update = None
    init, update = tx
    assert (init, update) == (tx.init, tx.update)


def test_tensors_compare_by_identity():
    lr = torch.tensor(0.1)
    assert optcore.sgd(lr=lr) == optcore.sgd(lr=lr)
    assert optcore.sgd(lr=lr) != optcore.sgd(lr=lr.clone())
    assert list(optcore.chain(optcore.sgd(lr=lr)).tensors()) == [lr]


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


def test_chain_method_is_chain():
    a, b = optcore.scale(2.0), optcore.scale(3.0)
    assert a.chain(b) == optcore.chain(a, b)


@pytest.mark.parametrize("row", optcore.OPTIMIZERS.values(), ids=optcore.OPTIMIZERS.keys())
def test_extra_arguments_pass_by_every_optimizer(row):
    tx, params = row.factory(), [torch.ones(2, 2)]
    state = tx.init(params)
    expected, _ = tx.update(params, state, params, inplace=False)
    found, _ = tx.update(params, state, params, inplace=False, loss=5.0)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_arguments_make_an_equal_one():
    tx = optcore.chain(optcore.clip(1.0), optcore.adamw(lr=optcore.linear_schedule(1.0, 0.0, 5)))
    made = optcore.GradientTransformation(**tx.arguments)
    assert (made, repr(made)) == (tx, repr(tx))
    tx.arguments["static"].clear()
    assert made == tx
