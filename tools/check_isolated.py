# SPDX-License-Identifier: Apache-2.0
"""Install every package's wheel alone, with its declared dependencies only, and run its tests.

The shared environment hides undeclared imports; a clean one per package does not. Siblings come
from the wheels built here, torch is the one of the workspace. Slow tests are left out.
Usage: ``python tools/check_isolated.py [--wheels FOLDER] [PACKAGE ...]``; with a folder the wheels
of the named packages are taken from there, as built for a release.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.parser import Parser
from importlib.metadata import version
from pathlib import Path

from packaging.tags import sys_tags
from packaging.utils import parse_wheel_filename
from packaging.version import Version

from _packages import named, packages
from _uv import ROOT, ToolError, require_uv, uv_environment

NOT_TESTS = ("pyproject.toml", "src", "csrc", "cmake", "build", "dist", "__pycache__", "*.so")
MODULE_FILES = re.compile(r"\.(py|pyi|so|pyd|js|html)$|/py\.typed$")
SYSTEM_LIBRARIES = re.compile(
    r"(libstdc\+\+|libgcc_s|libc|libm|librt|libpthread|libdl|ld-linux.*)\.so"
)
# What a dependency of the package brings into the process: torch loads it under the same name.
SHARED_LIBRARIES = {"optcore-accel": "libgomp.so.1"}


@dataclass(frozen=True)
class Wheel:
    """One built wheel and what its metadata says."""

    name: str
    module: str
    path: Path
    requires: frozenset[str]


@dataclass(frozen=True)
class Row:
    """What the check of one package found."""

    package: str
    runtime: int
    outcome: str
    passed: int
    install_seconds: float
    test_seconds: float


def main(arguments: list[str]) -> int:
    """Check the chosen packages, or all; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packages", nargs="*", metavar="PACKAGE")
    parser.add_argument("--wheels", type=Path, help="where the wheels of these packages lie")
    options = parser.parse_args(arguments)
    chosen = options.packages
    uv = require_uv()
    known = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
    if unknown := sorted(set(chosen) - set(known)):
        raise ToolError(f"check_isolated: expected packages among {known}, got {unknown}")
    with tempfile.TemporaryDirectory(prefix="isolated-") as folder:
        work = Path(folder)
        wheels = build_wheels(uv, work)
        if options.wheels is not None:
            for name, package in packages().items():
                if name in chosen:
                    path = pick(options.wheels, name, package.version)
                    wheels[name] = read_wheel(name, path)
        notes = [note for wheel in wheels.values() for note in inspect(wheel, work)]
        with ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:
            rows = list(pool.map(lambda n: check(n, wheels, uv, work), chosen or known))
    print(f"\n{'package':<16}{'installs':>9}{'setup s':>9}{'tests s':>9}  outcome")
    for row in rows:
        print(
            f"{row.package:<16}{row.runtime:>9}{row.install_seconds:>9.1f}"
            f"{row.test_seconds:>9.1f}  {row.outcome}"
        )
    for note in notes:
        print(note)
    print(f"{sum(row.passed for row in rows)} passed, 0 failed")
    return 0


def build_wheels(uv: str, work: Path, source: Path = ROOT) -> dict[str, Wheel]:
    """Build every package of a source tree."""
    projects = sorted(source.glob("packages/*/pyproject.toml"))
    names = [project.parent.name for project in projects]
    return {name: build_wheel(uv, name, work, source) for name in names}


def build_wheel(uv: str, name: str, work: Path, source: Path = ROOT) -> Wheel:
    """Build a package in a build folder of its own, so that the editable build stays as it is."""
    print(f"building {name}", flush=True)
    target, project = work / "wheels" / name, source / "packages" / name
    command = [uv, "build", "--wheel", "--quiet", "--out-dir", str(target)]
    if (project / "CMakeLists.txt").exists():
        command += ["--config-setting", f"build-dir={work / 'build' / name}"]
    command += ["--python", sys.executable, str(project)]
    run(f"{name}: build the wheel", command, source, uv_environment())
    (path,) = target.glob("*.whl")
    return read_wheel(name, path)


def read_wheel(name: str, path: Path) -> Wheel:
    """Return a wheel with what it says it needs."""
    with zipfile.ZipFile(path) as archive:
        (metadata,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        headers = Parser().parsestr(archive.read(metadata).decode())
    requires = headers.get_all("Requires-Dist") or []
    return Wheel(name, name.replace("-", "_"), path, frozenset(named(requires)))


def pick(folder: Path, name: str, version: str) -> Path:
    """Return the wheel of a package in a folder that fits this Python."""
    tags_here, found = set(sys_tags()), []
    for path in sorted(folder.rglob("*.whl")):
        project, of, _, fits = parse_wheel_filename(path.name)
        if (project, of) == (name, Version(version)) and not fits.isdisjoint(tags_here):
            found.append(path.resolve())
    if len(found) != 1:
        raise ToolError(f"{name}: expected one wheel of {version} in {folder}, got {len(found)}")
    return found[0]


def inspect(wheel: Wheel, work: Path) -> list[str]:
    """Refuse files that do not belong into a wheel, and libraries beyond the system's own."""
    notes = []
    with zipfile.ZipFile(wheel.path) as archive:
        for name in archive.namelist():
            top = name.split("/", 1)[0]
            is_module = top == wheel.module and MODULE_FILES.search(name)
            if not is_module and not top.endswith(".dist-info"):
                raise ToolError(
                    f"{wheel.name}: expected only the files of {wheel.module} in the wheel, "
                    f"got {name}; narrow the wheel's file list in its pyproject.toml"
                )
            if name.endswith(".so"):
                notes.append(needed(wheel.name, Path(archive.extract(name, work / "objects"))))
    return notes


def needed(package: str, library: Path) -> str:
    """Refuse shared libraries that a clean machine lacks; return a line that says what is used."""
    if not sys.platform.startswith("linux") or shutil.which("objdump") is None:
        return f"{package}: {library.name}: libraries not checked, that takes Linux and objdump"
    headers = run(f"{package}: objdump", ["objdump", "-p", str(library)], ROOT, dict(os.environ))
    names = re.findall(r"NEEDED\s+(\S+)", headers)
    shared = SHARED_LIBRARIES.get(package)
    foreign = [name for name in names if not SYSTEM_LIBRARIES.match(name) and name != shared]
    if foreign:
        raise ToolError(
            f"{package}: expected {library.name} to need system libraries only, got {foreign}; "
            "link them statically or drop them"
        )
    return f"{package}: {library.name} needs {', '.join(names)}"


def check(name: str, wheels: dict[str, Wheel], uv: str, work: Path) -> Row:
    """Install one wheel in its own environment, import it bare, then run its tests."""
    env = uv_environment()
    wheel, place = wheels[name], work / "run" / name
    siblings = family(wheel, wheels)
    place.mkdir(parents=True)
    constraint = place / "constraint.txt"
    constraint.write_text(f"torch=={version('torch')}\n")
    python = place / "venv" / "bin" / "python"

    started = time.monotonic()
    create = [uv, "venv", "--python", sys.executable, str(place / "venv")]
    run(f"{name}: make the environment", create, place, env)
    install = [uv, "pip", "install", "--python", str(python), "--constraint", str(constraint)]
    files = [str(wheels[sibling].path) for sibling in siblings]
    run(f"{name}: install the wheel", [*install, *files], place, env)
    listing = [uv, "pip", "list", "--format", "json", "--python", str(python)]
    listed = json.loads(run(f"{name}: list what is installed", listing, place, env, quiet=True))
    installed = {entry["name"] for entry in listed}
    if not wheel.requires and installed != {name}:
        raise ToolError(f"{name}: expected no dependency, got {sorted(installed - {name})}")
    for other in sorted(set(wheels) & installed - set(siblings)):
        raise ToolError(f"{name}: expected no {other}: {name} does not declare it")
    # torch without numpy warns; the test group brings numpy
    bare_import = [str(python), "-W", "ignore", "-c", f"import {wheel.module}"]
    run(f"{name}: import it without the test group", bare_import, place, env)

    group = f"{ROOT / 'packages' / name / 'pyproject.toml'}:test"
    found = [env.get("UV_FIND_LINKS", ""), *(str(own.path.parent) for own in wheels.values())]
    with_siblings = {**env, "UV_FIND_LINKS": ",".join(filter(None, found))}  # a test may need more
    grouped = [*install, "--no-sources", "--group", group]
    run(f"{name}: install the test group", grouped, place, with_siblings)
    install_seconds = time.monotonic() - started

    started = time.monotonic()
    outcome, passed = run_tests(name, ROOT, place, env)
    seconds = time.monotonic() - started
    return Row(name, len(installed), outcome, passed, install_seconds, seconds)


def run_tests(name: str, source: Path, place: Path, env: dict[str, str]) -> tuple[str, int]:
    """Run a package's tests, copied from a source tree, in ``place/venv``; return how it went."""
    copy = place / "packages" / name
    ignored = shutil.ignore_patterns(*NOT_TESTS)
    shutil.copytree(source / "packages" / name, copy, symlinks=True, ignore=ignored)
    shutil.copy(source / "pyproject.toml", place)
    config = ["-c", str(place / "pyproject.toml"), "--rootdir", str(place)]
    # the doctests of the installed package
    what = ["--pyargs", str(copy / "tests"), name.replace("-", "_")]
    # a module for a library that the package does not need is left out where that is missing
    optional = "--doctest-ignore-import-errors"
    python = str(place / "venv" / "bin" / "python")
    pytest = [python, "-m", "pytest", "-q", "-m", "not slow", optional, *config, *what]
    output = run(f"{name}: tests", pytest, place, {**env, "OMP_NUM_THREADS": "1"})
    outcome = output.rstrip().splitlines()[-1]
    passed = re.search(r"(\d+) passed", outcome)
    if passed is None:
        raise ToolError(f"{name}: expected passing tests, got {outcome!r}")
    return outcome, int(passed[1])


def family(wheel: Wheel, wheels: dict[str, Wheel]) -> list[str]:
    """Return the wheel and the siblings it declares, directly or through another sibling."""
    found = [wheel.name]
    for name in found:  # grows while it is walked
        found += sorted((wheels[name].requires & wheels.keys()) - set(found))
    return found


def run(what: str, command: list[str], cwd: Path, env: dict[str, str], quiet: bool = False) -> str:
    """Return what a command printed; raise with all of it when the command fails."""
    stderr = subprocess.DEVNULL if quiet else subprocess.STDOUT
    done = subprocess.run(
        command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=stderr, text=True, check=False
    )
    if done.returncode:
        raise ToolError(f"{done.stdout}\n{what}: expected exit status 0, got {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ToolError as error:
        sys.exit(str(error))
