# SPDX-License-Identifier: Apache-2.0
"""Classes with a value per parameter, and what they refuse before anything has changed."""

import gc
import re
import weakref

import pytest
import torch

import optcore

TREES = {
    "lr": (lambda p: optcore.Adam(p, lr={0: 0.1, 1: 0.2}), optcore.adam(lr=[0.1, 0.2])),
    "tensor": (
        lambda p: optcore.SGD(
            p, lr={0: torch.tensor([0.1, 0.3], dtype=torch.float64), 1: 0.2}, momentum=0.9
        ),
        optcore.sgd(lr=[torch.tensor([0.1, 0.3], dtype=torch.float64), 0.2], momentum=0.9),
    ),
    "decay": (
        lambda p: optcore.AdamW(p, weight_decay={0: 0.1, 1: 0.0}),
        optcore.adamw(weight_decay=[0.1, 0.0]),
    ),
    "mask": (
        lambda p: optcore.AdamW(p, mask={0: True, 1: False}, weight_decay=0.5),
        optcore.adamw(mask=[True, False], weight_decay=0.5),
    ),
    "masked": (
        lambda p: optcore.Optimizer(p, optcore.masked(optcore.adam(), {0: True, 1: False})),
        optcore.masked(optcore.adam(), [True, False]),
    ),
    "partition": (
        lambda p: optcore.Optimizer(
            p, optcore.partition({"a": optcore.adam(), "b": optcore.sgd()}, {0: "a", 1: "b"})
        ),
        optcore.partition({"a": optcore.adam(), "b": optcore.sgd()}, ["a", "b"]),
    ),
    "freeze": (
        lambda p: optcore.Optimizer(
            p, optcore.chain(optcore.adam(), optcore.freeze({0: False, 1: True}))
        ),
        optcore.chain(optcore.adam(), optcore.freeze([False, True])),
    ),
    "injected": (
        lambda p: optcore.Optimizer(
            p, optcore.inject_hyperparams(optcore.adam)(lr={0: 0.1, 1: 0.2})
        ),
        optcore.adam(lr=[0.1, 0.2]),
    ),
}


def two():
    return [torch.nn.Parameter(torch.tensor([1.0, 2.0])), torch.nn.Parameter(torch.tensor([3.0]))]


@pytest.mark.parametrize("absent", [None, (0, 0), (1, 0), (2, 1)])
@pytest.mark.parametrize(("make", "tx"), TREES.values(), ids=TREES.keys())
def test_trees_go_by_place_in_the_group(make, tx, absent):
    of = two()
    optimizer = make(of)
    params = [p.detach().clone() for p in of]
    state = tx.init(params)
    for step in range(4):
        grads = [None if (step, i) == absent else p.detach().cos() for i, p in enumerate(of)]
        for p, grad in zip(of, grads, strict=True):
            p.grad = grad
        optimizer.step()
        grads = [None if (step, i) == absent else p.cos() for i, p in enumerate(params)]
        updates, state = tx.update(grads, state, params, inplace=False)
        params = optcore.apply_updates(params, updates, inplace=False)
        torch.testing.assert_close([p.detach() for p in of], params, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: optcore.Adam(p, lr=[0.1, 0.2]), "Adam: scale_by_learning_rate: lr is not"),
        (lambda p: optcore.Adam(p, lr={0: 0.1, 7: 0.2}), "Adam: scale_by_learning_rate: lr is not"),
        (
            lambda p: optcore.Optimizer(p, optcore.masked(optcore.adam(), [True, False])),
            "Optimizer: masked: mask is not",
        ),
    ],
)
def test_a_tree_that_fits_no_group_is_refused_at_once(make, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)) as caught:
        make(two())
    assert str(caught.value).endswith("by its place in the group: {0: ..., 1: ...}")


def test_a_refused_group_leaves_the_optimizer_as_it_was():
    optimizer = optcore.Adam(two(), lr={0: 0.1, 1: 0.2})
    with pytest.raises(ValueError, match="at group 1; give a value per parameter"):
        optimizer.add_param_group({"params": two()[:1]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq"])
def test_a_buffer_of_another_shape_is_refused_before_anything_moves(name):
    of = two()
    optimizer = optcore.Adam([{"params": of[:1]}, {"params": of[1:]}])
    for p in of:
        p.grad = torch.ones_like(p)
    optimizer.step()
    optimizer.state[of[1]][name] = torch.zeros(4)
    before = [p.detach().clone() for p in of]
    message = f"Adam: expected {name!r} as f64[1], got f64[4], at parameter 0 of group 1; load"
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        optimizer.step()
    assert [*map(torch.equal, before, of)] == [True, True]


def test_a_parameter_that_changed_its_shape_is_refused_before_anything_moves():
    of = two()
    optimizer = optcore.Adam([{"params": of[:1]}, {"params": of[1:]}])
    for p in of:
        p.grad = torch.ones_like(p)
    optimizer.step()
    of[1].grad = None
    of[1].data = torch.zeros(3)
    of[1].grad = torch.ones(3)
    before = of[0].detach().clone()
    with pytest.raises(ValueError, match=r"^Adam: expected 'exp_avg' as "):
        optimizer.step()
    assert torch.equal(before, of[0])


def test_nothing_is_kept_of_groups_that_are_gone():
    of = two()
    optimizer = optcore.Adam([{"params": of[:1]}, {"params": of[1:]}])
    for p in of:
        p.grad = torch.ones_like(p)
    optimizer.step()
    optimizer.step()
    buffer = weakref.ref(optimizer.state.pop(of[1])["exp_avg"])
    optimizer.param_groups.pop()
    optimizer.step()
    gc.collect()
    assert buffer() is None


def test_hooks_say_what_is_loaded():
    of = two()
    donor = optcore.ScheduleFreeSGD(of, lr=0.1)
    for p in of:
        p.grad = torch.ones_like(p)
    donor.step()
    saved = donor.state_dict()
    optimizer = optcore.ScheduleFreeSGD(of, lr=0.1)
    optimizer.register_load_state_dict_pre_hook(lambda _, given: given["inner"])
    optimizer.load_state_dict({"inner": saved, "param_groups": []})
    assert torch.equal(optimizer.state[of[0]]["z"], donor.state[of[0]]["z"])
    adam = optcore.Adam(of)
    plain = adam.state_dict()
    flagged = {**plain, "param_groups": [{**g, "amsgrad": True} for g in plain["param_groups"]]}
    adam.register_load_state_dict_pre_hook(lambda _, given: plain)
    adam.load_state_dict(flagged)


def test_schedule_free_goes_on_in_functional_form_from_training_only():
    of = two()
    optimizer = optcore.ScheduleFreeAdamW(of)
    optimizer.eval()
    with pytest.raises(RuntimeError, match=r"^ScheduleFreeAdamW\.functional: expected parameters"):
        optimizer.functional(of)
