# SPDX-License-Identifier: Apache-2.0
"""What Meta optimizers do to modules: ties, frozen parameters, copies, growth, graphs."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from torch import nn

import optcore
import optdiff
import treeops


class Tied(nn.Module):
    """An encoder and a decoder that share their weight."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(3, 3, bias=False)
        self.decode = nn.Linear(3, 3)
        self.decode.weight = self.encode.weight

    def forward(self, x):
        return self.decode(torch.tanh(self.encode(x)))


def graph_size(*tensors):
    """Number of nodes behind some tensors."""
    seen, stack = set(), [t.grad_fn for t in tensors]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            stack += [parent for parent, _ in node.next_functions]
    return len(seen)


def step(net, meta, times=1):
    for _ in range(times):
        meta.step(net(torch.ones(2, 3)).square().mean())


def test_ties_stay_tied_through_adam():
    net, single = Tied(), Tied()
    single.load_state_dict(net.state_dict())
    meta = optdiff.MetaAdam(net, lr=0.1)
    step(net, meta, 3)
    assert net.decode.weight is net.encode.weight
    assert len(list(net.parameters())) == 2
    plain = torch.optim.Adam(single.parameters(), lr=0.1)
    for _ in range(3):
        plain.zero_grad()
        single(torch.ones(2, 3)).square().mean().backward()
        plain.step()
    torch.testing.assert_close(net.encode.weight, single.encode.weight.detach())
    twin = copy.deepcopy(net)
    assert twin.decode.weight is twin.encode.weight


def test_frozen_parameters_are_left_alone():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    frozen = net[0].weight.requires_grad_(False)
    value = frozen.clone()
    meta = optdiff.MetaAdamW(net, lr=0.1)
    step(net, meta, 2)
    assert net[0].weight is frozen
    assert torch.equal(frozen, value)
    assert "0.weight" not in meta.state_dict()[0][0].mu


def test_unused_parameters_keep_value_and_state():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    unused = net[1].weight
    meta = optdiff.MetaAdam(net, lr=0.1)
    meta.step(net[0](torch.ones(1, 3)).sum())
    assert net[1].weight is unused
    assert int(meta.state_dict()[0][0].count["1.weight"]) == 0


@pytest.mark.parametrize(
    "duplicate",
    [
        copy.deepcopy,
        lambda net: copy.deepcopy([net])[0],
        lambda net: copy.deepcopy(nn.Sequential(net))[0],
        lambda net: pickle.loads(pickle.dumps(net)),
        lambda net: copy.deepcopy(pickle.loads(pickle.dumps(net))),
        lambda net: optdiff.module_clone(net, by="deepcopy"),
    ],
    ids=["deepcopy", "in a list", "in a module", "pickle", "pickle+deepcopy", "module_clone"],
)
def test_duplicates_have_equal_values_and_a_life_of_their_own(duplicate):
    net = Tied()
    step(net, optdiff.MetaAdam(net, lr=0.1), 2)
    twin = duplicate(net)
    torch.testing.assert_close(twin.state_dict(), net.state_dict(), rtol=0, atol=0)
    before = net.encode.weight.detach().clone()
    step(twin, optdiff.MetaSGD(twin, lr=0.1))
    assert torch.equal(net.encode.weight, before)
    assert not torch.equal(twin.encode.weight, before)


def test_a_copy_of_a_submodule_has_parameters():
    net = Tied()
    step(net, optdiff.MetaAdam(net, lr=0.1))
    twin = copy.deepcopy(net.decode)
    assert [type(p) for p in twin.parameters()] == [nn.Parameter, nn.Parameter]
    assert all(p.is_leaf and p.requires_grad for p in twin.parameters())
    assert not net.decode.weight.is_leaf


def test_no_reference_cycle_keeps_a_module_alive():
    gc.disable()
    try:
        net = nn.Linear(3, 1)
        meta = optdiff.MetaSGD(net, lr=0.1)
        step(net, meta)
        alive = weakref.ref(net)
        del net, meta
        assert alive() is None
    finally:
        gc.enable()


def test_saved_module_loads():
    net = Tied()
    step(net, optdiff.MetaAdam(net, lr=0.1))
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    twin = Tied()
    twin.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(twin.encode.weight.detach(), net.encode.weight.detach())


@pytest.mark.parametrize("cls", [optdiff.MetaSGD, optdiff.MetaAdam, optdiff.MetaAdamW])
@pytest.mark.parametrize("together", [True, False])
def test_graph_is_constant_when_stopped_each_step(cls, together):
    net = Tied()
    options = {"lr": 0.1, **({"momentum": 0.9} if cls is optdiff.MetaSGD else {})}
    meta = cls(net, **options)
    sizes = {}
    for number in range(1, 31):
        step(net, meta)
        (state,) = meta.state_dict()
        buffers = treeops.tree_leaves(state, namespace="optcore")
        sizes[number] = graph_size(*net.parameters(), *buffers)
        if together:
            optdiff.stop_gradient(net, meta)
        else:
            optdiff.stop_gradient(net)
            optdiff.stop_gradient(meta)
    assert sizes[3] == sizes[30]


def test_recurrent_layers_use_the_new_weights():
    net = nn.LSTM(2, 3, batch_first=True)
    x = torch.randn(1, 4, 2)
    phi = torch.tensor(1.0, requires_grad=True)
    before = net(x)[0].detach()
    optdiff.MetaSGD(net, lr=0.5).step((net(x)[0] * phi).square().sum())
    after = net(x)[0]
    assert not torch.equal(after, before)
    assert torch.autograd.grad(after.sum(), phi)[0] != 0
    assert torch.equal(copy.deepcopy(net)(x)[0], after)


def test_modules_added_later_are_taken_in():
    net = nn.Sequential(nn.Linear(3, 3))
    meta = optdiff.MetaAdam(net, lr=0.1)
    step(net, meta, 2)
    kept = meta.state_dict()[0][0].mu["0.weight"]
    net.append(nn.Linear(3, 1))
    late = net[1].weight.detach().clone()
    step(net, meta)
    (state,) = meta.state_dict()
    assert int(state[0].count["0.weight"]) == 3
    assert int(state[0].count["1.weight"]) == 1
    assert not torch.equal(net[1].weight, late)
    assert kept.requires_grad


def first_move(net, meta, part):
    """By how much a fresh Adam moves is lr; a bias-corrected old one moves less."""
    before = [p.detach().clone() for p in part.parameters()]
    step(net, meta)
    return [(p - b).abs().max() for p, b in zip(part.parameters(), before, strict=True)]


@pytest.mark.parametrize("width", [1, 2])
def test_a_layer_that_takes_the_place_of_another_starts_afresh(width):
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    meta = optdiff.MetaAdam(net, lr=0.1)
    step(net, meta, 5)
    net[1] = nn.Linear(3, width)
    assert all(abs(move - 0.1) < 1e-6 for move in first_move(net, meta, net[1]))
    counts = meta.state_dict()[0][0].count
    assert (int(counts["0.weight"]), int(counts["1.weight"])) == (6, 1)


def test_a_parameter_of_another_shape_starts_afresh():
    net = nn.Linear(3, 1)
    meta = optdiff.MetaAdam(net, lr=0.1)
    step(net, meta, 2)
    net.weight = nn.Parameter(torch.ones(2, 3))
    optdiff.stop_gradient(net, meta)
    step(net, meta)
    counts = meta.state_dict()[0][0].count
    assert (int(counts["weight"]), int(counts["bias"])) == (1, 3)


@pytest.mark.parametrize("twin", [lambda x: x, copy.deepcopy], ids=["itself", "copy"])
def test_a_layer_that_moves_keeps_its_state(twin):
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    meta = optdiff.MetaAdam(net, lr=0.1)
    step(net, meta, 2)
    net, meta = twin((net, meta))
    kept = meta.state_dict()[0][0].mu["2.weight"].detach()
    del net[0]
    loss = net(torch.ones(2, 3)).square().mean()
    (grad,) = torch.autograd.grad(loss, net[1].weight, retain_graph=True)
    meta.step(loss)
    (state,) = meta.state_dict()
    torch.testing.assert_close(state[0].mu["1.weight"], 0.9 * kept + 0.1 * grad)
    assert int(state[0].count["1.weight"]) == 3
    assert set(state[0].mu) == {"1.weight", "1.bias"}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("inner", ["meta", "innerloop"])
def test_a_step_where_gradients_are_off(mode, inner):
    net = nn.Linear(3, 1)
    start = net.weight
    with optdiff.innerloop_ctx(net, optcore.sgd(0.1), copy_initial_weights=False) as loop:
        net, meta = {"meta": (net, optdiff.MetaSGD(net, lr=0.1)), "innerloop": loop}[inner]
        loss = net(torch.ones(2, 3)).square().mean()
        with mode():
            meta.step(loss)
        step(net, meta)
    assert torch.autograd.grad(net.weight.sum(), start)[0].abs().sum() > 0


def test_two_first_order_optimizers_on_one_loss_that_is_used_again():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    phi = torch.ones(3, requires_grad=True)
    options = {"lr": 0.1, "first_order": True}
    a, b = optdiff.MetaSGD(net[0], **options), optdiff.MetaAdam(net[1], **options)
    loss = net(phi).square().sum()
    a.step(loss)
    b.step(loss)
    assert torch.autograd.grad(loss + net(phi).sum(), phi)[0].abs().sum() > 0


CLASSES = [n for n in dir(optdiff) if getattr(getattr(optdiff, n), "row", None) is not None]


@pytest.mark.parametrize(
    ("name", "shape"),
    [(name, (0, 2)) for name in CLASSES] + [(n, (0,)) for n in CLASSES if n != "MetaMuon"],
)
def test_parameters_without_elements(name, shape):
    net = nn.Linear(3, 1, bias=False)
    net.nothing = nn.Parameter(torch.zeros(shape))
    start = net.weight
    meta = getattr(optdiff, name)(net, lr=0.1)
    told = {"obj_fn": lambda params: params["weight"].square().sum()}  # which one asks for
    for _ in range(2):
        meta.step(net(torch.ones(2, 3)).square().mean() + net.nothing.sum(), **told)
    assert net.nothing.shape == shape
    assert net.weight.isfinite().all()
    found = torch.autograd.grad(net(torch.ones(1, 3)).sum(), start)[0]
    assert found.isfinite().all()


def test_two_groups():
    a, b = nn.Linear(3, 3), nn.Linear(3, 1)
    meta = optdiff.MetaAdam(a, lr=0.1)
    meta.add_param_group(b)
    first = a.weight
    meta.step(b(a(torch.ones(1, 3))).square().sum())
    assert len(meta.state_dict()) == 2
    assert torch.autograd.grad(b.weight.sum(), first)[0].abs().sum() > 0


def test_a_cloned_optimizer_has_groups_of_its_own():
    net = nn.Linear(3, 1)
    meta = optdiff.MetaAdam(net, lr=0.1)
    optdiff.module_clone(meta).add_param_group(nn.Linear(3, 3))
    step(net, meta)
    assert len(meta.state_dict()) == 1


def test_module_and_optimizer_copy_together():
    net = Tied()
    meta = optdiff.MetaAdam(net, lr=0.1)
    step(net, meta, 2)
    twin, resumed = copy.deepcopy((net, meta))
    step(net, meta)
    step(twin, resumed)
    torch.testing.assert_close(twin.state_dict(), net.state_dict(), rtol=0, atol=0)
    assert twin.encode.weight is not net.encode.weight


def test_a_learning_rate_for_each_parameter_by_name():
    net = nn.Linear(3, 1)
    rates = {name: torch.tensor(0.1, requires_grad=True) for name in ("bias", "weight")}
    meta = optdiff.MetaSGD(net, lr=rates)
    step(net, meta)
    found = torch.autograd.grad(net(torch.ones(1, 3)).sum(), list(rates.values()))
    assert all(g != 0 for g in found)


def test_batch_norm_and_dropout_modules_run():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    phi = torch.ones(3, requires_grad=True)
    meta = optdiff.MetaAdam(net, lr=0.1)
    for _ in range(2):
        meta.step(net(torch.randn(8, 3) * phi).square().mean())
    assert torch.autograd.grad(net(torch.randn(8, 3)).square().mean(), phi)[0].isfinite().all()


def test_repr():
    assert repr(optdiff.MetaSGD(nn.Linear(1, 1), lr=0.1)) == (
        "MetaSGD(Linear, sgd(transformations=[scale_by_learning_rate(lr=0.1, flip_sign=True)]))"
    )
