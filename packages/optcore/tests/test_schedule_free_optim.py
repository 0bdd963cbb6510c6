# SPDX-License-Identifier: Apache-2.0
"""Schedule-free classes: their two modes, and what a checkpoint made in either brings back."""

import copy
import io
import pickle

import pytest
import torch

import optcore

CLASSES = {
    "sgd": (optcore.ScheduleFreeSGD, optcore.schedule_free_sgd, {"lr": 0.1, "weight_decay": 0.1}),
    "sgd-warmup": (
        optcore.ScheduleFreeSGD,
        optcore.schedule_free_sgd,
        {"lr": 0.2, "b1": 0.7, "warmup_steps": 3},
    ),
    "adamw": (optcore.ScheduleFreeAdamW, optcore.schedule_free_adamw, {"lr": 0.1}),
    "adamw-warmup": (
        optcore.ScheduleFreeAdamW,
        optcore.schedule_free_adamw,
        {"lr": 0.1, "betas": (0.8, 0.9), "weight_decay": 0.1, "warmup_steps": 3},
    ),
}


@pytest.fixture(params=CLASSES.values(), ids=CLASSES.keys())
def case(request):
    return request.param


def start(dtype=torch.float64):
    shapes = {"w": (2, 3), "b": ()}
    generator = torch.Generator().manual_seed(1)
    return {
        k: torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype))
        for k, s in shapes.items()
    }


def gradient(param):
    return (2 * param.detach()).sin() + 0.1


def train(params, optimizer, steps):
    for _ in range(steps):
        for param in params.values():
            param.grad = gradient(param)
        optimizer.step()


def values(params):
    return {k: v.detach().clone() for k, v in params.items()}


def test_both_modes_equal_the_functional_form(case):
    cls, factory, options = case
    params, expected = start(), values(start())
    optimizer, tx = cls(params.values(), **options), factory(**options)
    state = tx.init(expected)
    for _ in range(6):
        grads = {k: gradient(v) for k, v in expected.items()}
        updates, state = tx.update(grads, state, expected)
        expected = optcore.apply_updates(expected, updates)
    train(params, optimizer, 6)
    torch.testing.assert_close(values(params), expected, rtol=1e-13, atol=0)
    average = optcore.schedule_free_eval_params(state, expected)
    optimizer.eval()
    torch.testing.assert_close(values(params), average, rtol=1e-13, atol=0)


def test_switching_twice_is_harmless_and_training_goes_on(case):
    cls, _, options = case
    params, plain = start(), start()
    optimizer, reference = (cls(p.values(), **options) for p in (params, plain))
    for _ in range(3):
        optimizer.train()
        train(params, optimizer, 2)
        train(plain, reference, 2)
        optimizer.eval()
        once = values(params)
        optimizer.eval()
        torch.testing.assert_close(values(params), once, rtol=0, atol=0)
    assert not optimizer.training
    optimizer.train()
    optimizer.train()
    assert optimizer.training
    torch.testing.assert_close(values(params), values(plain), rtol=1e-13, atol=1e-13)


def test_a_step_between_switches_is_refused_before_the_closure_runs(case):
    cls, _, options = case
    params = start()
    optimizer = cls(params.values(), **options)
    train(params, optimizer, 1)
    optimizer.eval()
    before, calls = values(params), []
    message = (
        rf"^{cls.__name__}.step: expected parameters to train, got .* {cls.__name__}.train\(\)"
    )
    with pytest.raises(RuntimeError, match=message):
        optimizer.step(lambda: calls.append(1))
    assert not calls
    torch.testing.assert_close(values(params), before, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_saves_and_loads_with_weights_only_in_either_mode(case, mode, dtype):
    cls, _, options = case
    params, twin = start(dtype), start(dtype)
    optimizer, resumed = cls(params.values(), **options), cls(twin.values(), lr=123.0)
    train(params, optimizer, 4)
    getattr(optimizer, mode)()
    file = io.BytesIO()
    torch.save([values(params), optimizer.state_dict()], file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    for key, param in twin.items():
        param.data.copy_(weights[key])
    resumed.load_state_dict(state)
    assert resumed.training == (mode == "train")
    for each, mine in ((params, optimizer), (twin, resumed)):
        mine.train()
        train(each, mine, 3)
        mine.eval()
    torch.testing.assert_close(values(twin), values(params), rtol=0, atol=0)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_and_pickles_in_evaluation(case, how):
    cls, _, options = case
    params = start()
    optimizer = cls(params.values(), **options)
    train(params, optimizer, 2)
    optimizer.eval()
    twin, copied = how((params, optimizer))
    for each, mine in ((params, optimizer), (twin, copied)):
        mine.train()
        train(each, mine, 2)
    torch.testing.assert_close(values(twin), values(params), rtol=0, atol=0)


def test_groups_have_hyperparameters_and_missing_gradients_of_their_own():
    used, unused, late = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
    groups = [{"params": [used], "b1": 0.5}, {"params": [unused], "lr": 0.3}]
    optimizer = optcore.ScheduleFreeSGD(groups, lr=1.0)
    used.grad = torch.full((2,), 0.25)
    optimizer.step()
    optimizer.step()
    optimizer.eval()
    optimizer.add_param_group({"params": [late]})
    assert used.tolist() == [0.625, 0.625]  # the average of 0.75 and 0.5
    assert unused.tolist() == late.tolist() == [1.0, 1.0]
    optimizer.train()
    assert used.tolist() == [0.5625, 0.5625]
    late.grad = torch.full((2,), 0.25)
    optimizer.step()
    assert late.tolist() == [0.75, 0.75]


def test_follows_a_scheduler_and_a_change_of_b1():
    w = torch.nn.Parameter(torch.tensor([4.0]))
    optimizer = optcore.ScheduleFreeSGD([w], lr=1.0, b1=0.5, weight_lr_power=0.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    for b1 in (0.5, 0.25):  # z is 3, then 2.5; x is 3, then 2.75
        optimizer.param_groups[0]["b1"] = b1
        w.grad = torch.tensor([1.0])
        optimizer.step()
        scheduler.step()
    assert w.item() == 0.25 * 2.75 + 0.75 * 2.5
    optimizer.eval()
    assert w.item() == pytest.approx(2.75, rel=1e-15)
