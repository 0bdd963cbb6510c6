# SPDX-License-Identifier: Apache-2.0
"""Classes whose learning rate changes before every step, as a scheduler leaves it."""

import inspect

import pytest
import torch

import optcore

OPTIONS = {"sgd": {"momentum": 0.9}}
ROWS = [
    row
    for row in optcore.OPTIMIZERS.values()
    if "use_accelerated_op" in inspect.signature(row.factory).parameters
]
rows = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def parameters(device="cpu"):
    torch.manual_seed(0)
    made = [torch.randn(3, dtype=torch.float64) for _ in range(2)]
    return [torch.nn.Parameter(tensor.to(device)) for tensor in made]


def optimizer(row, params, use_accelerated_op):
    options = {**OPTIONS.get(row.name, {}), "lr": 0.1, "weight_decay": 0.1}
    cls = getattr(optcore, row.class_name)
    return cls(params, **options, use_accelerated_op=use_accelerated_op)


def set_gradients(params):
    for param in params:
        param.grad = torch.randn_like(param)


@rows
def test_steps_are_those_of_the_formulas(row, device):
    ours, theirs = parameters(device), parameters(device)
    fused, plain = optimizer(row, ours, True), optimizer(row, theirs, False)
    for each in (fused, plain):
        each.scheduler = torch.optim.lr_scheduler.ExponentialLR(each, gamma=0.9)
    for _ in range(10):
        set_gradients(ours)
        for mine, its in zip(ours, theirs, strict=True):
            its.grad = mine.grad.clone()
        for each in (fused, plain):
            each.step()
            each.scheduler.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@rows
def test_a_rate_out_of_range_is_refused_after_good_steps(row):
    params = parameters()
    fused = optimizer(row, params, True)
    for _ in range(3):
        set_gradients(params)
        fused.step()
    before = [p.detach().clone() for p in params]
    fused.param_groups[0]["lr"] = -0.1
    with pytest.raises(ValueError, match=rf"^{row.name}: expected lr >= 0"):
        fused.step()
    torch.testing.assert_close([p.detach() for p in params], before, rtol=0, atol=0)


@rows
def test_only_the_last_link_of_a_chain_has_the_rate(row):
    first, *_ = row.defaults
    options = {**OPTIONS.get(row.name, {}), "weight_decay": 0.1}
    a, b = (row.factory(lr=lr, **options)._static["transformations"] for lr in (0.1, 0.2))
    assert first == "lr"
    assert a[:-1] == b[:-1]
    assert (a[-1], b[-1]) == tuple(map(optcore.scale_by_learning_rate, (0.1, 0.2)))
