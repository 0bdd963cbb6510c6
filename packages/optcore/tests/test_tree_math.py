# SPDX-License-Identifier: Apache-2.0
"""Tree arithmetic is arithmetic on the leaves."""

import re
from collections import OrderedDict

import pytest
import torch
from torch.autograd import gradcheck
from torch.futures import Future

import optcore

A = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).double()
B = torch.tensor([[0.5, -1.0], [2.0, 8.0]]).double()
C = torch.tensor([[1.0, 1.0], [0.0, 2.0]]).double()


def nested(x):
    return {"a": x, "b": [2 * x, None], "c": OrderedDict(z=(x - 1,))}


CASES = [
    (optcore.tree_pos, 1, lambda a: a),
    (optcore.tree_neg, 1, lambda a: -a),
    (optcore.tree_add, 1, lambda a: a),
    (optcore.tree_add, 2, lambda a, b: a + b),
    (optcore.tree_add, 3, lambda a, b, c: a + b + c),
    (optcore.tree_sub, 2, lambda a, b: a - b),
    (optcore.tree_mul, 3, lambda a, b, c: a * b * c),
    (optcore.tree_matmul, 3, lambda a, b, c: a @ b @ c),
    (optcore.tree_truediv, 2, lambda a, b: a / b),
    (lambda a: optcore.tree_scalar_mul(3.0, a), 1, lambda a: 3 * a),
    (optcore.tree_add_scalar_mul, 2, lambda a, b: a + b),
    (optcore.tree_sub_scalar_mul, 2, lambda a, b: a - b),
    (lambda a, b: optcore.tree_add_scalar_mul(a, b, 0.5), 2, lambda a, b: a + b / 2),
    (lambda a, b: optcore.tree_sub_scalar_mul(a, b, 0.5), 2, lambda a, b: a - b / 2),
]


@pytest.mark.parametrize(("function", "arity", "expected"), CASES)
def test_leaf_by_leaf(function, arity, expected):
    leaves = [A, B, C][:arity]
    found = function(*map(nested, leaves))
    assert found["b"][1] is None
    assert type(found["c"]) is OrderedDict
    torch.testing.assert_close(found["a"], expected(*leaves))
    torch.testing.assert_close(found["b"][0], expected(*(2 * x for x in leaves)))
    torch.testing.assert_close(found["c"]["z"][0], expected(*(x - 1 for x in leaves)))


ACCUMULATED = [
    (optcore.acc_add, A + B + C),
    (optcore.acc_mul, A * B * C),
    (optcore.acc_matmul, A @ B @ C),
]


@pytest.mark.parametrize(("function", "expected"), ACCUMULATED)
def test_accumulation(function, expected):
    torch.testing.assert_close(function(A, B, C), expected)
    assert function(A) is A


def test_registered_nodes_are_walked():
    params = optcore.ParamDict(a=A, b=B)
    total = optcore.tree_add(params, params)
    assert type(total) is optcore.ParamDict
    assert torch.equal(total["b"], 2 * B)


def test_vdot_real():
    z = torch.complex(A, B)
    expected = (A * B).sum() + (4 * A * B).sum() + ((A - 1) * (B - 1)).sum()
    torch.testing.assert_close(optcore.tree_vdot_real(nested(A), nested(B)), expected)
    torch.testing.assert_close(optcore.tree_vdot_real([z], [z]), z.abs().square().sum())
    mixed = optcore.tree_vdot_real([z], [C])
    torch.testing.assert_close(mixed, (A * C).sum())
    assert optcore.tree_vdot_real({}, {}).item() == 0.0
    assert optcore.tree_vdot_real([torch.zeros(0)], [torch.zeros(0)]).item() == 0.0


def test_derivatives():
    def run(a, b, alpha):
        x, y = {"a": a}, {"a": b}
        scaled = optcore.tree_add_scalar_mul(x, optcore.tree_scalar_mul(alpha, y), alpha)
        scaled = optcore.tree_sub_scalar_mul(scaled, x, alpha)
        return optcore.tree_vdot_real(scaled, y), optcore.tree_truediv(x, scaled)["a"]

    alpha = torch.tensor(0.7, dtype=torch.float64)
    assert gradcheck(run, [x.clone().requires_grad_() for x in (A, C, alpha)])


def test_vdot_real_under_vmap():
    found = torch.vmap(lambda a, b: optcore.tree_vdot_real([a], [b]))(A, B)
    torch.testing.assert_close(found, (A * B).sum(1))


def test_flatten_as_tuple():
    leaves, spec = optcore.tree_flatten_as_tuple({"b": 2, "a": None})
    assert leaves == (2,)
    assert spec.unflatten(leaves) == {"b": 2, "a": None}
    assert optcore.tree_flatten_as_tuple({"b": 2, "a": None}, none_is_leaf=True)[0] == (None, 2)
    assert optcore.tree_flatten_as_tuple([(1, 2)], lambda x: type(x) is tuple)[0] == ((1, 2),)


def test_wait():
    futures = {"a": Future(), "b": [Future()]}
    futures["b"][0].set_result("late")
    futures["a"].set_result(A)
    assert optcore.tree_wait(futures) == {"a": A, "b": ["late"]}
    assert optcore.tree_wait({}) == {}


ERRORS = [
    (lambda: optcore.tree_add(), TypeError, "tree_add: expected at least one tree, got none"),
    (lambda: optcore.acc_mul(), TypeError, "acc_mul: expected at least one argument, got none"),
    (
        lambda: optcore.tree_sub({"a": [1]}, {"a": (1,)}),
        ValueError,
        "tree_sub: tree_map: argument 2 differs from argument 1 at ['a']",
    ),
    (
        lambda: optcore.tree_vdot_real([A], [2.0]),
        TypeError,
        "tree_vdot_real: expected tensors, got a float leaf",
    ),
    (
        lambda: optcore.tree_vdot_real([A], [A[0]]),
        ValueError,
        "tree_vdot_real: expected leaves of one shape, got f64[2, 2] and f64[2]",
    ),
    (
        lambda: optcore.tree_wait([3]),
        TypeError,
        "tree_wait: expected a tree of torch futures, got a int leaf",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), ERRORS)
def test_errors(call, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        call()
