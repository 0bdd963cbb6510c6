# SPDX-License-Identifier: Apache-2.0
"""The classes behave as torch.optim classes do."""

import copy
import io
import pickle

import pytest
import torch

import optcore

CLASSES = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "dampening": 0.5},
    "Adam": {"lr": 0.1},
    "AdamW": {"lr": 0.1, "weight_decay": 0.2},
}


@pytest.fixture(params=CLASSES.items(), ids=CLASSES.keys())
def pair(request):
    name, options = request.param
    return getattr(optcore, name), getattr(torch.optim, name), options


def model():
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))


def train(net, optimizer, steps, after=lambda: None):
    data = torch.linspace(-1, 1, 15).reshape(5, 3)
    for _ in range(steps):
        optimizer.zero_grad()
        net(data).square().mean().backward()
        optimizer.step()
        after()


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def assert_same(a, b):
    torch.testing.assert_close(weights(a), weights(b), rtol=1e-12, atol=1e-12)


def test_is_a_torch_optimizer_with_groups_and_a_scheduler(pair):
    nets = []
    for cls, extra in ((pair[0], {}), (pair[1], {})):
        net = model()
        groups = [
            {"params": net[0].parameters(), "lr": 0.03},
            {"params": net[2].parameters(), "weight_decay": 0.1},
        ]
        optimizer = cls(groups, **pair[2], **extra)
        assert isinstance(optimizer, torch.optim.Optimizer)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.5)
        train(net, optimizer, 8, scheduler.step)
        nets.append(net)
    assert_same(*nets)


def test_state_lives_under_the_keys_of_torch(pair):
    ours, theirs = (cls(model().parameters(), **pair[2]) for cls in pair[:2])
    for optimizer in (ours, theirs):
        for p in optimizer.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        optimizer.step()
    found = set(ours.state_dict()["state"][0])
    assert found - {"step"} == set(theirs.state_dict()["state"][0]) - {"step"}


def test_saves_and_loads_with_weights_only(pair):
    net, cls = model(), pair[0]
    optimizer = cls(net.parameters(), **pair[2])
    train(net, optimizer, 3)
    file = io.BytesIO()
    torch.save([net.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    weights_, state = torch.load(file, weights_only=True)
    twin = model()
    twin.load_state_dict(weights_)
    resumed = cls(twin.parameters(), lr=123.0)
    resumed.load_state_dict(state)
    train(net, optimizer, 3)
    train(twin, resumed, 3)
    assert_same(net, twin)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_and_pickles_with_its_module(pair, how):
    net = model()
    optimizer = pair[0](net.parameters(), **pair[2])
    train(net, optimizer, 2)
    twin, resumed = how((net, optimizer))
    train(net, optimizer, 2)
    train(twin, resumed, 2)
    assert_same(net, twin)


def test_continues_from_a_torch_adam_checkpoint():
    net, twin = model(), model()
    theirs = torch.optim.Adam(net.parameters(), lr=0.1)
    train(net, theirs, 3)
    twin.load_state_dict(net.state_dict())
    ours = optcore.Adam(twin.parameters())
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    train(net, theirs, 3)
    train(twin, ours, 3)
    assert_same(net, twin)


def test_continues_from_a_torch_sgd_checkpoint_with_dampening():
    net, twin = model(), model()
    options = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}
    theirs = torch.optim.SGD(net.parameters(), **options)
    train(net, theirs, 3)
    twin.load_state_dict(net.state_dict())
    ours = optcore.SGD(twin.parameters(), **options)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    train(net, theirs, 3)
    train(twin, ours, 3)
    assert_same(net, twin)


def test_any_transformation_makes_a_class():
    def schedule(count):
        return 0.1 / (1 + count)

    nets = []
    for wrap in (False, True):
        net = model()
        tx = optcore.sgd(lr=schedule, momentum=0.9)
        if wrap:
            optimizer = optcore.Optimizer(net.parameters(), tx)
        else:
            optimizer = optcore.SGD(net.parameters(), lr=schedule, momentum=0.9)
        train(net, optimizer, 3)
        twin, resumed = model(), None
        twin.load_state_dict(net.state_dict())
        resumed = optcore.Optimizer(twin.parameters(), tx)
        if wrap:
            resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            train(twin, resumed, 2)
            train(net, optimizer, 2)
            assert_same(net, twin)
        else:
            train(net, optimizer, 2)
        nets.append(net)
    assert_same(*nets)


@pytest.mark.parametrize(
    "tx",
    [
        optcore.masked(optcore.adam(lr=0.1), lambda params: {i: i % 2 == 0 for i in params}),
        optcore.partition(
            {"a": optcore.adam(lr=0.1), "b": optcore.sgd(lr=0.1, momentum=0.9)},
            lambda params: {i: "ab"[i % 2] for i in params},
        ),
    ],
    ids=["masked", "partition"],
)
def test_masked_states_save_and_load_with_weights_only(tx):
    net, twin = model(), model()
    optimizer, resumed = (optcore.Optimizer(n.parameters(), tx) for n in (net, twin))
    train(net, optimizer, 2)
    file = io.BytesIO()
    torch.save([net.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    weights_, state = torch.load(file, weights_only=True)
    twin.load_state_dict(weights_)
    resumed.load_state_dict(state)
    train(net, optimizer, 2)
    train(twin, resumed, 2)
    assert_same(net, twin)


def test_closure_hooks_and_missing_gradients():
    used, unused = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = optcore.Adam([used, unused], lr=0.1)
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))

    def closure():
        optimizer.zero_grad()
        loss = (used**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0
    assert calls == ["post"]
    assert unused not in optimizer.state
    assert torch.equal(unused.detach(), torch.ones(2))
    unused.grad = torch.ones(2)
    optimizer.step()
    assert (int(optimizer.state[used]["step"]), int(optimizer.state[unused]["step"])) == (2, 1)


def test_grad_scaler_skips_a_step_with_infinite_gradients():
    net = model()
    optimizer = optcore.Adam(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = weights(net)
    for factor in (float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale(net(torch.ones(2, 3)).sum() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        moved = not torch.equal(weights(net), before)
        assert moved == (factor == 1.0)


def test_func_optimizer_equals_the_class_and_returns_leaves():
    w = torch.tensor([1.0, -2.0], requires_grad=True)
    frozen = torch.ones(1)
    optimizer = optcore.FuncOptimizer(optcore.adam(lr=0.1))
    params = {"w": w, "frozen": frozen}
    for _ in range(5):
        params = optimizer.step((params["w"] ** 4).sum() + params["frozen"].sum(), params)
    assert params["w"].is_leaf
    assert params["w"].requires_grad
    assert torch.equal(params["frozen"], frozen)
    assert torch.equal(w.detach(), torch.tensor([1.0, -2.0]))
    p = torch.nn.Parameter(w.detach().clone())
    reference = torch.optim.Adam([p], lr=0.1)
    for _ in range(5):
        reference.zero_grad()
        (p**4).sum().backward()
        reference.step()
    torch.testing.assert_close(params["w"].detach(), p.detach(), rtol=1e-12, atol=1e-12)


def test_func_optimizer_out_of_place_is_differentiable():
    w = torch.tensor([1.0, -2.0], requires_grad=True)
    optimizer = optcore.FuncOptimizer(optcore.sgd(lr=0.1))
    new = optimizer.step((w**2).sum(), w, inplace=False)
    assert torch.equal(torch.autograd.grad(new.sum(), w)[0], torch.full((2,), 0.8))
