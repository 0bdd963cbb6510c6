# SPDX-License-Identifier: Apache-2.0
"""Trees and other libraries; each module needs its library, so that none is imported here."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Final

SUBMODULES: Final[frozenset[str]] = frozenset({"attrs", "jax", "numpy", "torch"})


def __dir__() -> list[str]:
    return [*sorted(SUBMODULES), "SUBMODULES"]


def __getattr__(name: str) -> ModuleType:
    if name in SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
