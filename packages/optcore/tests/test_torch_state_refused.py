# SPDX-License-Identifier: Apache-2.0
"""What of torch.optim would change the trajectory, and is refused."""

import re

import pytest
import torch

import optcore


def params():
    generator = torch.Generator().manual_seed(1)
    shapes = [(3, 2), (2, 4)]
    return [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in shapes]


class Changed(torch.optim.Adam):
    pass


def with_options(optimizer, index=0, **options):
    optimizer.param_groups[index].update(options)
    return optimizer


def two_groups():
    a, b = params()
    return [{"params": [a]}, {"params": [b]}]


def complex_param():
    return [torch.nn.Parameter(torch.ones(2, dtype=torch.complex128))]


REFUSED = {
    "no optimizer": (
        lambda: optcore.from_torch(3),
        TypeError,
        "from_torch: expected an optimizer of torch.optim that optcore has too, got builtins.int",
    ),
    "subclass": (
        lambda: optcore.from_torch(Changed(params())),
        TypeError,
        "from_torch: expected an optimizer of torch.optim that optcore has too, got ",
    ),
    "sparse adam": (
        lambda: optcore.from_torch(torch.optim.SparseAdam(params())),
        TypeError,
        "from_torch: expected an optimizer of torch.optim that optcore has too, got torch.optim.",
    ),
    "ours": (
        lambda: optcore.from_torch(optcore.Adam(params())),
        TypeError,
        "from_torch: expected an optimizer of torch.optim that optcore has too, got optcore.optim.",
    ),
    "another class": (
        lambda: optcore.SGD.from_torch(torch.optim.Adam(params())),
        TypeError,
        "SGD.from_torch: expected an optimizer whose steps are those of optcore.SGD, got "
        "torch.optim.Adam with those of optcore.Adam; call optcore.Adam.from_torch or",
    ),
    "flag is a class": (
        lambda: optcore.Adam.from_torch(torch.optim.Adam(params(), amsgrad=True)),
        TypeError,
        "Adam.from_torch: expected an optimizer whose steps are those of optcore.Adam, got "
        "torch.optim.Adam with those of optcore.AMSGrad; call optcore.AMSGrad.from_torch or",
    ),
    "class without counterpart": (
        lambda: optcore.Lion.from_torch(torch.optim.SGD(params())),
        TypeError,
        "Lion.from_torch: expected an optimizer whose steps are those of optcore.Lion, got ",
    ),
    "mixed flags": (
        lambda: optcore.from_torch(with_options(torch.optim.Adam(two_groups()), 1, amsgrad=True)),
        ValueError,
        "from_torch: expected the same amsgrad in every group, got [False, True]; make an",
    ),
    "differentiable": (
        lambda: optcore.from_torch(torch.optim.Adam(params(), differentiable=True)),
        TypeError,
        "Adam.from_torch: expected differentiable=False, got True, at group 0; a class steps",
    ),
    "complex": (
        lambda: optcore.from_torch(torch.optim.Adam(complex_param())),
        TypeError,
        "Adam.from_torch: expected real floating parameters, got c128[2], at parameter 0 of group",
    ),
    "out of our range": (
        lambda: optcore.from_torch(torch.optim.RMSprop(params(), alpha=1.0)),
        ValueError,
        "rmsprop: expected alpha in [0, 1), got 1.0",
    ),
    "unknown to torch": (
        lambda: optcore.Lion(params()).to_torch(),
        TypeError,
        "Lion.to_torch: expected an optimizer that torch.optim has, got Lion",
    ),
    "option of ours": (
        lambda: optcore.Adam(params(), eps_root=0.1).to_torch(),
        ValueError,
        "Adam.to_torch: expected eps_root=0.0, which is all torch.optim.Adam does, got 0.1, at",
    ),
    "mask": (
        lambda: optcore.AdamW(params(), mask=dict).to_torch(),
        ValueError,
        "AdamW.to_torch: expected mask=None, which is all torch.optim.AdamW does, got type, at",
    ),
    "schedule": (
        lambda: optcore.SGD(params(), lr=optcore.linear_schedule(0.1, 0.0, 9)).to_torch(),
        ValueError,
        "SGD.to_torch: expected lr as a number, got a schedule, at group 0; set the number it has",
    ),
    "tree": (
        lambda: optcore.SGD(params(), lr={0: 0.1, 1: 0.2}).to_torch(),
        ValueError,
        "SGD.to_torch: expected lr as a number, got dict, at group 0; set the number it has now",
    ),
    "vector": (
        lambda: optcore.SGD(params(), lr=torch.ones(2)).to_torch(),
        ValueError,
        "SGD.to_torch: expected lr as a number, got f64[2], at group 0; set the number it has now",
    ),
    "mixed decay": (
        lambda: with_options(
            optcore.AMSGrad(two_groups()), 1, decoupled_weight_decay=True
        ).to_torch(),
        ValueError,
        "AMSGrad.to_torch: expected the same decoupled_weight_decay in every group, got [False, ",
    ),
    "checkpoint of amsgrad": (
        lambda: optcore.Adam(params()).load_state_dict(
            torch.optim.Adam(params(), amsgrad=True).state_dict()
        ),
        ValueError,
        "Adam.load_state_dict: expected amsgrad=False, got True, at group 0; that is optcore.AMSG",
    ),
    "checkpoint of adamw": (
        lambda: optcore.Adam(params()).load_state_dict(torch.optim.AdamW(params()).state_dict()),
        ValueError,
        "Adam.load_state_dict: expected decoupled_weight_decay=False, got True, at group 0; that",
    ),
    "group with amsgrad": (
        lambda: optcore.AdamW([{"params": params(), "amsgrad": True}]),
        ValueError,
        "AdamW: expected amsgrad=False, got True, at group 0; that is optcore.AMSGrad",
    ),
}


if "decoupled_weight_decay" not in torch.optim.AdamW(params()).defaults:
    del REFUSED["checkpoint of adamw"]  # torch 2.6 writes the same for Adam and AdamW


@pytest.mark.parametrize(
    ("convert", "error", "message"), REFUSED.values(), ids=[k.replace(" ", "-") for k in REFUSED]
)
def test_what_would_change_the_trajectory_is_refused(convert, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        convert()
