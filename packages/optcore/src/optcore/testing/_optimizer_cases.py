# SPDX-License-Identifier: Apache-2.0
"""The optimizers' rows: odd hyperparameters, and who else computes the same.

The defaults of each optimizer are tried against torch besides; what stands here differs from them
and from each other, so that every hyperparameter counts.
"""

from __future__ import annotations

from typing import Any

import torch

from optcore.testing import reference
from optcore.testing._case import Case
from optcore.testing._case_rows import NO_OPTAX, NO_TORCH, inside_decay, rows, with_decay
from optcore.testing._moment_cases import MOMENTS

_SGD = {"torch": torch.optim.SGD, "reference": reference.sgd, "optax": with_decay("sgd")}
_RMSPROP = {"torch": torch.optim.RMSprop, "reference": reference.rmsprop}
_ADAGRAD = {"torch": torch.optim.Adagrad, "reference": reference.adagrad}
_ADADELTA = {
    "torch": torch.optim.Adadelta,
    "reference": reference.adadelta,
    "optax": with_decay("adadelta"),
}
# Only the first size of a step is its rate, so that this is no schedule.
_RPROP = {"torch": torch.optim.Rprop, "reference": reference.rprop}
_ADAFACTOR = {"torch": torch.optim.Adafactor, "reference": reference.adafactor}
_MUON = {
    "reference": reference.muon,
    "static": ("ns_coefficients", "eps"),
    "matrices": True,
}
_EXACT = {"ns_dtype": None}


def _optax_rmsprop(optax: Any, lr: float, *, alpha: float, **rest: Any) -> Any:
    return optax.rmsprop(lr, alpha, eps_in_sqrt=False, **rest)


def _optax_signum(optax: Any, lr: float, *, momentum: float) -> Any:
    return optax.signum(lr, momentum)


def _optax_schedule_free_sgd(optax: Any, lr: float, **options: Any) -> Any:
    return optax.contrib.schedule_free_sgd(lr, **options)


def _optax_schedule_free_adamw(
    optax: Any, lr: float, *, betas: Any = (0.9, 0.999), **options: Any
) -> Any:
    return optax.contrib.schedule_free_adamw(lr, b1=betas[0], b2=betas[1], **options)


OPTIMIZERS: tuple[Case, ...] = (
    *rows(
        "sgd",
        _SGD,
        plain={"lr": 0.1},
        decay={"lr": 0.1, "weight_decay": 0.3},
        momentum={"lr": 0.05, "momentum": 0.9},
        dampening={"lr": 0.05, "momentum": 0.8, "dampening": 0.4, "case": NO_OPTAX},
        nesterov={"lr": 0.05, "momentum": 0.7, "nesterov": True, "weight_decay": 0.1},
        maximize={
            "lr": 0.01,
            "momentum": 0.5,
            "dampening": -0.2,
            "weight_decay": 0.2,
            "maximize": True,
            "case": NO_OPTAX,
        },
    ),
    *MOMENTS,
    *rows(
        "rmsprop",
        _RMSPROP,
        plain={
            "lr": 0.02,
            "alpha": 0.6,
            "eps": 0.01,
            "momentum": 0.4,
            "case": {"optax": _optax_rmsprop},
        },
        centered={
            "lr": 0.01,
            "alpha": 0.8,
            "eps": 0.01,
            "centered": True,
            "case": {"optax": _optax_rmsprop},
        },
        decay={"lr": 0.02, "alpha": 0.6, "eps": 0.01, "weight_decay": 0.1, "maximize": True},
        nesterov={
            "lr": 0.02,
            "alpha": 0.7,
            "eps": 0.01,
            "momentum": 0.4,
            "nesterov": True,
            "initial_scale": 0.3,
            "case": {"torch": None, "optax": _optax_rmsprop, "static": ("initial_scale",)},
        },
    ),
    *rows(
        "adagrad",
        _ADAGRAD,
        plain={"lr": 0.1, "lr_decay": 0.2, "weight_decay": 0.1, "eps": 1e-3},
        start={
            "lr": 0.1,
            "initial_accumulator_value": 0.3,
            "case": {"static": ("initial_accumulator_value",)},
        },
        maximize={"lr": 0.1, "eps": 0.01, "maximize": True},
    ),
    *rows(
        "adadelta",
        _ADADELTA,
        plain={"lr": 0.5, "rho": 0.6, "eps": 1e-3, "weight_decay": 0.1},
        maximize={"lr": 0.5, "eps": 1e-3, "maximize": True, "case": NO_OPTAX},
    ),
    *rows(
        "rprop",
        _RPROP,
        plain={"lr": 0.02, "case": {"schedules": False}},
        factors={
            "lr": 0.3,
            "etas": (0.3, 1.7),
            "step_sizes": (1e-4, 0.5),
            "maximize": True,
            "case": {"static": ("lr",)},
        },
        bounds={
            "lr": 0.3,
            "etas": (0.1, 2.5),
            "step_sizes": (0.05, 0.4),
            "case": {"schedules": False},
        },
    ),
    *rows(
        "asgd",
        {"torch": torch.optim.ASGD, "reference": reference.asgd},
        plain={"lr": 0.2, "lambd": 0.1, "alpha": 0.6, "t0": 10.0, "weight_decay": 0.1},
        maximize={"lr": 0.1, "lambd": 0.3, "t0": 1.0, "maximize": True},
    ),
    *rows(
        "adafactor",
        _ADAFACTOR,
        plain={
            "lr": 0.2,
            "beta2_decay": -0.5,
            "eps": (1e-3, 0.1),
            "d": 1.5,
            "weight_decay": 0.1,
        },
        maximize={"lr": 0.05, "maximize": True},
        floors={"lr": 0.2, "eps": (1.3, 2.5), "d": 1.1},
        clipped={"lr": 0.2, "eps": (0.01, 0.1), "d": 0.3, "case": NO_TORCH},
    ),
    *rows(
        "muon",
        _MUON,
        plain={"lr": 0.1, "momentum": 0.7, "weight_decay": 0.2, **_EXACT},
        heavy={"lr": 0.1, "momentum": 0.7, "nesterov": False, "maximize": True, **_EXACT},
        matched={"lr": 0.1, "adjust_lr_fn": "match_rms_adamw", **_EXACT},
    ),
    *rows(
        "lamb",
        {"reference": reference.lamb, "optax": inside_decay("lamb"), "limit_at_zero": False},
        plain={
            "lr": 0.05,
            "betas": (0.7, 0.6),
            "eps": 1e-3,
            "eps_root": 1e-2,
            "weight_decay": 0.1,
        },
        maximize={"lr": 0.02, "eps": 1e-3, "maximize": True, "case": NO_OPTAX},
    ),
    *rows(
        "lars",
        {"reference": reference.lars, "optax": inside_decay("lars"), "limit_at_zero": False},
        plain={
            "lr": 0.5,
            "momentum": 0.5,
            "nesterov": True,
            "weight_decay": 0.1,
            "trust_coefficient": 0.1,
            "eps": 0.01,
        },
        maximize={"lr": 0.5, "trust_coefficient": 0.1, "maximize": True, "case": NO_OPTAX},
    ),
    *rows(
        "lion",
        {"reference": reference.lion, "optax": inside_decay("lion")},
        plain={"lr": 0.01, "betas": (0.5, 0.6), "weight_decay": 0.3},
        maximize={"lr": 0.01, "maximize": True, "case": NO_OPTAX},
    ),
    *rows(
        "sign_sgd",
        {"reference": reference.sign_sgd, "optax": inside_decay("sign_sgd")},
        plain={"lr": 0.01},
        maximize={"lr": 0.01, "maximize": True, "case": NO_OPTAX},
    ),
    *rows(
        "signum",
        {"reference": reference.signum},
        plain={"lr": 0.01, "momentum": 0.6, "case": {"optax": _optax_signum}},
        maximize={"lr": 0.01, "maximize": True},
    ),
    *rows(
        "sm3",
        {"reference": reference.sm3, "optax": inside_decay("sm3")},
        plain={"lr": 0.05, "momentum": 0.6},
        maximize={"lr": 0.02, "maximize": True, "case": NO_OPTAX},
    ),
    *rows(
        "fromage",
        {"reference": reference.fromage, "optax": inside_decay("fromage")},
        plain={"lr": 0.03, "min_norm": 0.2},
        maximize={"lr": 0.1, "maximize": True, "case": {**NO_OPTAX, "limit_at_zero": False}},
    ),
    *rows(
        "schedule_free_sgd",
        {"reference": reference.schedule_free_sgd, "optax": _optax_schedule_free_sgd},
        plain={"lr": 0.05, "b1": 0.6, "weight_decay": 0.1, "weight_lr_power": 0.5},
        warmup={"lr": 0.0625, "warmup_steps": 4, "case": {"schedules": False, "per_leaf": False}},
        maximize={"lr": 0.02, "maximize": True, "case": NO_OPTAX},
    ),
    *rows(
        "schedule_free_adamw",
        {"reference": reference.schedule_free_adamw, "optax": _optax_schedule_free_adamw},
        plain={
            "lr": 0.01,  # at larger ones 50 steps blow rounding up to 1e-7
            "betas": (0.7, 0.9),
            "eps": 1e-3,
            "weight_decay": 0.1,
            "weight_lr_power": 1.0,
        },
        warmup={
            "lr": 0.0625,
            "eps": 1e-3,
            "warmup_steps": 4,
            "case": {"schedules": False, "per_leaf": False},
        },
        maximize={"lr": 0.02, "eps": 1e-3, "maximize": True, "case": NO_OPTAX},
    ),
)
