# SPDX-License-Identifier: Apache-2.0
"""How the solves behind a result went, for whoever reads its graph.

A node of the graph that stands for a solve or an estimate carries ``statistics``: a flat dict of
names to strings, numbers and 0-d tensors, which a backward pass adds to::

    solution.grad_fn.statistics  # {"by": "custom_root", "newton: iterations": tensor(5), ...}

Nothing here waits for a device, and tensors have no graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

import torch

from optdiff._tracking import below_every_level, peel

Statistics: TypeAlias = dict[str, Any]
_TOLD = ("solves", "iterations", "residual", "converged")

_open: ContextVar[tuple[tuple[str, Statistics], ...]] = ContextVar("statistics", default=())


@contextmanager
def collected(prefix: str = "") -> Iterator[Statistics]:
    """The statistics of all solves inside, also of those that an inner block collects."""
    found: Statistics = {}
    token = _open.set((*_open.get(), (prefix, found)))
    try:
        yield found
    finally:
        _open.reset(token)


def note_solve(
    who: str, iterations: torch.Tensor, residual: torch.Tensor, converged: torch.Tensor
) -> None:
    """Tell of a solve: of a batch the worst; several solves add their iterations up."""
    if not _open.get() or not iterations.numel():
        return
    with below_every_level():
        count, worst, met = peel(iterations), peel(residual), peel(converged)
        if count.ndim or worst.ndim or met.ndim:
            count, worst, met = count.max(), worst.max(), met.all()
        for prefix, found in _open.get():
            name = f"{prefix}{who}: "
            before = dict(found)
            own = {what: before.pop(name + what, None) for what in _TOLD}
            first = own["solves"] is None
            own["solves"] = 1 if first else own["solves"] + 1
            own["iterations"] = count if first else own["iterations"] + count
            own["residual"] = worst if first else torch.maximum(own["residual"], worst)
            own["converged"] = met if first else own["converged"] & met
            found.clear()  # who ends last is outermost, and told first
            found.update({name + what: value for what, value in own.items()})
            found.update(before)
