# SPDX-License-Identifier: Apache-2.0
"""Steps and stages of the siblings' optimizers, their solvers and estimates."""

import pickle
import sys

import pytest
import torch

import optviz

optdiff = pytest.importorskip("optdiff")
optcore = pytest.importorskip("optcore")


def meta(cls, steps, wrap=optviz.instrument, **options):
    torch.manual_seed(0)
    x, phi = torch.randn(4, 2), torch.zeros(4, 1, requires_grad=True)
    net = torch.nn.Linear(2, 1, bias=False)
    names = {"w": net.weight, "phi": phi}
    inner = wrap(cls(net, **options))
    for _ in range(steps):
        inner.step((phi.sigmoid() * net(x) ** 2).mean())
    return net.weight.sum(), names


def test_every_operation_of_a_step_is_attributed():
    graph = optviz.draw(*meta(optdiff.MetaAdam, 3, lr=0.1))
    stages = {(node.path, node.order) for node in graph.nodes if node.kind == "op"}
    expected = {
        ((f"step {k}", stage), int(stage == "gradient"))
        for k in (1, 2, 3)
        for stage in ("forward", "gradient", "scale_by_adam", "scale_by_learning_rate", "apply")
    }
    assert stages == expected | {((), 0)}
    assert [n.label for n in graph.nodes if n.kind == "op" and not n.path] == ["Sum"]


@pytest.mark.parametrize("cls", [optdiff.MetaSGD, optdiff.MetaAdam])
def test_instrumented_steps_give_the_same_gradient(cls):
    found = []
    for wrap in (optviz.instrument, lambda optimizer: optimizer):
        loss, names = meta(cls, 2, wrap, lr=0.1)
        found.append(torch.autograd.grad(loss, names["phi"])[0])
    assert torch.equal(*found)


def test_a_fused_step_is_one_node():
    pytest.importorskip("optcore_accel")
    graph = optviz.draw(*meta(optdiff.MetaAdam, 2, lr=0.1, use_accelerated_op=True))
    fused = [node for node in graph.nodes if node.path[1:] == ("fused step",)]
    assert [node.path[0] for node in fused] == ["step 1", "step 2"]
    assert all(node.custom and node.saved for node in fused)


def test_functional_steps_and_learned_rates():
    lr = torch.tensor(0.1, requires_grad=True)
    params = {"w": torch.ones(2, requires_grad=True)}
    adam = optviz.instrument(optcore.adam(lr=lr))
    state = adam.init(params)
    with optviz.record():
        for _ in range(2):
            grads = torch.autograd.grad(params["w"].exp().sum(), [params["w"]], create_graph=True)
            updates, state = adam.update({"w": grads[0]}, state, params)
            params = optcore.apply_updates(params, updates)
    graph = optviz.draw(params["w"].sum(), {"lr": lr})
    stages = {node.path for node in graph.nodes if node.path}
    assert {path[1] for path in stages} >= {"forward", "gradient", "scale_by_adam", "apply"}
    assert graph.paths("lr", "output", limit=1)


def test_steps_are_counted_in_the_scope_around_them():
    net = torch.nn.Linear(1, 1, bias=False)
    inner = optviz.instrument(optdiff.MetaSGD(net, lr=0.1))
    for task in (1, 2):
        with optviz.scope(f"task {task}"):
            inner.step(net.weight.sum() ** 2)
    paths = {node.path[:2] for node in optviz.draw(net.weight.sum()).nodes if node.path}
    assert paths == {("task 1", "step 1"), ("task 2", "step 1")}


def test_an_instrumented_optimizer_refuses_to_pickle():
    with pytest.raises(TypeError, match="pickle the original"):
        pickle.dumps(optviz.instrument(optcore.sgd(lr=0.1)))


def test_a_step_costs_as_much_late_as_early():
    net = torch.nn.Linear(1, 1, bias=False)
    inner = optviz.instrument(optdiff.MetaSGD(net, lr=0.1))
    calls = []
    for _ in range(40):
        calls.append(0)

        def count(_, event, __):
            calls[-1] += event in ("call", "c_call")

        sys.setprofile(count)
        inner.step(net.weight.sum() ** 2)
        sys.setprofile(None)
        optdiff.stop_gradient(net, inner)
    assert calls[-1] <= 1.1 * calls[4]
