# SPDX-License-Identifier: Apache-2.0
"""The public names of a package, and where each is documented."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

PACKAGES = ("treeops", "optcore", "optcore_accel", "optdiff", "optdist", "optviz")
TELLING = re.compile(r"^\w*[a-z](?:_[a-z]|[A-Z])\w*$")  # ``apply_updates``, ``MetaAdam``; no word


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
    """Return ``__all__``; else what a file defines, or imports for its users (``X as X``)."""
    listed = getattr(module, "__all__", None)
    names = set(declared(module) if listed is None else listed)
    public = [name for name in names if not name.startswith("_") or listed is not None]
    values = {name: getattr(module, name) for name in public}
    kept = [name for name in values if not isinstance(values[name], ModuleType | TypeVar)]
    # an object's own name before others for it
    return sorted(kept, key=lambda name: (getattr(values[name], "__name__", name) != name, name))


def declared(module: ModuleType) -> Iterator[str]:
    """Name what a file says that it has, what it makes when first asked for included."""
    if "__dir__" in vars(module):
        yield from dir(module)
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.ImportFrom):
            yield from (entry.name for entry in node.names if entry.asname == entry.name)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign) and hasattr(module, "__path__"):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def meant(name: str, before: str | None, own: str, known: Collection[str]) -> str | None:
    """Return the public name that a piece of code means: in full, or short for one nearby.

    On a page about one of the packages, a name of two words may be that of a sibling.

    Args:
        name: As it is written.
        before: The module of the name before it in the paragraph, whose fellows come without it.
        own: The package that the page is about.
        known: What the site documents.
    """
    if name.split(".")[0] in PACKAGES:
        return name if name in known and name not in PACKAGES else None
    if before is not None and before.split(".")[0] not in PACKAGES:
        return None  # a fellow of another library's
    near = [f"{module}.{name}" for module in (before, own) if module]
    found = [entry for entry in near if entry in known]
    if not found and own and TELLING.search(name):
        found = [f"{package}.{name}" for package in PACKAGES if f"{package}.{name}" in known]
        return found[0] if len(found) == 1 else None
    return found[0] if found else None
