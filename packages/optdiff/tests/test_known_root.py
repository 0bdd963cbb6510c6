# SPDX-License-Identifier: Apache-2.0
"""root_vjp and root_jvp: every argument has a derivative of its own."""

import re

import pytest
import torch
from torch import nn

from optdiff import custom_root, root_jvp, root_vjp

A = torch.tensor(3.0, dtype=torch.float64)
ONE, ZERO = torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
PAIR = torch.ones(2, dtype=torch.float64)


def difference(x, p, q):
    return x - p - 2 * q


def difference_of_a_tree(x, tree):
    return difference(x, tree["p"], tree["q"][0])


def test_one_tensor_as_two_arguments():
    assert root_vjp(difference, 3 * A, (A, A), ONE) == (1.0, 2.0)
    assert root_jvp(difference, 3 * A, (A, A), (ONE, ZERO)) == 1.0
    assert root_jvp(difference, 3 * A, (A, A), (None, ONE)) == 2.0


def test_one_tensor_twice_in_a_tree():
    tree = {"p": A, "q": [A]}
    assert root_vjp(difference_of_a_tree, 3 * A, (tree,), ONE) == ({"p": 1.0, "q": [2.0]},)
    assert root_jvp(difference_of_a_tree, 3 * A, (tree,), ({"p": ONE, "q": [ZERO]},)) == 1.0


def test_custom_root_of_one_tensor_twice():
    """Autograd knows one tensor, whose gradient is the sum; argnums still choose."""
    a = A.clone().requires_grad_()
    root = custom_root(difference)(lambda init, p, q: p + 2 * q)
    tree = custom_root(difference_of_a_tree)(lambda init, tree: tree["p"] + 2 * tree["q"][0])
    second = custom_root(difference, argnums=2)(lambda init, p, q: p + 2 * q)
    assert torch.autograd.grad(root(None, a, a), a) == (3.0,)
    assert torch.autograd.grad(tree(None, {"p": a, "q": [a]}), a) == (3.0,)
    assert torch.autograd.grad(second(None, a, a), a) == (2.0,)


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(A.clone())
        self.register_buffer("shift", ONE.clone())

    def forward(self, a):
        return self.weight * a + self.shift


def by_module(x, a, scale):
    return x - scale(a)


def test_a_module_has_gradients_and_tangents_by_name():
    x, scale = torch.tensor(7.0, dtype=torch.float64), Scale()
    slope, grads = root_vjp(by_module, x, (2 * ONE, scale), ONE)
    assert (slope, grads) == (3.0, {"weight": 2.0})
    assert root_jvp(by_module, x, (2 * ONE, scale), (None, {"weight": ONE})) == 2.0
    assert root_jvp(by_module, x, (2 * ONE, scale), (ONE, None)) == 3.0
    assert torch.autograd.grad(slope, scale.weight) == (1.0,)


def pulled_back(k):
    return root_vjp(lambda x, a: k * x - a, 1 / k.detach(), (ONE,), ONE)[0]


def pushed_forward(k):
    return root_jvp(lambda x, a: k * x - a, 1 / k.detach(), (ONE,), (ONE,))


@pytest.mark.parametrize("derivative", [pulled_back, pushed_forward])
def test_what_the_optimality_closes_over_is_seen(derivative):
    """The derivative is 1 / k."""
    k = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(derivative(k), k) == (-0.25,)
    assert torch.func.grad(derivative)(k.detach()) == -0.25
    assert torch.func.jvp(derivative, (k.detach(),), (ONE,))[1] == -0.25


HIDDEN = {"k": torch.tensor(2.0, dtype=torch.float64, requires_grad=True)}


def hidden(x, a):
    return HIDDEN["k"] * x - a


REFUSED = [
    (
        lambda: root_vjp(hidden, ONE / 2, (ONE,), ONE),
        ValueError,
        "root_vjp: expected an optimality that gets every tensor that requires grad as an argument",
    ),
    (
        lambda: root_jvp(hidden, ONE / 2, (ONE,), (ONE,)),
        ValueError,
        "root_jvp: expected an optimality that gets every tensor that requires grad as an argument",
    ),
    (
        lambda: root_vjp(lambda x, a: x - a, PAIR, PAIR, PAIR),
        TypeError,
        "root_vjp: expected args as a tuple, got f64[2]; write (args,)",
    ),
    (
        lambda: root_jvp(lambda x, a: x - a, PAIR, (PAIR,), PAIR),
        TypeError,
        "root_jvp: expected tangents as a tuple, got f64[2]; write (tangents,)",
    ),
    (
        lambda: root_jvp(lambda x, a: x - a, PAIR, (PAIR,), (torch.ones(3),)),
        ValueError,
        "root_jvp: expected a tangent like f64[2], got f64[3], at [0]; give None where nothing",
    ),
    (
        lambda: root_jvp(lambda x, a: x - a, PAIR, (PAIR,), ([1.0, 1.0],)),
        ValueError,
        "root_jvp: expected a tangent like f64[2], got list, at [0]; give None where nothing",
    ),
    (
        lambda: root_jvp(lambda x, a: x - a, PAIR, (PAIR,), (PAIR.float(),)),
        ValueError,
        "root_jvp: expected a tangent like f64[2], got f32[2], at [0]; give None where nothing",
    ),
    (
        lambda: root_jvp(lambda x, a, n: x - n * a, PAIR, (PAIR, 1), (PAIR, PAIR)),
        ValueError,
        "root_jvp: expected tangents of nothing in int, got f64[2], at [1]; give None where",
    ),
    (
        lambda: root_jvp(by_module, ONE, (ONE, Scale()), (None, {"bias": ONE})),
        ValueError,
        "root_jvp: expected tangents of ['weight'] in Scale, got f64[], at [1]; give None where",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_refused(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()
