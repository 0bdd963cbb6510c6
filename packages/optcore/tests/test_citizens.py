# SPDX-License-Identifier: Apache-2.0
"""Every class of the table does what code written for torch.optim expects of an optimizer."""

import copy
import functools
import io
import pickle
import re

import pytest
import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import optcore

CLASSES = {row.class_name: getattr(optcore, row.class_name) for row in optcore.OPTIMIZERS.values()}


@pytest.fixture(params=CLASSES.values(), ids=CLASSES.keys())
def cls(request):
    return request.param


def params():
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in [(3, 2), (2, 3)]]


def train(of, optimizer, steps=2):
    for _ in range(steps):
        optimizer.zero_grad()
        (of[0] @ of[1]).sin().sum().backward()
        optimizer.step()


def saved(optimizer):
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_saves_loads_copies_and_pickles(cls):
    of = params()
    optimizer = cls(of, lr=0.01)
    train(of, optimizer)
    loaded = copy.deepcopy(of)
    resumed = cls(loaded)
    resumed.load_state_dict(saved(optimizer))
    runs = [
        (loaded, resumed),
        copy.deepcopy((of, optimizer)),
        pickle.loads(pickle.dumps((of, optimizer))),
    ]
    train(of, optimizer)
    for copied, twin in runs:
        assert type(twin) is cls
        train(copied, twin)
        torch.testing.assert_close(copied, of, rtol=1e-12, atol=1e-12)
        assert repr(twin) == repr(optimizer)
    assert not torch.equal(of[0], params()[0])


def test_groups_names_and_parameters_that_come_later(cls):
    a, b = params()
    optimizer = cls([{"params": [("a", a)], "lr": 0.01}])
    optimizer.add_param_group({"params": [("b", b)], "lr": 0.02})
    assert [g["param_names"] for g in optimizer.param_groups] == [["a"], ["b"]]
    assert [g["lr"] for g in optimizer.param_groups] == [0.01, 0.02]
    before = b.detach().clone()
    train([a, b], optimizer, 2)  # the first step of ADOPT moves nothing
    assert not torch.equal(b, before)
    assert optimizer.state_dict()["param_groups"][1]["param_names"] == ["b"]


def test_closure_hooks_and_profiler(cls):
    of, calls = params(), []
    optimizer = cls(of, lr=0.01)
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    optimizer.register_state_dict_pre_hook(lambda *_: calls.append("saving"))
    optimizer.register_state_dict_post_hook(lambda *_: calls.append("saved"))
    optimizer.register_load_state_dict_pre_hook(lambda *_: calls.append("loading"))
    optimizer.register_load_state_dict_post_hook(lambda *_: calls.append("loaded"))

    def closure():
        calls.append("closure")
        optimizer.zero_grad()
        loss = (of[0] @ of[1]).square().sum()
        loss.backward()
        return loss

    with torch.profiler.profile() as profile:
        assert optimizer.step(closure).requires_grad
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["pre", "closure", "post", "saving", "saved", "loading", "loaded"]
    seen = {event.name for event in profile.events()}
    assert f"Optimizer.step#{cls.__name__}.step" in seen


def test_hooks_of_all_optimizers():
    of, calls = params(), []
    optimizer = optcore.Adam(of, lr=0.01)
    train(of, optimizer, 1)
    handles = [
        register_optimizer_step_pre_hook(lambda *_: calls.append("pre")),
        register_optimizer_step_post_hook(lambda *_: calls.append("post")),
    ]
    try:
        train(of, optimizer, 1)
    finally:
        for handle in handles:
            handle.remove()
    train(of, optimizer, 1)
    assert calls == ["pre", "post"]


class Own(optcore.Adam):
    def step(self, closure=None):
        return super().step(closure)


class Wrapped(optcore.Adam):
    @functools.wraps(optcore.Adam.step)
    def step(self, *args, **kwargs):
        return super().step(*args, **kwargs)


def become_own(optimizer):
    optimizer.__class__ = Own
    return optimizer


@pytest.mark.parametrize(
    "make",
    [
        optcore.Adam,
        Own,
        Wrapped,
        lambda of: become_own(optcore.Adam(of)),
    ],
)
def test_hooks_are_called_once_whoever_overrides_step(make):
    of, calls = params(), []
    optimizer = make(of)
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    train(of, optimizer, 1)
    assert calls == ["pre", "post"]


def test_hooks_of_a_patched_class(monkeypatch):
    of, calls = params(), []
    step = optcore.Adam.step
    optimizer = optcore.Adam(of)
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    monkeypatch.setattr(optcore.Adam, "step", lambda self, closure=None: step(self, closure))
    train(of, optimizer, 1)
    assert calls == ["post"]


def test_a_hook_may_change_what_is_loaded():
    of = params()
    optimizer = optcore.Adam(of, lr=0.01)
    train(of, optimizer)

    def later(_, given):
        state = {k: {**v, "step": torch.tensor(9.0)} for k, v in given["state"].items()}
        return {**given, "state": state}

    optimizer.register_load_state_dict_pre_hook(later)
    optimizer.load_state_dict(optimizer.state_dict())
    assert int(optimizer.state[of[0]]["step"]) == 9
    assert optimizer.state[of[0]]["step"] is optimizer.state[of[1]]["step"]


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(cls, set_to_none):
    (p, _) = params()
    p.grad = torch.ones_like(p)
    cls([p]).zero_grad(set_to_none=set_to_none)
    assert (p.grad is None) == set_to_none
    assert p.grad is None or not p.grad.any()


def test_gradients_stay_as_they_are(cls):
    of = params()
    optimizer = cls(of, lr=0.01)
    for p in of:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in of)


def test_sparse_gradients_are_refused_by_name(cls):
    (p, _) = params()
    optimizer, before = cls([p]), p.detach().clone()
    p.grad = torch.ones_like(p).to_sparse()
    message = f"{cls.__name__}: expected dense gradients, got torch.sparse_coo; call .to_dense()"
    with pytest.raises(TypeError, match="^" + re.escape(message)):
        optimizer.step()
    assert torch.equal(p, before)
    assert not optimizer.state


def test_a_scaler_unscales_and_skips_as_with_torch():
    runs = []
    for library in (optcore, torch.optim):
        of = params()
        optimizer = library.Adam(of, lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
        for factor in (1.0, float("inf"), 1.0, 1.0, 1.0):
            optimizer.zero_grad()
            scaler.scale((of[0] @ of[1]).sin().sum() * factor).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(of, 1.0)
            scaler.step(optimizer)
            scaler.update()
        runs.append((of, scaler.get_scale()))
    torch.testing.assert_close(*runs, rtol=1e-12, atol=1e-12)
    assert runs[0][0][0].isfinite().all()


OPTIONS = {
    "amsgrad": "use optcore.AMSGrad",
    "differentiable": "a class steps outside the graph: use the functional form, inplace=False",
    "capturable": "drop it: an accelerated step is captured where its counts are on the GPU",
    "foreach": "drop it: small tensors always go together",
    "fused": "drop it, or ask for use_accelerated_op=True",
    "decoupled_weight_decay": "use optcore.AdamW",
}


@pytest.mark.parametrize(("option", "hint"), OPTIONS.items())
def test_an_option_of_torch_says_what_to_use(option, hint):
    message = f"Adam: expected arguments (params, lr, .*), but got .*'{option}'; {hint}"
    with pytest.raises(TypeError, match=re.escape(message).replace(r"\.\*", ".*")):
        optcore.Adam(params(), **{option: True})


def test_a_differentiable_group_or_checkpoint_is_refused():
    message = "Adam: expected differentiable=False, got True, at group 0; a class steps outside"
    with pytest.raises(TypeError, match="^" + re.escape(message)):
        optcore.Adam([{"params": params(), "differentiable": True}])
    theirs = torch.optim.Adam(params(), differentiable=True)
    optimizer = optcore.Adam(params())
    with pytest.raises(TypeError, match=r"^Adam\.load_state_dict: expected differentiable=F"):
        optimizer.load_state_dict(theirs.state_dict())
