# SPDX-License-Identifier: Apache-2.0
"""No step reads a value back from a device: on the meta device that would raise."""

import pytest
import torch

import optcore

UP = optcore.chain(optcore.normalize(), optcore.sgd(0.1))
OTHERS = {
    "sam": optcore.sam(optcore.adam(), UP),
    "reduce_on_plateau": optcore.reduce_on_plateau(),
    "simplex": optcore.keep_params_in(optcore.projection_simplex),
    "l1_ball": optcore.keep_params_in(optcore.projection_l1_ball, scale=0.5),
    "linf_sphere": optcore.keep_params_in(optcore.projection_linf_sphere, scale=0.5),
    "elastic_net": optcore.proximal_step(optcore.prox_elastic_net, strength=0.1),
    "monitor": optcore.monitor({"norm": optcore.measure_with_ema(optcore.global_norm, 0.9)}),
}
ROWS = {**optcore.OPTIMIZERS, **optcore.INFORMED_OPTIMIZERS}
EVERY = {**{name: row.factory() for name, row in ROWS.items()}, **OTHERS}


def tree():
    return {"w": torch.ones(3, 4, device="meta"), "v": torch.ones(4, 3, device="meta")}


def objective(params):
    return sum(p.cos().sum() for p in params.values())


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("transformation", EVERY.values(), ids=EVERY.keys())
def test_updates_stay_on_their_device(transformation, inplace):
    params = tree()
    state = transformation.init(params)
    extra = {"value": torch.ones((), device="meta"), "obj_fn": objective}
    for _ in range(3):
        updates, state = transformation.update(tree(), state, params, inplace=inplace, **extra)
    assert {u.device.type for u in updates.values()} == {"meta"}


def test_private_aggregation_too():
    tx = optcore.differentially_private_aggregate(1.0, 0.1, seed=0)
    updates, _ = tx.update({k: torch.stack([p, p]) for k, p in tree().items()}, tx.init(None))
    assert {u.device.type for u in updates.values()} == {"meta"}
