# SPDX-License-Identifier: Apache-2.0
"""Clipping per example and private aggregation: optax's numbers, the noise, errors by name."""

import re

import numpy as np
import pytest
import torch

import optcore


def examples():
    generator = torch.Generator().manual_seed(2)
    shapes = {"w": (5, 3, 2), "b": (5, 4), "gain": (5,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def by_hand(grads, bound):
    total = {name: torch.zeros(leaf.shape[1:]) for name, leaf in grads.items()}
    for i in range(5):
        norm = torch.sqrt(sum(leaf[i].square().sum() for leaf in grads.values()))
        for name, leaf in grads.items():
            total[name] += leaf[i] * min(1.0, bound / norm.item())
    return total


def test_each_example_is_bounded_before_the_sum():
    clipped, count = optcore.per_example_global_norm_clip(examples(), 3.0)
    torch.testing.assert_close(clipped, by_hand(examples(), 3.0))
    assert 0 < count < 5


@pytest.mark.parametrize("uniform", [True, False])
def test_functions_equal_optax(uniform):
    optax = pytest.importorskip("optax", reason="the oracle of this test")
    jax = pytest.importorskip("jax", reason="the oracle of this test")
    with jax.enable_x64(True):
        grads = {k: jax.numpy.asarray(v.numpy()) for k, v in examples().items()}
        expected = (
            optax.per_example_global_norm_clip(grads, 3.0),
            optax.per_example_layer_norm_clip(grads, 3.0, uniform),
        )
        expected = jax.tree.map(np.array, expected)
    found = (
        optcore.per_example_global_norm_clip(examples(), 3.0),
        optcore.per_example_layer_norm_clip(examples(), 3.0, uniform),
    )
    found = jax.tree.map(lambda t: t.numpy(), found)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found, expected)


def test_aggregation_without_noise_is_the_mean_of_the_bounded_examples():
    tx = optcore.differentially_private_aggregate(3.0, 0.0, seed=0)
    updates, _ = tx.update(examples(), tx.init(None))
    expected = {name: leaf / 5 for name, leaf in by_hand(examples(), 3.0).items()}
    torch.testing.assert_close(updates, expected)


def test_noise_has_the_deviation_of_the_bound_and_differs_from_step_to_step():
    tx = optcore.differentially_private_aggregate(2.0, 0.5, seed=1)
    grads, state = [torch.zeros(4, 20_000)], tx.init(None)
    (first,), state = tx.update(grads, state)
    (second,), _ = tx.update(grads, state)
    assert first.std().item() == pytest.approx(2.0 * 0.5 / 4, rel=0.02)
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.02
    (again,), _ = tx.update(grads, tx.init(None))
    assert torch.equal(again, first)


def test_missing_gradients_stay_missing():
    grads = {**examples(), "b": None}
    clipped, _ = optcore.per_example_global_norm_clip(grads, 3.0)
    sums, counts = optcore.per_example_layer_norm_clip(grads, 3.0)
    assert clipped["b"] is sums["b"] is counts["b"] is None


ERRORS = [
    (
        lambda: optcore.per_example_global_norm_clip([torch.ones(())], 1.0),
        "per_example_global_norm_clip: expected gradients (batch, ...), got f64[], at [0]; take",
    ),
    (
        lambda: optcore.per_example_layer_norm_clip([torch.ones(3, 2), torch.ones(4)], 1.0),
        "per_example_layer_norm_clip: expected gradients (3, ...), got f64[4], at [1]; take the",
    ),
    (
        lambda: optcore.differentially_private_aggregate({"w": 1.0}, 0.1, 0),
        "differentially_private_aggregate: expected l2_norm_clip as one value for all parameters",
    ),
    (
        lambda: optcore.differentially_private_aggregate(1.0, 0.1, 0.5),
        "differentially_private_aggregate: expected seed as an int or i64[], got float",
    ),
    (
        lambda: optcore.per_example_global_norm_clip([torch.ones(3, 2)], -1.0),
        "per_example_global_norm_clip: expected l2_norm_clip >= 0, got -1.0",
    ),
    (
        lambda: optcore.per_example_layer_norm_clip([torch.ones(3, 2)], torch.ones(2)),
        "per_example_layer_norm_clip: expected global_l2_norm_clip as one value for all parameters",
    ),
    (
        lambda: optcore.per_example_layer_norm_clip([torch.ones(3, 2)], lambda count: 1.0),
        "per_example_layer_norm_clip: expected global_l2_norm_clip as a number or tensor, got func",
    ),
]


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_errors_name_what_was_expected(call, message):
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}"):
        call()
