# SPDX-License-Identifier: Apache-2.0
"""Measurements stand in the state; the updates pass as they are."""

import re

import pytest
import torch

import optcore


def largest(updates):
    return {"most": optcore.tree_flatten_as_tuple(updates)[0][0].abs().amax()}


def sizes():
    return [torch.tensor([size, 0.0]) for size in (1.0, 4.0, 2.0)]


def test_a_monitor_keeps_the_last_measurements_and_averages():
    tx = optcore.chain(
        optcore.monitor(
            {
                "norm": optcore.global_norm,
                "smooth": optcore.measure_with_ema(optcore.global_norm, 0.5),
                "biased": optcore.measure_with_ema(optcore.global_norm, 0.5, debias=False),
                "tree": largest,
            }
        ),
        optcore.sgd(lr=0.1),
    )
    state = tx.init([torch.ones(2)])
    assert {name: float(v) for name, v in state[0].measurements.items() if name != "tree"} == {
        "norm": 0.0,
        "smooth": 0.0,
        "biased": 0.0,
    }
    for grad in sizes():
        updates, state = tx.update([grad], state)
        torch.testing.assert_close(updates[0], -0.1 * grad)
    found = state[0].measurements
    biased = ((0.5 * 0.5 * 1.0) + 0.5 * 4.0) * 0.5 + 0.5 * 2.0
    assert found["norm"].item() == 2.0
    assert found["biased"].item() == biased
    assert found["smooth"].item() == pytest.approx(biased / (1 - 0.5**3))
    assert found["tree"]["most"].item() == 2.0


def test_an_average_equals_that_of_optax():
    optax = pytest.importorskip("optax", reason="the oracle of this test")
    jax = pytest.importorskip("jax", reason="the oracle of this test")
    with jax.enable_x64(True):
        theirs = optax.monitor({"n": optax.measure_with_ema(optax.tree.norm, 0.7)})
        other = theirs.init([jax.numpy.ones(2)])
        for grad in sizes():
            _, other = theirs.update([jax.numpy.asarray(grad.numpy())], other)
        expected = float(other.measurements["n"])
    tx = optcore.monitor({"n": optcore.measure_with_ema(optcore.global_norm, 0.7)})
    state = tx.init([torch.ones(2)])
    for grad in sizes():
        _, state = tx.update([grad], state)
    assert state.measurements["n"].item() == pytest.approx(expected, rel=1e-12)


def test_a_class_keeps_measurements_too():
    w = torch.nn.Parameter(torch.ones(2))
    tx = optcore.chain(optcore.snapshot("norm", optcore.global_norm), optcore.sgd(lr=0.1))
    optimizer = optcore.Optimizer([w], tx)
    w.grad = torch.tensor([3.0, 4.0])
    optimizer.step()
    assert optimizer.param_groups[0]["shared_state"]["0.measurement.norm"].item() == 5.0


ERRORS = [
    (
        lambda: optcore.snapshot(3, optcore.global_norm),
        "snapshot: expected measure_name as a string, got int",
    ),
    (
        lambda: optcore.snapshot("norm", 3),
        "snapshot: expected measure as a function of the updates, got int",
    ),
    (lambda: optcore.monitor([1]), "monitor: expected measures as a dict, got list"),
    (
        lambda: optcore.monitor({"norm": 2}),
        "monitor: expected measures['norm'] as a function of the updates, got int",
    ),
    (
        lambda: optcore.measure_with_ema("norm", 0.5),
        "measure_with_ema: expected measure as a function of the updates, got str",
    ),
]


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_errors_name_what_was_expected(call, message):
    with pytest.raises(TypeError, match=f"^{re.escape(message)}"):
        call()
