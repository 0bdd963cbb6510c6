# SPDX-License-Identifier: Apache-2.0
"""Every tutorial runs from beginning to end, without a warning, and draws its plot."""

import subprocess
import sys
from pathlib import Path

import pytest

TUTORIALS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.py"))


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_runs_and_draws(path, tmp_path):
    command = [sys.executable, "-W", "error", str(path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    plot = f"out/tutorials/{path.stem}.png"
    assert done.stdout.endswith(f"plot in {plot}\n")
    assert (tmp_path / plot).read_bytes().startswith(b"\x89PNG")


def test_there_are_tutorials():
    assert len(TUTORIALS) == 4
