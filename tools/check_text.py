# SPDX-License-Identifier: Apache-2.0
"""Refuse machine paths, index hosts, lock files, built outputs, large and unmarked files."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LARGEST = 500_000
FOLDERS = "|".join(("home", "root", "Users", "work", "farm", "mnt", "opt/wheels", "opt/pypi"))
HOSTS = "|".join(("pypi", "pythonhosted", "npmjs", "debian"))
REFUSED_TEXT = {
    "a path of one machine": re.compile(rf"(?<![\w./-])/(?:{FOLDERS})/"),
    "a host of a package index": re.compile(rf"https?://\S*(?:{HOSTS})"),
}
REFUSED_NAME = re.compile(r"(^|/)([^/]*\.lock|package-lock\.json)$|\.(so|whl|pyc|pt|ckpt)$")
MARKED = (".py", ".cpp", ".h", ".cu", ".cuh", ".cmake")
MARK = b"SPDX-License-Identifier: Apache-2.0"


def main() -> int:
    """Print one line per fault; return 1 if there is any."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    names = sorted(name for name in listing.stdout.split("\0") if (ROOT / name).is_file())
    faults = [fault for name in names for fault in faults_of(name)]
    print("\n".join(faults) if faults else f"{len(names)} files: nothing refused")
    return int(bool(faults))


def faults_of(name: str) -> list[str]:
    """Return the faults of one file, each with its line where it has one."""
    content = (ROOT / name).read_bytes()
    faults = []
    if REFUSED_NAME.search(name):
        faults.append(f"{name}: a lock file or a built output; add it to .gitignore")
    if len(content) > LARGEST:
        faults.append(f"{name}: expected at most {LARGEST} bytes, got {len(content)}")
    if name.endswith(MARKED) and MARK not in content[:400]:
        faults.append(f"{name}: expected the line '{MARK.decode()}' at the top, found none")
    for number, line in enumerate(content.decode(errors="ignore").splitlines(), start=1):
        faults += [
            f"{name}:{number}: {what}" for what, text in REFUSED_TEXT.items() if text.search(line)
        ]
    return faults


if __name__ == "__main__":
    sys.exit(main())
