# SPDX-License-Identifier: Apache-2.0
"""Build one wheel of treeops per CPython, install each in a clean environment, run the tests there.

The wheels stay in ``packages/treeops/dist``. Tests that need torch or another library skip.
Usage: ``python tools/wheels.py [PYTHON ...]``, by name or path; without any, every CPython that
treeops names in its classifiers and that pyenv or ``PATH`` has.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _uv import ROOT, ToolError, require_uv, uv_environment
from check_isolated import NOT_TESTS, Wheel, inspect, run

PACKAGE = ROOT / "packages" / "treeops"
NAMED = re.compile(r'"Programming Language :: Python :: (3\.\d+)"')
ASK = "import sys; print(sys.implementation.name, '%d.%d' % sys.version_info[:2])"


def main(chosen: list[str]) -> int:
    """Build, check and test a wheel per interpreter; return the exit status."""
    uv = require_uv()
    named = NAMED.findall((PACKAGE / "pyproject.toml").read_text())
    pythons = {name: interpreter(name) for name in chosen} if chosen else search(named)
    if not pythons:
        raise ToolError(f"wheels: expected a CPython among {named} on PATH or in pyenv, found none")
    missing = [] if chosen else sorted(set(named) - set(pythons))
    print(f"wheels: {', '.join(pythons)}; not found: {', '.join(missing) or 'none'}")
    rows = []
    with tempfile.TemporaryDirectory(prefix="wheels-") as folder:
        for name, python in pythons.items():
            print(f"wheels: {name}", flush=True)
            rows.append(check(uv, python, Path(folder) / f"run-{len(rows)}"))
    print(f"\n{'wheel':<58}{'build s':>9}{'tests s':>9}  outcome")
    print("\n".join(rows))
    return 0


def interpreter(name: str) -> str:
    """Return the path of the interpreter a user named."""
    path = shutil.which(name)
    if path is None or version_of(path) is None:
        raise ToolError(f"wheels: expected WHEEL_PYTHONS to name a CPython, got {name!r}")
    return path


def search(versions: list[str]) -> dict[str, str]:
    """Return the interpreters of these versions; pyenv's own come before its shims on PATH."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = {}
    for version in versions:
        own = sorted(pyenv.glob(f"{version}.*/bin/python3"))
        for path in [*map(str, own), shutil.which(f"python{version}")]:
            if path is not None and version_of(path) == version:
                found[version] = path
                break
    return found


def version_of(python: str) -> str | None:
    """Return ``3.11`` for a CPython 3.11, None for what is no CPython that runs."""
    asked = subprocess.run([python, "-c", ASK], capture_output=True, text=True, check=False)
    words = asked.stdout.split()
    return words[1] if asked.returncode == 0 and words[0] == "cpython" else None


def check(uv: str, python: str, place: Path) -> str:
    """Build a wheel for one interpreter, test it in a new environment; return a line of text."""
    env, dist = uv_environment(), PACKAGE / "dist"
    place.mkdir()
    started = time.monotonic()
    build = [uv, "build", "--wheel", "--quiet", "--python", python, "--out-dir", str(place / "out")]
    build += ["--config-setting", f"build-dir={place / 'build'}", str(PACKAGE)]
    run(f"{python}: build the wheel", build, place, env)
    (path,) = (place / "out").glob("*.whl")
    build_seconds = time.monotonic() - started
    print(*inspect(Wheel("treeops", "treeops", path, frozenset()), place), sep="\n")

    inside = str(place / "venv" / "bin" / "python")
    run(f"{python}: make the environment", [uv, "venv", "--python", python, "venv"], place, env)
    install = [uv, "pip", "install", "--quiet", "--python", inside]
    run(f"{python}: install the wheel", [*install, str(path)], place, env)
    bare_import = [inside, "-W", "error", "-c", "import treeops"]
    run(f"{python}: import it without the test group", bare_import, place, env)
    group = f"{PACKAGE / 'pyproject.toml'}:test"
    run(f"{python}: install the tests", [*install, "--no-sources", "--group", group], place, env)

    copy = place / "packages" / "treeops"
    shutil.copytree(PACKAGE, copy, symlinks=True, ignore=shutil.ignore_patterns(*NOT_TESTS))
    shutil.copy(ROOT / "pyproject.toml", place)
    config = ["-c", str(place / "pyproject.toml"), "--rootdir", str(place)]
    pytest = [inside, "-m", "pytest", "-q", "-m", "not slow", "--doctest-ignore-import-errors"]
    tests = ["--pyargs", str(copy / "tests"), "treeops"]
    started = time.monotonic()
    output = run(f"{python}: tests", [*pytest, *config, *tests], place, env)
    seconds = time.monotonic() - started

    dist.mkdir(exist_ok=True)
    shutil.copy(path, dist)
    outcome = output.rstrip().splitlines()[-1]
    return f"{path.name:<58}{build_seconds:>9.1f}{seconds:>9.1f}  {outcome}"


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ToolError as error:
        sys.exit(str(error))
