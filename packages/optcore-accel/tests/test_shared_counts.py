# SPDX-License-Identifier: Apache-2.0
"""A count on a GPU advances in place, and for those alone that moved.

Without a GPU a stand-in is told to lie on one: what the step makes of it is the same.
"""

import contextlib

import pytest
import torch

import optcore
from optcore_accel import _kernels


@pytest.fixture(params=["stand-in", "cuda"])
def counting(request, monkeypatch):
    """The device of parameters whose int64 tensors claim to lie on a GPU, or do."""
    if request.param == "cuda":
        return request.getfixturevalue("cuda")
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda t: t.dtype is torch.int64), False)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return torch.device("cpu")


@pytest.fixture
def calls(monkeypatch):
    """How many tensors each kernel call in place moved."""
    found = []

    class Counted(_kernels.Call):
        def __call__(self):
            found.append(len(self._columns.grads))
            return super().__call__()

    monkeypatch.setattr(_kernels, "Call", Counted)
    return found


def capturing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)


def on(device, state):
    """What the README says: what is shared stays shared."""
    return optcore.map_tensors(lambda tensor: tensor.to(device, copy=True), state)


def counts_on(device, optimizer):
    """What the README says of a class."""
    moved = {}
    for own in optimizer.state.values():
        own["step"] = moved.setdefault(own["step"], own["step"].to(device, copy=True))


STEPS = {
    "step": lambda tx, grads, state, params: tx.step(grads, state, params, inplace=True)[1],
    "update": lambda tx, grads, state, params: tx.update(grads, state, params, inplace=True)[1],
}


@pytest.mark.parametrize("way", STEPS)
def test_a_leaf_without_a_gradient_does_not_count(way, counting, calls):
    params = [torch.zeros(2, device=counting) for _ in range(3)]
    g = torch.ones(2, device=counting)
    tx = optcore.adam(0.1, use_accelerated_op=True)
    state = on(counting, tx.init(params))
    for grads in ([g, g, g], [g, None, g], [g, None, g], [g, g, g]):
        state = STEPS[way](tx, grads, state, params)
    assert [int(c) for c in state[0].count] == [4, 2, 4]
    assert state[0].count[0] is state[0].count[2]
    assert calls == [3, 2, 2, 2, 1]


def trained(groups, counting):
    """A class that moves its counts, with gradients missing now and then, beside torch's."""
    params = [torch.nn.Parameter(torch.ones(3, device=counting)) for _ in range(4)]
    twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
    ours = optcore.Adam(groups(params), lr=0.1, use_accelerated_op=True)
    theirs = torch.optim.Adam(groups(twins), lr=0.1)
    for step in range(12):
        for k, (p, q) in enumerate(zip(params, twins, strict=True)):
            missing = step in {1: (3, 4, 5), 2: (7, 8), 3: (7, 8)}.get(k, ())
            p.grad = None if missing else (p + step).detach().sin()
            q.grad = None if p.grad is None else p.grad.clone()
        ours.step()
        theirs.step()
        if step in (1, 5):
            ours.load_state_dict(ours.state_dict())  # equal counts are one tensor in all groups
            counts_on(counting, ours)
    torch.testing.assert_close(params, twins, rtol=1e-12, atol=1e-12)
    return [int(ours.state[p]["step"]) for p in params]


def test_a_class_counts_like_torch(counting):
    assert trained(lambda params: params, counting) == [12, 9, 10, 10]


def test_groups_that_share_a_count(counting):
    two = trained(lambda params: [{"params": params[:3]}, {"params": params[3:]}], counting)
    assert two == [12, 9, 10, 10]


def test_a_step_with_a_mask_that_leaves_parameters_behind(counting):
    params = [torch.nn.Parameter(torch.ones(3, device=counting)) for _ in range(2)]
    optimizer = optcore.Adam(params, lr={0: 0.1, 1: 0.2}, use_accelerated_op=True)
    for gradients in ((1.0, 1.0), (1.0, None), (1.0, None), (1.0, 1.0)):
        for p, g in zip(params, gradients, strict=True):
            p.grad = None if g is None else torch.full_like(p, g)
        optimizer.step()
        counts_on(counting, optimizer)
    assert [int(optimizer.state[p]["step"]) for p in params] == [4, 2]


def test_moved_counts_are_counted_in_the_same_tensor_by_one_call(counting, calls):
    params = [torch.nn.Parameter(torch.ones(3, device=counting)) for _ in range(20)]
    optimizer = optcore.Adam(params, lr=0.1, use_accelerated_op=True)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    counts_on(counting, optimizer)
    optimizer.step()
    count = optimizer.state[params[0]]["step"]
    for _ in range(3):
        optimizer.step()
    assert all(optimizer.state[p]["step"] is count for p in params)
    assert int(count) == 5
    assert calls == [20] * 5


@pytest.mark.parametrize("way", STEPS)
def test_a_count_that_others_share_is_refused_while_a_graph_is_captured(way, counting, monkeypatch):
    params = [torch.zeros(2, device=counting) for _ in range(2)]
    tx = optcore.adam(0.1, use_accelerated_op=True)
    state = on(counting, tx.init(params))
    capturing(monkeypatch)
    with pytest.raises(RuntimeError, match=r"adam: .* take such a step before the capture"):
        STEPS[way](tx, [torch.ones(2, device=counting), None], state, params)
    assert int(state[0].count[0]) == 0
    assert params[0].eq(0).all()


def test_a_class_refuses_it_too(counting, monkeypatch):
    params = [torch.nn.Parameter(torch.ones(3, device=counting)) for _ in range(2)]
    optimizer = optcore.Adam(params, use_accelerated_op=True)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    counts_on(counting, optimizer)
    params[1].grad = None
    capturing(monkeypatch)
    before = params[0].detach().clone()
    with pytest.raises(RuntimeError, match=r"Adam: .* got one that others share"):
        optimizer.step()
    assert torch.equal(params[0], before)
    assert int(optimizer.state[params[0]]["step"]) == 1
