# SPDX-License-Identifier: Apache-2.0
"""The rows of projections, proximal operators, private aggregation and measurements."""

from __future__ import annotations

from typing import Any

import torch

import optcore
from optcore.testing._case import Case

_WHOLE = {"per_leaf": False}  # looks at all leaves, or counts steps of the whole


def _batched_update(
    updates: Any, state: Any, params: Any, *, inplace: bool, inner: optcore.GradientTransformation
) -> Any:
    def examples(grad: Any) -> Any:
        return torch.stack([grad, 0.5 * grad, -0.2 * grad.sin()])

    return inner.apply(optcore.map_tensors(examples, updates), state, params, inplace, {})


def _batched_init(params: Any, *, inner: optcore.GradientTransformation) -> Any:
    return inner.init(params)


def _private(**options: Any) -> optcore.GradientTransformation:
    """Makes three examples of each gradient."""
    inner = optcore.differentially_private_aggregate(**options)
    static = {"inner": inner}
    return optcore.GradientTransformation(_batched_init, _batched_update, static=static)


TOOLS: tuple[Case, ...] = (
    # --- ends of steps
    *(
        Case(
            f"keep_params_in-{name}",
            optcore.keep_params_in,
            {"projection": getattr(optcore, f"projection_{name.replace('-', '_')}"), "scale": 0.8},
            also_covers=(f"projection_{name.replace('-', '_')}",),
            limit_at_zero=name != "l2-sphere",
            **_WHOLE,
        )
        for name in ("simplex", "l1-ball", "l1-sphere", "l2-ball", "l2-sphere", "linf-sphere")
    ),
    *(
        Case(
            f"keep_params_in-{name}",
            optcore.keep_params_in,
            {"projection": getattr(optcore, f"projection_{name.replace('-', '_')}"), "scale": 0.8},
            also_covers=(f"projection_{name.replace('-', '_')}",),
        )
        for name in ("linf-ball", "hypercube")
    ),
    Case(
        "keep_params_in-non-negative",
        optcore.keep_params_in,
        {"projection": optcore.projection_non_negative},
        also_covers=("projection_non_negative",),
    ),
    Case(
        "keep_params_in-box",
        optcore.keep_params_in,
        {"projection": optcore.projection_box, "lower": -0.4, "upper": 0.6},
        also_covers=("projection_box",),
    ),
    *(
        Case(
            f"proximal_step-{prox.__name__}",
            optcore.proximal_step,
            {"prox": prox, "strength": 0.5, "scaling": 0.3},
            also_covers=(prox.__name__,),
        )
        for prox in (optcore.prox_l1, optcore.prox_non_negative_l1)
    ),
    Case(
        "proximal_step-elastic-net",
        optcore.proximal_step,
        {"prox": optcore.prox_elastic_net, "strength": 0.7, "ridge": 0.4, "scaling": 0.3},
        also_covers=("prox_elastic_net",),
    ),
    Case(
        "proximal_step-group-lasso",
        optcore.proximal_step,
        {"prox": optcore.prox_group_lasso, "strength": 0.7, "scaling": 0.3, "axis": -1},
        also_covers=("prox_group_lasso",),
    ),
    Case(
        "differentially_private_aggregate",
        _private,
        {"l2_norm_clip": 0.45, "noise_multiplier": 0.3, "seed": 3},
        also_covers=("differentially_private_aggregate",),
        **_WHOLE,
    ),
    # --- measurements
    Case("snapshot", optcore.snapshot, {"measure_name": "norm", "measure": optcore.global_norm}),
    Case(
        "monitor",
        optcore.monitor,
        {
            "measures": {
                "norm": optcore.global_norm,
                "smooth": optcore.measure_with_ema(optcore.global_norm, 0.7),
            }
        },
        also_covers=("measure_with_ema",),
    ),
)
