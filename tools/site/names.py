# SPDX-License-Identifier: Apache-2.0
"""The public names of a package, and where each is documented."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

PACKAGES = ("treeops", "optcore", "optcore_accel", "optdiff", "optdist", "optviz")


@dataclass(frozen=True)
class Name:
    """A public name: ``module.name``, and the name of the same object documented before it."""

    module: str
    name: str
    value: Any
    same_as: str | None

    @property
    def full(self) -> str:
        """The name as a user imports it."""
        return f"{self.module}.{self.name}"

    @property
    def foreign(self) -> bool:
        """Whether the object is of another library, passed on under this name."""
        root = self.module.split(".")[0]
        return callable(self.value) and not getattr(self.value, "__module__", root).startswith(root)


def public_names(package: str) -> list[Name]:
    """Return every public name of the package and its public modules, the package's own first."""
    found: list[Name] = []
    first: dict[int, str] = {}
    for module in [importlib.import_module(package), *public_modules(package)]:
        listed = [(name, getattr(module, name)) for name in names_of(module)]
        standing = all(id(value) in first for _, value in listed)
        if module.__name__ != package and standing and not hasattr(module, "__all__"):
            continue  # a file whose names all stand at the package
        for name, value in listed:
            known = first.get(id(value)) if callable(value) else None
            found.append(Name(module.__name__, name, value, known))
            first.setdefault(id(value), f"{module.__name__}.{name}")
    return found


def public_modules(package: str) -> list[ModuleType]:
    """Return the modules below a package whose names have no underscore, without programs."""
    path = importlib.import_module(package).__path__
    below = pkgutil.walk_packages(path, f"{package}.")
    names = [entry.name for entry in below]
    public = [name for name in names if not any(part[0] == "_" for part in name.split("."))]
    return [importlib.import_module(name) for name in public]


def names_of(module: ModuleType) -> list[str]:
    """Return ``__all__``; else what a file defines, or what a package takes in from its own."""
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return sorted(listed)
    is_package = hasattr(module, "__path__")
    owner = module.__name__.split(".")[0] if is_package else module.__name__
    return sorted(
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not isinstance(value, ModuleType | TypeVar)
        and f"{getattr(value, '__module__', None) or owner}.".startswith(f"{owner}.")
    )
