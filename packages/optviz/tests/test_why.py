# SPDX-License-Identifier: Apache-2.0
"""The first cut is named, with its line."""

import copy
import gc
import linecache
import weakref

import pytest
import torch

import optviz


def weights():
    return torch.tensor([1.0, 2.0], requires_grad=True)


def missing_create_graph(phi):
    w = weights()
    (g,) = torch.autograd.grad((phi * w**2).sum(), w)  # here
    return (w - 0.1 * g).sum()


def apply_in_place(phi):
    w = weights()
    (g,) = torch.autograd.grad((phi * w**2).sum(), w, create_graph=True)
    w.data.sub_(0.1 * g)  # here
    return (w**2).sum()


def apply_without_grad(phi):
    w = weights()
    (g,) = torch.autograd.grad((phi * w**2).sum(), w, create_graph=True)
    with torch.no_grad():
        w.sub_(g)  # here
    return (w**2).sum()


def detached(phi):
    return ((phi * 2).detach() * weights()).sum()  # here


def item(phi):
    c = (phi * 2).item()  # here
    return (weights() * c).sum()


def without_grad(phi):
    with torch.no_grad():
        c = phi * 2  # here
    return (weights() * c).sum()


def integer(phi):
    i = (phi * torch.ones(2)).argmax()  # here
    return weights()[i]


def switched_off(phi):
    phi.requires_grad_(False)  # here
    return (phi * weights()).sum()


def torch_optim(phi):
    w = weights()
    optimizer = torch.optim.SGD([w], lr=0.1)
    (phi * w**2).sum().backward()  # here
    optimizer.step()
    return w.sum()


def stopped(phi):
    optdiff = pytest.importorskip("optdiff")
    net = torch.nn.Linear(2, 1)
    inner = optdiff.MetaAdam(net, lr=0.1)
    inner.step((phi * net(torch.ones(1, 2))).sum())
    optdiff.stop_gradient(net, inner)  # here
    return net(torch.ones(1, 2)).sum()


def first_order(phi):
    optdiff = pytest.importorskip("optdiff")
    net = torch.nn.Linear(2, 1)
    inner = optdiff.MetaSGD(net, lr=0.1, first_order=True)
    inner.step((phi * net(torch.ones(1, 2))).sum())  # here
    return net(torch.ones(1, 2)).sum()


def left_through_numpy(phi):
    c = (phi * weights()).detach().numpy()  # here
    return (weights() * torch.from_numpy(c)).sum()


def new_parameter(phi):
    w = torch.nn.Parameter(phi * weights())
    return (w**2).sum()  # here


def loaded(phi):
    net = torch.nn.Linear(2, 1)
    net.load_state_dict({"weight": phi * torch.ones(1, 2), "bias": net.bias})  # here
    return net(torch.ones(1, 2)).sum()


def compared(phi):
    mask = phi * torch.ones(2) > 1  # here
    return weights()[mask].sum()


def sampled(phi):
    i = torch.multinomial((phi * torch.ones(2)).softmax(0), 1)  # here
    return weights()[i].sum()


class NotDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = 2 * x
        ctx.mark_non_differentiable(y)
        return y

    @staticmethod
    def backward(ctx, _):
        return None


def not_differentiable(phi):
    return (NotDifferentiable.apply(phi) * weights()).sum()  # here


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g


def after_a_function(phi):
    return (Twice.apply(phi).detach() * weights()).sum()  # here


def first_of_two(phi):
    once = (phi * 2).detach()  # here
    return ((once * weights()).detach() * weights()).sum()


def applied_in_place(phi):
    optcore = pytest.importorskip("optcore")
    w, sgd = weights(), optcore.sgd(lr=0.1)
    (g,) = torch.autograd.grad((phi * w**2).sum(), w, create_graph=True)
    updates, _ = sgd.update(g, sgd.init(w), w)
    return (optcore.apply_updates(w, updates, inplace=True) ** 2).sum()  # here


def copied(phi):
    optdiff = pytest.importorskip("optdiff")
    net = torch.nn.Linear(2, 1)
    optdiff.MetaSGD(net, lr=0.1).step((phi * net(torch.ones(1, 2))).sum())
    return copy.deepcopy(net)(torch.ones(1, 2)).sum()  # here


CUTS = {
    missing_create_graph: "create_graph",
    apply_in_place: "in_place",
    apply_without_grad: "no_grad",
    detached: "detach",
    item: "item",
    without_grad: "no_grad",
    integer: "integer",
    switched_off: "requires_grad",
    torch_optim: "create_graph",
    stopped: "detach",
    first_order: "create_graph",
    left_through_numpy: "detach",
    new_parameter: "new_leaf",
    loaded: "no_grad",
    compared: "integer",
    sampled: "integer",
    not_differentiable: "non_differentiable",
    after_a_function: "detach",
    first_of_two: "detach",
    applied_in_place: "no_grad",
    copied: "detach",
}


@pytest.mark.parametrize("program", CUTS, ids=lambda program: program.__name__)
def test_the_cut_is_named_with_its_line(program):
    phi = torch.tensor(1.5, requires_grad=True)
    with optviz.record():
        loss = program(phi)
    answer = optviz.why_no_grad(phi, loss)
    assert answer
    assert answer.kind == CUTS[program]
    path, line = answer.where.rsplit(":", 1)
    assert linecache.getline(path, int(line)).endswith("# here\n")
    assert answer.where in str(answer)


class ReturnsNone(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, _):
        return None


UNRECORDED = {
    "custom": lambda phi: ReturnsNone.apply(phi) * weights().sum(),
    "zero_derivative": lambda phi: ((3 * phi).round() * weights()).sum(),
    "no_path": lambda phi: weights().sum(),
}
RECORDED = {
    **UNRECORDED,
    "no_path": lambda phi: [phi.exp(), weights().sum()][1],
    "never_used": lambda phi: weights().sum(),
    "requires_grad": lambda phi: (phi.requires_grad_(False) * weights()).sum(),
}


@pytest.mark.parametrize("kind", RECORDED)
def test_what_is_no_cut_of_data_is_told_under_a_recording_too(kind):
    phi = torch.tensor(1.5, requires_grad=True)
    with optviz.record():
        loss = RECORDED[kind](phi)
    assert optviz.why_no_grad(phi, loss).kind == kind


@pytest.mark.parametrize("kind", UNRECORDED)
def test_what_the_graph_alone_tells(kind, monkeypatch):
    monkeypatch.setattr("optviz._record._latest", [])
    phi = torch.tensor(1.5, requires_grad=True)
    assert optviz.why_no_grad(phi, UNRECORDED[kind](phi)).kind == kind
    assert phi.grad is None


def test_never_used_and_used_elsewhere():
    phi = torch.tensor(1.5, requires_grad=True)
    with optviz.record():
        loss = weights().sum()
    assert optviz.why_no_grad(phi, loss).kind == "never_used"
    with optviz.record():
        phi.exp()
        loss = weights().sum()
    assert optviz.why_no_grad(phi, loss).feeds == ("exp",)


def test_a_recording_of_another_program_is_not_used():
    phi = torch.tensor(1.5, requires_grad=True)
    with optviz.record():
        (phi.detach() * weights()).sum()
    answer = optviz.why_no_grad(phi, weights().sum())
    assert answer.kind == "no_path"
    assert "run the program under optviz.record()" in str(answer)


def test_no_path_tells_what_the_parameter_feeds(monkeypatch):
    monkeypatch.setattr("optviz._record._latest", [])
    phi, w = torch.tensor(1.5, requires_grad=True), weights()
    losses = {"inner": (phi * w).sum(), "outer": w.sum()}
    answer = optviz.draw(losses, {"phi": phi, "w": w}).why_no_grad("phi", "outer")
    assert answer.kind == "no_path"
    assert answer.feeds == ("inner",)
    assert "record()" in answer.message


@pytest.mark.parametrize("recorded", [False, True])
def test_falsy_where_a_gradient_flows(recorded):
    optdiff = pytest.importorskip("optdiff")
    phi = torch.tensor(1.5, requires_grad=True)
    net = torch.nn.Linear(2, 1)
    with [optviz.scope("plain"), optviz.record()][recorded]:
        inner = optdiff.MetaAdam(net, lr=0.1)
        inner.step((phi * net(torch.ones(1, 2))).square().sum())
        loss = net(torch.ones(1, 2)).sum()
    assert not optviz.why_no_grad(phi, loss)


def test_recording_keeps_values_and_gradients():
    def run():
        w = weights()
        (g,) = torch.autograd.grad((w**3).sum(), w, create_graph=True)
        return torch.autograd.grad(((w - 0.1 * g) ** 2).sum(), w)[0]

    expected = run()
    with optviz.record() as recording:
        assert torch.equal(run(), expected)
    assert len(recording.events) > 5


def test_a_recording_keeps_no_tensor_alive():
    with optviz.record() as recording:
        w = weights()
        y = (w * 2).exp().detach()
        references = [weakref.ref(w), weakref.ref(y), weakref.ref(y.untyped_storage())]
        del w, y
    gc.collect()
    assert [reference() for reference in references] == [None, None, None]
    assert [event.cut for event in recording.cuts] == ["detach"]
