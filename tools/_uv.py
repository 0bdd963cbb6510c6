# SPDX-License-Identifier: Apache-2.0
"""Find or fetch uv, and the environment variables every call of it gets."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".tools"
OLDEST_UV = (0, 9)


class ToolError(Exception):
    """What went wrong and the way out, to be printed without a traceback."""


def find_uv() -> str | None:
    """Return the uv of this clone, else one on ``PATH`` that is new enough."""
    own = TOOLS / "bin" / "uv"
    if own.exists():
        return str(own)
    found = shutil.which("uv")
    if found is None:
        return None
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
    numbers = re.search(r"(\d+)\.(\d+)", version.stdout)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < OLDEST_UV:
        return None
    return found


def require_uv() -> str:
    """Return uv, or say how to get it."""
    uv = find_uv()
    if uv is None:
        raise ToolError("uv: expected it in .tools or on PATH, found neither; run `make setup`")
    return uv


def find_links() -> list[str]:
    """Return pip's wheel folders: ``PIP_FIND_LINKS``, else pip's configuration files."""
    value = os.environ.get("PIP_FIND_LINKS")
    if value is None:
        asked = subprocess.run(
            [sys.executable, "-m", "pip", "config", "get", "global.find-links"],
            capture_output=True,
            text=True,
            check=False,  # pip exits 1 where nothing is configured
        )
        value = asked.stdout if asked.returncode == 0 else ""
    return value.split()


def uv_environment(*extra_links: str) -> dict[str, str]:
    """Return the variables uv runs with; ``extra_links`` are searched before pip's folders."""
    env = dict(os.environ)
    for name in ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "UV_PYTHON"):
        env.pop(name, None)
    env["UV_PROJECT_ENVIRONMENT"] = str(ROOT / ".venv")
    env["UV_PYTHON_DOWNLOADS"] = "never"
    env["UV_NO_PROGRESS"] = "1"
    links = [*extra_links, *(env.get("UV_FIND_LINKS", "").split(",")), *find_links()]
    # absolute, because uv does not always run in the folder the user named them from
    links = [os.path.abspath(link) if os.path.isdir(link) else link for link in links if link]
    if links:
        env["UV_FIND_LINKS"] = ",".join(dict.fromkeys(links))
    return env
