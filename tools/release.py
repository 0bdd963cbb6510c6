# SPDX-License-Identifier: Apache-2.0
"""Release a package: check it, raise its version, try its oldest siblings, tag it.

    python tools/release.py check [PACKAGE ...]
    python tools/release.py bump PACKAGE major|minor|patch|X.Y.Z [--date DAY] [--dry-run]
    python tools/release.py lowest [PACKAGE ...]
    python tools/release.py dependents PACKAGE [--wheels FOLDER]
    python tools/release.py tag PACKAGE [--branch main] [--dry-run] [--push]

``check`` compares versions, changelogs and what siblings ask for. ``bump`` writes the version into
``pyproject.toml``, its one place, dates the section Unreleased of ``CHANGELOG.md``, and raises the
upper bounds of siblings that would refuse the version, so that one commit holds it all. ``lowest``
tests a package with the lowest versions it declares, siblings from their tags. ``dependents`` tests
the last tagged version of each dependent with this version of the package. ``tag`` makes the tag
``<package>-vX.Y.Z``, and pushes it where asked to.
"""

from __future__ import annotations

import argparse
import datetime
import re
import subprocess
import sys
from pathlib import Path

from _packages import Package, choose, named, packages
from _uv import ROOT, ToolError

UNRELEASED = "Unreleased"
VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")
HEADING = re.compile(r"^## (.+)$", re.MULTILINE)
TO_DATE = re.compile(rf"^## {UNRELEASED}\b.*$", re.MULTILINE)
UPPER = re.compile(r"<\s*\d[\d.]*")
PARTS = ("major", "minor", "patch")


def main(arguments: list[str]) -> int:
    """Do what the first word says; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("check", "lowest"):
        commands.add_parser(name).add_argument("packages", nargs="*", metavar="PACKAGE")
    command = commands.add_parser("bump")
    command.add_argument("package", metavar="PACKAGE")
    command.add_argument("to", metavar="|".join((*PARTS, "X.Y.Z")))
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    command.add_argument("--date", default=today, help="of the section (default: today, UTC)")
    command.add_argument("--dry-run", action="store_true", help="tell, but write nothing")
    command = commands.add_parser("dependents")
    command.add_argument("package", metavar="PACKAGE")
    command.add_argument("--wheels", type=Path, help="where its wheel lies (default: build it)")
    command = commands.add_parser("tag")
    command.add_argument("package", metavar="PACKAGE")
    command.add_argument("--branch", default="main", help="that is released from (default: main)")
    command.add_argument("--dry-run", action="store_true", help="check, but make no tag")
    command.add_argument("--push", action="store_true", help="to origin")
    options = parser.parse_args(arguments)
    if options.command == "check":
        return check(ROOT, options.packages)
    if options.command == "bump":
        return bump(ROOT, options.package, options.to, options.date, options.dry_run)
    if options.command == "tag":
        return tag(ROOT, options.package, options.branch, options.dry_run, options.push)
    import _trials  # what needs the environment that `make setup` makes

    if options.command == "lowest":
        return _trials.lowest(options.packages)
    return _trials.dependents(options.package, options.wheels)


def check(root: Path, chosen: list[str]) -> int:
    """Refuse versions, changelogs and bounds that do not go together; print a line a package."""
    known = packages(root)
    for name in choose(chosen, known):
        package = known[name]
        numbers(package.version, f"{name}: version in pyproject.toml")
        top, _ = newest_section(package)
        if top not in (UNRELEASED, package.version):
            raise ToolError(
                f"{name}: expected CHANGELOG.md to begin with '## {UNRELEASED}' or "
                f"'## {package.version} (date)', got '## {top}'"
            )
        for sibling in sorted(named(package.requires) & known.keys()):
            allowed(package, known[sibling])
        released = tags(root, name)
        last = f"last released: {released[-1]}" if released else "never released"
        print(f"{name:<16}{package.version:<9}{last}; CHANGELOG.md begins with {top}")
    return 0


def bump(root: Path, name: str, to: str, day: str, dry_run: bool) -> int:
    """Write the new version and date the changelog, or tell what would be written."""
    known = packages(root)
    (name,) = choose([name], known)
    package = known[name]
    version = next_version(package.version, to, tags(root, name))
    try:
        day = datetime.datetime.strptime(day, "%Y-%m-%d").date().isoformat()
    except ValueError as error:
        raise ToolError(f"bump {name}: expected --date YYYY-MM-DD, got {day!r}") from error
    top, text = newest_section(package)
    if top != UNRELEASED or not text:
        raise ToolError(
            f"bump {name}: expected CHANGELOG.md to begin with '## {UNRELEASED}' and lines below "
            f"it, got '## {top}' with {len(text.splitlines())} lines; write down what changed"
        )
    project = package.folder / "pyproject.toml"
    old = f'version = "{package.version}"\n'
    if project.read_text().count(old) != 1:
        raise ToolError(f"bump {name}: expected one line {old.strip()!r} at {project}")
    changelog = package.folder / "CHANGELOG.md"
    raised = bounds_to_raise(known, Package(name, package.folder, version, (), ()))
    print(f"{name}: {package.version} -> {version}; {len(text.splitlines())} lines of changelog")
    if not dry_run:
        project.write_text(project.read_text().replace(old, f'version = "{version}"\n'))
        dated = f"## {version} ({day})"
        changelog.write_text(TO_DATE.sub(dated, changelog.read_text(), count=1))
    for other, line, new in raised:
        print(f"{other.name}: {line!r} -> {new!r}; test it and note it in its CHANGELOG.md")
        if not dry_run:
            project = other.folder / "pyproject.toml"
            project.write_text(project.read_text().replace(line, new))
    print(f"next: commit 'release({name}): {version}', then release.yml on that commit")
    return 0


def tag(root: Path, name: str, branch: str, dry_run: bool, push: bool = False) -> int:
    """Make the tag of a version that is committed, dated and not yet tagged."""
    known = packages(root)
    (name,) = choose([name], known)
    package = known[name]
    made = f"{name}-v{package.version}"
    if dirty := git(root, "status", "--porcelain"):
        count = len(dirty.splitlines())
        raise ToolError(f"tag {made}: expected a clean tree, got {count} changes; commit them")
    if (here := git(root, "rev-parse", "--abbrev-ref", "HEAD")) != branch:
        raise ToolError(f"tag {made}: expected branch {branch}, got {here}; check it out")
    released = tags(root, name)
    if package.version in released:
        raise ToolError(f"tag {made}: expected a new version, got one with a tag; bump {name}")
    if released and numbers(released[-1]) > numbers(package.version):
        raise ToolError(f"tag {made}: expected a version above {released[-1]}; bump {name}")
    top, _ = newest_section(package)
    if top != package.version:
        raise ToolError(
            f"tag {made}: expected CHANGELOG.md to begin with '## {package.version} (date)', "
            f"got '## {top}'; bump {name}"
        )
    check(root, [name])
    if dry_run:
        print(f"would make {made} at {git(root, 'rev-parse', '--short', 'HEAD')}")
    else:
        git(root, "tag", "--annotate", made, "--message", f"{name} {package.version}")
        print(f"made {made}")
        if push:
            git(root, "push", "origin", made)
        else:
            print(f"next: git push origin {made}")
    return 0


def numbers(version: str, where: str = "version") -> tuple[int, int, int]:
    """Return the three numbers of a version."""
    match = VERSION.fullmatch(version)
    if match is None:
        raise ToolError(f"{where}: expected X.Y.Z, got {version!r}")
    return int(match[1]), int(match[2]), int(match[3])


def next_version(current: str, to: str, released: list[str]) -> str:
    """Return the version to write: one part of the current one raised, or the one that is named.

    >>> next_version("0.1.2", "minor", ["0.1.2"])
    '0.2.0'
    >>> next_version("0.1.0", "0.1.0", [])
    '0.1.0'
    """
    before = numbers(current)
    if to in PARTS:
        place = PARTS.index(to)
        after = (*before[:place], before[place] + 1, *[0] * (2 - place))
    else:
        after = numbers(to, "bump")
        if after < before or (after == before and current in released):
            raise ToolError(f"bump: expected a version above {current}, got {to}")
    return ".".join(map(str, after))


def newest_section(package: Package) -> tuple[str, str]:
    """Return the title, without its date, and the text of the first section of the changelog."""
    text = (package.folder / "CHANGELOG.md").read_text()
    _, *sections = HEADING.split(text)
    if not sections:
        raise ToolError(f"{package.name}: expected CHANGELOG.md with '## {UNRELEASED}', got none")
    title, body = sections[:2]
    return title.partition(" ")[0], body.strip()


def allowed(package: Package, sibling: Package) -> None:
    """Refuse a sibling's version that the package does not ask for."""
    from packaging.requirements import Requirement

    for line in package.requires:
        requirement = Requirement(line)
        if requirement.name == sibling.name and sibling.version not in requirement.specifier:
            raise ToolError(
                f"{package.name}: expected {line!r} to allow {sibling.name} {sibling.version}; "
                f"change it in {package.name}'s pyproject.toml"
            )


def bounds_to_raise(known: dict[str, Package], sibling: Package) -> list[tuple[Package, str, str]]:
    """Return which package asks for the sibling in a line that refuses its version, and for what.

    The new line ends below the next minor version; below the next major one from 1.0 on.
    """
    from packaging.requirements import Requirement

    major, minor, _ = numbers(sibling.version)
    above = f"<0.{minor + 1}" if major == 0 else f"<{major + 1}"
    raised = []
    for package in known.values():
        for line in package.requires:
            asked = Requirement(line)
            if asked.name == sibling.name and sibling.version not in asked.specifier:
                new = UPPER.sub(above, line)
                allowed(Package(package.name, package.folder, "", (new,), ()), sibling)
                raised.append((package, line, new))
    return raised


def tags(root: Path, name: str) -> list[str]:
    """Return the versions of a package that have a tag, oldest first."""
    lines = git(root, "tag", "--list", f"{name}-v*").splitlines()
    versions = [line.removeprefix(f"{name}-v") for line in lines]
    return sorted(filter(VERSION.fullmatch, versions), key=numbers)


def git(root: Path, *words: str) -> str:
    """Return what a git command printed, without blank space around it."""
    done = subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ToolError(f"git {words[0]}: expected exit status 0: {done.stderr.strip()}")
    return done.stdout.strip()


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ToolError as error:
        sys.exit(str(error))
