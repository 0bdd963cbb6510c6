# SPDX-License-Identifier: Apache-2.0
"""Benchmarks that check their numbers before they time them pass; all of them tell their use."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_the_implicit_hypergradient_is_right_and_timed():
    command = [sys.executable, str(BENCHMARKS / "bench_implicit.py"), "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "| optdiff | " in done.stdout


@pytest.mark.parametrize("name", sorted(path.name for path in BENCHMARKS.glob("bench_*.py")))
def test_help_runs_nothing(name):
    command = [sys.executable, str(BENCHMARKS / name), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {name} [-h] [--")
