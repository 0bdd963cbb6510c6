# SPDX-License-Identifier: Apache-2.0
"""Tell which packages a change concerns: those it touches and their dependents.

Usage: ``python tools/touched.py [--base COMMIT]``. Prints three lines of ``name=value``: the
packages, the paths pytest takes for them, and whether treeops is among them. What the packages
share (``tools``, ``pyproject.toml``, ``Makefile``, workflows) concerns all of them; documents
outside of the packages concern none. Without a base, or with one that is not here, it is all.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path, PurePosixPath

from _packages import Package, dependents, packages
from _uv import ROOT, ToolError

TEMPLATES = (".github/ISSUE_TEMPLATE/", ".github/PULL_REQUEST_TEMPLATE", ".github/dependabot.yml")
DOCUMENTS = {".md", ".cff"}


def main(arguments: list[str]) -> int:
    """Print the answer; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="", help="the commit a change starts from")
    options = parser.parse_args(arguments)
    known = packages()
    files = changed(ROOT, options.base)
    chosen = dependents(known, known) if files is None else concerned(files, known)
    paths = [f"packages/{name}/{part}" for name in chosen for part in ("tests", "src")]
    print(f"packages={' '.join(chosen)}")
    print(f"tests={' '.join([*paths, 'tools/tests'])}")
    print(f"treeops={str('treeops' in chosen).lower()}")
    return 0


def changed(root: Path, base: str) -> list[str] | None:
    """Return the files that differ from where the change began; None if that is not known."""
    if not base.strip("0"):  # of a new branch GitHub gives 0000...
        return None
    git = ["git", "-C", str(root)]
    known = subprocess.run(
        [*git, "rev-parse", "--quiet", "--verify", "--end-of-options", f"{base}^{{commit}}"],
        capture_output=True,
        check=False,
    )
    if known.returncode:
        return None
    done = subprocess.run(
        [*git, "diff", "--no-renames", "--name-only", "-z", f"{base}...HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.rstrip("\0").split("\0") if done.returncode == 0 else None


def concerned(files: list[str], known: dict[str, Package]) -> list[str]:
    """Return the packages that a change of these files concerns, from the ground up."""
    touched: set[str] = set()
    for file in filter(None, files):
        top, *rest = PurePosixPath(file).parts
        if top == "packages" and rest and rest[0] in known:
            touched.add(rest[0])
        elif not (file.startswith(TEMPLATES) or PurePosixPath(file).suffix in DOCUMENTS):
            return dependents(known, known)
    return dependents(touched, known)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ToolError as error:
        sys.exit(str(error))
