# SPDX-License-Identifier: Apache-2.0
"""The first cut is named, with its line."""

import copy
import gc
import linecache
import re
import threading
import weakref

import pytest
import torch
import torch.utils.checkpoint
from torch.multiprocessing.reductions import StorageWeakRef

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


def data_replaced(phi):
    net = torch.nn.Linear(2, 1)
    net.weight.data = phi * torch.ones(1, 2)  # here
    return net(torch.ones(1, 2)).sum()


def entry_set_without_grad(phi):
    buffer = torch.zeros(2)
    with torch.no_grad():
        buffer[1] = phi * 2  # here
    return (buffer * weights()).sum()


def entry_of_data_set(phi):
    w = weights()
    w.data[0] = phi  # here
    return (w**2).sum()


def index_of_largest(phi):
    index = (phi * torch.arange(2.0)).max(0)[1]  # here
    return weights()[index]


def index_of_top(phi):
    _values, index = (phi * torch.arange(2.0)).topk(1)  # here
    return weights()[index].sum()


def rank(phi):
    order = (phi * torch.arange(2.0)).sort().indices  # here
    return weights()[order][0]


def list_of_numbers(phi):
    c = (phi * torch.ones(2)).tolist()  # here
    return (torch.tensor(c) * weights()).sum()


def array_copied(phi):
    with torch.no_grad():
        c = phi.numpy()  # here
    return (torch.tensor(c) * weights()).sum()


def recorded_within(phi):
    c = phi.detach()  # here
    with optviz.record():
        w = weights() * 2
    return (c * w).sum()


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
    data_replaced: "in_place",
    entry_set_without_grad: "no_grad",
    entry_of_data_set: "in_place",
    index_of_largest: "integer",
    index_of_top: "integer",
    rank: "integer",
    list_of_numbers: "item",
    array_copied: "item",
    recorded_within: "detach",
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


@pytest.mark.parametrize("ask", [("phi", "loss"), ("twice", "loss")])
def test_names_are_answered_as_tensors_are(ask):
    phi = torch.tensor(1.5, requires_grad=True)
    with optviz.record():
        twice = phi * 2
        loss = (twice.detach() * weights()).sum()
    answer = optviz.draw({"loss": loss, "twice": twice}, {"phi": phi}).why_no_grad(*ask)
    assert answer.kind == "detach"


def logged(phi):
    inner = (phi * weights() ** 2).sum()
    inner.item()  # logged
    return (weights() ** 2).sum()


def branched(phi):
    w = weights()
    return w.sum() if phi * 2 > 1 else -w.sum()  # logged


@pytest.mark.parametrize("program", [logged, branched])
def test_numbers_that_were_taken_are_told_and_not_blamed(program):
    phi = torch.tensor(1.5, requires_grad=True)
    with optviz.record():
        loss = program(phi)
    answer = optviz.why_no_grad(phi, loss)
    assert answer.kind == "no_path"
    path, line = re.search(r" at (\S+):(\d+)\)", str(answer)).groups()
    assert linecache.getline(path, int(line)).endswith("# logged\n")


def other_result(phi):
    first, second = (phi * torch.ones(4)).split(2)
    return first, second.sum()


def other_thread(phi):
    made = []

    def work(tensor):
        made.append((tensor * 2.0).exp())

    for tensor in (phi, weights()):
        thread = threading.Thread(target=work, args=(tensor,))
        thread.start()
        thread.join()
    return made[0], made[1].sum()


def rounded_down(phi):
    return phi, (torch.div(phi, 2.0, rounding_mode="floor") * weights()).sum()


def sign(phi):
    return phi, (torch.sgn(phi) * weights()).sum()


class Apart(torch.autograd.Function):
    @staticmethod
    def forward(ctx, lr, x, y):
        ctx.groups = (1, 2)
        return lr * x, lr * y

    @staticmethod
    def backward(ctx, g, h):
        return None, g, h


def apart(phi):
    made = Apart.apply(torch.tensor(2.0), phi * 3, weights())
    return phi, made[1].sum()


def test_what_does_not_mix_is_followed_apart():
    phi, w = torch.tensor(1.5, requires_grad=True), weights()
    first, second = Apart.apply(phi, phi * 3, w)
    graph = optviz.draw({"first": first, "second": second.sum()}, {"phi": phi, "w": w})
    assert graph.why_no_grad("w", "first")
    assert not graph.why_no_grad("w", "second")
    assert not graph.why_no_grad("phi", "second")


def fused(phi):
    optdiff = pytest.importorskip("optdiff")
    pytest.importorskip("optcore_accel")
    net = torch.nn.Linear(2, 1)
    inner = optdiff.MetaAdam(net, lr=0.1, use_accelerated_op=True)
    inner.step((phi * net.weight).sum() + net.bias.sum())
    assert not optviz.why_no_grad(phi, net.weight.sum())
    return phi, net.bias.sum()


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("program", [fused, apart, other_result, other_thread, rounded_down, sign])
def test_no_path_is_seen_where_there_is_none(program, recorded):
    phi = torch.tensor(1.5, requires_grad=True)
    with [optviz.scope("plain"), optviz.record()][recorded]:
        param, loss = program(phi)
    (found,) = torch.autograd.grad(loss, param, retain_graph=True, allow_unused=True)
    assert found is None or found == 0
    assert optviz.why_no_grad(param, loss)


class Both(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y):
        return 2 * x, 2 * y

    @staticmethod
    def backward(ctx, g, h):
        return 2 * g, 2 * h


class Raises(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, _):
        raise NotImplementedError


def reentrant(phi):
    return torch.utils.checkpoint.checkpoint(torch.exp, phi * 2, use_reentrant=True)


@pytest.mark.parametrize(
    "program", [lambda phi: Both.apply(phi, weights())[1].sum(), Raises.apply, reentrant]
)
def test_what_functions_hide_is_said(program):
    phi = torch.tensor(1.5, requires_grad=True)
    answer = optviz.why_no_grad(phi, program(phi))
    assert answer.kind == "path"
    assert "the graph does not tell which of their inputs" in str(answer)


def test_what_another_thread_reads_is_not_denied():
    phi = torch.tensor(1.5, requires_grad=True)
    with optviz.record():
        thread = threading.Thread(target=phi.exp)
        thread.start()
        thread.join()
        loss = weights().sum()
    assert "no recorded operation of this thread" in str(optviz.why_no_grad(phi, loss))


def test_a_checkpoint_that_closes_over_the_parameter():
    phi = torch.tensor(1.5, requires_grad=True)
    with optviz.record():
        made = torch.utils.checkpoint.checkpoint(lambda x: phi * x, weights(), use_reentrant=True)
        loss = (made * weights()).sum()
    answer = optviz.why_no_grad(phi, loss)
    assert answer.op == "CheckpointFunction"
    assert "no path of the graph reaches the parameter: it was read inside" in str(answer)


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
    "non_differentiable": lambda phi: (phi // 2 * weights()).sum(),
    "no_path": lambda phi: weights().sum(),
}
RECORDED = {
    **UNRECORDED,
    "no_path": lambda phi: [phi.exp(), weights().sum()][1],
    "never_used": lambda phi: (torch.full_like(phi, 3.0) * weights()).sum(),
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
        references = [weakref.ref(w), weakref.ref(y)]
        storage = StorageWeakRef(y.untyped_storage())
        del w, y
    gc.collect()
    assert [reference() for reference in references] == [None, None]
    assert storage.expired()
    assert [event.cut for event in recording.cuts] == ["detach"]


INDEX = torch.tensor([0, 1])


@pytest.mark.parametrize(
    "program",
    [
        lambda w: torch.zeros(2).scatter_add(0, INDEX, w),
        lambda w: torch.zeros(2).index_add(0, INDEX, w),
        lambda w: torch.nn.functional.scaled_dot_product_attention(
            *[w.expand(1, 1, 2, 2)] * 3, torch.ones(2, 2)
        ),
        lambda w: torch.func.grad(lambda v: (v * v.detach()).sum())(w),
        lambda w: torch.vmap(lambda v: v * v.detach())(w),
        lambda w: (w.expand(2, 2).to_sparse().detach().to_dense() * w).sum(),
        torch.compile(lambda w: (w * w).sum(), backend="eager", fullgraph=True),
    ],
)
def test_recording_disturbs_no_program(program):
    w = weights()
    expected = program(w)
    with optviz.record():
        assert torch.equal(program(w), expected)


def test_recording_a_first_order_unroll():
    optdiff = pytest.importorskip("optdiff")
    phi = torch.tensor(1.5, requires_grad=True)

    def step(w, _, phi):
        return w - 0.1 * torch.func.grad(lambda v: (phi * v**2).sum())(w)

    with optviz.record():
        found = optdiff.unroll(step, torch.ones(2), 2, phi, first_order=True)
    assert torch.equal(found, optdiff.unroll(step, torch.ones(2), 2, phi, first_order=True))
