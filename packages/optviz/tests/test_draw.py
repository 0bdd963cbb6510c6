# SPDX-License-Identifier: Apache-2.0
"""Autograd graphs as plain data."""

import gc
import pickle
import weakref

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.utils.checkpoint import checkpoint

import optviz


def leaf(*shape):
    return torch.ones(shape, requires_grad=True)


def plain():
    w = leaf(2)
    return (w * w.exp()).sum(), {"w": w}


def with_create_graph():
    w = leaf(2)
    (g,) = torch.autograd.grad((w**3).sum(), w, create_graph=True)
    return g.sum(), {"w": w}


def tied():
    w = leaf(2, 2)
    return (w @ w).sum(), [{"enc": w}, {"dec": w}]


def of_view():
    w = leaf(2, 2)
    return w.view(4)[1:3], {"w": w}


def leaf_itself():
    w = leaf()
    return w, {"w": w}


@pytest.mark.parametrize("program", [plain, with_create_graph, tied, of_view, leaf_itself])
def test_the_same_program_gives_the_same_graph(program):
    first, second = optviz.draw(*program()), optviz.draw(*program())
    assert first.edges == second.edges
    assert [n.name for n in first.nodes] == [n.name for n in second.nodes]


def reached(*outputs):
    """Functions and edges, counted by another walk than the package's."""
    found, waiting, edges = set(), [t.grad_fn for t in outputs], 0
    while waiting:
        fn = waiting.pop()
        if fn not in found:
            found.add(fn)
            below = [f for f, _ in fn.next_functions if f is not None]
            edges += len(below)
            waiting += below
    return found, edges


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99), st.booleans()), max_size=30))
def test_every_node_and_every_edge_appears_once(plan):
    values = [leaf(), leaf()]
    values.append(values[0] * values[1])
    for one, other, add in plan:
        a, b = values[one % len(values)], values[other % len(values)]
        values.append(a + b if add else a * b)
    outputs = values[-2:] if values[-2].grad_fn is not None else values[-1:]
    functions, edges = reached(*outputs)
    graph = optviz.draw(outputs)
    assert len(graph.nodes) == len(functions) + len(outputs)
    assert len(graph.edges) == edges + len(outputs)
    assert len({(e.source, e.target, e.slot) for e in graph.edges}) == len(graph.edges)
    assert len({node.key for node in graph.nodes if node.key}) == len(functions)
    assert [node.id for node in graph.nodes] == list(range(len(graph.nodes)))
    assert all(edge.source < edge.target for edge in graph.edges)


def test_capture_changes_no_gradient():
    loss, names = plain()
    w = names["w"]
    before = torch.autograd.grad(loss, w, retain_graph=True)[0]
    optviz.draw(loss, names)
    assert torch.equal(torch.autograd.grad(loss, w)[0], before)
    assert w.grad is None


def test_no_tensor_is_kept_alive():
    w = leaf(3)
    loss = (w * w).exp().sum()
    graph = optviz.draw(loss, {"w": w})
    graph.to_html()
    references = [weakref.ref(w), weakref.ref(loss)]
    del w, loss
    gc.collect()
    assert [reference() for reference in references] == [None, None]
    assert graph.node("w").shape == (3,)


def test_a_graph_pickles():
    graph = optviz.draw(*plain())
    assert pickle.loads(pickle.dumps(graph)) == graph


def test_freed_buffers_are_told():
    loss, names = plain()
    loss.backward()
    assert optviz.draw(loss, names).node("Mul").freed


def test_what_was_overwritten_is_not_called_freed():
    y = leaf(2).exp()
    y.mul_(2)
    node = optviz.draw(y.sum()).node("Exp")
    assert (node.overwritten, node.freed) == (("result",), False)
    assert "overwritten" in optviz.draw(y.sum()).to_txt()


@pytest.mark.skipif(
    not hasattr(torch._C._autograd.SavedTensor, "unpack_hook"),
    reason="this torch does not tell which saved tensors a hook unpacks",
)
def test_checkpoints_are_not_run_to_be_drawn():
    runs, saved = [], []
    norm = nn.BatchNorm1d(2)

    def block(x):
        runs.append(1)
        y = norm(x).exp()
        saved.append(weakref.ref(y.untyped_storage()))
        return y.sin()

    x = leaf(3, 2)
    loss = checkpoint(block, x * 1, use_reentrant=False).sum()
    gc.collect()
    alive = [reference() is not None for reference in saved]
    graph = optviz.draw(loss, {"x": x})
    optviz.make_dot(loss, {"x": x}, show_attrs=True, show_saved=True)
    assert not optviz.why_no_grad(x, loss)
    gc.collect()
    assert (len(runs), norm.num_batches_tracked.item()) == (1, 1)
    assert [reference() is not None for reference in saved] == alive
    assert graph.node("Exp").by_hooks == ("result",)
    assert graph.saved_bytes() < 16
    assert "saved and 8 unpacked by hooks" in graph.to_txt()
    assert "result: unpacked by a hook" in graph.to_html()


def test_results_of_one_operation_are_told_apart():
    first, second = (leaf(4) * 2).split(2)
    graph = optviz.draw({"first": first, "second": second})
    assert [e.output for e in graph.edges if graph.nodes[e.target].kind == "output"] == [0, 1]


def test_tensors_saved_in_tuples_are_found():
    index = torch.tensor([0, 1])
    graph = optviz.draw(leaf(2, 2)[index, index].sum())
    assert [s.name for s in graph.node("Index").saved] == ["indices[0]", "indices[1]"]


class Named(torch.Tensor):
    """A subclass whose operations give the subclass."""


def test_subclasses_are_tensors():
    w = nn.Parameter(torch.ones(2).as_subclass(Named))
    loss = (w.exp() * w).sum()
    graph = optviz.draw(loss, {"w": w})
    assert type(loss) is Named
    functions, edges = reached(loss)
    assert (len(graph.nodes), len(graph.edges)) == (len(functions) + 1, edges + 1)
    assert graph.paths("w", "output")
    with optviz.record():
        detached = (w.detach() * w.detach()).sum()
    assert optviz.why_no_grad(w, detached).kind == "detach"


def test_sparse_tensors_are_drawn():
    w = leaf(2, 2)
    loss = torch.sparse.mm(torch.eye(2).to_sparse(), w).sum()
    graph = optviz.flow(optviz.draw(loss, {"w": w}), loss)
    assert graph.paths("w", loss)


def test_memory_that_is_shared_counts_once():
    x = torch.ones(8)
    w = leaf(8)
    assert optviz.draw((w * x).sum() + (-w * x).sum()).saved_bytes() == 64


@pytest.mark.parametrize(
    "inputs",
    [
        pytest.param(lambda net: net, id="module"),
        pytest.param(lambda net: dict(net.named_parameters()), id="mapping"),
        pytest.param(lambda net: net.named_parameters(), id="generator"),
        pytest.param(lambda net: [{"weight": net.weight}, {"bias": net.bias}], id="list"),
    ],
)
def test_names(inputs):
    net = nn.Linear(2, 1)
    graph = optviz.draw(net(torch.ones(1, 2)).sum(), inputs(net))
    assert {node.name for node in graph.nodes if node.kind == "leaf"} == {"weight", "bias"}


def test_what_nothing_reaches_is_shown():
    loss, names = plain()
    assert optviz.draw(loss, {**names, "unused": leaf(1)}).node("unused").kind == "leaf"


def test_paths_order_and_lookup():
    loss, names = plain()
    graph = optviz.draw(loss, names)
    assert [len(path) for path in graph.paths("w", loss)] == [4, 3]
    assert len(graph.paths("w", loss, limit=1)) == 1
    assert graph.paths("output", "w") == []
    assert graph.node(loss).label == "Sum"
    assert graph.node(names["w"]).name == "w"
    assert graph.order() == 0


def test_derivatives_of_derivatives_are_known_by_name():
    w = leaf(2)
    (g,) = torch.autograd.grad(w.tanh().sum(), w, create_graph=True)
    assert optviz.draw(g.sum()).order() == 1


ERRORS = {
    "no tensor": (lambda: optviz.draw([]), TypeError, "draw: expected at least one tensor"),
    "no graph": (
        lambda: optviz.draw(torch.ones(2)),
        ValueError,
        r"draw: expected outputs with a graph, got float64\[2\]",
    ),
    "kind": (lambda: optviz.draw([3]), TypeError, r"got int, at \[0\]"),
    "inputs": (lambda: optviz.draw(leaf(), 3), TypeError, "draw: expected a mapping of tensors"),
    "name": (lambda: optviz.draw(leaf(), {"w": 3}), TypeError, r"got int, at \['w'\]"),
    "show": (lambda: optviz.draw(leaf(), show=["x"]), ValueError, "draw: expected show among"),
    "show as a string": (
        lambda: optviz.draw(leaf(), show="saved"),
        TypeError,
        "draw: expected show as a list of names, got 'saved'",
    ),
    "engine of another format": (
        lambda: optviz.draw(leaf()).save("x.html", engine="dot"),
        ValueError,
        "expected a .svg for engine 'dot', got x.html",
    ),
    "truth": (lambda: optviz.draw(leaf()).node(True), TypeError, "a name or an id, got bool"),
    "node": (lambda: optviz.draw(leaf()).node("x"), KeyError, "expected a node of this graph"),
    "several": (lambda: optviz.draw(leaf() * 1 * 1).node("Mul"), KeyError, "got 2; give its id"),
    "which": (lambda: optviz.draw(leaf()).node(1.5), TypeError, "a name or an id, got float"),
    "limit": (lambda: optviz.draw(leaf()).paths(0, 1, 0), ValueError, "limit of at least 1, got 0"),
    "by": (lambda: optviz.draw(leaf()).saved_bytes(by="x"), ValueError, "got 'x'"),
    "suffix": (lambda: optviz.draw(leaf()).save("a.gif"), ValueError, "ending in svg, html"),
    "engine": (lambda: optviz.draw(leaf()).save("a.svg", "x"), ValueError, "'own' or 'dot'"),
    "scope": (lambda: optviz.scope(3).__enter__(), TypeError, "scope: expected a name, got int"),
    "instrument": (lambda: optviz.instrument(3), TypeError, "instrument: expected a transform"),
    "flow loss": (
        lambda: optviz.flow(optviz.draw(leaf()), 3),
        TypeError,
        "flow: expected a t",
    ),
    "flow other": (
        lambda: optviz.flow(optviz.draw(leaf()), leaf() * 2),
        ValueError,
        "flow: expected a loss of this graph",
    ),
    "why": (
        lambda: optviz.why_no_grad(3, leaf()),
        TypeError,
        "as param, got int",
    ),
    "make_dot": (lambda: optviz.make_dot([]), TypeError, "make_dot: expected at least one tensor"),
    "make_dot kind": (lambda: optviz.make_dot([3]), TypeError, "make_dot: expected tensors, or"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    call, kind, message = ERRORS[case]
    with pytest.raises(kind, match=message):
        call()
