# SPDX-License-Identifier: Apache-2.0
"""What a stranger meets first: each wheel alone with its README, and how long first results take.

``examples`` installs every wheel in an environment of its own, with what it declares and no more,
imports it, and runs the first example of its README. ``clone`` times the way from ``git clone`` to
a meta-gradient: set-up, then the first example of optdiff's README, with an empty home and so
without any cache. ``picture`` times the way from ``pip install`` of optviz and optdiff to the first
example of optviz's README, which draws a meta-gradient. torch is the one of the workspace.

Usage: ``python tools/first_contact.py [--only examples|clone|picture ...]``.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from _packages import ascending, named, packages
from _uv import ROOT, ToolError, find_links, require_uv, uv_environment
from check_isolated import Wheel, build_wheel, family, run

BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PARTS = ("examples", "clone", "picture")
PICTURE = ("treeops", "optcore", "optdiff", "optviz")


def main(arguments: list[str]) -> int:
    """Do the chosen parts; print a table; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART")
    options = parser.parse_args(arguments)
    lines: list[str] = []
    with tempfile.TemporaryDirectory(prefix="first-contact-") as folder:
        work = Path(folder)
        if "clone" in options.only:
            lines += from_clone(work / "clone")
        if {"examples", "picture"} & {*options.only}:
            uv = require_uv()
            names = [*packages()] if "examples" in options.only else PICTURE
            wheels = {name: build_wheel(uv, name, work) for name in names}
            if "picture" in options.only:
                lines += to_picture(wheels, work / "picture")
            if "examples" in options.only:
                lines += each_alone(uv, wheels, work / "alone")
    print("\n" + "\n".join(lines))
    return 0


def each_alone(uv: str, wheels: dict[str, Wheel], work: Path) -> list[str]:
    """Install each wheel alone, import it, run its README's first example; return the table."""
    lines = ["", f"{'package':<16}{'install s':>10}{'import s':>10}{'README s':>10}"]
    known = packages()
    for name in ascending(known):
        print(f"alone: {name}", flush=True)
        place = work / name
        place.mkdir(parents=True)
        env, python = uv_environment(), str(place / "venv" / "bin" / "python")
        constraint = place / "constraint.txt"
        constraint.write_text(f"torch=={version('torch')}\n")
        install = [uv, "pip", "install", "--python", python, "--constraint", str(constraint)]
        declared = [name]
        for other in declared:  # grows while it is walked
            declared += sorted(named(known[other].requires) & known.keys() - {*declared})

        create = [uv, "venv", "--python", sys.executable, str(place / "venv")]
        run(f"{name}: make the environment", create, place, env)
        files = [str(wheels[other].path) for other in declared]
        took = seconds(lambda: run(f"{name}: install", [*install, *files], place, env))  # noqa: B023
        code = f"import {known[name].module}"
        bare = [python, "-W", "ignore", "-c", code]  # torch without numpy warns
        imported = seconds(lambda: run(f"{name}: import", bare, place, env))  # noqa: B023
        # what the README's example needs besides stands in an extra: optviz[example]
        more = [str(wheels[other].path) for other in family(wheels[name], wheels)]
        run(f"{name}: install its extra", [*install, *more], place, env)
        shown = seconds(lambda: first_example(name, python, place, env))  # noqa: B023
        lines.append(f"{name:<16}{took:>10.1f}{imported:>10.1f}{shown:>10.1f}")
    return lines


def from_clone(work: Path) -> list[str]:
    """Time the way from a clone to the first meta-gradient; return what to print."""
    print("clone: setting up", flush=True)
    env, clone = stranger(work), work / "optstack"
    command = ["git", "clone", "--quiet", str(ROOT), str(clone)]
    cloned = seconds(lambda: run("git clone", command, work, env))
    # .venv's own interpreter, which a stranger has not, lacks pip
    make = ["make", f"PYTHON={sys._base_executable}", "setup"]
    ready = seconds(lambda: run("make setup", make, clone, env))
    python, place = str(clone / ".venv" / "bin" / "python"), work / "first"
    place.mkdir()
    took = seconds(lambda: first_example("optdiff", python, place, env, "print(phi.grad)"))
    return [
        f"from git clone to the first meta-gradient: {cloned + ready + took:.0f} s "
        f"(clone {cloned:.1f}, make setup {ready:.0f}, program {took:.1f})"
    ]


def to_picture(wheels: dict[str, Wheel], work: Path) -> list[str]:
    """Time the way from pip install to the first picture; return what to print."""
    print("picture: pip install", flush=True)
    env = stranger(work)
    create = [sys.executable, "-m", "venv", "venv"]
    run("make the environment", create, work, env)
    python = str(work / "venv" / "bin" / "python")
    constraint = work / "constraint.txt"
    constraint.write_text(f"torch=={version('torch')}\n")
    files = [str(wheels[name].path) for name in PICTURE]
    install = [python, "-m", "pip", "install", "--quiet", "--constraint", str(constraint), *files]
    ready = seconds(lambda: run("pip install", install, work, env))
    took = seconds(lambda: first_example("optviz", python, work, env))
    if not (work / "maml.html").exists() or "<svg" not in (work / "norms.svg").read_text():
        raise ToolError("picture: expected optviz's README to write maml.html and norms.svg")
    return [
        f"from pip install to the first picture: {ready + took:.0f} s "
        f"(pip install {ready:.0f}, program {took:.1f})"
    ]


def first_example(
    name: str, python: str, place: Path, env: dict[str, str], ending: str = ""
) -> None:
    """Run the first Python block of a package's README as a program."""
    readme = ROOT / "packages" / name / "README.md"
    block = BLOCK.search(readme.read_text())
    if block is None:
        raise ToolError(f"{name}: expected a Python example in README.md, found none")
    program = place / "example.py"
    program.write_text(f"{block[1]}\n{ending}\n")
    run(f"{name}: the README's first example", [python, str(program)], place, env)


def stranger(work: Path) -> dict[str, str]:
    """Return the variables of somebody with an empty home."""
    home = work / "home"
    home.mkdir(parents=True)
    links = " ".join(find_links())  # pip's own settings may have stood in the old home
    kept = {
        name: text
        for name, text in os.environ.items()
        if not name.startswith(("UV_", "XDG_", "VIRTUAL_ENV", "PYTHON", "MAKE", "MFLAGS"))
    }
    return {**kept, "HOME": str(home), **({"PIP_FIND_LINKS": links} if links else {})}


def seconds(call: Callable[[], object]) -> float:
    """Return the seconds a call took."""
    started = time.monotonic()
    call()
    return time.monotonic() - started


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ToolError as error:
        sys.exit(str(error))
