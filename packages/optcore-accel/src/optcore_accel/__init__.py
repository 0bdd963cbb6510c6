# SPDX-License-Identifier: Apache-2.0
"""Fused, exactly differentiable optimizer kernels for optcore, on CPU and CUDA.

Nothing here needs to be called: ``use_accelerated_op=True`` of optcore's optimizers finds the
kernels through the entry point ``optcore.kernels``.

>>> import torch
>>> import optcore
>>> import optcore_accel
>>> optcore_accel.is_available("cpu")
True
>>> w = torch.nn.Parameter(torch.tensor([2.0]))
>>> optimizer = optcore.Adam([w], lr=0.5, use_accelerated_op=True)
>>> (w**2).sum().backward()
>>> optimizer.step()
>>> w.detach()
tensor([1.5000])
"""

from importlib.metadata import version as _version

from optcore_accel._devices import DeviceStatus as DeviceStatus
from optcore_accel._devices import is_available as is_available
from optcore_accel._devices import status as status
from optcore_accel._kernels import KERNELS as KERNELS

__version__ = _version("optcore-accel")
