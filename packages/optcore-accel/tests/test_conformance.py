# SPDX-License-Identifier: Apache-2.0
"""Kernels keep what the table in ``optcore.testing`` promises: rows times checks."""

import dataclasses
import inspect
import itertools
from functools import partial

import pytest
import torch

import optcore
import optcore_accel
from optcore import testing


def accelerated(case):
    factory = partial(case.factory, use_accelerated_op=True)
    return dataclasses.replace(case, factory=factory)


# AMSGrad's kernel has torch.optim's rule only.
REFUSED = {"amsgrad-corrected"}
OFFERED = {
    name: accelerated(case)
    for name, case in testing.CASES.items()
    if "use_accelerated_op" in inspect.signature(case.factory).parameters
}
CASES = {name: case for name, case in OFFERED.items() if name not in REFUSED}
# What may come out otherwise on another device; the other checks look at Python only.
ON_EACH_DEVICE = {
    testing.check_inplace_equals_pure,
    testing.check_hyperparameters,
    testing.check_dtypes,
    testing.check_edge_trees,
    testing.check_vmap,
    testing.check_gradients,
    testing.check_zero_gradient,
    testing.check_reference,
}
OWED = [
    pytest.param(check, case, device, id=f"{name}-{check.__name__}-{device}")
    for device, (name, case) in itertools.product(["cpu", "cuda"], CASES.items())
    for check in testing.checks_for(case)
    if device == "cpu" or check in ON_EACH_DEVICE
]


@pytest.mark.parametrize(("check", "case", "device"), OWED, indirect=["device"])
def test_every_row(check, case, device):
    torch.set_default_dtype(torch.float32)  # a table in float64 must not depend on it
    check(dataclasses.replace(case, device=device))


def test_every_kernel_has_a_row_and_every_row_a_kernel():
    names = {case.factory.func.__name__ for case in CASES.values()}
    optimizers = {"sgd", "adam", "adamw", "amsgrad", "rmsprop", "adagrad", "lion"}
    assert names == optimizers | set(optcore_accel.KERNELS) - {"step"}
    assert set(optcore.kernels_status().ops) == set(optcore_accel.KERNELS)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_has_no_kernel_is_refused(name):
    with pytest.raises(ValueError, match=r"kernel"):
        OFFERED[name].build()
