# SPDX-License-Identifier: Apache-2.0
"""The schedulers of torch drive the classes as they drive torch's own."""

import copy
import pickle
import re

import pytest
import torch
from torch.optim import lr_scheduler as S

import optcore

SCHEDULERS = {
    "StepLR": lambda o: S.StepLR(o, 3, gamma=0.5),
    "MultiStepLR": lambda o: S.MultiStepLR(o, [2, 5], gamma=0.3),
    "LambdaLR": lambda o: S.LambdaLR(o, lambda i: 0.9**i),
    "MultiplicativeLR": lambda o: S.MultiplicativeLR(o, lambda i: 0.8),
    "ExponentialLR": lambda o: S.ExponentialLR(o, 0.8),
    "CosineAnnealingLR": lambda o: S.CosineAnnealingLR(o, 6, eta_min=0.01),
    "CosineAnnealingWarmRestarts": lambda o: S.CosineAnnealingWarmRestarts(o, 3, 2),
    "LinearLR": lambda o: S.LinearLR(o, total_iters=4),
    "PolynomialLR": lambda o: S.PolynomialLR(o, 12, 2.0),
    "ConstantLR": lambda o: S.ConstantLR(o, 0.3, 4),
    "OneCycleLR": lambda o: S.OneCycleLR(o, 0.1, total_steps=12),
    "OneCycleLR-rate-only": lambda o: S.OneCycleLR(o, 0.1, total_steps=12, cycle_momentum=False),
    "CyclicLR": lambda o: S.CyclicLR(o, 0.01, 0.1, 3),
    "CyclicLR-rate-only": lambda o: S.CyclicLR(o, 0.01, 0.1, 3, cycle_momentum=False),
    "ReduceLROnPlateau": lambda o: S.ReduceLROnPlateau(o, patience=1, factor=0.5),
    "SequentialLR": lambda o: S.SequentialLR(
        o, [S.LinearLR(o, 0.2, total_iters=3), S.ExponentialLR(o, 0.9)], [3]
    ),
    "ChainedScheduler": lambda o: S.ChainedScheduler([S.ConstantLR(o, 0.5, 3), S.StepLR(o, 4)]),
}
CLASSES = {
    "SGD": {"lr": 0.05, "momentum": 0.5},
    "SGD-tensor": {"lr": torch.tensor(0.05, dtype=torch.float64), "momentum": 0.5},
    "Adam": {"lr": 0.1},
    "AdamW": {"lr": 0.1},
    "Adamax": {"lr": 0.1},
    "NAdam": {"lr": 0.1},
    "RAdam": {"lr": 0.1},
    "RMSprop": {"lr": 0.05, "momentum": 0.3},
    "Adagrad": {"lr": 0.1},
    "Adadelta": {"lr": 0.5},
    "Rprop": {"lr": 0.05},
    "ASGD": {"lr": 0.1, "lambd": 0.1},
    "Adafactor": {"lr": 0.1},
}
CYCLES_MOMENTUM = ("SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop")
EVERY_SCHEDULER = ("SGD", "SGD-tensor", "Adam", "ASGD")  # the others get three
PAIRS = [
    (name, scheduler)
    for name in CLASSES
    for scheduler in SCHEDULERS
    if scheduler not in ("OneCycleLR", "CyclicLR") or name.split("-")[0] in CYCLES_MOMENTUM
    if name in EVERY_SCHEDULER or scheduler in ("OneCycleLR", "StepLR", "OneCycleLR-rate-only")
]


def start():
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in [(3, 2), (2,)]]


def run(cls, options, make):
    params = start()
    groups = [{"params": params[:1]}, {"params": params[1:], "lr": 0.04}]
    optimizer = cls(groups, **copy.deepcopy(options))
    scheduler = make(optimizer)
    rates = []
    for _ in range(9):
        optimizer.zero_grad()
        loss = (params[0] * params[1]).sin().square().sum()
        loss.backward()
        optimizer.step()
        metric = (1.0,) * isinstance(scheduler, S.ReduceLROnPlateau)
        scheduler.step(*metric)
        rates.append([float(g["lr"]) for g in optimizer.param_groups])
    return params, torch.tensor(rates)


@pytest.mark.filterwarnings("ignore:The epoch parameter")  # of SequentialLR itself in torch 2.6
@pytest.mark.parametrize(("name", "scheduler"), PAIRS)
def test_same_trajectory_as_torch(name, scheduler):
    options, name = CLASSES[name], name.split("-")[0]
    ours, theirs = (
        run(getattr(library, name), options, SCHEDULERS[scheduler])
        for library in (optcore, torch.optim)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert not torch.equal(ours[1][0], ours[1][-1])


def test_swa_and_averaging():
    runs = []
    for library in (optcore, torch.optim):
        params = start()
        optimizer = library.Adam(params, lr=0.1)
        scheduler = torch.optim.swa_utils.SWALR(optimizer, swa_lr=0.01, anneal_epochs=3)
        for _ in range(6):
            optimizer.zero_grad()
            (params[0] * params[1]).sin().square().sum().backward()
            optimizer.step()
            scheduler.step()
        runs.append(params)
    torch.testing.assert_close(*runs, rtol=1e-12, atol=1e-12)


def test_injected_hyperparameters_stand_in_the_groups():
    def generic(params, lr):
        return optcore.Optimizer(params, optcore.inject_hyperparams(optcore.adam)(lr=lr))

    for scheduler in ("StepLR", "CyclicLR", "OneCycleLR", "ReduceLROnPlateau"):
        ours = run(generic, {"lr": 0.1}, SCHEDULERS[scheduler])
        theirs = run(torch.optim.Adam, {"lr": 0.1}, SCHEDULERS[scheduler])
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_an_injected_number_out_of_range_changes_nothing():
    a, b = start()
    tx = optcore.inject_hyperparams(optcore.sgd)(lr=0.1)
    optimizer = optcore.Optimizer([{"params": [a]}, {"params": [b]}], tx)
    optimizer.param_groups[1]["lr"] = -1.0
    before = a.detach().clone()
    a.grad, b.grad = torch.ones_like(a), torch.ones_like(b)
    with pytest.raises(ValueError, match=r"^sgd: expected lr >= 0, got -1.0"):
        optimizer.step()
    assert torch.equal(a.detach(), before)


def test_an_injected_rate_is_saved_and_loaded():
    tx = optcore.inject_hyperparams(optcore.sgd)(lr=0.1)
    first, second = (optcore.Optimizer(start(), tx) for _ in range(2))
    first.param_groups[0]["lr"] = 0.03
    second.load_state_dict(first.state_dict())
    assert second.param_groups[0]["lr"] == 0.03
    second.param_groups[0]["params"][0].grad = torch.ones(3, 2)
    second.step()
    torch.testing.assert_close(second.param_groups[0]["params"][0].detach(), start()[0] - 0.03)


def warmup(count):
    return 0.1 / (1 + count)


RATELESS = {
    "none": (
        lambda p: optcore.Optimizer(p, optcore.chain(optcore.trace(), optcore.scale(-0.1))),
        "Optimizer: expected a number as lr, for a scheduler to set, got a transformation that has "
        "none; make it by optcore.inject_hyperparams(optcore.adam)(lr=...), or use a class like",
    ),
    "inside": (
        lambda p: optcore.Optimizer(p, optcore.adam(lr=0.1)),
        "Optimizer: expected a number as lr, for a scheduler to set, got a transformation that has",
    ),
    "schedule": (
        lambda p: optcore.Adam(p, lr=warmup),
        "Adam: expected a number as lr, for a scheduler to set, got the schedule warmup; use one",
    ),
    "injected schedule": (
        lambda p: optcore.Optimizer(p, optcore.inject_hyperparams(optcore.adam)(lr=warmup)),
        "Optimizer: expected a number as lr, for a scheduler to set, got the schedule warmup; use",
    ),
    "learned": (
        lambda p: optcore.SGD(p, lr=torch.tensor(0.1, requires_grad=True)),
        "SGD: expected a number as lr, for a scheduler to set, got f64[] that requires grad; a",
    ),
    "tree": (
        lambda p: optcore.SGD(p, lr={0: 0.1, 1: 0.2}),
        "SGD: expected a number as lr, for a scheduler to set, got dict (.get('lr') gives it)",
    ),
    "vector": (
        lambda p: optcore.SGD(p, lr=torch.ones(2)),
        "SGD: expected a number as lr, for a scheduler to set, got f64[2] (.get('lr') gives it)",
    ),
}


def copied(optimizer):
    return pickle.loads(pickle.dumps(optimizer))


def loaded(optimizer):
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return optimizer


@pytest.mark.parametrize("how", [lambda o: o, copy.deepcopy, copied, loaded])
@pytest.mark.parametrize(("make", "message"), RATELESS.values(), ids=RATELESS.keys())
def test_a_rate_that_is_no_number_refuses_every_scheduler(make, message, how):
    optimizer = how(make(start()))
    for scheduler in ("StepLR", "LambdaLR", "OneCycleLR-rate-only", "ReduceLROnPlateau"):
        with pytest.raises(TypeError, match="^" + re.escape(message)):
            SCHEDULERS[scheduler](optimizer)
    with pytest.raises(TypeError, match="^" + re.escape(message)):
        S.CyclicLR(optimizer, 0.01, 0.1, 3, cycle_momentum=False)
    assert "lr: " in repr(optimizer) or optimizer.param_groups[0].get("lr") is None


def test_a_momentum_cycle_needs_a_momentum():
    with pytest.raises(ValueError, match="must support momentum or beta1"):
        S.OneCycleLR(optcore.Adagrad(start()), 0.1, total_steps=12)
