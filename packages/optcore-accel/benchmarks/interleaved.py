# SPDX-License-Identifier: Apache-2.0
"""Timing several functions in turns, so that what disturbs one disturbs all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

SAMPLE = 0.02  # seconds that one sample takes at least


class Times(NamedTuple):
    """Seconds per call, an entry per round."""

    cpu: list[float]  # of all threads
    wall: list[float]


def interleaved(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Times]:
    """Call everyone in turns, ``rounds`` times over."""
    repeats = {}
    for name, function in functions.items():
        seconds(function, 2)
        repeats[name] = max(1, round(SAMPLE / max(seconds(function, 2)[1], 1e-6)))
    taken = {name: Times([], []) for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            function()  # brings into the caches what the others drove out
            cpu, wall = seconds(function, repeats[name])
            taken[name].cpu.append(cpu)
            taken[name].wall.append(wall)
    return taken


def seconds(function: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """CPU and wall time of a call."""
    begin = time.process_time(), time.perf_counter()
    for _ in range(repeats):
        function()
    end = time.process_time(), time.perf_counter()
    return (end[0] - begin[0]) / repeats, (end[1] - begin[1]) / repeats


def ratio(times: list[float], base: list[float]) -> float:
    """The median over rounds of one time to another."""
    return statistics.median(a / b for a, b in zip(times, base, strict=True))
