# SPDX-License-Identifier: Apache-2.0
"""On a machine with a GPU: build optcore-accel with CUDA, test it there, and measure it.

Needs no network and no ``.venv``: python3 with torch, pytest, pybind11 and scikit-build-core, and
cmake, ninja, nvcc and a C++ compiler. treeops takes abseil from the system or from
``TREEOPS_ABSEIL_SOURCE_DIR``. Everything built lies in ``out/gpu-check``.
Usage: ``python3 tools/gpu_check.py [PYTEST ARGUMENTS ...]``.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile

from _uv import ROOT, ToolError

PACKAGES = ROOT / "packages"
PLACE = ROOT / "out" / "gpu-check"
SITE = PLACE / "site"
MODULES = ("torch", "pytest", "pybind11", "scikit_build_core")
PROGRAMS = ("cmake", "ninja", "nvcc", "c++")
BUILD = """
import sys
from scikit_build_core.build import build_wheel
options = dict(word.split("=", 1) for word in sys.argv[3:])
build_wheel(sys.argv[1], {"build-dir": sys.argv[2], **options})
"""
STATUS = """
import optcore_accel
for kind, found in optcore_accel.status().items():
    print(f"{kind}: {found}")
raise SystemExit(not optcore_accel.is_available("cuda"))
"""


def main(arguments: list[str]) -> int:
    """Build, test and measure; return the exit status."""
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    missing += [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        raise ToolError(
            f"gpu-check: expected {', '.join(MODULES + PROGRAMS)}, found no {', '.join(missing)}; "
            "install what is missing or put it on PATH"
        )
    shutil.rmtree(SITE, ignore_errors=True)
    SITE.mkdir(parents=True)
    build("treeops")
    lay_out("optcore")
    build("optcore-accel", "cmake.define.OPTCORE_ACCEL_CUDA=ON")

    if call([sys.executable, "-c", STATUS]):
        raise ToolError(
            "gpu-check: built; expected a GPU that runs the kernels, got the status above: the "
            "tests and benchmarks of CUDA did not run"
        )
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    pytest += ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    tests = PACKAGES / "optcore-accel" / "tests"
    failed = []
    if call([*pytest, str(tests), *arguments]):
        failed.append("tests")
    checker = shutil.which("compute-sanitizer")
    if checker is None:
        print("gpu-check: compute-sanitizer is not on PATH: not run", flush=True)
    else:
        for tool in ("memcheck", "racecheck"):
            watched = [checker, "--tool", tool, "--error-exitcode", "9", *pytest]
            if call([*watched, "-k", "cuda", str(tests / "test_memory.py")]):
                failed.append(tool)
    for file in sorted((PACKAGES / "optcore-accel" / "benchmarks").glob("bench_*.py")):
        if call([sys.executable, str(file)]):
            failed.append(file.name)
    print(f"gpu-check: failed: {', '.join(failed)}" if failed else "gpu-check: all passed")
    return int(bool(failed))


def build(package: str, *options: str) -> None:
    """Compile a package with the tools that are there and unpack its wheel into the site."""
    print(f"gpu-check: building {package}", flush=True)
    wheels = PLACE / "wheels" / package
    shutil.rmtree(wheels, ignore_errors=True)
    wheels.mkdir(parents=True)
    words = [str(wheels), str(PLACE / "build" / package), *options]
    done = subprocess.run(
        [sys.executable, "-c", BUILD, *words],
        cwd=PACKAGES / package,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ToolError(f"{done.stdout}\ngpu-check: build {package}: expected exit status 0")
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(SITE)


def lay_out(package: str) -> None:
    """Put a package of pure Python into the site, with what its metadata is asked for."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGES / package / "src" / package, SITE / package, ignore=ignored)
    text = (PACKAGES / package / "pyproject.toml").read_text()
    version = re.search(r'^version = "(.+)"$', text, re.MULTILINE)
    if version is None:
        raise ToolError(f"gpu-check: expected a static version in {package}'s pyproject.toml")
    metadata = SITE / f"{package}-{version[1]}.dist-info"
    metadata.mkdir()
    lines = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version[1]}\n"
    (metadata / "METADATA").write_text(lines)


def call(command: list[str]) -> int:
    """Run a command on the site that was built; return its exit status."""
    env = {**os.environ, "PYTHONPATH": str(SITE)}
    return subprocess.run(command, cwd=ROOT, env=env, check=False).returncode


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ToolError as error:
        sys.exit(str(error))
