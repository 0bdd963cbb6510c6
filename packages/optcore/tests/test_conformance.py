# SPDX-License-Identifier: Apache-2.0
"""Every transformation keeps what the table in ``optcore.testing`` promises: rows times checks."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import optcore
from optcore import INFORMED_OPTIMIZERS as INFORMED
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


# What is no transformation, or wants a function to evaluate -> the test file with its own table.
ELSEWHERE = {
    "test_linesearch.py": "scale_by_backtracking_linesearch scale_by_zoom_linesearch",
    "test_linesearch_errors.py": "value_and_grad_from_state",
    "test_schedules.py": """constant_schedule cosine_decay_schedule cosine_onecycle_schedule
        exponential_decay inverse_sqrt_schedule join_schedules linear_onecycle_schedule
        linear_schedule piecewise_constant_schedule piecewise_interpolate_schedule
        polynomial_schedule sgdr_schedule warmup_constant_schedule warmup_cosine_decay_schedule
        warmup_exponential_decay_schedule""",
    "test_tree_math.py": """acc_add acc_matmul acc_mul tree_add tree_add_scalar_mul
        tree_flatten_as_tuple tree_matmul tree_mul tree_neg tree_pos tree_scalar_mul tree_sub
        tree_sub_scalar_mul tree_truediv tree_vdot_real tree_wait""",
    "test_simple_transforms.py": "nan_to_num_hook zero_nan_hook",
    "test_clipping.py": "global_norm unitwise_norm",
    "test_accumulation.py": "has_updated skip_large_updates skip_not_finite",
    "test_schedule_free.py": "schedule_free_eval_params schedule_free_train_params",
    "test_modes.py": "apply_updates out_of_place",
    "test_kernels.py": "kernels_status",
    "test_masking.py": "map_tensors",
    "test_torch_state.py": "from_torch",
    "test_around.py": "SAM ReduceOnPlateau",
    "test_lbfgs_class.py": "LBFGS",
    "test_optim.py": "Optimizer",
    "test_informed.py": "FuncOptimizer",
}
# for the packages above, whose tests exercise them; here their examples run
BY_EXAMPLE = {"check_loss", "derive_class", "describe", "ScheduleFreeOptimizer"}


def tools():
    """Public functions and optimizer classes, by their own names."""
    values = (getattr(optcore, name) for name in optcore.__all__)
    return {
        value.__name__
        for value in values
        if inspect.isfunction(value)
        or (inspect.isclass(value) and issubclass(value, torch.optim.Optimizer))
        or value is optcore.FuncOptimizer
    }


def test_no_public_function_or_optimizer_class_is_left_out():
    covered = frozenset().union(*(case.covers for case in testing.CASES.values()))
    classes = {r.class_name for r in (*optcore.OPTIMIZERS.values(), *INFORMED.values())}
    elsewhere = {name for names in ELSEWHERE.values() for name in names.split()}
    assert tools() - covered - classes == elsewhere | BY_EXAMPLE
    assert factories().keys() <= covered | elsewhere


@pytest.mark.parametrize("file", ELSEWHERE)
def test_what_has_no_row_is_in_a_test_file(file):
    text = (Path(__file__).parent / file).read_text(encoding="utf-8")
    missing = [name for name in ELSEWHERE[file].split() if not re.search(rf"\b{name}\b", text)]
    assert missing == []


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
    # see test_torch_equality; older versions of torch have no Muon
    assert shared - compared == {"muon"} & {name.lower() for name in vars(torch.optim)}


def hyperparameters(factory):
    parameters = inspect.signature(factory).parameters.values()
    return {p.name for p in parameters if "Hyperparam" in str(p.annotation)}


@pytest.mark.parametrize("name", sorted(optcore.OPTIMIZERS))
def test_every_hyperparameter_of_an_optimizer_is_in_a_row(name):
    factory = optcore.OPTIMIZERS[name].factory
    rows = [case for case in testing.CASES.values() if case.factory is factory]
    varied = {option for case in rows for option in case.options if option not in case.static}
    assert hyperparameters(factory) - varied == set()


EVERY = {**optcore.OPTIMIZERS, **INFORMED}


@pytest.mark.parametrize("name", EVERY)
def test_an_optimizer_refuses_arguments_in_its_own_name(name):
    factory = EVERY[name].factory
    for option in hyperparameters(factory):
        with pytest.raises(TypeError, match=rf"^{name}: expected {option}"):
            factory(**{option: "x"})


def test_importing_it_needs_no_test_library():
    code = (
        "import sys, optcore; assert 'optcore.testing' not in sys.modules; import optcore.testing; "
        "print([m for m in ('pytest', 'numpy.testing', 'jax', 'optax') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip().replace("'numpy.testing'", "") == "[]"
