# SPDX-License-Identifier: Apache-2.0
"""Every test runs seeded, in float64, on one thread; those that take a device run on each kind."""

import pytest
import torch

import optcore_accel


@pytest.fixture(autouse=True)
def _float64_and_seeded():
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)


def _device(kind):
    status = optcore_accel.status()[kind]
    if not status.available:
        pytest.skip(f"{kind}: {status.reason}")
    return torch.device(kind)


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    return _device(request.param)


@pytest.fixture
def cuda():
    return _device("cuda")
