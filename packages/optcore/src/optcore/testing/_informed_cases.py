# SPDX-License-Identifier: Apache-2.0
"""The rows of transformations that ask for more than gradients, around one that tells them."""

from __future__ import annotations

from typing import Any

import torch

import optcore
from optcore.testing._case import Case
from optcore.testing._trajectory import field


def _objective(params: Any) -> Any:
    leaves, _ = optcore.tree_flatten_as_tuple(params)
    return 2.0 + sum(0.1 * (2 - leaf.double().cos()).square().sum() for leaf in leaves)


def _gradient(params: Any, step: int) -> Any:
    return optcore.map_tensors(lambda p: field(p, step + 1), params)


def _told_init(params: Any, *, inner: optcore.GradientTransformation) -> Any:
    return inner.init(params)


def _told_update(
    updates: Any, state: Any, params: Any, *, inplace: bool, inner: optcore.GradientTransformation
) -> Any:
    value = torch.as_tensor(_objective(params), dtype=torch.float64)
    extra = {"value": value, "obj_fn": _objective, "grad_fn": _gradient}
    return inner.apply(updates, state, params, inplace, extra)


def _told(inner: optcore.GradientTransformation) -> optcore.GradientTransformation:
    """A transformation that is told of a smooth function of the parameters."""
    return optcore.GradientTransformation(
        _told_init, _told_update, static={"inner": inner}, name="told", needs_params=True
    )


INFORMED: tuple[Case, ...] = (
    Case(
        "polyak_sgd",
        lambda **options: _told(optcore.polyak_sgd(**options)),
        {"lr": 0.7, "max_lr": 9.0, "f_min": 0.3, "eps": 0.2},
        also_covers=("polyak_sgd", "scale_by_polyak"),
        per_leaf=False,
    ),
    Case(
        "polyak_sgd-bounded",
        lambda **options: _told(optcore.polyak_sgd(**options)),
        {"lr": 0.7, "max_lr": 0.05, "variant": "sps+"},
        per_leaf=False,
    ),
    Case(
        "sophia",
        lambda **options: _told(optcore.sophia(update_interval=2, **options)),
        {
            "lr": 0.05,
            "betas": (0.6, 0.7),
            "eps": 0.05,
            "weight_decay": 0.1,
            "gamma": 0.4,
            "clip_threshold": 3.0,
        },
        also_covers=("sophia", "scale_by_sophia", "hutchinson_estimator_diag_hessian"),
        per_leaf=False,
    ),
    Case(
        "sam",
        lambda lr, rho: optcore.sam(optcore.adam(lr=lr, eps=1e-2), optcore.sgd(lr=rho)),
        {"lr": 0.1, "rho": 0.2},
        also_covers=("sam",),
        per_leaf=False,
    ),
    Case(
        "sam-opaque",
        lambda lr, rho: _told(
            optcore.sam(
                optcore.sgd(lr=lr),
                optcore.chain(optcore.normalize(), optcore.sgd(lr=rho)),
                sync_period=3,
                reset_state=False,
                opaque_mode=True,
            )
        ),
        {"lr": 0.1, "rho": 0.2},
        limit_at_zero=False,
        per_leaf=False,
        none_leaves=False,  # it is told gradients of all parameters
    ),
    Case(
        "reduce_on_plateau",
        lambda: _told(optcore.reduce_on_plateau(0.5, 1, rtol=0.3, cooldown=1)),
        also_covers=("reduce_on_plateau",),
        per_leaf=False,
    ),
)
