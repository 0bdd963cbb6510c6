# SPDX-License-Identifier: Apache-2.0
"""Optimizers move from and to torch.optim and go on as if nothing had happened."""

import copy
import re

import pytest
import torch

import optcore

CASES = {
    "sgd": ("SGD", {"lr": 0.1}),
    "sgd-momentum": ("SGD", {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}),
    "sgd-dampening": ("SGD", {"lr": 0.05, "momentum": 0.8, "dampening": 0.4, "maximize": True}),
    "sgd-nesterov": ("SGD", {"lr": 0.05, "momentum": 0.7, "nesterov": True}),
    "adam": ("Adam", {"lr": 0.1, "weight_decay": 0.1}),
    "adam-lr-tensor": ("Adam", {"lr": torch.tensor(0.1, dtype=torch.float64)}),
    "adam-foreach": ("Adam", {"lr": 0.1, "betas": (0.3, 0.6), "foreach": True}),
    "adam-amsgrad": ("Adam", {"lr": 0.1, "amsgrad": True, "weight_decay": 0.1}),
    "adamw": ("AdamW", {"lr": 0.1, "maximize": True}),
    "adamw-fused": ("AdamW", {"lr": 0.1, "fused": True}),
    "adamw-amsgrad": ("AdamW", {"lr": 0.1, "amsgrad": True}),
    "adamax": ("Adamax", {"lr": 0.1, "weight_decay": 0.1}),
    "nadam": ("NAdam", {"lr": 0.1, "momentum_decay": 0.1}),
    "nadam-decoupled": (
        "NAdam",
        {"lr": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True, "foreach": False},
    ),
    "radam": ("RAdam", {"lr": 0.1, "betas": (0.5, 0.7)}),
    "radam-decoupled": (
        "RAdam",
        {"lr": 0.1, "betas": (0.5, 0.7), "weight_decay": 0.1, "decoupled_weight_decay": True},
    ),
    "rmsprop": ("RMSprop", {"lr": 0.05}),
    "rmsprop-odd": (
        "RMSprop",
        {"lr": 0.02, "centered": True, "momentum": 0.4, "weight_decay": 0.1, "maximize": True},
    ),
    "adagrad": ("Adagrad", {"lr": 0.1, "initial_accumulator_value": 0.3}),
    "adagrad-decay": ("Adagrad", {"lr": 0.1, "lr_decay": 0.2, "weight_decay": 0.1}),
    "adadelta": ("Adadelta", {"lr": 0.5, "rho": 0.6, "weight_decay": 0.1}),
    "rprop": ("Rprop", {"lr": 0.1}),
    "rprop-maximize": (
        "Rprop",
        {"lr": 0.3, "etas": (0.3, 1.7), "step_sizes": (1e-4, 0.5), "maximize": True},
    ),
    "asgd": ("ASGD", {"lr": 0.1, "lambd": 0.1, "alpha": 0.6, "t0": 3, "weight_decay": 0.1}),
    "adafactor": ("Adafactor", {"lr": 0.05, "weight_decay": 0.1}),
    "muon": ("Muon", {"lr": 0.05}),
}


def params():
    generator = torch.Generator().manual_seed(1)
    shapes = [(3, 2), (2, 4)]
    return [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in shapes]


def groups(of):
    return [{"params": of[:1]}, {"params": of[1:], "lr": 0.03}]


def train(of, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        a, b = of
        ((a @ b).sin().sum() + b.cos().sum() + a.square().sum() / 10).backward()
        optimizer.step()


def assert_same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    name, options = request.param
    if name == "Muon" and not hasattr(torch.optim, name):
        pytest.skip("this torch has no Muon")
    return getattr(torch.optim, name), options


@pytest.mark.parametrize("before", [0, 4])
def test_there_and_back_the_trajectory_goes_on(case, before):
    kind, options = case
    theirs_params = params()
    theirs = kind(groups(theirs_params), **copy.deepcopy(options))
    train(theirs_params, theirs, before)
    ours_params, ours = copy.deepcopy((theirs_params, theirs))
    ours = optcore.from_torch(ours)
    assert ours.param_groups[1]["lr"] == 0.03
    back_params, back = copy.deepcopy((ours_params, ours))
    back = back.to_torch()
    assert type(back) is kind
    late_params, late = copy.deepcopy((ours_params, ours))
    train(late_params, late, 5)
    late = late.to_torch()
    for of, optimizer, steps in (
        (theirs_params, theirs, 10),
        (ours_params, ours, 10),
        (back_params, back, 10),
        (late_params, late, 5),
    ):
        train(of, optimizer, steps)
    assert_same(ours_params, theirs_params)
    assert_same(back_params, theirs_params)
    assert_same(late_params, theirs_params)
    found, expected = (o.state_dict()["state"].get(0, {}) for o in (late, theirs))
    assert found.keys() == expected.keys()
    for name in found.keys() - {"step"}:  # no rule reads a count that optcore does not keep
        torch.testing.assert_close(found[name], expected[name], rtol=1e-11, atol=1e-12)


def unsaid(theirs):
    """What torch 2.6 does not write: AMSGrad must be made with it."""
    unsaid = "decoupled_weight_decay" not in theirs.defaults
    is_it = isinstance(theirs, torch.optim.AdamW) and theirs.defaults["amsgrad"]
    return {"decoupled_weight_decay": True} if unsaid and is_it else {}


def test_a_checkpoint_of_torch_loads_as_it_is(case):
    kind, options = case
    theirs_params = params()
    theirs = kind(groups(theirs_params), **copy.deepcopy(options))
    train(theirs_params, theirs, 4)
    ours_params = copy.deepcopy(theirs_params)
    cls = type(optcore.from_torch(theirs))
    ours = cls(groups(ours_params), **unsaid(theirs))
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    train(theirs_params, theirs, 5)
    train(ours_params, ours, 5)
    assert_same(ours_params, theirs_params)


def test_every_optimizer_of_torch_is_in_the_table_of_cases():
    ours = {row.class_name for row in optcore.OPTIMIZERS.values()}
    theirs = {n for n in ours if hasattr(torch.optim, n)}
    assert theirs | {"Muon"} == {name for name, _ in CASES.values()}  # torch 2.6 has no Muon


def test_names_of_parameters_and_notes_of_schedulers_come_along():
    net = torch.nn.Linear(2, 1)
    theirs = torch.optim.Adam(net.named_parameters())
    torch.optim.lr_scheduler.StepLR(theirs, 3)
    ours = optcore.from_torch(theirs)
    assert ours.param_groups[0]["param_names"] == ["weight", "bias"]
    assert ours.param_groups[0]["initial_lr"] == 1e-3
    assert ours.to_torch().param_groups[0]["param_names"] == ["weight", "bias"]


def test_a_tensor_learning_rate_is_not_shared():
    theirs = torch.optim.Adam(params(), lr=torch.tensor(0.1))
    ours = optcore.from_torch(theirs)
    back = ours.to_torch()
    theirs.param_groups[0]["lr"].fill_(5.0)
    back.param_groups[0]["lr"].fill_(7.0)
    assert ours.param_groups[0]["lr"].item() == 0.1


def test_buffers_are_handed_over_without_a_copy():
    of = params()
    theirs = torch.optim.Adam(of)
    train(of, theirs, 1)
    ours = optcore.Adam.from_torch(theirs)
    assert ours.state[of[0]]["exp_avg"] is theirs.state[of[0]]["exp_avg"]
    assert ours.to_torch().state[of[0]]["exp_avg"] is theirs.state[of[0]]["exp_avg"]


def test_a_momentum_that_pauses_goes_on():
    both = [params(), params()]
    made = [torch.optim.SGD(of, lr=0.05, momentum=0.9) for of in both]
    for of, optimizer in zip(both, made, strict=True):
        train(of, optimizer, 3)
        optimizer.param_groups[0]["momentum"] = 0.0
    made[1] = optcore.from_torch(made[1])
    for of, optimizer in zip(both, made, strict=True):
        train(of, optimizer, 2)
        optimizer.param_groups[0]["momentum"] = 0.9
        train(of, optimizer, 2)
    assert_same(*both)


def test_a_trajectory_goes_on_in_functional_form(case):
    kind, options = case
    theirs_params = params()
    theirs = kind(theirs_params, **copy.deepcopy(options))
    train(theirs_params, theirs, 3)
    moved_params, moved = copy.deepcopy((theirs_params, theirs))
    tree = dict(zip("ab", moved_params, strict=True))
    tx, state = optcore.from_torch(moved).functional(tree)
    train(theirs_params, theirs, 4)
    for _ in range(4):
        a, b = tree.values()
        loss = (a @ b).sin().sum() + b.cos().sum() + a.square().sum() / 10
        grads = dict(zip("ab", torch.autograd.grad(loss, [a, b]), strict=True))
        updates, state = tx.update(grads, state, tree)
        tree = optcore.apply_updates(tree, updates)
    assert_same([*tree.values()], theirs_params)


def test_a_functional_form_of_other_parameters_is_refused():
    of = params()
    optimizer = optcore.Adam([{"params": of[:1]}, {"params": of[1:]}])
    assert optimizer.functional(of[1])[1][0].mu.shape == of[1].shape
    message = r"^Adam.functional: expected parameters of one group of this optimizer, got others"
    with pytest.raises(ValueError, match=message):
        optimizer.functional(of)


def test_a_state_without_a_buffer_is_refused_by_name():
    of = params()
    theirs = torch.optim.Adam(of)
    train(of, theirs, 1)
    del theirs.state[of[1]]["exp_avg"]
    message = r"^Adam.from_torch: expected 'exp_avg' in the state of parameter 1 of group 0, got \["
    with pytest.raises(ValueError, match=message):
        optcore.from_torch(theirs)
    assert sorted(theirs.state[of[0]]) == ["exp_avg", "exp_avg_sq", "step"]


def test_loading_keeps_counts_whole_and_shared():
    of = [p.detach().bfloat16() for p in params()]
    tx = optcore.chain(optcore.scale_by_adam(), optcore.scale(-0.1))
    made = [optcore.Optimizer(copy.deepcopy(of), tx), optcore.Adam(copy.deepcopy(of))]
    for optimizer, count in zip(made, ("0.count", "step"), strict=True):
        for p in optimizer.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        for _ in range(300):
            optimizer.step()
        saved = copy.deepcopy(optimizer.state_dict())
        optimizer.load_state_dict(saved)
        first, second = optimizer.state.values()
        assert first[count] is second[count]
        assert first[count].dtype is torch.int64
        assert int(first[count]) == 300


def test_a_saved_state_goes_on_in_torch(case, tmp_path):
    cls, options = case
    a, b = params(), params()
    ours = optcore.from_torch(cls(groups(a), **options))
    train(a, ours, 3)
    torch.save(ours.state_dict(), tmp_path / "state.pt")
    with torch.no_grad():
        for to, of in zip(b, a, strict=True):
            to.copy_(of)
    theirs = cls(groups(b), **options)
    theirs.load_state_dict(torch.load(tmp_path / "state.pt"))
    train(a, ours, 3)
    train(b, theirs, 3)
    assert_same(a, b)
    written, expected = ours.state_dict()["state"], theirs.state_dict()["state"]
    for name, entries in expected.items():
        assert {k for k, v in entries.items() if v is not None} <= set(written[name])


def test_a_saved_state_shares_no_scalar_among_parameters():
    of = params()
    ours = optcore.Yogi(of)  # torch has none: its counts stay whole numbers
    train(of, ours, 2)
    first, second = ours.state_dict()["state"].values()
    assert first["step"] is not second["step"]
    assert first["step"] is not ours.state[of[0]]["step"]
    assert first["step"].dtype is torch.int64
    ours.load_state_dict(ours.state_dict())
    assert ours.state[of[0]]["step"] is ours.state[of[1]]["step"]


def test_a_saved_state_of_amsgrad_says_so():
    of = params()
    ours = optcore.AMSGrad(of, lr=0.1)
    train(of, ours, 2)
    assert ours.state_dict()["param_groups"][0]["amsgrad"] is True
    assert "amsgrad" not in ours.param_groups[0]


def test_a_state_with_a_schedule_that_torch_has_not_is_saved():
    of = params()
    ours = optcore.ASGD(of, t0=lambda count: 3.0 + count)
    train(of, ours, 2)
    assert "eta" in ours.state_dict()["state"][0]


def test_lbfgs_goes_on_from_a_checkpoint():
    def run(of, optimizer):
        def closure():
            optimizer.zero_grad()
            a, b = of
            loss = (a @ b).sin().sum() + b.square().sum() + a.square().sum() / 10
            loss.backward()
            return loss

        optimizer.step(closure)

    of = params()
    theirs = torch.optim.LBFGS(of, lr=0.1, max_iter=3)
    run(of, theirs)
    message = (
        "from_torch: expected an optimizer with a functional form of the same steps, got torch"
    )
    with pytest.raises(TypeError, match="^" + re.escape(message)):
        optcore.from_torch(theirs)
    copied = copy.deepcopy(of)
    ours = optcore.LBFGS(copied, lr=0.1, max_iter=3)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    run(of, theirs)
    run(copied, ours)
    torch.testing.assert_close(copied, of, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("reloads", [0, 1])
def test_adagrad_counts_before_a_decay_is_set(reloads):
    theirs_params, ours_params = params(), params()
    theirs = torch.optim.Adagrad(theirs_params, lr=0.1)
    ours = optcore.Adagrad(ours_params, lr=0.1)
    train(theirs_params, theirs, 10)
    train(ours_params, ours, 10)
    saved = ours.state_dict()
    assert saved["state"][0]["step"] == theirs.state_dict()["state"][0]["step"] == 10
    for _ in range(reloads):
        ours.load_state_dict(copy.deepcopy(saved))
    for optimizer, own in ((theirs, theirs_params), (ours, ours_params)):
        optimizer.param_groups[0]["lr_decay"] = 0.5
        train(own, optimizer, 5)
    assert_same(ours_params, theirs_params)
