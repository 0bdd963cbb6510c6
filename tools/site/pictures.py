# SPDX-License-Identifier: Apache-2.0
"""Pictures that the build makes: short runs of the examples, and graphs drawn by optviz."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gather import ROOT, PageError, about, programs

LONGEST = 300  # seconds for one program


def draw(folder: Path, kept: Path, examples: bool) -> None:
    """Write the pictures of the site into a folder; keep those of examples for the next build."""
    with tempfile.TemporaryDirectory() as made:
        run([sys.executable, "-m", "optviz", "example", "--steps", "2", "--out", made], "optviz")
        for path in Path(made).iterdir():
            shutil.copy(path, folder / f"drawn_{path.name}")
    if examples:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for name, pictures in pool.map(lambda path: smoke(path, kept), programs()):
                for number, picture in enumerate(pictures):
                    shutil.copy(picture, folder / f"example_{name}_{number}.png")


def smoke(path: Path, kept: Path) -> tuple[str, list[Path]]:
    """Run a program as its tests do, unless its plots are there; return them."""
    folder = kept / path.stem
    if not folder.exists():
        lines = about(path).command.splitlines()
        command = shlex.split(next(line for line in lines if path.name in line), comments=True)
        command = [sys.executable, *command[1:], "--smoke", "--out"]
        with tempfile.TemporaryDirectory() as made:
            said = run([*command, made], path.name)
            kept.mkdir(parents=True, exist_ok=True)
            if said is None:
                half = kept / f"{path.stem}.half"  # until it is whole
                shutil.rmtree(half, ignore_errors=True)
                shutil.copytree(made, half)
                half.rename(folder)
    return path.stem, sorted(folder.glob("*.png"))


def run(command: list[str], name: str) -> str | None:
    """Run a program; return which library it lacks, if it says so, and raise if it fails else."""
    environment = {**os.environ, "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LONGEST
    )
    if not done.returncode:
        return None
    if done.returncode == 2 and "pip install" in done.stderr:  # told, without a traceback
        print(f"site: no picture of {name}: {done.stderr.strip().splitlines()[-1]}")
        return done.stderr
    raise PageError(f"{name}: expected a run without an error, got {done.stderr}")
