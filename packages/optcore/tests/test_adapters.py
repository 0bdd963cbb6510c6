# SPDX-License-Identifier: Apache-2.0
"""Transformations from functions, on one vector, and under names."""

import re

import pytest
import torch

import optcore


def params():
    return {"w": torch.tensor([[3.0, 0.0]]), "b": torch.tensor(4.0), "e": torch.ones(0)}


def unit(update, param):
    return update / update.norm()


def test_a_function_of_all_updates():
    tx = optcore.stateless(lambda updates, params: {k: updates[k] + params[k] for k in updates})
    new, state = tx.update(params(), tx.init(params()), params())
    assert new["b"] == 8.0
    assert state == optcore.EmptyState()


@pytest.mark.parametrize("given", [True, False])
def test_a_function_of_one_leaf(given):
    tx = optcore.stateless_with_tree_map(lambda u, p: u if p is None else u * p)
    tree = {**params(), "gone": None}
    new, _ = tx.update(tree, tx.init(tree), tree if given else None)
    assert new["b"].item() == (16.0 if given else 4.0)
    assert new["gone"] is None


def test_a_function_of_one_leaf_gets_tensors_in_place_too():
    kinds = set()
    tx = optcore.stateless_with_tree_map(lambda u, p: kinds.add(type(u)) or u)
    tx.update(params(), tx.init(params()), inplace=True)
    assert kinds == {torch.Tensor}


def test_one_vector_has_one_norm():
    tx = optcore.flatten(optcore.stateless(unit))
    new, _ = tx.update(params(), tx.init(params()))
    assert torch.equal(new["w"], torch.tensor([[0.6, 0.0]]))
    assert new["b"].item() == 0.8
    assert new["e"].shape == (0,)


def test_one_vector_of_state_and_parameters():
    tx = optcore.flatten(optcore.adamw(lr=0.1))
    state = tx.init(params())
    assert state[0].mu.shape == (3,)
    plain = optcore.adamw(lr=0.1)
    found, _ = tx.update(params(), state, params())
    expected, _ = plain.update(params(), plain.init(params()), params())
    torch.testing.assert_close(found, expected)


def test_no_parameters_make_an_empty_vector():
    tx = optcore.flatten(optcore.adam())
    assert tx.update([], tx.init([]))[0] == []


def test_named_states_keep_their_order():
    tx = optcore.named_chain(("zeta", optcore.trace(0.9)), ("alpha", optcore.scale(2.0)))
    new, state = tx.update(params(), tx.init(params()))
    assert list(state) == ["zeta", "alpha"]
    assert new["b"] == 8.0
    assert state["zeta"].trace["b"] == 4.0


def test_extra_arguments_need_no_support():
    tx = optcore.scale(2.0)
    assert optcore.with_extra_args_support(tx) is tx
    assert tx.update(params(), tx.init(params()), loss=3.0)[0]["b"] == 8.0


def vector_of(tree):
    return optcore.flatten(optcore.scale(1.0)).init(tree)


ERRORS = [
    (
        lambda: optcore.stateless(3),
        TypeError,
        "stateless: expected a function (updates, params), got int",
    ),
    (
        lambda: optcore.stateless_with_tree_map(None),
        TypeError,
        "stateless_with_tree_map: expected a function (updates, params), got NoneType",
    ),
    (
        lambda: optcore.with_extra_args_support(1),
        TypeError,
        "with_extra_args_support: expected a GradientTransformation, got int",
    ),
    (lambda: optcore.flatten(1), TypeError, "flatten: expected a GradientTransformation, got int"),
    (
        lambda: vector_of({"w": torch.ones(1), "x": None}),
        ValueError,
        "flatten: expected a tensor for every parameter, got None, at ['x']; hide such leaves",
    ),
    (
        lambda: vector_of([torch.ones(1), torch.ones(1, dtype=torch.float32)]),
        ValueError,
        "flatten: expected every parameter like the first, f64[1] on cpu, got f32[1] on cpu, at "
        "[1]; group them with partition",
    ),
    (
        lambda: vector_of(["x"]),
        TypeError,
        "flatten: expected a tree of tensors and None, got a str leaf",
    ),
    (
        lambda: optcore.flatten(optcore.scale(1.0)).update([None], optcore.EmptyState()),
        ValueError,
        "flatten: expected a tensor for every gradient, got None, at [0]; hide such leaves",
    ),
    (
        lambda: optcore.named_chain(optcore.scale(1.0)),
        TypeError,
        "named_chain, argument 1: expected (name, transformation), got GradientTransformation",
    ),
    (
        lambda: optcore.named_chain(("a", optcore.scale(1.0)), ("b", 3)),
        TypeError,
        "named_chain, argument 2: expected a GradientTransformation, got int",
    ),
    (
        lambda: optcore.named_chain(("a", optcore.scale(1.0)), ("a", optcore.scale(1.0))),
        ValueError,
        "named_chain: expected different names, got ['a', 'a']",
    ),
    (
        lambda: optcore.named_chain(("a", optcore.scale(1.0))).update([], {"b": ()}),
        ValueError,
        "named_chain: expected a state dict with ['a'], got ['b']; pass the state",
    ),
    (
        lambda: optcore.named_chain(("a", optcore.scale(1.0))).update([], ()),
        ValueError,
        "named_chain: expected a state dict with ['a'], got tuple; pass the state",
    ),
]


@pytest.mark.parametrize(("build", "error", "message"), ERRORS)
def test_errors(build, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        build()
