# SPDX-License-Identifier: Apache-2.0
"""Try a package with the oldest siblings it asks for, and its published dependents with it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from importlib.metadata import version as installed_version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from _packages import Package, ascending, choose, named, packages, read
from _uv import ROOT, ToolError, require_uv, uv_environment
from check_isolated import build_wheel, pick, run, run_tests
from release import git, numbers, tags
from setup import CUDA_PACKAGE

LOWER = (">=", "==", "~=")


@dataclass
class Shop:
    """Wheels of packages at versions, each built once, from the tag or from the working tree."""

    uv: str
    work: Path
    known: dict[str, Package]
    trees: dict[tuple[str, str], Path] = field(default_factory=dict)
    wheels: dict[tuple[str, str], Path] = field(default_factory=dict)

    def tree(self, name: str, version: str) -> Path:
        """Return a source tree with this version of a package."""
        key = name, version
        if key not in self.trees:
            if version in tags(ROOT, name):
                place = self.work / "trees" / f"{name}-{version}"
                git(ROOT, "clone", "--quiet", "--branch", f"{name}-v{version}", str(ROOT),
                    str(place))  # fmt: skip
                self.trees[key] = place
            elif version == self.known[name].version:
                self.trees[key] = ROOT
            else:
                raise ToolError(
                    f"{name} {version}: expected the tag {name}-v{version} or this version in the "
                    f"working tree, got neither; raise the bound that asks for it"
                )
        return self.trees[key]

    def package(self, name: str, version: str) -> Package:
        """Return what this version of a package says."""
        return read(self.tree(name, version) / "packages" / name / "pyproject.toml")

    def wheel(self, name: str, version: str) -> Path:
        """Return the wheel of this version of a package."""
        key = name, version
        if key not in self.wheels:
            place = self.work / "built" / f"{name}-{version}"
            self.wheels[key] = build_wheel(self.uv, name, place, self.tree(name, version)).path
        return self.wheels[key]

    def source(self, name: str, version: str) -> str:
        """Say where this version comes from."""
        return "working tree" if self.tree(name, version) == ROOT else "tag"


def lowest(chosen: list[str]) -> int:
    """Test packages with the lowest versions of all that they declare; return the exit status."""
    known = packages()
    lines, total = [], 0
    with tempfile.TemporaryDirectory(prefix="lowest-") as folder:
        shop = Shop(require_uv(), Path(folder), known)
        for name in choose(chosen, known):
            package = known[name]
            siblings = oldest(package, shop)
            siblings[name] = package.version
            foreign = [line for line in package.requires if not named([line]) & known.keys()]
            used, passed = trial(shop, name, siblings, foreign, ["--resolution", "lowest-direct"])
            lines.append(f"{name} {package.version}: {used}")
            total += passed
    print("\n" + "\n".join(lines))
    print(f"{total} passed, 0 failed")
    return 0


def dependents(name: str, wheels: Path | None) -> int:
    """Test the last tagged dependents with this version of a package; return the exit status."""
    known = packages()
    (name,) = choose([name], known)
    version = known[name].version
    lines, total = [], 0
    with tempfile.TemporaryDirectory(prefix="dependents-") as folder:
        shop = Shop(require_uv(), Path(folder), known)
        shop.trees[name, version] = ROOT  # also where the version has a tag already
        if wheels is not None:
            shop.wheels[name, version] = pick(wheels, name, version)
        for other in ascending(known):
            if name not in needed(other, known):
                continue
            released = tags(ROOT, other)
            if not released:
                lines.append(f"{other}: never released")
                continue
            package = shop.package(other, released[-1])
            bound = {Requirement(line).name: Requirement(line) for line in package.requires}
            if name in bound and version not in bound[name].specifier:
                lines.append(f"{other} {package.version}: asks for {bound[name]}, not concerned")
                continue
            chosen = {low: (tags(ROOT, low) or [known[low].version])[-1]
                      for low in needed(other, known)}  # fmt: skip
            chosen |= {other: package.version, name: version}
            used, passed = trial(shop, other, chosen, [], [])
            lines.append(f"{other} {package.version}: {used}")
            total += passed
    print("\n" + "\n".join(lines))
    print(f"{total} passed, 0 failed")
    return 0


def needed(name: str, known: dict[str, Package]) -> set[str]:
    """Return the siblings that must be there for a package to be imported."""
    found = named(known[name].requires) & known.keys()
    return found.union(*(needed(other, known) for other in found))


def oldest(package: Package, shop: Shop) -> dict[str, str]:
    """Return the lowest version of each sibling that a package asks for, siblings' own included."""
    found: dict[str, str] = {}
    for line in package.requires:
        name = Requirement(line).name
        if name in shop.known:
            found[name] = lowest_version(package.name, line, shop.known[name])
    for name, version in list(found.items()):
        found = {**oldest(shop.package(name, version), shop), **found}
    return found


def lowest_version(asker: str, line: str, sibling: Package) -> str:
    """Return the version of a sibling, of those that exist, that a lower bound names."""
    bounds = [Version(s.version) for s in Requirement(line).specifier if s.operator in LOWER]
    if not bounds:
        raise ToolError(f"{asker}: expected a lower bound of {sibling.name}, got {line!r}")
    parts = [*max(bounds).release, 0, 0][:3]
    return ".".join(map(str, numbers(".".join(map(str, parts)))))


def trial(
    shop: Shop, name: str, chosen: dict[str, str], lines: list[str], options: list[str]
) -> tuple[str, int]:
    """Install chosen versions in a new environment, run the tests; say with what, and how many."""
    print(f"trying {name} {chosen[name]}", flush=True)
    env = uv_environment()
    place = shop.work / "run" / name
    place.mkdir(parents=True)
    python = str(place / "venv" / "bin" / "python")
    run(f"{name}: make the environment",
        [shop.uv, "venv", "--python", sys.executable, str(place / "venv")], place, env)  # fmt: skip
    install = [shop.uv, "pip", "install", "--python", python, "--no-sources"]
    files = [str(shop.wheel(other, version)) for other, version in sorted(chosen.items())]
    constraint, note = torch_constraint([*install, *options], lines, place, env)
    command = [*install, *options, *constraint, *files, *lines]
    run(f"{name}: install it with what it asks for", command, place, env)
    before = installed(shop.uv, python, place, env)

    project = shop.tree(name, chosen[name]) / "packages" / name / "pyproject.toml"
    # siblings that only tests use come from the working tree
    more = (named(read(project).uses) & shop.known.keys()) - chosen.keys()
    for other in list(more):
        more |= needed(other, shop.known) - chosen.keys()
    files += [str(shop.wheel(other, shop.known[other].version)) for other in sorted(more)]
    grouped = [*install, *constraint, "--group", f"{project}:test", *files]
    run(f"{name}: install the test group", grouped, place, env)
    after = installed(shop.uv, python, place, env)
    direct = sorted(named(lines))
    if moved := [other for other in direct if before.get(other) != after.get(other)]:
        raise ToolError(
            f"{name}: expected its tests to run with the lowest {moved[0]} {before[moved[0]]}, got "
            f"{after[moved[0]]}: a test dependency asks for more; raise the bound of {moved[0]}"
        )
    outcome, passed = run_tests(name, shop.tree(name, chosen[name]), place, env)
    parts = [f"{other} {version} ({shop.source(other, version)})"
             for other, version in sorted(chosen.items()) if other != name]  # fmt: skip
    parts += [f"{other} {after[other]}" for other in direct]
    return f"with {', '.join(parts) or 'nothing else'}{note}: {outcome}", passed


def torch_constraint(
    install: list[str], lines: list[str], place: Path, env: dict[str, str]
) -> tuple[list[str], str]:
    """Return options that fix torch where the one asked for cannot be had, and words for it."""
    asked = [line for line in lines if named([line]) == {"torch"}]
    plan = subprocess.run(
        [*install, "--dry-run", *asked], cwd=place, env=env, text=True, capture_output=True
    )
    # with a wheel folder torch comes from there, and CUDA's packages mean that it did not
    unwanted = "UV_FIND_LINKS" in env and CUDA_PACKAGE.search(plan.stderr)
    if asked and plan.returncode == 0 and not unwanted:
        return [], ""
    path = place / "constraint.txt"
    path.write_text(f"torch=={installed_version('torch')}\n")
    # a package that asks for no torch gets the workspace's if its tests want one
    note = f" ({asked[0]} not tried: no such wheel is to be had here)" if asked else ""
    return ["--constraint", str(path)], note


def installed(uv: str, python: str, place: Path, env: dict[str, str]) -> dict[str, str]:
    """Return what is installed, by name."""
    command = [uv, "pip", "list", "--format", "json", "--python", python]
    listed = json.loads(run("list what is installed", command, place, env, quiet=True))
    return {entry["name"]: entry["version"] for entry in listed}
