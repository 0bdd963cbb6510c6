# SPDX-License-Identifier: Apache-2.0
"""Timing several functions in turns, so that what disturbs one disturbs all; memory's speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

import optcore_accel

SAMPLE = 0.02  # seconds that one sample takes at least
COPIED = 1 << 30  # bytes: many times a GPU's cache


class Times(NamedTuple):
    """Seconds per call, an entry per round.

    Attributes:
        own: What counts: CPU time of all threads; on a GPU the time between two of its events,
            its waiting for the CPU included.
        beside: Wall time; with a GPU the CPU time of the calls, which do not wait for it.
    """

    own: list[float]
    beside: list[float]


def interleaved(
    functions: dict[str, Callable[[], Any]], rounds: int, device: torch.device
) -> dict[str, Times]:
    """Call everyone in turns, ``rounds`` times over."""
    seconds = on_gpu if device.type == "cuda" else on_cpu
    repeats = {}
    for name, function in functions.items():
        seconds(function, 2)  # warm up: compilers, allocators, clocks
        begin = time.perf_counter()
        seconds(function, 2)
        repeats[name] = max(1, round(SAMPLE / max((time.perf_counter() - begin) / 2, 1e-6)))
    taken = {name: Times([], []) for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            function()  # brings into the caches what the others drove out
            own, beside = seconds(function, repeats[name])
            taken[name].own.append(own)
            taken[name].beside.append(beside)
    return taken


def on_cpu(function: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """CPU and wall time of a call."""
    begin = time.process_time(), time.perf_counter()
    for _ in range(repeats):
        function()
    end = time.process_time(), time.perf_counter()
    return (end[0] - begin[0]) / repeats, (end[1] - begin[1]) / repeats


def on_gpu(function: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Time of a call between two events of the stream, and its CPU time."""
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin = time.process_time()
    first.record()
    for _ in range(repeats):
        function()
    last.record()
    cpu = time.process_time() - begin
    last.synchronize()
    return first.elapsed_time(last) / 1e3 / repeats, cpu / repeats


def ratio(times: list[float], base: list[float]) -> float:
    """The median over rounds of one time to another."""
    return statistics.median(a / b for a, b in zip(times, base, strict=True))


def copy_speed(device: torch.device, rounds: int) -> float:
    """Bytes read and written in a second by a large copy on the GPU."""
    source, target = (torch.zeros(COPIED, dtype=torch.uint8, device=device) for _ in range(2))
    times = interleaved({"copy": lambda: target.copy_(source)}, rounds, device)["copy"].own
    return 2 * COPIED / statistics.median(times)


def chosen_device(name: str) -> torch.device:
    """The device to measure on, if kernels run there; else the program ends with the reason."""
    found = optcore_accel.status()[name]
    if not found.available:
        raise SystemExit(f"expected kernels for {name}, got none: {found.reason}")
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """What the figures were measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return str(optcore_accel.status()["cpu"].detail)
