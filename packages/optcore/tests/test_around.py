# SPDX-License-Identifier: Apache-2.0
"""Classes around any optimizer: sharpness-aware steps, and smaller ones on a plateau."""

import copy
import pickle
import re

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

import optcore

injected_adam = optcore.inject_hyperparams(optcore.adam)


def start():
    return {"a": torch.tensor([1.5, -2.0, 0.3]), "b": torch.tensor([0.4, -1.0])}


def loss(p):
    """A quadratic, waves and a coupling."""
    waves = (p["b"] ** 2).sum() + 0.3 * (p["b"].sin() ** 2).sum()
    return (p["a"] ** 2).sum() / 2 + waves + 0.3 * (p["a"].sum() - p["b"][0]) ** 2


def leaves():
    return {name: torch.nn.Parameter(p) for name, p in start().items()}


def closure_of(params, optimizer, calls=None):
    def closure():
        optimizer.zero_grad()
        value = loss(params)
        value.backward()
        (calls if calls is not None else []).append(value.item())
        return value

    return closure


def detached(params):
    return {name: p.detach() for name, p in params.items()}


def by_function(tx, steps):
    params = start()
    state = tx.init(params)

    def slopes(params, index=0):
        own = {name: p.detach().requires_grad_() for name, p in params.items()}
        return dict(zip(own, torch.autograd.grad(loss(own), [*own.values()]), strict=True))

    for _ in range(steps):
        extra = {"value": loss(params), "grad_fn": slopes}
        updates, state = tx.update(slopes(params), state, params, inplace=False, **extra)
        params = optcore.apply_updates(params, updates)
    return params


def sam(base, rho):
    uphill = optcore.chain(optcore.normalize(), optcore.sgd(lr=rho))
    return optcore.sam(base, uphill, opaque_mode=True)


BASES = {
    "adam": optcore.adam(0.05),
    "momentum": optcore.sgd(0.05, momentum=0.8, weight_decay=0.1),
    "told": optcore.polyak_sgd(max_lr=0.2),
    "plateau": optcore.chain(optcore.sgd(0.3), optcore.reduce_on_plateau(0.5, 2, rtol=0.2)),
}


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_the_class_of_sam_takes_the_steps_of_the_function(base):
    params = leaves()
    optimizer = optcore.SAM(params.values(), base, rho=0.1)
    closure = closure_of(params, optimizer)
    for _ in range(40):
        optimizer.step(closure)
    expected = by_function(sam(base, 0.1), 40)
    torch.testing.assert_close(detached(params), expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(expected["a"], start()["a"], atol=0.1)


def test_the_way_uphill_of_sam_is_that_of_all_groups():
    params = leaves()
    groups = [{"params": [params["a"]], "rho": 0.3}, {"params": [params["b"]], "lr": 0.01}]
    optimizer = optcore.SAM(groups, injected_adam(lr=0.05), rho=0.1)
    closure = closure_of(params, optimizer)
    for _ in range(10):
        optimizer.step(closure)
    base = optcore.adam(lr={"a": 0.05, "b": 0.01})
    expected = by_function(sam(base, {"a": 0.3, "b": 0.1}), 10)
    torch.testing.assert_close(detached(params), expected, rtol=1e-12, atol=1e-12)


def test_sam_gives_back_the_first_loss_and_runs_hooks_once():
    params, calls, hooks = leaves(), [], []
    optcore.Optimizer([torch.nn.Parameter(torch.ones(1))], optcore.sgd())  # patches a class
    optimizer = optcore.SAM(params.values(), optcore.sgd(0.1), rho=0.1)
    optimizer.register_step_pre_hook(lambda *_: hooks.append("pre"))
    optimizer.register_step_post_hook(lambda *_: hooks.append("post"))
    found = optimizer.step(closure_of(params, optimizer, calls))
    assert found.item() == calls[0] == loss(start()).item()
    assert calls[1] > calls[0]
    assert len(calls) == 2
    assert hooks == ["pre", "post"]


def test_sam_leaves_parameters_where_no_gradient_is():
    a, b = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = optcore.SAM([a, b], optcore.adam(0.1), rho=0.5)

    def closure():
        optimizer.zero_grad()
        (a**2).sum().backward()

    assert optimizer.step(closure) is None
    assert torch.equal(b.detach(), torch.ones(2))
    assert not torch.equal(a.detach(), torch.ones(2))


def test_a_closure_that_fails_uphill_leaves_the_parameters_of_sam_as_they_were():
    params, calls = leaves(), []
    optimizer = optcore.SAM(params.values(), optcore.sgd(0.1), rho=0.1)
    inner = closure_of(params, optimizer, calls)

    def failing():
        inner()
        return 1 / (2 - len(calls))  # ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        optimizer.step(failing)
    assert len(calls) == 2
    assert all(torch.equal(p, q) for p, q in zip(params.values(), start().values(), strict=True))


def sam_of(params):
    return optcore.SAM(params.values(), injected_adam(lr=0.05), rho=0.1)


def plateau_of(params):
    return optcore.ReduceOnPlateau(params.values(), optcore.adam(0.3), 0.5, 1, rtol=0.2)


def saved(optimizer, params, make):
    other = {name: torch.nn.Parameter(p.detach().clone()) for name, p in params.items()}
    again = make(other)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return other, again


def pickled(optimizer, params, make):
    again, names = pickle.loads(pickle.dumps(optimizer)), list(params)
    return dict(zip(names, again.param_groups[0]["params"], strict=True)), again


@pytest.mark.parametrize("how", [saved, pickled])
@pytest.mark.parametrize("make", [sam_of, plateau_of])
def test_goes_on_from_a_checkpoint(make, how):
    params = leaves()
    optimizer = make(params)
    for _ in range(4):
        optimizer.step(closure_of(params, optimizer))
    other, again = how(optimizer, params, make)
    for _ in range(4):
        optimizer.step(closure_of(params, optimizer))
        again.step(closure_of(other, again))
    assert detached(other).keys() == params.keys()
    torch.testing.assert_close(detached(other), detached(params), rtol=0, atol=0)


def test_the_class_of_a_plateau_takes_the_steps_of_the_function():
    options = {"factor": 0.3, "patience": 1, "rtol": 0.3, "cooldown": 1, "min_scale": 0.02}
    params = leaves()
    groups = [{"params": [p]} for p in params.values()]
    optimizer = optcore.ReduceOnPlateau(groups, optcore.adam(0.2), **options)
    for _ in range(40):
        optimizer.step(closure_of(params, optimizer))
    behind = optcore.chain(optcore.adam(0.2), optcore.reduce_on_plateau(**options))
    expected = by_function(behind, 40)
    torch.testing.assert_close(detached(params), expected, rtol=1e-12, atol=1e-12)
    plain = by_function(optcore.adam(0.2), 40)
    assert not torch.allclose(expected["a"], plain["a"], atol=1e-3)


KINDS = {
    "of the table": lambda p: optcore.Adam(p, lr=0.1),
    "injected": lambda p: optcore.Optimizer(p, injected_adam(lr=0.1)),
    "told of the loss": lambda p: optcore.PolyakSGD(p, lr=0.1),
    "schedule-free": lambda p: optcore.ScheduleFreeSGD(p, lr=0.1),
    "lbfgs": lambda p: optcore.LBFGS(p, lr=0.1),
    "sam": lambda p: optcore.SAM(p, injected_adam(lr=0.1)),
}


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_the_plateau_scheduler_of_torch_drives_every_kind_of_class(make):
    params = leaves()
    optimizer = make([*params.values()])
    scheduler = ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
    rates = []
    for _ in range(5):
        optimizer.step(closure_of(params, optimizer))
        scheduler.step(1.0)
        rates.append(float(optimizer.param_groups[0]["lr"]))
    assert rates == [0.1, 0.1, 0.05, 0.05, 0.025]
    before = detached(copy.deepcopy(params))
    optimizer.step(closure_of(params, optimizer))  # with that rate
    assert not torch.equal(before["a"], params["a"].detach())


def test_the_rate_that_a_scheduler_sets_is_that_of_the_step_of_sam():
    params = leaves()
    optimizer = optcore.SAM(
        params.values(), optcore.inject_hyperparams(optcore.sgd)(lr=0.1), rho=0.0
    )
    optimizer.param_groups[0]["lr"] = 0.01
    value = loss(params)
    slopes = torch.autograd.grad(value, [*params.values()])
    optimizer.step(closure_of(params, optimizer))
    for p, old, slope in zip(params.values(), start().values(), slopes, strict=True):
        torch.testing.assert_close(p.detach(), old - 0.01 * slope)


def test_the_plateau_scheduler_of_torch_finds_no_rate_in_a_plateau():
    with pytest.raises(TypeError, match=r"^ReduceOnPlateau: expected a number as lr, for a sched"):
        ReduceLROnPlateau(plateau_of(leaves()))


def ones():
    return [torch.nn.Parameter(torch.ones(2))]


def sparse():
    (w,) = params = ones()
    optimizer = optcore.SAM(params, optcore.sgd())

    def closure():
        w.grad = torch.ones(2).to_sparse()

    optimizer.step(closure)


ERRORS = [
    (
        lambda: optcore.SAM(ones(), optcore.sgd()).step(),
        "SAM.step: expected a closure, got NoneType; pass a function that zeroes the gradients,",
    ),
    (sparse, "SAM.step: expected dense gradients, got torch.sparse_coo; call .to_dense()"),
    (
        lambda: optcore.SAM(ones(), optcore.SGD),
        "SAM: expected a GradientTransformation, got ",
    ),
    (lambda: optcore.SAM(ones(), optcore.sgd(), rho=-1), "SAM: expected rho >= 0, got -1"),
    (
        lambda: optcore.SAM([{"params": ones(), "rho": "x"}], optcore.sgd()),
        "SAM: expected rho as a number, got str",
    ),
    (
        lambda: optcore.SAM(ones(), optcore.inject_hyperparams(optcore.adadelta)(rho=0.9)),
        "SAM: expected a base whose groups leave rho to SAM, got an injected one; name it in",
    ),
    (
        lambda: optcore.ReduceOnPlateau(ones(), "adam"),
        "ReduceOnPlateau: expected a GradientTransformation, got str",
    ),
    (
        lambda: optcore.ReduceOnPlateau(ones(), optcore.adam(), patience=0),
        "reduce_on_plateau: expected patience >= 1, got 0",
    ),
]


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_errors_name_what_was_expected(call, message):
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}"):
        call()


def test_a_plateau_wants_the_loss():
    (w,) = params = ones()
    w.grad = torch.ones(2)
    with pytest.raises(TypeError, match=r"expected value=, got None; .* or step\(value=loss\) of"):
        optcore.ReduceOnPlateau(params, optcore.sgd()).step()
