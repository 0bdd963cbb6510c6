# SPDX-License-Identifier: Apache-2.0
"""The parameter groups of the classes: dicts that say why a scheduler cannot have their ``lr``."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch

from optcore._optimizers import INFORMED_OPTIMIZERS, OPTIMIZERS
from optcore._tree import describe

# Of what stands around an optimizer: the arguments of ReduceOnPlateau and SAM.
_AROUND = frozenset(
    ("rho", "factor", "patience", "rtol", "atol", "cooldown", "accumulation_size", "min_scale")
)


def guarded(group: dict[str, Any], who: str) -> dict[str, Any]:
    """The group itself if a scheduler may set its ``lr``, else one that says why it may not."""
    # A plain dict wherever one will do: torch.compile knows no other groups.
    return group if _refusal(group.get("lr")) is None else ParamGroup(group, who)


def check_known(
    who: str, group: Mapping[str, Any], defaults: Mapping[str, Any], index: int
) -> None:
    """Refuse a hyperparameter in a group of a class that would never read it.

    Entries that are nobody's hyperparameter (``name``, ``initial_lr``) are the user's own.

    Raises:
        ValueError: There is one.
    """
    unread = sorted(set(group) - set(defaults) - {"params"})
    if not unread:
        return
    rows = (*OPTIMIZERS.values(), *INFORMED_OPTIMIZERS.values())
    known = {name for row in rows for name in row.defaults} | _AROUND
    for name in unread:
        if name in known:
            raise ValueError(
                f"{who}: expected a group with entries among {['params', *defaults]}, got {name}, "
                f"at group {index}; only what optcore.inject_hyperparams keeps can differ by group"
            )


def listed(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The groups of an optimizer, for a step that may be compiled.

    The compiler (torch 2.13) stops at the name ``param_groups`` where one is no plain dict.
    """
    groups = vars(optimizer)["param_groups"]
    if all(type(group) is dict for group in groups):
        return optimizer.param_groups  # the name tells the compiler that parameters stay put
    return groups  # type: ignore[no-any-return]


class ParamGroup(dict):  # type: ignore[type-arg]
    """A parameter group whose ``["lr"]`` is a number or a 0-d tensor, or refused with the reason.

    That is the one thing all learning-rate schedulers do with a group. ``.get("lr")`` gives the
    schedule, the learned tensor or the tree that stands there, or None.

    Args:
        group: The entries.
        who: Name of the optimizer, for errors.

    Example:
        >>> ParamGroup({"lr": 0.1}, "Adam")["lr"]
        0.1
    """

    def __init__(self, group: dict[str, Any], who: str) -> None:
        super().__init__(group)
        self.who = who

    def __getitem__(self, key: str) -> Any:
        refusal = _refusal(self.get("lr")) if key == "lr" else None
        if refusal is not None:
            raise TypeError(
                f"{self.who}: expected a number as lr, for a scheduler to set, got {refusal}"
            )
        return super().__getitem__(key)

    def __reduce__(self) -> tuple[Any, ...]:
        return ParamGroup, (dict(self), self.who)


def _refusal(rate: Any) -> str | None:
    """What a scheduler cannot set, and what to do about it; None for what it can."""
    if rate is None:
        return (
            "a transformation that has none; make it by "
            "optcore.inject_hyperparams(optcore.adam)(lr=...), or use a class like optcore.Adam"
        )
    if callable(rate):
        name = getattr(rate, "__qualname__", type(rate).__qualname__)
        return f"the schedule {name}; use one of the two (.get('lr') gives it)"
    if isinstance(rate, torch.Tensor) and rate.requires_grad:
        return (
            f"{describe(rate)} that requires grad; a learned rate is nobody else's to set "
            "(.get('lr') gives it)"
        )
    if not isinstance(rate, Real) and getattr(rate, "ndim", 1):
        return f"{describe(rate)} (.get('lr') gives it)"
    return None
