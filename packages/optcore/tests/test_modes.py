# SPDX-License-Identifier: Apache-2.0
"""What is overwritten, what keeps its graph, and when the user is warned."""

import pytest
import torch

import optcore
import treeops

STATEFUL = {
    "sgd": optcore.sgd(lr=0.1),
    "momentum": optcore.sgd(lr=0.1, momentum=0.9),
    "dampened": optcore.sgd(lr=0.1, momentum=0.9, dampening=0.5),
    "trace": optcore.trace(0.9),
    "adam": optcore.adam(lr=0.1, eps=1e-3),
    "adamw": optcore.adamw(lr=0.1, eps=1e-3),
    "scheduled": optcore.sgd(lr=lambda count: 0.1 / (1 + count), momentum=0.5),
    "sm3": optcore.sm3(lr=0.1),
    "schedule_free_adamw": optcore.schedule_free_adamw(lr=0.1, warmup_steps=2),
}


def optcore_leaves(state):
    return [x for x in treeops.tree_leaves(state) if isinstance(x, torch.Tensor)]


def test_in_place_overwrites_buffers_and_records_nothing():
    tx = optcore.adam(lr=torch.tensor(0.1, requires_grad=True))
    params = [torch.ones(3)]
    state = tx.init(params)
    (update,), new = tx.update([torch.ones(3, requires_grad=True)], state, params, inplace=True)
    assert new[0].mu[0] is state[0].mu[0]
    assert not update.requires_grad


def test_in_place_parameter_updates_are_seen_by_autograd():
    w = torch.ones(2, requires_grad=True)
    loss = (w**3).sum()
    optcore.apply_updates([w], [torch.ones(2)], inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("which", ["lr", "eps", "weight_decay", "beta", "tree", "schedule"])
def test_learned_hyperparameter_keeps_its_derivative_by_default(which):
    h = torch.tensor(0.2, requires_grad=True)
    options = {
        "lr": {"lr": h},
        "eps": {"eps": h},
        "weight_decay": {"weight_decay": h},
        "beta": {"betas": (h, 0.99)},
        "tree": {"lr": {"w": h}},
        "schedule": {"lr": lambda count: h / (1 + count)},
    }[which]
    tx = optcore.adam(**{"lr": 0.1, **options})
    params = {"w": torch.tensor([1.0, -2.0])}
    state = tx.init(params)
    for _ in range(2):
        grads = {"w": params["w"].detach() * 3}
        updates, state = tx.update(grads, state, params)
        params = optcore.apply_updates(params, updates)
    (derivative,) = torch.autograd.grad(params["w"].sum(), h)
    assert derivative != 0


def test_first_order_training_of_non_leaf_parameters_overwrites_nothing():
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    for tx in STATEFUL.values():
        params = [w * 2]
        before = params[0].detach().clone()
        state = tx.init(params)
        updates, new = tx.update([torch.ones(2)], state, params)
        moved = optcore.apply_updates(params, updates)
        assert torch.equal(params[0], before)
        assert all(
            a is not b for a, b in zip(optcore_leaves(state), optcore_leaves(new), strict=True)
        )
        assert torch.autograd.grad(moved[0].sum(), w)[0].min() > 1.9  # 2, less weight decay


def test_warns_when_a_graph_was_meant():
    tx = optcore.adam(lr=0.1)
    leaf = torch.ones(2, requires_grad=True)
    params = [leaf * 2]
    with pytest.warns(UserWarning, match="create_graph=True"):
        tx.update([torch.ones(2)], tx.init(params), params, inplace=False)


def test_warns_at_apply_updates_if_update_did_not_see_the_parameters():
    tx = optcore.adam(lr=0.1)
    params = [torch.ones(2, requires_grad=True) * 2]
    updates, _ = tx.update([torch.ones(2)], tx.init(params), inplace=False)
    with pytest.warns(UserWarning, match="create_graph=True"):
        optcore.apply_updates(params, updates)


def test_no_warning_in_plain_training():
    tx = optcore.adam(lr=0.1)
    params = [torch.ones(2, requires_grad=True)]
    updates, _ = tx.update([torch.ones(2)], tx.init(params), params, inplace=False)
    optcore.apply_updates(params, updates)


def test_a_schedule_that_turns_into_a_learned_tensor_is_seen_at_its_own_count():
    learned = torch.tensor(0.1, requires_grad=True)
    tx = optcore.chain(optcore.sgd(lr=lambda count: 0.1 if int(count) < 2 else learned))
    params, state = {"w": torch.ones(2)}, None
    state = tx.init(params)
    for _ in range(4):
        updates, state = tx.update({"w": torch.ones(2)}, state)
        params = optcore.apply_updates(params, updates)
    assert torch.autograd.grad(params["w"].sum(), learned)[0] == -4


def test_asking_for_a_graph_leaves_no_mark_on_gradients():
    gradient = torch.ones(2)
    tx = optcore.identity()
    tx.update([gradient], tx.init([gradient]), inplace=False)
    assert not vars(gradient)


def test_a_default_step_of_func_optimizer_leaves_an_earlier_graph_alone():
    phi = torch.tensor(2.0, requires_grad=True)
    params = {"w": torch.ones(2, requires_grad=True), "index": torch.arange(2)}
    optimizer = optcore.FuncOptimizer(optcore.adam(lr=0.1))
    for _ in range(2):
        params = optimizer.step((params["w"] * phi).square().sum(), params, inplace=False)
    outer = params["w"].sum()
    params = optimizer.step(params["w"].square().sum(), params)
    assert params["w"].is_leaf
    assert torch.autograd.grad(outer, phi)[0].isfinite()


def nodes(tree):
    found = set()
    ahead = [x.grad_fn for x in treeops.tree_leaves(tree)]
    while ahead:
        node = ahead.pop()
        if node is not None and node not in found:
            found.add(node)
            ahead += [following for following, _ in node.next_functions]
    return len(found)


@pytest.mark.parametrize("first", [None, False])
def test_default_steps_of_func_optimizer_keep_no_graph(first):
    decay = torch.tensor(0.9, requires_grad=True)
    optimizer = optcore.FuncOptimizer(optcore.sgd(lr=0.1, momentum=decay))
    params = {"w": torch.ones(2, requires_grad=True)}
    params = optimizer.step(params["w"].square().sum(), params, inplace=first)
    for _ in range(3):
        params = optimizer.step(params["w"].square().sum(), params)
        assert nodes(optimizer.state_dict()) == 0
    params = optimizer.step(params["w"].square().sum(), params, inplace=False)
    (slope,) = torch.autograd.grad(params["w"].sum(), decay)
    assert slope != 0


def test_a_default_step_of_func_optimizer_keeps_what_the_state_was_given():
    theta = torch.tensor(-1.0, requires_grad=True)
    tx = optcore.inject_hyperparams(optcore.sgd)(lr=theta.exp())
    optimizer = optcore.FuncOptimizer(tx)
    params = {"w": torch.ones(2, requires_grad=True)}
    params = optimizer.step(params["w"].square().sum(), params)
    params = optimizer.step(params["w"].square().sum(), params, inplace=False)
    assert torch.autograd.grad(params["w"].sum(), theta)[0] != 0


def test_a_scalar_parameter_keeps_its_dtype_beside_a_wider_hyperparameter():
    w = torch.ones((), dtype=torch.float32)
    for tx in (optcore.adam(lr=torch.tensor(0.1)), optcore.sgd(lr=torch.tensor(0.1))):
        (update,), _ = tx.update([w], tx.init([w]), inplace=False)
        assert update.dtype == torch.float32


def test_out_of_place_changes_the_default_mode_only():
    params, grads = torch.zeros(2), torch.ones(2)
    tx = optcore.sgd(lr=0.5, momentum=0.9)
    state = tx.init(params)
    kept = state[0].trace.clone()
    with optcore.out_of_place():
        updates, _ = tx.update(grads, state)
        moved = optcore.apply_updates(params, updates)
    assert torch.equal(state[0].trace, kept)
    assert not params.any()
    assert torch.equal(moved, torch.full((2,), -0.5))
    with optcore.out_of_place():
        optcore.apply_updates(params, updates, inplace=True)
    optcore.apply_updates(params, updates)
    assert torch.equal(params, torch.full((2,), -1.0))


def test_constant_gradients_that_are_meant_are_not_warned_of():
    params = torch.ones(2, requires_grad=True) * 2
    tx = optcore.sgd(lr=0.5)
    with optcore.out_of_place(first_order=True):
        updates, _ = tx.update(torch.ones(2), tx.init(params), params, inplace=False)
        assert optcore.apply_updates(params, updates).requires_grad


@pytest.mark.parametrize("inplace", [False, True, None])
def test_a_tensor_at_two_leaves_is_one_parameter(inplace):
    tx = optcore.adam(lr=0.1)
    weight = torch.tensor([1.0, 2.0])
    params = {"a": weight, "b": weight}
    state = tx.init(params)
    for _ in range(3):
        grads = {"a": torch.ones(2), "b": torch.ones(2)}
        updates, state = tx.update(grads, state, params, inplace=inplace)
        params = optcore.apply_updates(params, updates, inplace=inplace)
    assert params["a"] is params["b"]
    torch.testing.assert_close(params["a"], torch.tensor([0.4, 1.4]))


@pytest.mark.parametrize("inplace", [False, True, None])
def test_integer_parameters_take_no_update(inplace):
    with pytest.raises(TypeError, match=r"^apply_updates: expected a floating parameter, .* \[0\]"):
        optcore.apply_updates([torch.ones(2).int()], [torch.ones(2)], inplace=inplace)


def test_chain_flat_is_chain():
    assert optcore.chain_flat is optcore.chain


@pytest.mark.parametrize(
    "tx",
    [
        lambda h: optcore.adafactor(lr=0.2, d=h),
        lambda h: optcore.adafactor(lr=0.2, eps=(1e-3, 10 * h)),
        lambda h: optcore.rprop(lr=h),
        lambda h: optcore.rprop(lr={"w": h}),
        lambda h: optcore.rprop(lr=0.1, etas=(0.5, 4 * h)),
        lambda h: optcore.rprop(lr=10.0, step_sizes=(0.0, h)),
    ],
)
def test_a_default_step_keeps_the_graph_of_what_is_no_rate(tx):
    h = torch.tensor(0.3, requires_grad=True)
    params = {"w": torch.tensor([1.0, 2.0])}
    made = tx(h)
    state = made.init(params)
    for _ in range(2):
        updates, state = made.update({"w": torch.tensor([0.5, 1.0])}, state, params)
    (slope,) = torch.autograd.grad(updates["w"].sum(), h)
    assert slope != 0


READ = {
    "tensor": lambda: optcore.adam(lr=torch.tensor(0.1), betas=(torch.tensor(0.8), 0.95)),
    "schedule": lambda: optcore.adam(lr=lambda count: 0.1 + 0.0 * count, betas=(0.8, 0.95)),
    "injected": lambda: optcore.inject_hyperparams(optcore.adam)(lr=0.1, betas=(0.8, 0.95)),
}


@pytest.mark.parametrize("form", READ)
def test_in_place_a_tensor_that_can_be_read_equals_torch_in_one_call_for_all_leaves(
    form, monkeypatch
):
    calls = []
    lerp = torch._foreach_lerp_
    monkeypatch.setattr(torch, "_foreach_lerp_", lambda *a: (calls.append(len(a[0])), lerp(*a)))
    ours = [torch.linspace(1, 2, n, dtype=torch.float64) for n in (2, 3, 4)]
    theirs = [p.clone().requires_grad_() for p in ours]
    reference = torch.optim.Adam(theirs, lr=0.1, betas=(0.8, 0.95), foreach=False)
    tx = READ[form]()
    state = tx.init(ours)
    for step in range(10):
        grads = [(step + p).sin() for p in ours]
        for p in theirs:
            p.grad = (step + p.detach()).sin()
        reference.step()
        updates, state = tx.update(grads, state, ours)
        ours = optcore.apply_updates(ours, updates)
    assert calls == [3] * 10
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q.detach(), rtol=1e-12, atol=1e-14)


def test_a_class_sees_a_tensor_rate_that_its_owner_changes():
    rate = torch.tensor(0.5)
    w = torch.zeros(2, requires_grad=True)
    optimizer = optcore.Optimizer([w], optcore.sgd(lr=rate))
    w.grad = torch.ones(2)
    for value in (0.5, 0.5, 0.25):
        rate.fill_(value)
        optimizer.step()
    assert torch.equal(w.detach(), torch.full((2,), -1.25))
