# SPDX-License-Identifier: Apache-2.0
"""The rows of Adam and its relatives: odd hyperparameters, and who else computes the same."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from optcore.testing import reference
from optcore.testing._case import Case
from optcore.testing._case_rows import NO_OPTAX, NO_TORCH, inside_decay, rows, with_decay

_ADAM = {"torch": torch.optim.Adam, "reference": reference.adam, "optax": with_decay("adam")}
_ADAMW = {"torch": torch.optim.AdamW, "reference": reference.adamw, "optax": inside_decay("adamw")}
_ADAMAX = {
    "torch": torch.optim.Adamax,
    "reference": reference.adamax,
    "optax": with_decay("adamax"),
}
_AMSGRAD = {"torch": partial(torch.optim.Adam, amsgrad=True), "reference": reference.amsgrad}
_NADAM = {"torch": torch.optim.NAdam, "reference": reference.nadam}
_RADAM = {"torch": torch.optim.RAdam, "reference": reference.radam}


def _optax_yogi(optax: Any, lr: float, *, betas: Any, eps: float) -> Any:
    return optax.yogi(lr, *betas, eps)


def _optax_amsgrad(optax: Any, lr: float, *, correct_max: bool, **rest: Any) -> Any:
    return with_decay("amsgrad")(optax, lr, **rest)


def _optax_radam(optax: Any, lr: float, *, correct_eps: bool, **rest: Any) -> Any:
    return with_decay("radam")(optax, lr, **rest)


def _optax_nadam(optax: Any, lr: float, *, constant_momentum: bool, **rest: Any) -> Any:
    return with_decay("nadam")(optax, lr, **rest)


def _only_matrices(params: Any) -> dict[str, bool]:
    return {name: param.ndim > 1 for name, param in params.items()}


MOMENTS: tuple[Case, ...] = (
    *rows(
        "adam",
        _ADAM,
        plain={"lr": 0.07, "betas": (0.3, 0.6), "eps": 0.01, "weight_decay": 0.2},
        small_eps={"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-8},
        no_memory={"lr": 0.01, "betas": (0.0, 0.0), "eps": 1e-3},
        maximize={"lr": 0.01, "weight_decay": 0.1, "maximize": True, "case": NO_OPTAX},
        eps_root={"lr": 0.05, "eps": 1e-3, "eps_root": 1e-2, "case": NO_TORCH},
    ),
    *rows(
        "adamw",
        _ADAMW,
        plain={"lr": 0.07, "betas": (0.3, 0.6), "eps": 0.01, "weight_decay": 0.4},
        maximize={"lr": 0.01, "weight_decay": 0.3, "maximize": True, "case": NO_OPTAX},
        eps_root={
            "lr": 0.05,
            "weight_decay": 0.1,
            "eps": 1e-3,
            "eps_root": 1e-2,
            "case": NO_TORCH,
        },
        mask={
            "lr": 0.05,
            "weight_decay": 0.3,
            "eps": 1e-2,
            "mask": _only_matrices,
            "case": {"torch": None, "optax": None, "reference": None, "any_tree": False},
        },
    ),
    *rows(
        "adamax",
        _ADAMAX,
        plain={"lr": 0.03, "betas": (0.4, 0.7), "eps": 0.02, "weight_decay": 0.1},
        maximize={"lr": 0.03, "eps": 0.02, "maximize": True, "case": NO_OPTAX},
    ),
    *rows(
        "amsgrad",
        _AMSGRAD,
        plain={"lr": 0.05, "betas": (0.4, 0.7), "eps": 0.01, "weight_decay": 0.1},
        maximize={"lr": 0.05, "eps": 0.01, "maximize": True},
        corrected={
            "lr": 0.05,
            "betas": (0.5, 0.7),
            "eps": 0.01,
            "eps_root": 1e-3,
            "correct_max": True,
            "case": {"torch": None, "optax": _optax_amsgrad},
        },
    ),
    *rows(
        "nadam",
        _NADAM,
        plain={
            "lr": 0.03,
            "betas": (0.4, 0.9),
            "eps": 0.02,
            "weight_decay": 0.1,
            "momentum_decay": 0.1,
        },
        decoupled={
            "lr": 0.03,
            "weight_decay": 0.1,
            "eps": 1e-3,
            "decoupled_weight_decay": True,
            "maximize": True,
        },
        constant={
            "lr": 0.03,
            "betas": (0.7, 0.9),
            "eps": 0.02,
            "weight_decay": 0.1,
            "constant_momentum": True,
            "case": {"torch": None, "optax": _optax_nadam},
        },
    ),
    *rows(
        "radam",
        _RADAM,
        plain={"lr": 0.03, "betas": (0.4, 0.9), "eps": 0.02, "weight_decay": 0.1},
        decoupled={
            "lr": 0.03,
            "betas": (0.6, 0.99),
            "eps": 0.02,
            "weight_decay": 0.1,
            "decoupled_weight_decay": True,
            "maximize": True,
        },
        corrected={
            "lr": 0.05,
            "betas": (0.5, 0.9),
            "eps": 0.01,
            "correct_eps": True,
            "case": {"torch": None, "optax": _optax_radam},
        },
    ),
    *rows(
        "adabelief",
        {"reference": reference.adabelief, "optax": with_decay("adabelief")},
        plain={"lr": 0.05, "betas": (0.5, 0.7), "eps": 1e-3, "eps_root": 1e-2},
        decay={"lr": 0.05, "eps": 1e-3, "weight_decay": 0.2},
        maximize={"lr": 0.02, "eps": 1e-2, "maximize": True, "case": NO_OPTAX},
    ),
    *rows(
        "yogi",
        {"reference": reference.yogi},
        plain={"lr": 0.05, "betas": (0.5, 0.7), "eps": 1e-2, "case": {"optax": _optax_yogi}},
        decay={"lr": 0.05, "weight_decay": 0.2, "maximize": True},
        start={
            "lr": 0.05,
            "eps": 1e-2,
            "initial_accumulator_value": 0.1,
            "case": {"static": ("initial_accumulator_value",)},
        },
    ),
    *rows(
        "adan",
        {"reference": reference.adan, "optax": inside_decay("adan")},
        plain={"lr": 0.05, "betas": (0.6, 0.7, 0.8), "eps": 1e-3, "eps_root": 1e-2},
        decay={"lr": 0.02, "eps": 1e-3, "weight_decay": 0.2},
        maximize={"lr": 0.02, "eps": 1e-3, "maximize": True, "case": NO_OPTAX},
    ),
    *rows(
        "novograd",
        {"reference": reference.novograd, "optax": inside_decay("novograd")},
        plain={"lr": 0.05, "betas": (0.6, 0.7), "eps": 1e-3, "weight_decay": 0.1},
        eps_root={"lr": 0.05, "betas": (0.9, 0.25), "eps": 1e-3, "eps_root": 0.1},
        maximize={"lr": 0.02, "eps": 1e-3, "maximize": True, "case": NO_OPTAX},
    ),
)
