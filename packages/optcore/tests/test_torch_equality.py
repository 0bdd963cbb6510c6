# SPDX-License-Identifier: Apache-2.0
"""Functions and classes take the steps that torch.optim takes, 50 of them in float64."""

import inspect
from functools import partial

import pytest
import torch

import optcore
from optcore import testing

STEPS = 50
ROWS = {row.name: row for row in optcore.OPTIMIZERS.values()}
# name: functional form, class of ours, torch's with its options, our options
CASES = {
    name: (case.factory, ROWS[case.factory.__name__].class_name, case.torch, case.options)
    for name, case in testing.CASES.items()
    if case.torch is not None
}
DEFAULTS = {
    f"{row.name}-defaults": (row.factory, row.class_name, getattr(torch.optim, row.class_name), {})
    for row in optcore.OPTIMIZERS.values()
    if hasattr(torch.optim, row.class_name) and row.name != "muon"
}
AMSGRAD = {
    "amsgrad-defaults": (
        optcore.amsgrad,
        "AMSGrad",
        partial(torch.optim.Adam, amsgrad=True),
        {},
    )
}


@pytest.fixture(params=(ALL := {**CASES, **DEFAULTS, **AMSGRAD}).values(), ids=ALL.keys())
def case(request):
    return request.param


def loss_of(params):
    w, b, _ = params  # the third never gets a gradient
    return ((w @ w.T).sin().sum() + (w * b).sin().square().sum() + b.cos().sum()) / 3


def start():
    generator = torch.Generator().manual_seed(1)
    shapes = [(3, 2), (2,), (4,)]
    return [torch.randn(s, generator=generator).requires_grad_() for s in shapes]


def by_class(cls, options, group=lambda params: params):
    params = start()
    optimizer = cls(group(params), **options)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss_of(params).backward()
        optimizer.step()
    return params


def by_function(factory, options):
    params = start()
    tx = factory(**options)
    state = tx.init(params)
    for _ in range(STEPS):
        grads = torch.autograd.grad(loss_of(params), params, allow_unused=True)
        updates, state = tx.update(list(grads), state, params)
        moved = optcore.apply_updates(params, updates)
        params = [p.detach().requires_grad_() for p in moved]
    return params


def assert_equal(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_class_equals_torch(case):
    _, class_name, torch_class, options = case
    expected = by_class(torch_class, options)
    assert_equal(by_class(getattr(optcore, class_name), options), expected)
    assert not torch.equal(expected[0], start()[0])


def two_groups(params):
    return [{"params": params[1:], "lr": 0.013}, {"params": params[:1]}]


# torch's foreach path takes the same steps up to rounding, of which 50 remain at 1e-12
def test_class_with_two_groups_equals_torch_foreach(case):
    _, class_name, torch_class, options = case
    own = options if "lr" in options else {**options, "lr": 0.02}
    expected = by_class(partial(torch_class, foreach=True), own, two_groups)
    assert_equal(by_class(getattr(optcore, class_name), own, two_groups), expected)


def test_function_equals_torch(case):  # in all modes: see check_inplace_equals_pure
    factory, _, torch_class, options = case
    assert_equal(by_function(factory, options), by_class(torch_class, options))


@pytest.mark.parametrize("name", [n for n, r in ROWS.items() if hasattr(torch.optim, r.class_name)])
def test_defaults_and_order_are_those_of_torch(name):
    row = ROWS[name]
    theirs = inspect.signature(getattr(torch.optim, row.class_name)).parameters
    ours = inspect.signature(row.factory).parameters
    shared = [k for k in ours if k in theirs]
    assert {k: ours[k].default for k in shared} == {k: theirs[k].default for k in shared}
    positional = [k for k in shared if ours[k].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    expected = [k for k in theirs if k in positional]
    assert positional == expected


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


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-14, 1e-16, 1e-18])
def test_tiny_gradients_with_a_tiny_eps_take_the_steps_of_torch(dtype, size):
    results = []
    for library in (torch.optim, optcore):
        w = torch.nn.Parameter(torch.zeros(2, dtype=dtype))
        optimizer = library.Adam([w], lr=1.0, eps=1e-15)
        for _ in range(5):
            w.grad = torch.full((2,), size, dtype=dtype)
            optimizer.step()
        results.append(w.detach())
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=0)
