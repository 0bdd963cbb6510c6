# SPDX-License-Identifier: Apache-2.0
"""Fifty float64 steps with kernels are those of torch.optim, however an optimizer is used."""

import copy
import io

import pytest
import torch
from torch import nn

import optcore

STEPS, F64 = 50, torch.float64
# name: our class, torch's class, options of both
CASES = {
    "sgd-momentum": ("SGD", "SGD", {"lr": 0.03, "momentum": 0.9}),
    "sgd-dampening": ("SGD", "SGD", {"lr": 0.03, "momentum": 0.8, "dampening": 0.3}),
    "sgd-nesterov": ("SGD", "SGD", {"lr": 0.03, "momentum": 0.9, "nesterov": True}),
    "sgd-decay-maximize": (
        "SGD",
        "SGD",
        {"lr": 0.003, "momentum": 0.9, "weight_decay": 0.02, "maximize": True},
    ),
    "adam": ("Adam", "Adam", {"lr": 0.03}),
    "adam-odd": (
        "Adam",
        "Adam",
        {"lr": 0.07, "betas": (0.5, 0.7), "eps": 1e-3, "weight_decay": 0.1, "maximize": True},
    ),
    "adam-no-momentum": ("Adam", "Adam", {"lr": 0.03, "betas": (0.0, 0.9)}),
    "adamw": ("AdamW", "AdamW", {"lr": 0.03, "weight_decay": 0.1}),
    "adamw-maximize": ("AdamW", "AdamW", {"lr": 0.03, "weight_decay": 0.1, "maximize": True}),
    "amsgrad": ("AMSGrad", "Adam", {"lr": 0.05, "betas": (0.9, 0.6), "weight_decay": 0.01}),
    "rmsprop": ("RMSprop", "RMSprop", {"lr": 0.02, "alpha": 0.8, "weight_decay": 0.02}),
    "rmsprop-centered": ("RMSprop", "RMSprop", {"lr": 0.01, "alpha": 0.7, "centered": True}),
    "rmsprop-momentum": ("RMSprop", "RMSprop", {"lr": 0.01, "momentum": 0.5}),
    "rmsprop-both": (
        "RMSprop",
        "RMSprop",
        {"lr": 0.01, "momentum": 0.5, "centered": True, "maximize": True},
    ),
    "adagrad": ("Adagrad", "Adagrad", {"lr": 0.1}),
    "adagrad-decay": (
        "Adagrad",
        "Adagrad",
        {"lr": 0.1, "lr_decay": 0.05, "weight_decay": 0.01, "initial_accumulator_value": 0.2},
    ),
}
EXTRA = {"amsgrad": {"amsgrad": True}}  # options that only torch's class has


@pytest.fixture(params=CASES, ids=str)
def pair(request):
    """Makes our optimizer and torch's from parameters."""
    ours, theirs, options = CASES[request.param]

    def make(params, twins, **more):
        own = getattr(optcore, ours)(params, **options, **more, use_accelerated_op=True)
        other = getattr(torch.optim, theirs)
        return own, other(twins, **options, **more, **EXTRA.get(request.param, {}))

    return make


def start(device="cpu"):
    generator = torch.Generator().manual_seed(1)
    made = [torch.randn(s, generator=generator, dtype=F64) for s in [(3, 2), (2,), ()]]
    return [tensor.to(device).requires_grad_() for tensor in made]


def directions():
    generator = torch.Generator().manual_seed(2)
    return [
        [torch.randn(p.shape, generator=generator, dtype=F64) for p in start()]
        for _ in range(STEPS)
    ]


DIRECTIONS = directions()


def loss_of(params, step):
    """Another one each time: near a minimum, steps of unit length amplify what rounding does."""
    directions = [d.to(params[0].device) for d in DIRECTIONS[step]]
    pairs = zip(params, directions, strict=False)
    return sum((p * d).sum() + (p - d).sin().square().sum() / 9 for p, d in pairs)


def walk(optimizer, params, steps, after=lambda step: None):
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(params, step).backward()
        optimizer.step()
        after(step)


def assert_equal(ours, theirs, tolerance=1e-12):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_classes(pair, device):
    params, twins = start(device), start(device)
    for optimizer, own in zip(pair(params, twins), (params, twins), strict=True):
        walk(optimizer, own, STEPS)
    assert_equal(params, twins)


def test_groups_and_a_scheduler(pair):
    params, twins = start(), start()
    groups = [[{"params": p[:1], "lr": 0.004}, {"params": p[1:]}] for p in (params, twins)]
    for optimizer, own in zip(pair(*groups), (params, twins), strict=True):
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)
        walk(optimizer, own, STEPS, after=lambda _, s=scheduler: s.step())
    assert_equal(params, twins)


def test_missing_gradients(pair, device):
    params, twins = start(device), start(device)
    for optimizer, own in zip(pair(params, twins), (params, twins), strict=True):
        for step in range(STEPS):
            optimizer.zero_grad()
            loss_of(own, step).backward()
            own[step % 3].grad = None
            optimizer.step()
    assert_equal(params, twins)


def test_a_state_saved_and_loaded_in_mid_training(pair, device):
    params, twins = start(device), start(device)
    made = pair(params, twins)
    for optimizer, own in zip(made, (params, twins), strict=True):
        walk(optimizer, own, 20)
    file = io.BytesIO()
    torch.save(made[0].state_dict(), file)
    file.seek(0)
    again, _ = pair(params, twins)
    again.load_state_dict(torch.load(file, weights_only=True))
    walk(again, params, 30)
    walk(made[1], twins, 30)
    assert_equal(params, twins)


def test_a_state_of_torch_goes_on(pair, device):
    params, twins = start(device), start(device)
    ours, theirs = pair(params, twins)
    walk(theirs, twins, 20)
    for p, q in zip(params, twins, strict=True):
        p.data.copy_(q.data)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    walk(ours, params, 30)
    walk(theirs, twins, 30)
    assert_equal(params, twins)


def halve(optimizer):
    def now(step):
        if step == 10:
            optimizer.param_groups[0]["lr"] *= 0.5

    return now


def replace(optimizer):
    def now(step):
        if step == 10:
            for p in optimizer.param_groups[0]["params"]:
                p.data = p.data.clone() * 0.9

    return now


def penalize(optimizer):
    def now(step):
        optimizer.param_groups[0]["weight_decay"] = 0.1 * (step % 3)

    return now


@pytest.mark.parametrize("edit", [halve, replace, penalize])
def test_edits_in_mid_training(pair, edit):
    params, twins = start(), start()
    for optimizer, own in zip(pair(params, twins), (params, twins), strict=True):
        walk(optimizer, own, STEPS, after=edit(optimizer))
    assert_equal(params, twins)


def test_a_group_added_in_mid_training(pair, request):
    if "adagrad" in request.node.name and torch.__version__ < "2.12":
        pytest.skip("torch's own Adagrad takes no more groups before torch 2.12")
    params, twins = start(), start()
    for optimizer, own in zip(pair(params[:2], twins[:2]), (params, twins), strict=True):
        walk(optimizer, own, 10)
        optimizer.add_param_group({"params": own[2:], "lr": 0.011})
        walk(optimizer, own, 40)
    assert_equal(params, twins)


def test_grad_scaler(pair, device):
    params, twins = start(device), start(device)
    for optimizer, own in zip(pair(params, twins), (params, twins), strict=True):
        scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10, growth_interval=7)
        for step in range(STEPS):
            optimizer.zero_grad()
            scaler.scale(loss_of(own, step)).backward()
            own[0].grad[0, 0] *= [1.0, float("inf")][step % 9 == 4]  # a step that is skipped
            scaler.step(optimizer)
            scaler.update()
    assert_equal(params, twins)


def test_a_learning_rate_that_is_a_tensor(pair, device):
    params, twins = start(device), start(device)
    ours, theirs = pair(params, twins)
    rate = torch.tensor(ours.param_groups[0]["lr"], device=device)
    ours.param_groups[0]["lr"] = rate
    for step in range(STEPS):
        rate.fill_(0.03 / (1 + step))
        theirs.param_groups[0]["lr"] = 0.03 / (1 + step)
        walk(ours, params, 1)
        walk(theirs, twins, 1)
    assert_equal(params, twins)


def test_a_step_that_is_repeated_is_one_that_starts_anew(pair):
    params, twins = start(), start()
    repeated, _ = pair(params, params)
    fresh, _ = pair(twins, twins)
    for _ in range(STEPS):
        walk(repeated, params, 1)
        walk(fresh, twins, 1)
        fresh.load_state_dict(copy.deepcopy(fresh.state_dict()))  # other buffers: nothing is kept
    for a, b in zip(params, twins, strict=True):
        assert torch.equal(a, b)


def test_converted_parameters_go_on_as_without_kernels(device):
    found = []
    for fast in (True, False):
        torch.manual_seed(3)
        net = nn.Linear(4, 3).float().to(device)
        x = torch.randn(5, 4, dtype=torch.float32).to(device)
        optimizer = optcore.Adam(net.parameters(), lr=0.01, use_accelerated_op=fast)
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            net.to(dtype)
            for _ in range(3):
                optimizer.zero_grad()
                net(x.to(dtype)).square().sum().backward()
                optimizer.step()
        found.append([p.detach().float() for p in net.parameters()])
    assert_equal(*found, tolerance=1e-2)


LION = {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1}


def test_lion_equals_the_formula_of_optcore():
    params, twins = start(), start()
    for fast, own in ((True, params), (False, twins)):
        walk(optcore.Lion(own, **LION, use_accelerated_op=fast), own, STEPS)
    assert_equal(params, twins)


FUNCTIONS = {
    "SGD": optcore.sgd,
    "Adam": optcore.adam,
    "AdamW": optcore.adamw,
    "AMSGrad": optcore.amsgrad,
    "RMSprop": optcore.rmsprop,
    "Adagrad": optcore.adagrad,
}


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_functions_equal_torch(name, inplace, device):
    ours, theirs, options = CASES[name]
    params, twins = start(device), start(device)
    tx = FUNCTIONS[ours](**options, use_accelerated_op=True)
    state = tx.init(params)
    for step in range(STEPS):
        grads = list(torch.autograd.grad(loss_of(params, step), params))
        params, state = tx.step(grads, state, params, inplace=inplace)
        params = [p.detach().requires_grad_() for p in params]
    walk(getattr(torch.optim, theirs)(twins, **options, **EXTRA.get(name, {})), twins, STEPS)
    assert_equal(params, twins)


@pytest.mark.parametrize("inplace", [True, False, None])
def test_func_optimizer_equals_torch(inplace):
    params, twins = start(), start()
    optimizer = optcore.FuncOptimizer(optcore.adamw(lr=0.03, use_accelerated_op=True))
    for step in range(STEPS):
        params = optimizer.step(loss_of(params, step), params, inplace=inplace)
    walk(torch.optim.AdamW(twins, lr=0.03), twins, STEPS)
    assert_equal(params, twins)
