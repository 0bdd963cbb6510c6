# SPDX-License-Identifier: Apache-2.0
"""Means of what the chunks gave, at the precision that they have."""

import pytest
import torch

import optdist


@pytest.mark.parametrize("shape", [(), (3,), (3, 4)], ids=["scalar", "vector", "matrix"])
def test_a_weighted_mean_is_not_rounded_by_autocast(shape):
    generator = torch.Generator().manual_seed(0)
    results = torch.randn(4, *shape, dtype=torch.float32, generator=generator)
    weights = [1, 2, 3, 4]
    with torch.autocast("cpu", torch.bfloat16):
        found = optdist.mean_reducer(list(results), weights)
    wanted = sum(w * result for w, result in zip(weights, results.double(), strict=True)) / 10
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-6)
    assert found.dtype == torch.float32
