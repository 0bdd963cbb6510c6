# SPDX-License-Identifier: Apache-2.0
"""Gradients on edges."""

import pytest
import torch

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
