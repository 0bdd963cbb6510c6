# SPDX-License-Identifier: Apache-2.0
"""Every test runs seeded, in float64, with no recording left by another."""

import pytest
import torch

import optviz


@pytest.fixture(autouse=True)
def _float64_and_seeded():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    with optviz.record():
        pass
    yield
    torch.set_default_dtype(before)
