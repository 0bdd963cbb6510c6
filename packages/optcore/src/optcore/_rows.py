# SPDX-License-Identifier: Apache-2.0
"""The row that an optimizer adds to the table from which all its classes are derived."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from inspect import signature
from typing import Any

from optcore._transform import GradientTransformation


@dataclass(frozen=True)
class OptimizerRow:
    """One optimizer: everything that the classes need to know about it.

    Args:
        factory: The functional form, e.g. ``adam``; its parameters are the classes' keywords.
        class_name: Name of the ``torch.optim`` class; the Meta class is ``Meta`` + this.
        torch_keys: State field -> the key torch.optim uses for it in ``state_dict()``.
        also: Other spellings of the class name.
        optional: Keys that torch.optim writes for some parameters only; the others have None.
        implied: Key -> value of a count that torch.optim does not write.
    """

    factory: Callable[..., GradientTransformation]
    class_name: str
    torch_keys: Mapping[str, str] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    implied: Mapping[str, int] = field(default_factory=dict)
    optional: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The functional name, e.g. ``adam``."""
        return self.factory.__name__

    @cached_property
    def defaults(self) -> Mapping[str, Any]:
        """Keyword -> default of the factory."""
        return {p.name: p.default for p in signature(self.factory).parameters.values()}
