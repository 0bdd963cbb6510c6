# SPDX-License-Identifier: Apache-2.0
"""What a kernel makes of the step count itself, which is what a captured CUDA graph replays."""

import pytest
import torch

import optcore
from optcore_accel import _cpu, _rules

# name: the hyperparameters of each transformation of the rule
RULES = {
    "ADAM": ({"b1": 0.6, "b2": 0.7, "eps": 0.2, "eps_root": 1e-2},),
    "AMSGRAD": ({"b1": 0.9, "b2": 0.999, "eps": 1e-8, "eps_root": 0.0},),
    "TRACE": ({"decay": 0.8, "dampening": 0.3, "nesterov": True},),
    "RMS": ({"decay": 0.7, "eps": 0.2, "eps_root": 1e-2},),
    "STDDEV": ({"decay": 0.7, "eps": 0.2, "eps_root": 1e-2},),
    "RSS": ({"eps": 0.2, "eps_root": 1e-2, "lr_decay": 0.1},),
    "LION": ({"b1": 0.6, "b2": 0.7},),
    "RMS_TRACE": (
        {"decay": 0.7, "eps": 0.2, "eps_root": 1e-2},
        {"decay": 0.8, "dampening": 0.3, "nesterov": True},
    ),
    "STDDEV_TRACE": (
        {"decay": 0.7, "eps": 0.2, "eps_root": 1e-2},
        {"decay": 0.8, "dampening": 0.3, "nesterov": False},
    ),
    "DESCENT": (),
}


@pytest.mark.parametrize("count", [1, 2, 3, 1000, 10**7])
@pytest.mark.parametrize("name", RULES)
def test_scalars_of_the_header_are_those_of_torch(name, count):
    """The same step from hyperparameters and a count as from scalars made in torch."""
    rule, given = getattr(_rules, name), RULES[name]
    start, grad = torch.linspace(-1, 2, 7), torch.linspace(3, -2, 7)
    old = [torch.full((7,), 1.5 + k) for k in range(rule.buffers)]
    around = [1.0, 0.1, 0.2, 0.3]
    outs = []
    for number in (float(count), torch.tensor(float(count))):
        out, fresh = [torch.empty(7)], [[torch.empty(7)] for _ in old]
        scalars = [*around, *map(float, rule.scalars_at(number, given))]
        _cpu.step(rule.number, scalars, [start], [grad], [[b] for b in old], out, fresh)
        outs.append([out, fresh])
    moved, buffers = [start.clone()], [[b.clone()] for b in old]
    prepared = _cpu.prepare(rule.number, [*around, *rule.ordered(given)], moved, [grad], buffers)
    prepared.run(float(count))
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-14, atol=1e-14)
    torch.testing.assert_close([moved, buffers], outs[0], rtol=1e-15, atol=1e-15)


# ---- on a GPU -----------------------------------------------------------------------------------

CHAINS = {
    "adamw": lambda: optcore.adamw(0.1, use_accelerated_op=True),
    "amsgrad": lambda: optcore.amsgrad(0.1, use_accelerated_op=True),
    "dampening": lambda: optcore.sgd(0.1, momentum=0.9, dampening=0.5, use_accelerated_op=True),
    "adagrad": lambda: optcore.adagrad(0.1, lr_decay=0.1, use_accelerated_op=True),
    "lion": lambda: optcore.lion(0.1, use_accelerated_op=True),
}


def on_gpu(state, device):
    return optcore.map_tensors(lambda tensor: tensor.to(device), state)


def problem(device):
    params = [torch.linspace(-1, 1, size, device=device) for size in (3, 1025, 100_003)]
    return params, [p.cos() for p in params]


@pytest.mark.parametrize("name", CHAINS)
def test_steps_of_a_captured_graph_count_on(name, cuda):
    tx, (params, grads) = CHAINS[name](), problem(cuda)
    state = on_gpu(tx.init(params), cuda)
    warm, copies = on_gpu(tx.init(params), cuda), [p.clone() for p in params]
    tx.step(grads, warm, copies, inplace=True)  # loads the kernels, which a capture cannot
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tx.step(grads, state, params, inplace=True)
    for _ in range(4):
        graph.replay()
    torch.cuda.synchronize()
    twins, _ = problem(cuda)
    other = tx.init(twins)
    for _ in range(4):
        twins, other = tx.step(grads, other, twins, inplace=True)
    torch.testing.assert_close(params, twins, rtol=1e-12, atol=1e-12)


def test_a_class_with_its_counts_on_the_gpu_is_captured(cuda):
    params, grads = problem(cuda)
    params = [p.requires_grad_() for p in params]
    optimizer = optcore.Adam(params, lr=0.1, use_accelerated_op=True)
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    optimizer.step()
    moved = {}
    for own in optimizer.state.values():  # one tensor for all, as before
        own["step"] = moved.setdefault(own["step"], own["step"].to(cuda))
    optimizer.step()  # loads the kernels for such counts
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    assert [int(optimizer.state[p]["step"]) for p in params] == [5, 5, 5]
    twins, _ = problem(cuda)
    reference = torch.optim.Adam([p.requires_grad_() for p in twins], lr=0.1)
    for _ in range(5):
        for p, g in zip(twins, grads, strict=True):
            p.grad = g
        reference.step()
    torch.testing.assert_close(params, twins, rtol=1e-12, atol=1e-12)


def test_a_count_on_the_gpu_is_counted_in_place_and_nothing_waits(cuda):
    tx, (params, grads) = CHAINS["adamw"](), problem(cuda)
    state = on_gpu(tx.init(params), cuda)
    count = state[0].count[0]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            params, state = tx.step(grads, state, params, inplace=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert state[0].count[0] is count
    assert int(count) == 3


def test_a_count_on_the_cpu_is_refused_while_a_graph_is_captured(cuda):
    tx, (params, grads) = CHAINS["adamw"](), problem(cuda)
    state = tx.init(params)
    refused = pytest.raises(RuntimeError, match="expected no step count on the CPU while")
    with refused, torch.cuda.graph(torch.cuda.CUDAGraph()):
        grads[0].mul_(1)  # torch warns of an empty graph
        tx.step(grads, state, params, inplace=True)
