# SPDX-License-Identifier: Apache-2.0
"""On a machine with a GPU: build optcore-accel with CUDA, test it there, and measure it.

Needs no network and no ``.venv``: python3 with torch, numpy, pytest, pybind11 and
scikit-build-core, and cmake, ninja, nvcc and a C++ compiler. treeops takes abseil from the system
or from ``TREEOPS_ABSEIL_SOURCE_DIR``. Everything built lies in ``out/gpu-check``, with the output
of each step; a table at the end says how each went, and the exit status is 0 if none failed.

Usage: ``python3 tools/gpu_check.py [--dry-run] [--only STEP ...] [PYTEST ARGUMENTS ...]``. The
steps: build, tests, memcheck, memcheck_counts and racecheck (skipped without compute-sanitizer),
bench_steps, bench_unrolled. ``--only`` runs these and the build; ``--dry-run`` tells what is
missing and what would run.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass

from _uv import ROOT, ToolError

PACKAGES = ROOT / "packages"
ACCEL = PACKAGES / "optcore-accel"
PLACE = ROOT / "out" / "gpu-check"
SITE = PLACE / "site"
MODULES = ("torch", "numpy", "pytest", "pybind11", "scikit_build_core")
PROGRAMS = ("cmake", "ninja", "nvcc", "c++")
BUILD = """
import sys
from scikit_build_core.build import build_wheel
options = dict(word.split("=", 1) for word in sys.argv[3:])
build_wheel(sys.argv[1], {"build-dir": sys.argv[2], **options})
"""
STATUS = """
import torch, optcore_accel
print("torch", torch.__version__, "for CUDA", torch.version.cuda)
for kind, found in optcore_accel.status().items():
    print(f"{kind}: {found}")
for k in range(torch.cuda.device_count()):
    print(torch.cuda.get_device_properties(k))
raise SystemExit(not optcore_accel.is_available("cuda"))
"""
# Every access of every rule and dtype, in place, out of place and backward: what memcheck is for.
WATCHED = "cuda and (float32 or bfloat16) and not updates"
# Counts that the kernels read, captured and not, by the names of the tests that need a GPU.
COUNTED = "on_the_gpu or captured or (shared_counts and not stand)"

# An allocation for each tensor: beyond its end is beyond what memcheck lets pass.
UNCACHED = (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),)


@dataclass(frozen=True)
class Step:
    """A command that runs on what was built."""

    name: str
    command: list[str]
    missing: str = ""  # why it is skipped
    variables: tuple[tuple[str, str], ...] = ()
    probe: tuple[str, ...] = ()  # a command that fails where this one cannot be had


def main(arguments: list[str]) -> int:
    """Build, test and measure; return the exit status."""
    steps = plan([])
    names = ["build", *(step.name for step in steps)]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    options, pytest_arguments = parser.parse_known_args(arguments)
    steps = [step for step in plan(pytest_arguments) if step.name in options.only]
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    missing += [name for name in PROGRAMS if shutil.which(name) is None]
    if options.dry_run:
        print(f"gpu-check: missing: {', '.join(missing) or 'nothing'}")
        if "torch" not in missing:
            print(f"gpu-check: {torch_sees()}")
        print("build: treeops and optcore-accel")
        for step in steps:
            print(f"{step.name}: {step.missing or shlex.join(step.command)}")
        return int(bool(missing))
    if missing:
        raise ToolError(
            f"gpu-check: expected {', '.join(MODULES + PROGRAMS)}, found no {', '.join(missing)}; "
            "install what is missing or put it on PATH"
        )

    print(f"gpu-check: {torch_sees()}", flush=True)
    rows = [build_all()]
    if call("status", [sys.executable, "-c", STATUS]):
        show(rows)
        raise ToolError(
            "gpu-check: expected a GPU that runs the kernels, got the status above; all was built, "
            "and nothing ran: neither tests nor benchmarks"
        )
    for step in steps:
        print(f"\n== {step.name}", flush=True)
        started = time.monotonic()
        if step.missing or (step.probe and call("probe", [*step.probe])):
            reason = step.missing or "it fails on a program of torch alone, see above"
            outcome = f"skipped: {reason}"
        else:
            status = call(step.name, step.command, step.variables)
            outcome = f"FAILED with exit status {status}" if status else "passed"
        rows.append((step.name, time.monotonic() - started, outcome))
        print(f"gpu-check: {step.name}: {outcome}", flush=True)
    show(rows)
    return int(any(outcome.startswith("FAILED") for _, _, outcome in rows))


def torch_sees() -> str:
    """What GPUs torch finds, before anything is built."""
    code = "import torch; print(torch.cuda.device_count(), 'GPUs, torch', torch.__version__)"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if asked.returncode:
        raise ToolError(f"{asked.stderr}\ngpu-check: expected torch to load, got the error above")
    found = asked.stdout.strip()
    return f"torch sees {found}" + "; builds, and stops there" * found.startswith("0 ")


def plan(pytest_arguments: list[str]) -> list[Step]:
    """What runs after the build."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    pytest += ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    tests = ACCEL / "tests"
    checker = shutil.which("compute-sanitizer")
    missing = "" if checker else "compute-sanitizer is not on PATH"
    memory = [*pytest, "-x", "-k", WATCHED, str(tests / "test_memory.py")]
    graphs = [str(tests / "test_counts.py"), str(tests / "test_shared_counts.py")]
    counts = [*pytest, "-x", "-k", COUNTED, *graphs]
    # every kernel passes its scalars through shared memory, the backward ones their sums too
    shared = [*pytest, "-x", "-k", f"numbers or {COUNTED}", str(tests / "test_cuda.py"), *graphs]
    watch = [checker or "compute-sanitizer", "--error-exitcode", "9", "--tool"]
    alone = [sys.executable, "-c", "import torch; torch.ones(9, device='cuda').sum().item()"]
    benchmarks = ACCEL / "benchmarks"
    measure = [sys.executable, str(benchmarks / "bench_steps.py"), "--device", "cuda"]
    unrolled = [sys.executable, str(benchmarks / "bench_unrolled.py"), "--device", "cuda"]
    return [
        Step("tests", [*pytest, "-rs", str(tests), *pytest_arguments]),
        Step(
            "memcheck",
            [*watch, "memcheck", *memory],
            missing,
            UNCACHED,
            probe=(*watch, "memcheck", *alone),
        ),
        Step(  # with the cache: what is captured must not allocate
            "memcheck_counts",
            [*watch, "memcheck", *counts],
            missing,
            probe=(*watch, "memcheck", *alone),
        ),
        Step(
            "racecheck",
            [*watch, "racecheck", *shared],
            missing,
            probe=(*watch, "racecheck", *alone),
        ),
        Step("bench_steps", measure),
        Step("bench_unrolled", unrolled),
    ]


def build_all() -> tuple[str, float, str]:
    """Build the packages from clean sources into the site; return a row of the table."""
    started = time.monotonic()
    shutil.rmtree(SITE, ignore_errors=True)
    SITE.mkdir(parents=True)
    build("treeops")
    lay_out("optcore")
    lay_out("optdiff")
    build("optcore-accel", "cmake.define.OPTCORE_ACCEL_CUDA=ON")
    return "build", time.monotonic() - started, "passed"


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
        raise ToolError(
            f"{done.stdout}\ngpu-check: build {package}: expected exit status 0, got "
            f"{done.returncode}: the compiler's words stand above"
        )
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


def call(name: str, command: list[str], variables: tuple[tuple[str, str], ...] = ()) -> int:
    """Run a command on the site that was built, its output here and in a file; its exit status."""
    # idle OpenMP threads that spin would take the core that launches the kernels
    env = {**os.environ, **dict(variables), "PYTHONPATH": str(SITE), "PYTHONUNBUFFERED": "1"}
    env["OMP_WAIT_POLICY"] = "passive"
    with (
        (PLACE / f"{name}.txt").open("w") as log,
        subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as running,
    ):
        for line in running.stdout or ():
            print(line, end="", flush=True)
            log.write(line)
    return running.returncode


def show(rows: list[tuple[str, float, str]]) -> None:
    """Print how every step went."""
    print(f"\n{'step':<16}{'seconds':>9}  outcome")
    for name, seconds, outcome in rows:
        print(f"{name:<16}{seconds:>9.1f}  {outcome}")


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ToolError as error:
        sys.exit(str(error))
