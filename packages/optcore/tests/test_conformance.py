# SPDX-License-Identifier: Apache-2.0
"""Every transformation keeps what the table in ``optcore.testing`` promises: rows times checks."""

import inspect
import subprocess
import sys

import pytest
import torch

import optcore
from optcore import testing

OWED = [
    pytest.param(check, case, id=f"{name}-{check.__name__}")
    for name, case in testing.CASES.items()
    for check in testing.checks_for(case)
]


@pytest.mark.parametrize(("check", "case"), OWED)
def test_every_row(check, case):
    torch.set_default_dtype(torch.float32)  # a table in float64 must not depend on it
    check(case)


def factories():
    """Public functions that make a transformation, by their own names."""
    return {
        value.__name__: value
        for value in (getattr(optcore, name) for name in dir(optcore))
        if inspect.isfunction(value)
        and inspect.signature(value).return_annotation in ("GradientTransformation", "MultiSteps")
    }


# They want a function to evaluate: see test_linesearch.
LINE_SEARCHES = {"scale_by_backtracking_linesearch", "scale_by_zoom_linesearch"}


def test_no_transformation_is_left_out():
    covered = frozenset().union(*(case.covers for case in testing.CASES.values()))
    assert set(factories()) - covered - LINE_SEARCHES == set()


def test_every_optimizer_has_rows_with_a_formula():
    # what couples the leaves has no formula of one tensor: optax says what it computes
    formulas = {
        c.factory
        for c in testing.CASES.values()
        if c.reference is not None or (c.optax is not None and not c.per_leaf)
    }
    assert {row.factory for row in optcore.OPTIMIZERS.values()} - formulas == set()


def test_every_optimizer_that_torch_has_is_compared_with_it():
    compared = {c.factory.__name__ for c in testing.CASES.values() if c.torch is not None}
    shared = {
        row.name for row in optcore.OPTIMIZERS.values() if hasattr(torch.optim, row.class_name)
    }
    assert shared - compared == {"muon"}  # see test_torch_equality


def hyperparameters(factory):
    parameters = inspect.signature(factory).parameters.values()
    return {p.name for p in parameters if "Hyperparam" in str(p.annotation)}


@pytest.mark.parametrize("name", sorted(optcore.OPTIMIZERS))
def test_every_hyperparameter_of_an_optimizer_is_in_a_row(name):
    factory = optcore.OPTIMIZERS[name].factory
    rows = [case for case in testing.CASES.values() if case.factory is factory]
    varied = {option for case in rows for option in case.options if option not in case.static}
    assert hyperparameters(factory) - varied == set()


def test_importing_it_needs_no_test_library():
    code = (
        "import sys, optcore; assert 'optcore.testing' not in sys.modules; import optcore.testing; "
        "print([m for m in ('pytest', 'numpy.testing', 'jax', 'optax') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip().replace("'numpy.testing'", "") == "[]"
