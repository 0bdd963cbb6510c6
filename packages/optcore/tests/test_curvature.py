# SPDX-License-Identifier: Apache-2.0
"""Diagonals of curvature matrices equal those of the matrices, computed whole."""

import re

import pytest
import torch

import optcore

X = torch.linspace(-1, 1.5, 15, dtype=torch.float64).view(5, 3)
Y = torch.linspace(0, 1, 5, dtype=torch.float64)


def params():
    generator = torch.Generator().manual_seed(5)
    shapes = {"w": (3, 2), "out": (2,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def predict(p, x):
    return (x @ p["w"]).tanh() @ p["out"]


def loss_of(outputs):
    return (outputs - Y).cosh().log().sum()


def loss(p, x=X):
    return loss_of(predict(p, x))


def whole(function, *args):
    """A function of the vector of parameters, and that vector."""
    leaves, spec = optcore.tree_flatten_as_tuple(params())
    sizes = [leaf.numel() for leaf in leaves]

    def of_vector(vector):
        parts = zip(vector.split(sizes), leaves, strict=True)
        return function(spec.unflatten([part.view_as(leaf) for part, leaf in parts]), *args)

    return of_vector, torch.cat([leaf.flatten() for leaf in leaves])


def flat(tree):
    return torch.cat([leaf.flatten() for leaf in optcore.tree_flatten_as_tuple(tree)[0]])


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_hessian(chunk_size):
    matrix = torch.func.hessian(whole(loss)[0])(whole(loss)[1])
    found = optcore.hessian_diag(loss, params(), X, chunk_size=chunk_size)
    torch.testing.assert_close(flat(found), matrix.diagonal(), rtol=1e-12, atol=1e-12)
    along = {name: leaf.cos() for name, leaf in params().items()}
    torch.testing.assert_close(flat(optcore.hvp(loss, params(), along)), matrix @ flat(along))


def test_gauss_newton():
    function, vector = whole(predict, X)
    jacobian = torch.func.jacrev(function)(vector)
    inner = torch.func.hessian(loss_of)(function(vector))
    found = optcore.ggn_diag(predict, loss_of, params(), X)
    torch.testing.assert_close(flat(found), (jacobian.T @ inner @ jacobian).diagonal())
    assert flat(found).min() >= 0


def test_gauss_newton_of_a_linear_model_is_the_hessian():
    def linear(p):
        return X @ p["w"][:, 0]

    found = optcore.ggn_diag(linear, loss_of, params())
    expected = optcore.hessian_diag(lambda p: loss_of(linear(p)), params())
    torch.testing.assert_close(found, expected)


def test_fisher():
    def nll(p, x, y):
        return (predict(p, x) - y).square()

    squares = []
    for x, y in zip(X, Y, strict=True):
        function, vector = whole(nll, x, y)
        squares.append(torch.func.grad(function)(vector).square())
    found = optcore.fisher_diag(nll, params(), X, Y)
    torch.testing.assert_close(flat(found), torch.stack(squares).mean(0))


def test_the_diagonal_is_differentiable_and_none_stays_none():
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    found = optcore.hessian_diag(lambda p: p[0].pow(4).sum(), [w, None])
    assert found[1] is None
    (slope,) = torch.autograd.grad(found[0].sum(), w)
    torch.testing.assert_close(slope, 24 * w.detach())


ERRORS = [
    (
        lambda: optcore.hessian_diag(lambda p: p[0], [torch.ones(2)]),
        "hessian_diag: expected a scalar loss, got f64[2]",
    ),
    (
        lambda: optcore.hvp(lambda p: p[0].sum(), [torch.ones(2)], [torch.ones(3)]),
        "hvp: expected a vector like its parameter f64[2], got f64[3], at [0]",
    ),
    (
        lambda: optcore.fisher_diag(lambda p: p[0].sum(), [torch.ones(2, dtype=torch.int64)]),
        "fisher_diag: expected real floating parameters, got i64[2]",
    ),
    (
        lambda: optcore.hvp(3, [torch.ones(2)], [torch.ones(2)]),
        "hvp: expected loss as a function, got int",
    ),
    (
        lambda: optcore.hvp(lambda p: p[0].sum(), [torch.ones(2)], [3.0]),
        "hvp: expected a vector like its parameter f64[2], got float, at [0]",
    ),
    (
        lambda: optcore.hessian_diag(loss_of, torch.ones(2), chunk_size=0),
        "hessian_diag: expected chunk_size >= 1, got 0",
    ),
    (
        lambda: optcore.ggn_diag(lambda p: p, lambda z: z, torch.ones(2)),
        "ggn_diag: expected a scalar loss, got f64[2]",
    ),
    (
        lambda: optcore.ggn_diag(lambda p: [p], loss_of, torch.ones(2)),
        "ggn_diag: expected predictions as a floating tensor, got list",
    ),
    (
        lambda: optcore.ggn_diag(lambda p: p, 3, torch.ones(2)),
        "ggn_diag: expected loss as a function, got int",
    ),
    (
        lambda: optcore.fisher_diag(torch.sum, torch.ones(2)),
        "fisher_diag: expected tensors of examples (batch, ...), got none",
    ),
    (
        lambda: optcore.fisher_diag(torch.sum, torch.ones(2), torch.ones(3), torch.ones(4)),
        "fisher_diag: expected tensors of examples (3, ...), got f64[4], at args[1]",
    ),
    (
        lambda: optcore.fisher_diag(torch.sum, torch.ones(2), torch.ones(0, 2)),
        "fisher_diag: expected tensors of examples (batch, ...), got f64[0, 2], at args[0]",
    ),
]


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_errors_name_what_was_expected(call, message):
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}"):
        call()
