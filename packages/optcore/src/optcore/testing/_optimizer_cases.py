# SPDX-License-Identifier: Apache-2.0
"""The optimizers' rows: odd hyperparameters, and who else computes the same.

The defaults of each optimizer are tried against torch besides; what stands here differs from them
and from each other, so that every hyperparameter counts.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from optcore import _optimizers as _table
from optcore.testing import reference
from optcore.testing._case import Case

_factories = {name: row.factory for name, row in _table.OPTIMIZERS.items()}


def _rows(name: str, shared: dict[str, Any], **cases: dict[str, Any]) -> list[Case]:
    """One case per keyword: its options, and under ``"case"`` what differs from ``shared``."""
    rows = []
    for variant, options in cases.items():
        own = {**shared, **options.pop("case", {})}
        title = name if variant == "plain" else f"{name}-{variant.replace('_', '-')}"
        rows.append(Case(title, _factories[name], options, **own))
    return rows


_NO_OPTAX = {"optax": None}
_NO_TORCH = {"torch": None}


def _with_decay(name: str, **fixed: Any) -> Any:
    """The optimizer of optax, behind its own weight decay where the decay is an L2 penalty."""

    def make(
        optax: Any, lr: float, *, betas: Any = (), weight_decay: float = 0.0, **rest: Any
    ) -> Any:
        return optax.chain(
            optax.add_decayed_weights(weight_decay),
            getattr(optax, name)(lr, *betas, **{**rest, **fixed}),
        )

    return make


def _inside_decay(name: str) -> Any:
    """The optimizer of optax, which has weight decay itself."""

    def make(optax: Any, lr: float, *, betas: Any = (), **rest: Any) -> Any:
        module = optax if hasattr(optax, name) else optax.contrib
        return getattr(module, name)(lr, *betas, **rest)

    return make


_SGD = {"torch": torch.optim.SGD, "reference": reference.sgd, "optax": _with_decay("sgd")}
_ADAM = {"torch": torch.optim.Adam, "reference": reference.adam, "optax": _with_decay("adam")}
_ADAMW = {"torch": torch.optim.AdamW, "reference": reference.adamw, "optax": _inside_decay("adamw")}
_ADAMAX = {
    "torch": torch.optim.Adamax,
    "reference": reference.adamax,
    "optax": _with_decay("adamax"),
}
_AMSGRAD = {"torch": partial(torch.optim.Adam, amsgrad=True), "reference": reference.amsgrad}
_NADAM = {"torch": torch.optim.NAdam, "reference": reference.nadam}
_RADAM = {"torch": torch.optim.RAdam, "reference": reference.radam}
_RMSPROP = {"torch": torch.optim.RMSprop, "reference": reference.rmsprop}
_ADAGRAD = {"torch": torch.optim.Adagrad, "reference": reference.adagrad}
_ADADELTA = {
    "torch": torch.optim.Adadelta,
    "reference": reference.adadelta,
    "optax": _with_decay("adadelta"),
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


def _optax_yogi(optax: Any, lr: float, *, betas: Any, eps: float) -> Any:
    return optax.yogi(lr, *betas, eps)


def _optax_rmsprop(optax: Any, lr: float, *, alpha: float, **rest: Any) -> Any:
    return optax.rmsprop(lr, alpha, eps_in_sqrt=False, **rest)


def _optax_amsgrad(optax: Any, lr: float, *, correct_max: bool, **rest: Any) -> Any:
    return _with_decay("amsgrad")(optax, lr, **rest)


def _optax_radam(optax: Any, lr: float, *, correct_eps: bool, **rest: Any) -> Any:
    return _with_decay("radam")(optax, lr, **rest)


def _optax_nadam(optax: Any, lr: float, *, constant_momentum: bool, **rest: Any) -> Any:
    return _with_decay("nadam")(optax, lr, **rest)


def _optax_signum(optax: Any, lr: float, *, momentum: float) -> Any:
    return optax.signum(lr, momentum)


def _optax_schedule_free_sgd(optax: Any, lr: float, **options: Any) -> Any:
    return optax.contrib.schedule_free_sgd(lr, **options)


def _optax_schedule_free_adamw(
    optax: Any, lr: float, *, betas: Any = (0.9, 0.999), **options: Any
) -> Any:
    return optax.contrib.schedule_free_adamw(lr, b1=betas[0], b2=betas[1], **options)


def _only_matrices(params: Any) -> dict[str, bool]:
    return {name: param.ndim > 1 for name, param in params.items()}


OPTIMIZERS: tuple[Case, ...] = (
    *_rows(
        "sgd",
        _SGD,
        plain={"lr": 0.1},
        decay={"lr": 0.1, "weight_decay": 0.3},
        momentum={"lr": 0.05, "momentum": 0.9},
        dampening={"lr": 0.05, "momentum": 0.8, "dampening": 0.4, "case": _NO_OPTAX},
        nesterov={"lr": 0.05, "momentum": 0.7, "nesterov": True, "weight_decay": 0.1},
        maximize={
            "lr": 0.01,
            "momentum": 0.5,
            "dampening": -0.2,
            "weight_decay": 0.2,
            "maximize": True,
            "case": _NO_OPTAX,
        },
    ),
    *_rows(
        "adam",
        _ADAM,
        plain={"lr": 0.07, "betas": (0.3, 0.6), "eps": 0.01, "weight_decay": 0.2},
        small_eps={"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-8},
        no_memory={"lr": 0.01, "betas": (0.0, 0.0), "eps": 1e-3},
        maximize={"lr": 0.01, "weight_decay": 0.1, "maximize": True, "case": _NO_OPTAX},
        eps_root={"lr": 0.05, "eps": 1e-3, "eps_root": 1e-2, "case": _NO_TORCH},
    ),
    *_rows(
        "adamw",
        _ADAMW,
        plain={"lr": 0.07, "betas": (0.3, 0.6), "eps": 0.01, "weight_decay": 0.4},
        maximize={"lr": 0.01, "weight_decay": 0.3, "maximize": True, "case": _NO_OPTAX},
        eps_root={
            "lr": 0.05,
            "weight_decay": 0.1,
            "eps": 1e-3,
            "eps_root": 1e-2,
            "case": _NO_TORCH,
        },
        mask={
            "lr": 0.05,
            "weight_decay": 0.3,
            "eps": 1e-2,
            "mask": _only_matrices,
            "case": {"torch": None, "optax": None, "reference": None, "any_tree": False},
        },
    ),
    *_rows(
        "adamax",
        _ADAMAX,
        plain={"lr": 0.03, "betas": (0.4, 0.7), "eps": 0.02, "weight_decay": 0.1},
        maximize={"lr": 0.03, "eps": 0.02, "maximize": True, "case": _NO_OPTAX},
    ),
    *_rows(
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
    *_rows(
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
    *_rows(
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
    *_rows(
        "adabelief",
        {"reference": reference.adabelief, "optax": _with_decay("adabelief")},
        plain={"lr": 0.05, "betas": (0.5, 0.7), "eps": 1e-3, "eps_root": 1e-2},
        decay={"lr": 0.05, "eps": 1e-3, "weight_decay": 0.2},
        maximize={"lr": 0.02, "eps": 1e-2, "maximize": True, "case": _NO_OPTAX},
    ),
    *_rows(
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
    *_rows(
        "adan",
        {"reference": reference.adan, "optax": _inside_decay("adan")},
        plain={"lr": 0.05, "betas": (0.6, 0.7, 0.8), "eps": 1e-3, "eps_root": 1e-2},
        decay={"lr": 0.02, "eps": 1e-3, "weight_decay": 0.2},
        maximize={"lr": 0.02, "eps": 1e-3, "maximize": True, "case": _NO_OPTAX},
    ),
    *_rows(
        "novograd",
        {"reference": reference.novograd, "optax": _inside_decay("novograd")},
        plain={"lr": 0.05, "betas": (0.6, 0.7), "eps": 1e-3, "weight_decay": 0.1},
        eps_root={"lr": 0.05, "betas": (0.9, 0.25), "eps": 1e-3, "eps_root": 0.1},
        maximize={"lr": 0.02, "eps": 1e-3, "maximize": True, "case": _NO_OPTAX},
    ),
    *_rows(
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
    *_rows(
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
    *_rows(
        "adadelta",
        _ADADELTA,
        plain={"lr": 0.5, "rho": 0.6, "eps": 1e-3, "weight_decay": 0.1},
        maximize={"lr": 0.5, "eps": 1e-3, "maximize": True, "case": _NO_OPTAX},
    ),
    *_rows(
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
    *_rows(
        "asgd",
        {"torch": torch.optim.ASGD, "reference": reference.asgd},
        plain={"lr": 0.2, "lambd": 0.1, "alpha": 0.6, "t0": 10.0, "weight_decay": 0.1},
        maximize={"lr": 0.1, "lambd": 0.3, "t0": 1.0, "maximize": True},
    ),
    *_rows(
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
        clipped={"lr": 0.2, "eps": (0.01, 0.1), "d": 0.3, "case": _NO_TORCH},
    ),
    *_rows(
        "muon",
        _MUON,
        plain={"lr": 0.1, "momentum": 0.7, "weight_decay": 0.2, **_EXACT},
        heavy={"lr": 0.1, "momentum": 0.7, "nesterov": False, "maximize": True, **_EXACT},
        matched={"lr": 0.1, "adjust_lr_fn": "match_rms_adamw", **_EXACT},
    ),
    *_rows(
        "lamb",
        {"reference": reference.lamb, "optax": _inside_decay("lamb"), "limit_at_zero": False},
        plain={
            "lr": 0.05,
            "betas": (0.7, 0.6),
            "eps": 1e-3,
            "eps_root": 1e-2,
            "weight_decay": 0.1,
        },
        maximize={"lr": 0.02, "eps": 1e-3, "maximize": True, "case": _NO_OPTAX},
    ),
    *_rows(
        "lars",
        {"reference": reference.lars, "optax": _inside_decay("lars"), "limit_at_zero": False},
        plain={
            "lr": 0.5,
            "momentum": 0.5,
            "nesterov": True,
            "weight_decay": 0.1,
            "trust_coefficient": 0.1,
            "eps": 0.01,
        },
        maximize={"lr": 0.5, "trust_coefficient": 0.1, "maximize": True, "case": _NO_OPTAX},
    ),
    *_rows(
        "lion",
        {"reference": reference.lion, "optax": _inside_decay("lion")},
        plain={"lr": 0.01, "betas": (0.5, 0.6), "weight_decay": 0.3},
        maximize={"lr": 0.01, "maximize": True, "case": _NO_OPTAX},
    ),
    *_rows(
        "sign_sgd",
        {"reference": reference.sign_sgd, "optax": _inside_decay("sign_sgd")},
        plain={"lr": 0.01},
        maximize={"lr": 0.01, "maximize": True, "case": _NO_OPTAX},
    ),
    *_rows(
        "signum",
        {"reference": reference.signum},
        plain={"lr": 0.01, "momentum": 0.6, "case": {"optax": _optax_signum}},
        maximize={"lr": 0.01, "maximize": True},
    ),
    *_rows(
        "sm3",
        {"reference": reference.sm3, "optax": _inside_decay("sm3")},
        plain={"lr": 0.05, "momentum": 0.6},
        maximize={"lr": 0.02, "maximize": True, "case": _NO_OPTAX},
    ),
    *_rows(
        "fromage",
        {"reference": reference.fromage, "optax": _inside_decay("fromage")},
        plain={"lr": 0.03, "min_norm": 0.2},
        maximize={"lr": 0.1, "maximize": True, "case": {**_NO_OPTAX, "limit_at_zero": False}},
    ),
    *_rows(
        "schedule_free_sgd",
        {"reference": reference.schedule_free_sgd, "optax": _optax_schedule_free_sgd},
        plain={"lr": 0.05, "b1": 0.6, "weight_decay": 0.1, "weight_lr_power": 0.5},
        warmup={"lr": 0.0625, "warmup_steps": 4, "case": {"schedules": False, "per_leaf": False}},
        maximize={"lr": 0.02, "maximize": True, "case": _NO_OPTAX},
    ),
    *_rows(
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
        maximize={"lr": 0.02, "eps": 1e-3, "maximize": True, "case": _NO_OPTAX},
    ),
)
