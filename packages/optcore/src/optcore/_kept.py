# SPDX-License-Identifier: Apache-2.0
"""What a class keeps from one step to the next, so that an ordinary step need not start over."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import partial
from operator import is_
from typing import Any

import torch

from optcore._deferred import Run
from optcore._fused import FusedStep, Ready
from optcore._transform import GradientTransformation
from optcore._tree import ParamDict

_PLAIN = {float, int, bool, str, type(None)}


@dataclass(frozen=True)
class Kept:
    """The last step of a group, and all that has to be as it was for going on from there.

    Buffers that are overwritten in place stay the same tensors. Whoever replaces one, a parameter,
    or a hyperparameter by something of another kind, gets a step that starts from ``state``.
    """

    settings: tuple[Any, ...]
    transformation: GradientTransformation | None  # None: to be made of the settings
    params: ParamDict  # what the transformation saw
    present: list[torch.Tensor]  # those with a gradient
    kinds: list[Any]  # of gradients and parameters
    every: list[Any]  # the entries of the class's state, for whatever parameter
    own: list[dict[str, Any]]  # those of them for what it saw
    entries: list[Any]  # what stands in these
    state: Any  # the same as the transformation sees it
    run: Run | FusedStep | None  # if the step can be repeated as it is

    def continues(
        self,
        settings: tuple[Any, ...] | None,
        present: list[torch.Tensor],
        every: list[Any],
        entries: list[Any],
    ) -> bool:
        """Whether nothing was replaced, and of the hyperparameters only values changed."""
        return (
            settings is not None
            and len(settings) == len(self.settings)
            and (settings == self.settings or all(map(_alike, self.settings, settings)))
            and _same(self.present, present)
            and _same(self.every, every)
            and _same(self.entries, entries)
        )

    def renumbered(self, settings: tuple[Any, ...], transformation: GradientTransformation) -> Kept:
        """The same with other values of hyperparameters."""
        run = None
        if isinstance(self.run, FusedStep):
            run = self.run.renumbered(transformation)
        return replace(self, settings=settings, transformation=transformation, run=run)

    def at_rate(self, settings: tuple[Any, ...], lr: float) -> Kept | None:
        """The same where only the learning rate differs; None if that takes more."""
        run = self.run.at_rate(lr) if isinstance(self.run, FusedStep) else None
        if run is None:
            return None
        return replace(self, settings=settings, transformation=None, run=run)

    def repetition(self, grads: list[torch.Tensor]) -> Ready | None:
        """The same step with these gradients; None if it has to start from the state."""
        if isinstance(self.run, FusedStep):
            return self.run.repetition(grads)
        if self.run is None or not self.fits(self.present):
            return None
        return Ready(partial(self.run.repeat, grads))

    def fits(self, present: list[torch.Tensor]) -> bool:
        """Whether gradients and parameters are of the kinds that they were of."""
        return self.kinds == kinds(present)


def kinds(params: list[torch.Tensor]) -> list[Any]:
    """What a step depends on of gradients and parameters, but for their values."""
    tensors = (*[p.grad for p in params], *params)
    return [(type(t), t.shape, t.dtype, t.device, t.layout) for t in tensors]


def comparable(values: Iterable[Any]) -> tuple[Any, ...] | None:
    """Hyperparameters side by side, or None: a tensor, schedule or tree may change unseen.

    Example:
        >>> comparable([0.1, (0.9, 0.999)])
        (0.1, 0.9, 0.999)
    """
    flat: list[Any] = []
    for value in values:
        flat += value if isinstance(value, (tuple, list)) else (value,)
    return tuple(flat) if all(type(value) in _PLAIN for value in flat) else None


def _alike(old: Any, new: Any) -> bool:
    """Whether a hyperparameter decides the same: what is left out and kept hangs on zeros only."""
    return old == new or (type(old) is type(new) is float and old != 0.0 != new)


def _same(old: Collection[Any], new: Collection[Any]) -> bool:
    return len(old) == len(new) and all(map(is_, old, new))
