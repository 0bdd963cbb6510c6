# SPDX-License-Identifier: Apache-2.0
"""Every tutorial runs from beginning to end, without a warning, and draws its plot."""

import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIALS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.py"))


@pytest.fixture(scope="module")
def output_of(tmp_path_factory):
    @functools.cache
    def run(path):
        folder = tmp_path_factory.mktemp(path.stem)
        command = [sys.executable, "-W", "error", str(path)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return folder, done.stdout

    return run


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_runs_and_draws(path, output_of):
    folder, printed = output_of(path)
    plot = f"out/tutorials/{path.stem}.png"
    assert printed.endswith(f"plot in {plot}\n")
    assert (folder / plot).read_bytes().startswith(b"\x89PNG")


def test_ten_learned_images_teach_88_percent_of_the_test_digits(output_of):
    _, printed = output_of(TUTORIALS[[path.stem for path in TUTORIALS].index("meta_optimizer")])
    found = re.search(r"ten learned images: .* on validation, (0\.\d+) on test images", printed)
    assert float(found[1]) >= 0.88


def test_there_are_tutorials():
    assert len(TUTORIALS) == 4
