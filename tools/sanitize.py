# SPDX-License-Identifier: Apache-2.0
"""Build a package with AddressSanitizer and UndefinedBehaviorSanitizer and run its tests on that.

The sanitized modules stand beside the sources in a folder and an environment of its own: the
editable install of ``.venv`` stays as it is. For treeops torch and jax are left out, their tests
skip; for optcore-accel torch comes from ``.venv``, its CPU kernels are what is sanitized.
Usage: ``python tools/sanitize.py [--leaks] [treeops|optcore-accel] [PYTEST ARGUMENTS ...]``:
treeops unless another is named. Without further arguments the whole suite of treeops runs, and of
optcore-accel what reads and writes memory in another way than the rest. ``--leaks``, for
treeops, also turns LeakSanitizer on and fails on any leaked block that treeops allocated; the
interpreter's own are listed nowhere.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from _uv import ROOT, TOOLS, ToolError, require_uv, uv_environment

PACKAGES = ROOT / "packages"
PLACE = TOOLS / "sanitize"
SITE = PLACE / "site"
PYTHON = PLACE / "venv" / "bin" / "python"
# A budget of time, memory or stack says nothing under a sanitizer, which multiplies all three.
NOT_HERE = (
    "takes_less_than_forty_milliseconds",
    "memory_does_not_grow",
    "process_does_not_grow",
    "do_not_pile_up",
    "only_asked_for",
    "small_stack",
)
MODULES = {"treeops": "_C", "optcore-accel": "_cpu"}
# Of optcore-accel: every rule and dtype at sizes around each boundary between known margins, every
# layout and refusal, each instruction set, several threads with sums over blocks, batches. What
# the other tests add is numbers, got by the same loops.
TESTS = {
    "treeops": ("",),
    "optcore-accel": (
        "test_memory.py",
        "test_tensors.py",
        "test_dtypes.py",
        "test_processes.py::test_every_instruction_set_gives_the_same_bits",
        "test_processes.py::test_any_number_of_threads_gives_the_same_bits",
        "test_transforms.py::test_vmap_over_the_state",
        "test_transforms.py::test_vmap_over_some_leaves",
    ),
}
LEAK = re.compile(r"^(?:Direct|Indirect) leak of .*\n(?: +#.*\n?)+", re.MULTILINE)


def main(arguments: list[str]) -> int:
    """Build, run pytest, and return the exit status."""
    if not sys.platform.startswith("linux"):
        raise ToolError(f"sanitize: expected Linux with g++, got {sys.platform}")
    leaks = "--leaks" in arguments
    arguments = [argument for argument in arguments if argument != "--leaks"]
    package = arguments.pop(0) if arguments and arguments[0] in MODULES else "treeops"
    if leaks and package != "treeops":
        raise ToolError(f"sanitize: expected --leaks with treeops alone, got {package}")
    make_environment()
    path = [SITE]
    build("treeops")
    if package == "optcore-accel":
        build(package)
        # As a plain path: .venv's hooks for editable installs, which lead elsewhere, do not run.
        path += [PACKAGES / "optcore" / "src", Path(sysconfig.get_path("platlib"))]
    what = " and ".join(f"not {name}" for name in NOT_HERE)
    folder = PACKAGES / package / "tests"
    tests = arguments or [*(str(folder / name) for name in TESTS[package]), "-k", what]
    pytest = [str(PYTHON), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    config = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    return run([*pytest, *config, *tests], path, leaks)


def make_environment() -> None:
    """Make or refresh the environment that holds what the tests of treeops need."""
    uv, env = require_uv(), uv_environment()
    if not PYTHON.exists():
        call("make the environment", [uv, "venv", "--python", sys.executable, PLACE / "venv"], env)
    install = [uv, "pip", "install", "--quiet", "--python", PYTHON, "--no-sources"]
    extra = ["attrs", "numpy"]
    group = f"{PACKAGES / 'treeops' / 'pyproject.toml'}:test"
    call("install the test group", [*install, "--group", group, *extra], env)


def build(package: str) -> None:
    """Compile the sanitized module and put it beside the Python files."""
    name = package.replace("-", "_")
    tools = Path(sys.executable).parent
    env = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    asked = [sys.executable, "-m", "pybind11", "--cmakedir"]
    pybind = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    options = {
        f"{name.upper()}_SANITIZE": "ON",
        f"{name.upper()}_CUDA": "OFF",
        "CMAKE_BUILD_TYPE": "RelWithDebInfo",
        "Python_EXECUTABLE": PYTHON,
        "pybind11_DIR": pybind,
    }
    definitions = [f"-D{name}={value}" for name, value in options.items()]
    source, target = PACKAGES / package, PLACE / f"build-{package}"
    configure = ["cmake", "-S", source, "-B", target, "-G", "Ninja"]
    call("configure", [*configure, *definitions], env)
    call("compile", ["cmake", "--build", target], env)
    shutil.rmtree(SITE / name, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(source / "src" / name, SITE / name, ignore=ignored)
    (module,) = target.glob(f"{MODULES[package]}.*.so")
    shutil.copy(module, SITE / name)


def run(command: list[str], path: list[Path], leaks: bool) -> int:
    """Run a command with the sanitizers' runtimes loaded first; return 1 if they object."""
    libraries = [sanitizer_library(name) for name in ("libasan.so", "libubsan.so", "libstdc++.so")]
    env = {
        **os.environ,
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "OMP_NUM_THREADS": "1",
    }
    if not leaks:
        return subprocess.run(command, cwd=ROOT, env=env, check=False).returncode
    # The interpreter has no frame pointers: the quick unwinder would stop at its first frame.
    env["ASAN_OPTIONS"] = "detect_leaks=1:fast_unwind_on_malloc=0:malloc_context_size=12"
    # What the interpreter itself leaves behind is no failure here: report() tells it apart.
    env["LSAN_OPTIONS"] = "exitcode=0:max_leaks=0"
    done = subprocess.run(
        command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True, check=False
    )
    fatal = "ERROR: AddressSanitizer" in done.stderr or "runtime error:" in done.stderr
    if done.returncode or fatal:
        print(done.stderr)
        return 1
    return report(done.stderr)


def report(output: str) -> int:
    """Print the leaks that treeops allocated; return 1 if there is any."""
    if "LeakSanitizer" not in output:
        raise ToolError(f"{output}\nsanitize: expected a report of LeakSanitizer, got none")
    if "LeakSanitizer has encountered a fatal error" in output:
        raise ToolError(f"{output}\nsanitize: expected LeakSanitizer to run, got the error above")
    found = LEAK.findall(output)
    ours = [leak for leak in found if allocated_by_treeops(leak)]
    print("\n".join(ours))
    print(f"leaks: {len(ours)} allocated by treeops, {len(found) - len(ours)} by others")
    return int(bool(ours))


def allocated_by_treeops(leak: str) -> bool:
    """Tell whether treeops stands above the first frame that runs Python code."""
    for frame in leak.splitlines()[1:]:
        if "treeops::" in frame:
            return True
        if "_PyEval_" in frame:
            return False
    return False


def sanitizer_library(name: str) -> str:
    """Return the path of one of the compiler's libraries."""
    asked = ["g++", f"-print-file-name={name}"]
    path = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(path).is_absolute():
        raise ToolError(f"sanitize: expected g++ to come with {name}, found none; install it")
    return path


def call(what: str, command: list[object], env: dict[str, str]) -> None:
    """Run one step of the preparation; raise with its output when it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise ToolError(f"{done.stdout}\nsanitize: {what}: expected exit status 0")


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ToolError as error:
        sys.exit(str(error))
