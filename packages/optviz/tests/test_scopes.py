# SPDX-License-Identifier: Apache-2.0
"""Which step, stage and order a node belongs to."""

import torch

import optviz


def test_scopes_nest_and_take_gradients_in():
    w = torch.ones(2, requires_grad=True)
    with optviz.scope("outer"):
        y = w.exp()
        with optviz.scope("inner"):
            (g,) = torch.autograd.grad(y.sum(), w, create_graph=True)
    graph = optviz.draw(g.tanh().sum())
    assert graph.node("Exp").path == ("outer",)
    assert graph.node("Mul").path == ("outer", "inner")
    assert graph.node("Tanh").path == ()


def test_scope_decorates():
    @optviz.scope("loss")
    def loss(w):
        return w.exp().sum()

    assert optviz.draw(loss(torch.ones(2, requires_grad=True))).node("Exp").path == ("loss",)


def test_orders_count_derivatives():
    w = torch.ones(2, requires_grad=True)
    orders = []
    with optviz.record():
        value = (w**4).sum()
        for _ in range(3):
            orders.append(optviz.draw(value).order())
            (g,) = torch.autograd.grad(value, w, create_graph=True)
            value = g.sum()
    assert orders == [0, 1, 2]


def test_the_order_of_an_inner_step_does_not_grow():
    w0 = w = torch.ones(2, requires_grad=True)
    with optviz.record():
        for _ in range(3):
            (g,) = torch.autograd.grad((w**3).sum(), w, create_graph=True)
            w = w - 0.1 * g
        graph = optviz.draw(w.sum(), {"w": w0})
        assert graph.order() == 1
        (g,) = torch.autograd.grad(w.sum(), w0, create_graph=True)
    assert optviz.draw(g.sum()).order() == 2
