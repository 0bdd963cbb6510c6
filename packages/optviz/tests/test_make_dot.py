# SPDX-License-Identifier: Apache-2.0
"""The drawing that torchviz and TorchOpt make."""

import graphviz
import pytest
import torch

import optviz


def leaf(*shape):
    return torch.ones(shape, requires_grad=True)


def test_source():
    w = leaf(2)
    assert optviz.make_dot((w * w).sum(), {"w": w}).body == [
        '\tt0 [label="w\n (2)" fillcolor=lightblue]\n',
        "\tt0 -> f0\n",
        "\tf0 [label=AccumulateGrad]\n",
        "\tf1 [label=MulBackward0]\n",
        "\tf0 -> f1\n",
        "\tf0 -> f1\n",
        "\tf2 [label=SumBackward0]\n",
        "\tf1 -> f2\n",
        '\tt1 [label="\n ()" fillcolor=darkolivegreen1]\n',
        "\tf2 -> t1\n",
    ]


@pytest.mark.parametrize(
    "params",
    [
        pytest.param(lambda w: {"w": w}, id="mapping"),
        pytest.param(lambda w: [{"w": w}], id="list"),
        pytest.param(lambda w: (pair for pair in [("w", w)]), id="generator"),
    ],
)
def test_names(params):
    w = leaf(2)
    assert "w\n (2)" in optviz.make_dot({"loss": (w * w).sum()}, params(w)).source


def test_saved_tensors_and_attributes():
    source = optviz.make_dot(leaf(2).exp().pow(3).sum(), show_attrs=True, show_saved=True).source
    assert "exponent: " in source
    assert "[saved tensor]" in source
    assert "fillcolor=orange" in source


def test_base_of_a_view():
    source = optviz.make_dot((leaf(2) * 2)[:1]).source
    assert "darkolivegreen3" in source
    assert "style=dotted" in source


def test_long_attributes_are_cut():
    x = leaf(1, 2, 3, 4, 5, 6)
    source = optviz.make_dot(x.sum([0, 1, 2, 3, 4]), show_attrs=True, max_attr_chars=9).source
    assert "(0, 1,..." in source


def test_a_deep_graph_and_its_size():
    y = w = leaf(1)
    for _ in range(5000):
        y = y * 1.0
    dot = optviz.make_dot(y, {"w": w})
    assert isinstance(dot, graphviz.Digraph)
    assert dot.graph_attr["size"] == f"{len(dot.body) * 0.5},{len(dot.body) * 0.5}"


def test_names_of_a_module_state():
    optdiff = pytest.importorskip("optdiff")
    net = torch.nn.Linear(1, 1, bias=False)
    before = optdiff.extract_state_dict(net, enable_visual=True, visual_prefix="step0.")
    optdiff.MetaSGD(net, lr=0.1).step(net.weight.sum() ** 2)
    after = optdiff.extract_state_dict(net, enable_visual=True, visual_prefix="step1.")
    source = optviz.make_dot(net.weight.sum(), [before, after]).source
    assert "step0.weight" in source
    assert "AddBackward0\nstep1.weight\n (1, 1)" in source
    graph = optviz.draw(net.weight.sum(), [before, after])
    assert graph.node("step0.weight").kind == "leaf"


def test_a_named_output_names_no_function():
    w = leaf(2)
    loss = (w * w).sum()
    assert optviz.make_dot(loss, {"loss": loss, "w": w}).body[-3:] == [
        "\tf1 -> f2\n",
        '\tt1 [label="loss\n ()" fillcolor=darkolivegreen1]\n',
        "\tf2 -> t1\n",
    ]


class Exp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = x.exp()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0]


def test_what_a_function_saves_is_drawn_above_it():
    body = optviz.make_dot(Exp.apply(leaf(2)).sum()).body
    saved = body.index('\tt1 [label="\n (2)" fillcolor=orange]\n')
    assert body[saved + 1] == "\tt1 -> f1 [dir=none]\n"


def test_a_state_without_names_is_refused():
    optdiff = pytest.importorskip("optdiff")
    net = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="make_dot: expected a module state with names"):
        optviz.make_dot(net.weight.sum(), optdiff.extract_state_dict(net))
