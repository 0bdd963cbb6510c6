# SPDX-License-Identifier: Apache-2.0
"""Functions and classes take the steps that torch.optim takes."""

import pytest
import torch

import optcore

CASES = {
    "sgd": ("SGD", "sgd", {"lr": 0.1}),
    "sgd-decay": ("SGD", "sgd", {"lr": 0.1, "weight_decay": 0.3}),
    "sgd-momentum": ("SGD", "sgd", {"lr": 0.05, "momentum": 0.9}),
    "sgd-dampening": ("SGD", "sgd", {"lr": 0.05, "momentum": 0.8, "dampening": 0.4}),
    "sgd-nesterov": (
        "SGD",
        "sgd",
        {"lr": 0.05, "momentum": 0.7, "nesterov": True, "weight_decay": 0.1},
    ),
    "sgd-maximize": (
        "SGD",
        "sgd",
        {"lr": 0.01, "momentum": 0.5, "dampening": -0.2, "weight_decay": 0.2, "maximize": True},
    ),
    "sgd-defaults": ("SGD", "sgd", {}),
    "adam": ("Adam", "adam", {}),
    "adam-odd": (
        "Adam",
        "adam",
        {"lr": 0.07, "betas": (0.3, 0.6), "eps": 0.01, "weight_decay": 0.2},
    ),
    "adam-no-memory": ("Adam", "adam", {"lr": 0.01, "betas": (0.0, 0.0), "eps": 1e-3}),
    "adam-maximize": ("Adam", "adam", {"lr": 0.01, "weight_decay": 0.1, "maximize": True}),
    "adamw": ("AdamW", "adamw", {}),
    "adamw-odd": (
        "AdamW",
        "adamw",
        {"lr": 0.07, "betas": (0.3, 0.6), "eps": 0.01, "weight_decay": 0.4},
    ),
    "adamw-maximize": ("AdamW", "adamw", {"lr": 0.01, "weight_decay": 0.3, "maximize": True}),
    "adamax": ("Adamax", "adamax", {}),
    "adamax-odd": (
        "Adamax",
        "adamax",
        {"lr": 0.03, "betas": (0.4, 0.7), "eps": 0.02, "weight_decay": 0.1, "maximize": True},
    ),
    "radam": ("RAdam", "radam", {}),
    "radam-odd": (
        "RAdam",
        "radam",
        {"lr": 0.03, "betas": (0.4, 0.9), "eps": 0.02, "weight_decay": 0.1, "maximize": True},
    ),
    "radam-decoupled": (
        "RAdam",
        "radam",
        {"lr": 0.03, "betas": (0.6, 0.99), "weight_decay": 0.1, "decoupled_weight_decay": True},
    ),
    "nadam": ("NAdam", "nadam", {}),
    "nadam-odd": (
        "NAdam",
        "nadam",
        {"lr": 0.03, "betas": (0.4, 0.9), "eps": 0.02, "weight_decay": 0.1, "momentum_decay": 0.1},
    ),
    "nadam-decoupled": (
        "NAdam",
        "nadam",
        {"lr": 0.03, "weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True},
    ),
    "rmsprop": ("RMSprop", "rmsprop", {}),
    "rmsprop-odd": (
        "RMSprop",
        "rmsprop",
        {"lr": 0.02, "alpha": 0.6, "eps": 0.01, "weight_decay": 0.1, "momentum": 0.4},
    ),
    "rmsprop-centered": (
        "RMSprop",
        "rmsprop",
        {"lr": 0.01, "alpha": 0.8, "eps": 0.01, "centered": True, "maximize": True},
    ),
    "adagrad": ("Adagrad", "adagrad", {}),
    "adagrad-odd": (
        "Adagrad",
        "adagrad",
        {"lr": 0.1, "lr_decay": 0.2, "weight_decay": 0.1, "initial_accumulator_value": 0.3},
    ),
    "adagrad-maximize": ("Adagrad", "adagrad", {"lr": 0.1, "eps": 0.01, "maximize": True}),
    "adadelta": ("Adadelta", "adadelta", {}),
    "adadelta-odd": (
        "Adadelta",
        "adadelta",
        {"lr": 0.5, "rho": 0.6, "eps": 1e-3, "weight_decay": 0.1, "maximize": True},
    ),
    "rprop": ("Rprop", "rprop", {}),
    "rprop-odd": (
        "Rprop",
        "rprop",
        {"lr": 0.3, "etas": (0.3, 1.7), "step_sizes": (1e-4, 0.5), "maximize": True},
    ),
    "asgd": ("ASGD", "asgd", {}),
    "asgd-odd": (
        "ASGD",
        "asgd",
        {"lr": 0.2, "lambd": 0.1, "alpha": 0.6, "t0": 10, "weight_decay": 0.1, "maximize": True},
    ),
    "adafactor": ("Adafactor", "adafactor", {}),
    "adafactor-odd": (
        "Adafactor",
        "adafactor",
        {"lr": 0.2, "beta2_decay": -0.5, "eps": (1e-3, 0.1), "d": 1.5, "weight_decay": 0.1},
    ),
    "adafactor-maximize": ("Adafactor", "adafactor", {"lr": 0.05, "maximize": True}),
}
STEPS = 50


def loss_of(params):
    w, b, _ = params  # the third never gets a gradient
    return ((w @ w.T).sin().sum() + (w * b).sin().square().sum() + b.cos().sum()) / 3


def start():
    generator = torch.Generator().manual_seed(1)
    shapes = [(3, 2), (2,), (4,)]
    return [torch.randn(s, generator=generator).requires_grad_() for s in shapes]


def by_class(cls, options):
    params = start()
    optimizer = cls(params, **options)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss_of(params).backward()
        optimizer.step()
    return params


def by_function(factory, options, inplace):
    params = start()
    tx = factory(**options)
    state = tx.init(params)
    for _ in range(STEPS):
        grads = torch.autograd.grad(loss_of(params), params, allow_unused=True)
        updates, state = tx.update(list(grads), state, params, inplace=inplace)
        moved = optcore.apply_updates(params, updates, inplace=inplace)
        params = [p.detach().requires_grad_() for p in moved]
    return params


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    return request.param


def assert_equal(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_class_equals_torch(case):
    class_name, _, options = case
    expected = by_class(getattr(torch.optim, class_name), options)
    assert_equal(by_class(getattr(optcore, class_name), options), expected)
    assert not torch.equal(expected[0], start()[0])


@pytest.mark.parametrize("inplace", [True, False, None])
@pytest.mark.filterwarnings("ignore:.*expected gradients with a graph")
def test_function_equals_torch(case, inplace):
    class_name, name, options = case
    expected = by_class(getattr(torch.optim, class_name), options)
    assert_equal(by_function(getattr(optcore, name), options, inplace), expected)


@pytest.mark.parametrize("inplace", [True, False])
def test_float32_bias_correction_is_not_computed_in_float32(inplace):
    steps = 200
    exact, rounded = (torch.zeros(5, dtype=d) for d in (torch.float64, torch.float32))
    tx = optcore.scale_by_adam(b2=0.999, eps=1e-3)
    states = [tx.init([exact]), tx.init([rounded])]
    for step in range(steps):
        grad = torch.linspace(-1, 1, 5) * (1 + step % 7)
        (a,), states[0] = tx.update([grad], states[0], inplace=inplace)
        (b,), states[1] = tx.update([grad.float()], states[1], inplace=inplace)
    torch.testing.assert_close(b.double(), a, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("options", [{}, {"lr": 0.1, "weight_decay": 0.0, "nesterov": False}])
@pytest.mark.parametrize("adjust", [None, "match_rms_adamw"])
def test_muon_equals_torch_in_its_bfloat16(options, adjust):
    nets = []
    for library in (torch.optim, optcore):
        generator = torch.Generator().manual_seed(1)
        params = [torch.randn(s, generator=generator).requires_grad_() for s in [(3, 2), (4, 6)]]
        optimizer = library.Muon(params, adjust_lr_fn=adjust, **options)
        for _ in range(10):
            optimizer.zero_grad()
            sum((p @ p.T).sin().sum() for p in params).backward()
            optimizer.step()
        nets.append(params)
    for ours, theirs in zip(*nets, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-3)
