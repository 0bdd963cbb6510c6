# SPDX-License-Identifier: Apache-2.0
"""Extracting, recovering, cloning and cutting state."""

import pytest
import torch
from torch import nn

import optcore
import optdiff


def net_and_meta():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    meta = optdiff.MetaAdam(net, lr=0.1)
    step(net, meta)
    return net, meta


def step(net, meta):
    meta.step(net(torch.randn(8, 3)).square().mean())


@pytest.mark.parametrize("mode", ["reference", "copy", "deepcopy", "ref", "clone", "deepclone"])
def test_modes_of_extraction(mode):
    net, meta = net_and_meta()
    state = optdiff.extract_state_dict(net, by=mode)
    (moments, _) = optdiff.extract_state_dict(meta, by=mode)[0]
    weight, taken = net[0].weight, state.params[1]["weight"]
    assert torch.equal(weight, taken)
    assert (taken is weight) == (mode in ("reference", "ref"))
    assert (taken.grad_fn is None) == (mode in ("deepcopy", "deepclone"))
    assert taken.requires_grad
    assert (moments.mu["0.weight"].grad_fn is None) == (mode in ("deepcopy", "deepclone"))
    assert len({id(count) for count in moments.count.values()}) == 1


def test_recovery_restores_parameters_buffers_and_moments_many_times():
    net, meta = net_and_meta()
    state = optdiff.extract_state_dict(net)
    moments = optdiff.extract_state_dict(meta)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    for _ in range(2):
        step(net, meta)
        assert not torch.equal(net[1].running_mean, before["1.running_mean"])
        optdiff.recover_state_dict(net, state)
        optdiff.recover_state_dict(meta, moments)
        torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
        assert meta.state_dict()[0] is moments[0]


def test_recovered_reference_still_reaches_what_came_before():
    net = nn.Linear(3, 1)
    phi = torch.ones(3, requires_grad=True)
    meta = optdiff.MetaSGD(net, lr=0.1)
    meta.step((net.weight * phi).square().sum())
    state = optdiff.extract_state_dict(net, by="reference")
    meta.step((net.weight * phi).square().sum())
    optdiff.recover_state_dict(net, state)
    assert torch.autograd.grad(net.weight.sum(), phi)[0].abs().min() > 0


def test_without_buffers_and_detached_buffers():
    net, _ = net_and_meta()
    assert not any(optdiff.extract_state_dict(net, with_buffers=False).buffers)
    net[1].running_mean = net[0].weight.sum(1)
    kept = optdiff.extract_state_dict(net).buffers[2]["running_mean"]
    cut = optdiff.extract_state_dict(net, detach_buffers=True).buffers[2]["running_mean"]
    assert kept.grad_fn is not None
    assert cut.grad_fn is None


def test_device_moves_tensors():
    net, meta = net_and_meta()
    for by in ("reference", "copy", "deepcopy"):
        state = optdiff.extract_state_dict(net, by=by, device="meta")
        assert {
            t.device.type for part in (*state.params, *state.buffers) for t in part.values()
        } == {"meta"}
        (moments, _) = optdiff.extract_state_dict(meta, by=by, device="meta")[0]
        assert moments.mu["0.weight"].device.type == "meta"


def test_visual_contents_name_leaves_and_nodes():
    net = nn.Linear(2, 1)
    leaf = optdiff.extract_state_dict(net, enable_visual=True, visual_prefix="before.")
    assert leaf.visual_contents[net.weight] == "before.weight"
    optdiff.MetaSGD(net, lr=0.1).step(net.weight.sum())
    stepped = optdiff.extract_state_dict(net, enable_visual=True, visual_prefix="after.")
    name, tensor = stepped.visual_contents[net.weight.grad_fn]
    assert (name, tensor) == ("after.weight", net.weight)
    assert optdiff.extract_state_dict(net).visual_contents is None


@pytest.mark.parametrize("by", ["reference", "copy", "deepcopy"])
def test_module_clone(by):
    net, meta = net_and_meta()
    twin = optdiff.module_clone(net, by=by)
    assert twin is not net
    assert (twin[0].weight is net[0].weight) == (by == "reference")
    twin(torch.randn(8, 3))
    assert not torch.equal(twin[1].running_mean, net[1].running_mean)
    connected = torch.autograd.grad(twin[0].weight.sum(), net[0].weight, allow_unused=True)[0]
    assert (connected is None) == (by == "deepcopy")
    other = optdiff.module_clone(meta, by=by)
    step(net, other)
    assert int(meta.state_dict()[0][0].count["0.weight"]) == 1
    tree = optdiff.module_clone({"w": net[0].weight, "none": None}, by=by)
    assert torch.equal(tree["w"], net[0].weight)


def test_stop_gradient_keeps_values_ties_and_flags():
    net, meta = net_and_meta()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    optdiff.stop_gradient(net, meta)
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    assert all(p.is_leaf and p.requires_grad for p in net.parameters())
    assert not any(t.requires_grad and not t.is_leaf for t in meta.state_dict()[0][0].mu.values())
    step(net, meta)


def test_stop_gradient_on_a_module_leaves_an_extracted_reference_in_its_graph():
    net, _ = net_and_meta()
    state = optdiff.extract_state_dict(net)
    optdiff.stop_gradient(net)
    assert state.params[1]["weight"].grad_fn is not None
    optdiff.stop_gradient(state)
    assert state.params[1]["weight"].grad_fn is None


def test_stop_gradient_on_a_tree():
    w = torch.ones(2, requires_grad=True)
    tree = {"a": w * 2, "b": [w, None]}
    assert optdiff.module_detach_(tree) is tree
    assert tree["a"].is_leaf
    assert tree["a"].requires_grad
    assert tree["b"][0] is w


def test_stop_gradient_of_a_functional_optimizer_cuts_its_state():
    w = torch.ones(2, requires_grad=True)
    opt = optcore.FuncOptimizer(optcore.adam(lr=0.1))
    w = opt.step((w**2).sum(), w, inplace=False)
    assert opt.state[0].mu.grad_fn is not None
    optdiff.stop_gradient(opt)
    assert opt.state[0].mu.grad_fn is None
    optdiff.stop_gradient(opt.state, {"number": 1.5, "none": None})


def test_moments_that_require_grad_are_learnable():
    net = nn.Linear(2, 1)
    meta = optdiff.MetaAdam(net, lr=0.1, eps=1e-3, moment_requires_grad=True)
    start = meta.state_dict()[0][0].mu["weight"]
    meta.step(net.weight.square().sum())
    assert torch.autograd.grad(net.weight.sum(), start)[0].abs().min() > 0
