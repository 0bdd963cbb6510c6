# SPDX-License-Identifier: Apache-2.0
"""The rows of optimism, mixtures of averages, dual averaging and estimated learning rates."""

from __future__ import annotations

from typing import Any

from optcore.testing import reference
from optcore.testing._case import Case
from optcore.testing._case_rows import NO_OPTAX, inside_decay, rows


def _optax_noisy_sgd(optax: Any, lr: float, *, seed: int, **options: Any) -> Any:
    return optax.noisy_sgd(lr, key=seed, **options)


def _optax_optimistic_adam(optax: Any, lr: float, *, betas: Any, **options: Any) -> Any:
    return optax.optimistic_adam_v2(lr, b1=betas[0], b2=betas[1], **options)


def _optax_ademamix(optax: Any, lr: float, *, betas: Any, **options: Any) -> Any:
    names = zip(("b1", "b2", "b3"), betas, strict=True)
    return optax.contrib.ademamix(lr, **dict(names), **options)


def _optax_adopt(optax: Any, lr: float, *, weight_decay: float, betas: Any, **options: Any) -> Any:
    return optax.chain(
        optax.contrib.scale_by_adopt(*betas, **options),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(lr),
    )


def _optax_contrib(name: str) -> Any:
    def make(optax: Any, lr: float, **options: Any) -> Any:
        return getattr(optax.contrib, name)(lr, **options)

    return make


# one estimate for all parameters, which a formula of one tensor cannot know
_ESTIMATED = {"per_leaf": False, "static": ("estim_lr0",)}

MIXED: tuple[Case, ...] = (
    *rows(
        "adamaxw",
        {"reference": reference.adamaxw, "optax": inside_decay("adamaxw")},
        plain={"lr": 0.03, "betas": (0.4, 0.7), "eps": 0.02, "weight_decay": 0.1},
    ),
    *rows(
        "nadamw",
        {"reference": reference.nadamw, "optax": inside_decay("nadamw")},
        plain={"lr": 0.03, "betas": (0.7, 0.9), "eps": 0.02, "weight_decay": 0.1},
    ),
    *rows(
        "noisy_sgd",
        {"per_leaf": False},
        plain={"lr": 0.1, "eta": 0.4, "gamma": 0.5, "seed": 3, "maximize": True},
        still={
            "lr": 0.02,
            "eta": 0.0,
            "gamma": 0.5,
            "seed": 3,
            "case": {
                "static": ("eta",),
                "reference": reference.noisy_sgd,
                "optax": _optax_noisy_sgd,
                "differentiable": False,  # in the row above
            },
        },
    ),
    *rows(
        "optimistic_gradient_descent",
        {
            "reference": reference.optimistic_gradient_descent,
            "optax": inside_decay("optimistic_gradient_descent"),
            "also_covers": ("scale_by_optimistic_gradient",),
        },
        plain={"lr": 0.05, "alpha": 0.8, "beta": 0.6},
    ),
    *rows(
        "optimistic_adam",
        {"reference": reference.optimistic_adam, "optax": _optax_optimistic_adam},
        plain={"lr": 0.02, "betas": (0.6, 0.8), "eps": 1e-2, "alpha": 0.8, "beta": 0.6},
        adam={
            "lr": 0.02,
            "betas": (0.6, 0.8),
            "eps": 1e-2,
            "nesterov": False,
            "maximize": True,
            "case": {**NO_OPTAX, "differentiable": False},
        },
    ),
    *rows(
        "ademamix",
        {
            "reference": reference.ademamix,
            "optax": _optax_ademamix,
            "also_covers": ("scale_by_ademamix",),
        },
        plain={
            "lr": 0.02,
            "betas": (0.6, 0.7, 0.8),
            "eps": 1e-2,
            "weight_decay": 0.1,
            "alpha": 2.0,
            "eps_root": 1e-3,
        },
    ),
    *rows(
        "adopt",
        {"reference": reference.adopt, "also_covers": ("scale_by_adopt",)},
        plain={
            "lr": 0.03,
            "betas": (0.6, 0.7),
            "eps": 1e-2,
            "weight_decay": 0.1,
            "case": {"optax": _optax_adopt},
        },
        nesterov={
            "lr": 0.03,
            "betas": (0.6, 0.7),
            "eps": 1e-2,
            "weight_decay": 0.1,
            "nesterov": True,
            "use_clipping": False,
            "case": {"optax": _optax_adopt},
        },
    ),
    *rows(
        "madgrad",
        {
            "reference": reference.madgrad,
            "optax": _optax_contrib("madgrad"),
            "also_covers": ("scale_by_madgrad",),
        },
        plain={"lr": 0.05, "momentum": 0.6, "weight_decay": 0.1, "eps": 1e-2},
    ),
    *rows(
        "dadapt_adamw",
        {**_ESTIMATED, "optax": _optax_contrib("dadapt_adamw")},
        plain={
            "lr": 0.9,
            "betas": (0.6, 0.7),
            "eps": 1e-2,
            "weight_decay": 0.1,
            "estim_lr0": 0.01,
        },
    ),
    *rows(
        "prodigy",
        {**_ESTIMATED, "optax": _optax_contrib("prodigy")},
        plain={
            "lr": 0.5,
            "betas": (0.6, 0.7),
            "eps": 1e-1,
            "weight_decay": 0.1,
            "estim_lr0": 0.02,
            "estim_lr_coef": 0.5,
        },
        warmup={
            "lr": 0.5,
            "eps": 1e-1,
            "estim_lr0": 0.02,
            "beta3": 0.8,
            "safeguard_warmup": True,
        },
    ),
    *rows(
        "shampoo",
        {"reference": reference.shampoo, "also_covers": ("scale_by_shampoo",)},
        plain={"lr": 0.05, "weight_decay": 0.1, "eps": 0.1, "decay": 0.9, "momentum": 0.6},
        now_and_then={"lr": 0.05, "eps": 0.1, "update_interval": 2, "maximize": True},
    ),
    *rows(
        "soap",
        # its bases are constants to the derivative, which finite differences see move
        {
            "reference": reference.soap,
            "also_covers": ("scale_by_soap",),
            "differentiable": False,
        },
        plain={
            "lr": 0.02,
            "betas": (0.6, 0.7),
            "eps": 1e-2,
            "weight_decay": 0.1,
            "shampoo_beta": 0.8,
            "precondition_frequency": 2,
        },
    ),
)
