#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Make or refresh ``.venv``: uv, abseil's headers, a guard against CUDA downloads, all packages.

Usage: ``python tools/setup.py [GROUP ...]``. Needs Python 3.10+ with pip and a C++ compiler. A
second run finds its stamp and does nothing. The groups of ``OPTIONAL`` are installed when named.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from _uv import ROOT, TOOLS, ToolError, find_uv, uv_environment

LOG = TOOLS / "setup.log"
STAMP = TOOLS / "setup.stamp"
PYTHON = ROOT / ".venv" / "bin" / "python"
INPUTS = ("pyproject.toml", "tools/setup.py", "tools/_uv.py", "packages/*/pyproject.toml")
NATIVE_INPUTS = ("packages/*/CMakeLists.txt", "packages/*/cmake/**/*", "packages/*/csrc/**/*")
OPTIONAL = ("docs", "peers", "torchrl")  # groups that only some targets need
CUDA_PACKAGE = re.compile(r"^ *[+~] *((?:nvidia-|triton|cuda-)\S*)", re.MULTILINE)
ABSEIL_CONFIG = "cmake/absl/abslConfig.cmake"
ABSEIL_APT = "libabsl-dev"


def main(groups: list[str]) -> int:
    """Bring the environment up to date, with these groups besides; return the exit status."""
    unknown = sorted(set(groups) - set(OPTIONAL))
    if unknown:
        raise ToolError(f"setup: expected groups of {', '.join(OPTIONAL)}, got {unknown[0]}")
    if sys.version_info < (3, 10):
        raise ToolError(
            f"setup: expected Python >= 3.10, got {python_version()}; "
            "name a newer one: `make PYTHON=python3.11 ...`"
        )
    wanted = fingerprint()
    env = uv_environment()
    if not (PYTHON.exists() and STAMP.exists() and STAMP.read_text() == wanted):
        refresh(env)
        STAMP.write_text(wanted)
    if groups:
        named = [word for group in groups for word in ("--only-group", group)]
        sync = [find_uv() or install_uv(), "sync", "--all-packages", "--inexact", *named]
        logged(f"installing {', '.join(groups)}", [*sync, "--python", sys.executable], env)
    return 0


def refresh(env: dict[str, str]) -> None:
    """Make ``.venv`` anew or bring it up to date: all that every target needs."""
    started = time.monotonic()
    TOOLS.mkdir(exist_ok=True)
    LOG.write_text("")
    STAMP.unlink(missing_ok=True)

    uv = find_uv() or install_uv()
    require_compiler()
    provide_abseil()
    sync = [uv, "sync", "--all-packages", "--all-groups", "--python", sys.executable]
    sync += [word for group in OPTIONAL for word in ("--no-group", group)]
    if "UV_FIND_LINKS" in env:
        refuse_cuda(sync, env)
    # Native packages are built with the tools of .venv, so that editing one .cpp compiles one file.
    build_tools = [uv, "sync", "--only-group", "build", "--inexact", "--python", sys.executable]
    logged("installing the build tools", build_tools, env)
    logged("installing the packages (compiles C++)", [*sync, *no_isolation()], env)
    say(f"ready after {time.monotonic() - started:.0f} s; the log is in {LOG.relative_to(ROOT)}")


def fingerprint() -> str:
    """Hash everything the environment is made from."""
    digest = hashlib.sha256(python_version().encode())
    for pattern in INPUTS + NATIVE_INPUTS:
        for path in sorted(ROOT.glob(pattern)):
            if path.is_file():
                digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def python_version() -> str:
    """Return the running Python's version as ``3.11``."""
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def install_uv() -> str:
    """Install uv into ``.tools`` with pip; it needs no virtual environment."""
    env = {**os.environ, "PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0"}
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    if subprocess.run([*pip, "--version"], capture_output=True, check=False).returncode:
        raise ToolError(
            f"setup: expected pip in {sys.executable}, found none; install it "
            "(`python3 -m ensurepip`, or your system's python3-pip), or put uv on PATH"
        )
    logged(
        "installing uv into .tools",
        [*pip, "install", "--upgrade", "--target", str(TOOLS), "uv>=0.9"],
        env,
    )
    uv = find_uv()
    if uv is None:
        raise ToolError("setup: expected pip to make .tools/bin/uv; see .tools/setup.log")
    return uv


def require_compiler() -> None:
    """Stop early where no Python extension can be compiled."""
    named = os.environ.get("CXX", "").split()
    candidates = named[:1] or ["c++", "g++", "clang++"]
    if not any(shutil.which(name) for name in candidates):
        raise ToolError(
            f"setup: expected a C++17 compiler, found none of {', '.join(candidates)}; "
            "install g++ or clang, or set CXX"
        )
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        raise ToolError(
            f"setup: expected Python's headers, found no {header}; install them "
            "(your system's python3-dev or python3-devel), or name another Python: "
            "`make PYTHON=python3.11 ...`"
        )


def provide_abseil() -> None:
    """Install abseil's headers where that takes one command; elsewhere CMake fetches them."""
    if "TREEOPS_ABSEIL_SOURCE_DIR" in os.environ or abseil_is_installed():
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        say("abseil is not installed: CMake will fetch a pinned release")
        return
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        logged("updating apt's lists", ["apt-get", "update"], env)
        install = ["apt-get", "install", "-y", "--no-install-recommends", ABSEIL_APT]
        logged(f"installing {ABSEIL_APT}", install, env)
    except ToolError:
        say(f"apt-get could not install {ABSEIL_APT}: CMake will fetch a pinned release")


def abseil_is_installed() -> bool:
    """Tell whether CMake's ``find_package(absl)`` would find a system package."""
    prefixes = [Path(p) for p in os.environ.get("CMAKE_PREFIX_PATH", "").split(os.pathsep) if p]
    prefixes += [Path("/usr"), Path("/usr/local"), Path("/opt/homebrew")]
    folders = ("lib", "lib64", "lib/*", "share")
    return any(any(p.glob(f"{folder}/{ABSEIL_CONFIG}")) for p in prefixes for folder in folders)


def refuse_cuda(sync: list[str], env: dict[str, str]) -> None:
    """With a wheel folder set, stop before a resolver falls back to torch's CUDA build."""
    plan = logged("checking what would be installed", [*sync, "--dry-run"], env)
    unwanted = CUDA_PACKAGE.findall(plan)
    if unwanted:
        raise ToolError(
            f"setup: expected torch from the wheel folder {env['UV_FIND_LINKS']}, "
            f"got a plan with {len(unwanted)} CUDA packages ({unwanted[0]}, ...); do one of these: "
            f"put there a wheel of pyproject.toml's torch for Python {python_version()}; "
            "use the Python its wheel is for (`make PYTHON=python3.11 ...`); "
            "remove a stale uv.lock; or unset PIP_FIND_LINKS to take the CUDA build"
        )


def no_isolation() -> list[str]:
    """Return the options that build native packages with the tools of ``.venv``."""
    native = sorted(path.parent.name for path in ROOT.glob("packages/*/CMakeLists.txt"))
    return [word for name in native for word in ("--no-build-isolation-package", name)]


def say(text: str) -> None:
    """Print one line of progress."""
    print(f"setup: {text}", flush=True)


def logged(what: str, command: list[str], env: dict[str, str]) -> str:
    """Run a command into the log; on failure show the end of what it printed."""
    say(what)
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    with LOG.open("a") as log:
        log.write(f"$ {' '.join(command)}\n{done.stdout}\n")
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-40:])
        raise ToolError(
            f"{tail}\nsetup: {what}: expected exit status 0, got {done.returncode}; "
            f"the whole log is in {LOG.relative_to(ROOT)}"
        )
    return done.stdout


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ToolError as error:
        sys.exit(str(error))
