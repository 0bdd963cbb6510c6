# SPDX-License-Identifier: Apache-2.0
"""Gradients on edges."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import optviz


def states(loss, names):
    graph = optviz.flow(optviz.draw(loss, names), loss)
    return {
        (graph.nodes[e.source].label, graph.nodes[e.target].label): (e.norm, e.state)
        for e in graph.edges
    }


def test_norms():
    w = torch.tensor([3.0, 4.0], requires_grad=True)
    found = states((w**2).sum() / 2, {"w": w})
    assert found["w", "Pow"] == (5.0, "")
    assert found["Div", "output"] == (1.0, "")
    assert w.grad is None


@pytest.mark.parametrize(
    ("program", "state"),
    [
        (lambda w: (w * 0.0).sqrt().sum() * 0.0, "nan"),
        (lambda w: (w * 0.0).sqrt().sum(), "inf"),
        (lambda w: (w * 0.0).sum(), "zero"),
    ],
)
def test_marks(program, state):
    w = torch.ones(2, requires_grad=True)
    found = states(program(w), {"w": w})
    assert state in {mark for _, mark in found.values()}


@pytest.mark.parametrize(
    ("norm", "mark"),
    [
        (1e7, "hot3"),
        (1e5, "hot2"),
        (1e3, "hot1"),
        (1e-3, "cold1"),
        (1e-5, "cold2"),
        (1e-7, "cold3"),
    ],
)
def test_exploding_and_vanishing_gradients_are_coloured(norm, mark):
    w = torch.ones(1, requires_grad=True)
    loss = (w * norm).sum()
    graph = optviz.flow(optviz.draw(loss, {"w": w}), loss)
    assert f'class="edge {mark}"' in graph.to_svg()
    assert f'class="box {mark}"' in graph.to_svg()
    assert mark in graph.to_html()
    assert "color=" in graph.to_dot().split("->", 1)[1]


def test_what_another_loss_needs_is_never_visited():
    w = torch.ones(2, requires_grad=True)
    losses = {"a": w.exp().sum(), "b": w.tanh().sum()}
    graph = optviz.flow(optviz.draw(losses), losses["a"])
    marks = {graph.nodes[e.target].label: e.state for e in graph.edges}
    assert (marks["Exp"], marks["Tanh"]) == ("", "never")
    assert "never" in graph.to_svg()
    assert "never" in graph.to_txt()
    assert "never" in graph.to_dot()


def test_squares_may_overflow():
    w = torch.ones(4, requires_grad=True)
    loss = (w * 1e200).sum() * 1e50 + (w * 1e250).sum() * 1e-300
    graph = optviz.flow(optviz.draw(loss, {"w": w}), loss)
    assert max(edge.norm for edge in graph.edges) == pytest.approx(2e250)
    for kind in ("svg", "html", "dot", "json", "txt"):
        assert getattr(graph, f"to_{kind}")()


def test_a_norm_beyond_all_numbers_is_infinite():
    w = torch.ones(4, requires_grad=True)
    loss = (w * 1e308).sum()
    graph = optviz.flow(optviz.draw(loss, {"w": w}), loss)
    assert "inf" in {edge.state for edge in graph.edges}
    for kind in ("svg", "html", "dot", "json", "txt"):
        assert getattr(graph, f"to_{kind}")()


class Raises(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, _):
        raise NotImplementedError


@pytest.mark.parametrize(
    "program",
    [Raises.apply, lambda w: checkpoint(torch.exp, w * 1, use_reentrant=True)],
)
def test_a_backward_pass_that_fails_says_what_to_do(program):
    w = torch.ones((), requires_grad=True)
    loss = program(w)
    with pytest.raises(RuntimeError, match="flow: expected a loss whose backward pass runs"):
        optviz.flow(optviz.draw(loss, {"w": w}), loss)
