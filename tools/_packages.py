# SPDX-License-Identifier: Apache-2.0
"""The packages of the workspace: names, versions, what they ask for, who asks for them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _uv import ROOT, ToolError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Package:
    """What the ``pyproject.toml`` of one package says."""

    name: str
    folder: Path
    version: str
    requires: tuple[str, ...]  # to be imported
    uses: tuple[str, ...]  # and by its extras, tests and examples

    @property
    def module(self) -> str:
        """The name it is imported by."""
        return self.name.replace("-", "_")


def packages(root: Path = ROOT) -> dict[str, Package]:
    """Return every package below ``root``, by name."""
    found = [read(path) for path in sorted(root.glob("packages/*/pyproject.toml"))]
    return {package.name: package for package in found}


def read(path: Path) -> Package:
    """Return the package whose ``pyproject.toml`` this is."""
    with path.open("rb") as file:
        table = tomllib.load(file)
    project: dict[str, Any] = table["project"]
    if "version" not in project:
        raise ToolError(f"{path}: expected a static version, found none")
    requires = tuple(project.get("dependencies", ()))
    groups = table.get("dependency-groups", {}).values()
    extras = project.get("optional-dependencies", {}).values()
    other = [line for lines in (*extras, *groups) for line in lines if isinstance(line, str)]
    return Package(project["name"], path.parent, project["version"], requires, (*requires, *other))


def named(requirements: Iterable[str]) -> set[str]:
    """Return the names of the distributions that requirements ask for."""
    return {match[0] for line in requirements if (match := NAME.match(line.strip()))}


def dependents(touched: Iterable[str], known: dict[str, Package]) -> list[str]:
    """Return the packages and all that use them, declared or named in their tests, from the ground.

    >>> from pathlib import Path
    >>> low = Package("low", Path("low"), "0.1", (), ())
    >>> high = Package("high", Path("high"), "0.1", ("low>=0.1",), ("low>=0.1",))
    >>> dependents(["low"], {"low": low, "high": high})
    ['low', 'high']
    """
    used = {name: needs(package, known) for name, package in known.items()}
    found = set(touched)
    while more := {name for name in known if used[name] & found} - found:
        found |= more
    return [name for name in ascending(known) if name in found]


def needs(package: Package, known: dict[str, Package]) -> set[str]:
    """Return the siblings that a package uses, those that only its tests name included."""
    declared = named(package.uses) & known.keys()
    files = sorted(package.folder.glob("tests/**/*.py"))
    words = {word for path in files for word in re.findall(r"\w+", path.read_text())}
    return (declared | {n for n, other in known.items() if other.module in words}) - {package.name}


def ascending(known: dict[str, Package]) -> list[str]:
    """Return all names such that a package comes after those it needs to be imported."""
    order: list[str] = []
    while len(order) < len(known):
        ready = [
            name
            for name, package in known.items()
            if name not in order and named(package.requires) & known.keys() <= {*order}
        ]
        if not ready:
            raise ToolError(f"packages: expected no circle, got {sorted(set(known) - {*order})}")
        order += ready
    return order


def choose(chosen: list[str], known: dict[str, Package]) -> list[str]:
    """Return the chosen packages, or all, from the ground up; refuse unknown names."""
    if unknown := sorted(set(chosen) - set(known)):
        raise ToolError(f"expected packages among {sorted(known)}, got {unknown}")
    return [name for name in ascending(known) if not chosen or name in chosen]
