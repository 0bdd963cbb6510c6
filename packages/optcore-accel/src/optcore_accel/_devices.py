# SPDX-License-Identifier: Apache-2.0
"""The compiled modules: which of them are there, which run, and why not."""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from types import ModuleType
from typing import NamedTuple

import torch  # before the modules: they share its OpenMP runtime

_MODULES = {"cpu": "_cpu", "cuda": "_cuda"}


class DeviceStatus(NamedTuple):
    """What :func:`status` tells of one kind of device."""

    built: bool  # the module was compiled into this installation
    loaded: bool  # it could be imported
    available: bool  # a kernel would run
    reason: str | None  # why not
    detail: str | None  # the instruction set, or the number of GPUs


def status() -> dict[str, DeviceStatus]:
    """For each kind of device, whether kernels are built, loaded and would run, or why not.

    Example:
        >>> status()["cpu"].available
        True
    """
    return {kind: _status(kind) for kind in _MODULES}


def is_available(device: str | torch.device = "cpu") -> bool:
    """Whether a kernel for tensors on this device would run.

    Raises:
        RuntimeError: torch knows no such device.

    Example:
        >>> is_available("cpu")
        True
    """
    device = torch.device(device)
    found = _status(device.type) if device.type in _MODULES else None
    if found is None or not found.available:
        return False
    if device.type == "cpu":
        return True
    index = torch.cuda.current_device() if device.index is None else device.index
    return index < torch.cuda.device_count() and not _refusal(index)


def module_for(who: str, device: torch.device) -> ModuleType:
    """The module that serves a device.

    Raises:
        RuntimeError: No kernel runs there; it says why.
    """
    found = _status(device.type) if device.type in _MODULES else None
    if found is None:
        raise RuntimeError(
            f"{who}: expected tensors on cpu or cuda, got {device}; leave use_accelerated_op out"
        )
    if not found.available:
        raise RuntimeError(f"{who}: expected kernels for {device}, got none: {found.reason}")
    if device.type == "cuda" and (reason := _refusal(device.index or 0)):
        raise RuntimeError(f"{who}: expected kernels for {device}, got none: {reason}")
    return _load(device.type)


@cache
def _load(kind: str) -> ModuleType:
    return importlib.import_module(f"optcore_accel.{_MODULES[kind]}")


@cache
def _refusal(index: int) -> str:
    """Why a GPU does not run the kernels that were built (it is too old for them); or nothing."""
    return _load("cuda").refusal(index)


@cache
def _status(kind: str) -> DeviceStatus:
    name = _MODULES[kind]
    built = importlib.util.find_spec(f"optcore_accel.{name}") is not None
    if not built:
        reason = "not built; " + (
            "install a wheel with CUDA, or build from source where nvcc is"
            if kind == "cuda"
            else "reinstall optcore-accel"
        )
        return DeviceStatus(False, False, False, reason, None)
    try:
        module = _load(kind)
    except ImportError as error:
        return DeviceStatus(True, False, False, f"does not load: {error}", None)
    if kind == "cpu":
        return DeviceStatus(True, True, True, None, module.instruction_set())
    count, reason = module.device_count()
    if not count:
        return DeviceStatus(True, True, False, f"no GPU: {reason or 'none found'}", None)
    if not torch.cuda.is_available():
        return DeviceStatus(True, True, False, "this build of torch cannot use CUDA", None)
    if reason := _refusal(torch.cuda.current_device()):
        return DeviceStatus(True, True, False, reason, None)
    return DeviceStatus(True, True, True, None, f"{count} GPU{'s' if count > 1 else ''}")
