# SPDX-License-Identifier: Apache-2.0
"""Bad input gets one clear error; module and optimizer are as before."""

import re

import pytest
import torch
from torch import nn

import optdiff

CONSTRUCTION = [
    (lambda: optdiff.MetaSGD(3), TypeError, "MetaSGD: expected an nn.Module, got int"),
    (
        lambda: optdiff.MetaOptimizer(nn.Linear(1, 1), "adam"),
        TypeError,
        "MetaOptimizer: expected a GradientTransformation, got str; e.g. optcore.adam(lr=0.1)",
    ),
    (
        lambda: optdiff.MetaAdam(nn.Linear(1, 1).requires_grad_(False)),
        ValueError,
        "MetaAdam: expected a module with parameters that require grad, got Linear with none; call",
    ),
    (
        lambda: optdiff.MetaAdam(nn.Sequential(nn.LazyLinear(1))),
        ValueError,
        "MetaAdam: expected parameters that have a shape, got lazy ones ['0.weight', '0.bias']",
    ),
    (
        lambda: optdiff.MetaAdam(nn.Linear(1, 1), lr=-0.5),
        ValueError,
        "adam: expected lr >= 0, got -0.5",
    ),
    (
        lambda: optdiff.MetaAdam(nn.Linear(1, 1), betas=(0.9, 1.5)),
        ValueError,
        "adam: expected betas[1] in [0, 1), got 1.5",
    ),
    (
        lambda: optdiff.extract_state_dict(nn.Linear(1, 1), by="value"),
        ValueError,
        "extract_state_dict: expected by='reference', 'copy' or 'deepcopy', got 'value'",
    ),
    (
        lambda: optdiff.extract_state_dict([torch.ones(1)]),
        TypeError,
        "extract_state_dict: expected a module or a Meta optimizer, got list",
    ),
    (
        lambda: optdiff.recover_state_dict(nn.Linear(1, 1), {}),
        TypeError,
        "recover_state_dict: expected a ModuleState, got dict; call extract_state_dict",
    ),
    (
        lambda: optdiff.recover_state_dict(3, {}),
        TypeError,
        "recover_state_dict: expected a module or a Meta optimizer, got int",
    ),
]


@pytest.mark.parametrize(("build", "error", "message"), CONSTRUCTION)
def test_construction(build, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        build()


LOSSES = [
    (
        lambda net: net(torch.ones(4, 2)),
        ValueError,
        "MetaAdam.step: expected a scalar loss, got f64[4, 1]; reduce it, e.g. loss.mean()",
    ),
    (lambda net: 1.0, TypeError, "MetaAdam.step: expected a scalar loss tensor, got float"),
    (
        lambda net: net.weight.detach().sum(),
        ValueError,
        "MetaAdam.step: expected a loss that depends on parameters that require grad, got one",
    ),
    (
        lambda net: torch.ones(1, requires_grad=True).sum(),
        ValueError,
        "MetaAdam.step: expected a loss that depends on the module's parameters, got one that",
    ),
]


@pytest.mark.parametrize(("loss", "error", "message"), LOSSES)
def test_a_refused_step_changes_nothing(loss, error, message):
    net = nn.Linear(2, 1)
    meta = optdiff.MetaAdam(net, lr=0.1)
    meta.step(net(torch.ones(1, 2)).sum())
    params, (state,) = list(net.parameters()), meta.state_dict()
    with pytest.raises(error, match="^" + re.escape(message)):
        meta.step(loss(net))
    assert all(a is b for a, b in zip(net.parameters(), params, strict=True))
    assert meta.state_dict()[0] is state


OTHER_MODULES = [
    (nn.Linear(3, 1), "expected a module with parameters {'weight': [1, 3], 'bias': [1]}, got"),
    (nn.Linear(2, 1, bias=False), "expected a module with parameters {'weight': [1, 2]}, got"),
    (nn.Conv1d(2, 1, 1), "expected a module with parameters {'weight': [1, 2, 1], 'bias': [1]}"),
    (nn.Sequential(nn.Linear(2, 1)), "expected the state of 1 submodules, got parameters of 2"),
]


@pytest.mark.parametrize(("other", "message"), OTHER_MODULES)
def test_state_of_another_module_is_refused_before_anything_changes(other, message):
    net = nn.Linear(2, 1)
    before = list(net.parameters())
    with pytest.raises(ValueError, match=re.escape(f"recover_state_dict: {message}")):
        optdiff.recover_state_dict(net, optdiff.extract_state_dict(other))
    assert all(a is b for a, b in zip(net.parameters(), before, strict=True))


def test_state_with_other_buffers_is_refused():
    state = optdiff.extract_state_dict(nn.BatchNorm1d(2))
    net = nn.BatchNorm1d(2, track_running_stats=False)
    with pytest.raises(ValueError, match="recover_state_dict: expected a module with buffers"):
        optdiff.recover_state_dict(net, state)


@pytest.mark.parametrize("state", [(123,), optdiff.MetaSGD(nn.Linear(1, 1)).state_dict()])
def test_state_of_another_optimizer_is_refused(state):
    meta = optdiff.MetaAdam(nn.Linear(1, 1))
    kept = meta.state_dict()[0]
    with pytest.raises(ValueError, match=r"MetaAdam.load_state_dict: expected a state of adam\("):
        optdiff.recover_state_dict(meta, state)
    assert meta.state_dict()[0] is kept


def stepped(net, x):
    meta = optdiff.MetaAdam(net, lr=0.1)
    meta.step(net(x).sum())
    return meta.state_dict()


FOREIGN = [
    (None, TypeError, "expected a tuple of states, got NoneType; take that of state_dict()"),
    (3, TypeError, "expected a tuple of states, got int; take that of state_dict()"),
    ({"state": {}}, TypeError, "expected a tuple of states, got dict; take that of state_dict()"),
    (
        stepped(nn.Sequential(nn.Linear(1, 1)), torch.ones(1, 1)),
        ValueError,
        "expected a state of parameters ['weight', 'bias'], got one of ['0.weight', '0.bias'],",
    ),
    (
        stepped(nn.Linear(3, 1), torch.ones(1, 3)),
        ValueError,
        "expected a state of parameters with 'weight' [1, 1], got [1, 3], at 0",
    ),
]


@pytest.mark.parametrize(("state", "error", "message"), FOREIGN)
def test_states_that_do_not_fit_are_refused(state, error, message):
    meta = optdiff.MetaAdam(nn.Linear(1, 1))
    kept = meta.state_dict()[0]
    with pytest.raises(error, match="^" + re.escape(f"MetaAdam.load_state_dict: {message}")):
        optdiff.recover_state_dict(meta, state)
    assert meta.state_dict()[0] is kept


def test_a_state_from_before_the_module_grew_is_taken():
    net = nn.Sequential(nn.Linear(1, 1))
    meta = optdiff.MetaAdam(net, lr=0.1)
    meta.step(net(torch.ones(1, 1)).sum())
    early = meta.state_dict()
    net.append(nn.Linear(1, 1))
    meta.step(net(torch.ones(1, 1)).sum())
    meta.load_state_dict(early)
    meta.step(net(torch.ones(1, 1)).sum())
    counts = meta.state_dict()[0][0].count
    assert (int(counts["0.weight"]), int(counts["1.weight"])) == (2, 1)


STOPPED = [
    (lambda net: net.parameters(), "got generator; give the module"),
    (lambda net: "abc", "got str; give the module"),
    (lambda net: [net.weight * 2, object()], "got object, at [1]; give the module"),
    (lambda net: dict(net.named_parameters()).values(), "got dict_values; give the module"),
]


@pytest.mark.parametrize(("target", "message"), STOPPED)
def test_what_cannot_be_stopped(target, message):
    net = nn.Linear(1, 1)
    message = f"stop_gradient: expected modules, optimizers or trees of tensors, {message}"
    with pytest.raises(TypeError, match="^" + re.escape(message)):
        optdiff.stop_gradient(target(net))


def test_a_loss_under_vmap():
    net = nn.Linear(1, 1)
    meta = optdiff.MetaSGD(net, lr=0.1)
    message = (
        "MetaSGD.step: expected a loss that torch.autograd sees, got one batched by torch.vmap;"
    )
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        torch.vmap(lambda x: meta.step(net(x).sum()))(torch.ones(2, 1))
    assert all(p.is_leaf for p in net.parameters())


def test_states_of_other_groups_are_refused():
    meta = optdiff.MetaAdam(nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"MetaAdam\.load_state_dict: expected 1 states, one per"):
        meta.load_state_dict([])


def test_a_parameter_in_two_groups_is_refused():
    net = nn.Linear(1, 1)
    meta = optdiff.MetaAdam(net)
    with pytest.raises(ValueError, match=r"expected parameters that no other group has, got \['we"):
        meta.add_param_group(net)
    assert len(meta.state_dict()) == 1


def test_a_view_cannot_be_stopped_in_place():
    w = torch.ones(2, requires_grad=True)
    whole = w * 2
    with pytest.raises(ValueError, match="stop_gradient: expected tensors that torch can detach"):
        optdiff.stop_gradient([whole, whole[:1]])
    assert whole.grad_fn is not None
