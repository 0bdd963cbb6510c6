# SPDX-License-Identifier: Apache-2.0
"""What solvers, estimates and kernels tell of their work.

An autograd Function written in Python may set ``ctx.statistics`` to a mapping of names to strings,
numbers or 0-d tensors. Pictures show them in their order: ``by`` is who made the node; names before
a colon belong together, and of these ``iterations``, ``solves``, ``residual`` and ``converged`` are
put into words. A backward pass may add to the mapping.

It may also set ``ctx.groups = (first, count)`` where ``count`` tensors are treated alike: input
``first + k`` then has to do only with the outputs whose number is ``k`` modulo ``count``, and the
inputs before ``first`` with all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch


def statistics_of(function: Any) -> tuple[tuple[str, str], ...]:
    """Names and values as text; empty for functions that tell nothing."""
    told = getattr(function, "statistics", None)
    if not isinstance(told, Mapping):
        return ()
    return tuple((str(name), _value(value)) for name, value in told.items())


def groups_of(function: Any) -> tuple[int, int] | None:
    """From which input on, and how many, groups of inputs and outputs that do not mix."""
    told = getattr(function, "groups", None)
    if isinstance(told, tuple) and len(told) == 2 and all(isinstance(n, int) for n in told):
        return told if told[1] > 0 else None
    return None


def _value(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
        value = value.item()
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def told_statistics(statistics: Sequence[tuple[str, str]]) -> list[str]:
    """The lines that a box shows."""
    lines: list[str] = []
    groups: dict[str, dict[str, str]] = {}
    for name, value in statistics:
        title, colon, what = name.rpartition(": ")
        if colon:
            groups.setdefault(title, {})[what] = value
        else:
            lines.append(value if name == "by" else f"{name} {value}")
    for title, group in groups.items():
        lines += _lines_of(title, dict(group))
    return lines


def _lines_of(title: str, group: dict[str, str]) -> list[str]:
    iterations, solves = group.pop("iterations", None), group.pop("solves", "1")
    residual, converged = group.pop("residual", None), group.pop("converged", "True")
    first = [] if iterations is None else [_many(iterations, "iteration")]
    first += [] if solves == "1" else [f"in {_many(solves, 'solve')}"]
    second = [] if residual is None else [f"residual {residual}"]
    second += [] if converged == "True" else ["NOT CONVERGED"]
    rest = [f"{title}: {name} {value}" for name, value in group.items()]
    told = [line for line in (" ".join(first), ", ".join(second)) if line]
    return [f"{title}: {told[0]}", *told[1:], *rest] if told else rest


def _many(count: str, what: str) -> str:
    return f"{count} {what}{'s' * (count != '1')}"
