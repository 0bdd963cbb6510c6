# SPDX-License-Identifier: Apache-2.0
"""Build wheels of treeops and optcore-accel per CPython, and test them in clean environments.

The wheels stay in ``packages/*/dist``. Tests of treeops that need torch or another library skip.
No build needs torch, all of optcore-accel does: where torch is to be had without CUDA's packages
its tests run; elsewhere its modules are loaded as far as their import of torch, and no test runs.
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
from importlib.metadata import version
from pathlib import Path

from _uv import ROOT, ToolError, require_uv, uv_environment
from check_isolated import NOT_TESTS, Wheel, inspect, run

PACKAGES = ROOT / "packages"
PACKAGE = PACKAGES / "treeops"
NAMED = re.compile(r'"Programming Language :: Python :: (3\.\d+)"')
CUDA_PACKAGE = re.compile(r"^ *\+ *(?:nvidia-|triton|cuda-)", re.MULTILINE)
# Without torch a module that links and loads gets as far as its first line: "import torch".
LOAD = """
import importlib.machinery, importlib.util, sys
for path in sys.argv[1:]:
    name = path.rsplit("/", 1)[1].split(".")[0]
    spec = importlib.machinery.ModuleSpec(
        name, importlib.machinery.ExtensionFileLoader(name, path), origin=path
    )
    try:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
        sys.exit(f"{name}: expected it to import torch")
    except ImportError as error:
        if getattr(error.__cause__ or error, "name", None) != "torch":
            raise
"""
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
            place = Path(folder) / f"run-{len(rows)}"
            rows.append(check(uv, python, place))
            rows.append(check_kernels(uv, python, place))
    print(f"\n{'wheel':<62}{'build s':>9}{'tests s':>9}  outcome")
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
    for wanted in versions:
        own = sorted(pyenv.glob(f"{wanted}.*/bin/python3"))
        for path in [*map(str, own), shutil.which(f"python{wanted}")]:
            if path is not None and version_of(path) == wanted:
                found[wanted] = path
                break
    return found


def version_of(python: str) -> str | None:
    """Return ``3.11`` for a CPython 3.11, None for what is no CPython that runs."""
    asked = subprocess.run([python, "-c", ASK], capture_output=True, text=True, check=False)
    words = asked.stdout.split()
    return words[1] if asked.returncode == 0 and words[0] == "cpython" else None


def check(uv: str, python: str, place: Path) -> str:
    """Build a wheel for one interpreter, test it in a new environment; return a line of text."""
    env = uv_environment()
    place.mkdir()
    path, build_seconds = build(uv, python, "treeops", place)
    inside = str(place / "venv" / "bin" / "python")
    run(f"{python}: make the environment", [uv, "venv", "--python", python, "venv"], place, env)
    install = [uv, "pip", "install", "--quiet", "--python", inside]
    run(f"{python}: install the wheel", [*install, str(path)], place, env)
    bare_import = [inside, "-W", "error", "-c", "import treeops"]
    run(f"{python}: import it without the test group", bare_import, place, env)
    group = f"{PACKAGE / 'pyproject.toml'}:test"
    run(f"{python}: install the tests", [*install, "--no-sources", "--group", group], place, env)

    outcome, seconds = run_tests(python, inside, "treeops", place)
    return f"{path.name:<62}{build_seconds:>9.1f}{seconds:>9.1f}  {outcome}"


def check_kernels(uv: str, python: str, place: Path) -> str:
    """The same for optcore-accel, with torch or without; return a line of text."""
    env = uv_environment()
    path, build_seconds = build(uv, python, "optcore-accel", place)
    inside = str(place / "kernels" / "bin" / "python")
    run(f"{python}: make the environment", [uv, "venv", "--python", python, "kernels"], place, env)
    install = [uv, "pip", "install", "--python", inside]
    constraint = place / "constraint.txt"
    constraint.write_text(f"torch=={version('torch').partition('+')[0]}\n")
    constrained = [*install, "--constraint", str(constraint)]
    plan = subprocess.run(
        [*constrained, "--dry-run", "torch"], cwd=place, env=env, text=True, capture_output=True
    )
    if plan.returncode or CUDA_PACKAGE.search(plan.stderr):
        run(f"{python}: install", [*install, "--no-deps", str(path)], place, env)
        modules = sorted(map(str, (place / "kernels").glob("lib/*/site-packages/*/*.so")))
        run(f"{python}: load the modules", [inside, "-c", LOAD, *modules], place, env)
        outcome = "loads; no tests: torch is not to be had here without CUDA's packages"
        return f"{path.name:<62}{build_seconds:>9.1f}{0.0:>9.1f}  {outcome}"
    (treeops,) = (place / "out" / "treeops").glob("*.whl")
    below = [str(treeops), str(PACKAGES / "optcore"), str(path)]
    # optcore's sources would name the folder of treeops beside the wheel
    run(f"{python}: install", [*constrained, "--no-sources", *below], place, env)
    group = ["--no-sources", "--group", f"{PACKAGES / 'optcore-accel' / 'pyproject.toml'}:test"]
    run(f"{python}: install the tests", [*constrained, *group], place, env)
    outcome, seconds = run_tests(python, inside, "optcore-accel", place)
    return f"{path.name:<62}{build_seconds:>9.1f}{seconds:>9.1f}  {outcome}"


def build(uv: str, python: str, package: str, place: Path) -> tuple[Path, float]:
    """Build a wheel, look into it, and keep it in ``dist``; return it and the seconds it took."""
    started = time.monotonic()
    out = place / "out" / package
    command = [uv, "build", "--wheel", "--quiet", "--python", python, "--out-dir", str(out)]
    command += ["--config-setting", f"build-dir={place / 'build' / package}"]
    command += [str(PACKAGES / package)]
    run(f"{python}: build the wheel of {package}", command, place, uv_environment())
    (path,) = out.glob("*.whl")
    seconds = time.monotonic() - started
    wheel = Wheel(package, package.replace("-", "_"), path, frozenset())
    print(*inspect(wheel, place), sep="\n")
    dist = PACKAGES / package / "dist"
    dist.mkdir(exist_ok=True)
    shutil.copy(path, dist)
    return path, seconds


def run_tests(python: str, inside: str, package: str, place: Path) -> tuple[str, float]:
    """Run the tests of an installed package; return pytest's last line and the seconds."""
    copy = place / "packages" / package
    ignored = shutil.ignore_patterns(*NOT_TESTS)
    shutil.copytree(PACKAGES / package, copy, symlinks=True, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", place)
    config = ["-c", str(place / "pyproject.toml"), "--rootdir", str(place)]
    pytest = [inside, "-m", "pytest", "-q", "-m", "not slow", "--doctest-ignore-import-errors"]
    tests = ["--pyargs", str(copy / "tests"), package.replace("-", "_")]
    started = time.monotonic()
    output = run(
        f"{python}: tests of {package}", [*pytest, *config, *tests], place, uv_environment()
    )
    return output.rstrip().splitlines()[-1], time.monotonic() - started


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ToolError as error:
        sys.exit(str(error))
