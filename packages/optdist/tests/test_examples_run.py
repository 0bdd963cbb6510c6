# SPDX-License-Identifier: Apache-2.0
"""Every example runs from end to end, and leaves numbers and pictures that show something."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = [  # sorted
    "distributed_maml",
    "parted_program",
]
LONGEST = 300  # seconds: a bound, not a claim; the machine may be busy

LEARNS = pytest.mark.skipif(
    not (EXAMPLES.parents[1] / "optdiff" / "examples").is_dir(),
    reason="optdiff's examples are not here",
)
pytestmark = [pytest.mark.slow, LEARNS]
ALONE: tuple[str, ...] = ()
TWO = ("-m", "optdist.launch", "--nproc", "2")
RUNS = [("distributed_maml", ALONE), *((name, TWO) for name in NAMES)]  # parts need two workers


def run(starter, name, *options):
    command = [sys.executable, *starter, str(EXAMPLES / f"{name}.py"), *options]
    environment = {**os.environ, "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=LONGEST, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def numbers(tree):
    """All numbers in what JSON gives; a number that there is not is None there."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list):
        return [number for branch in tree for number in numbers(branch)]
    return [tree] if isinstance(tree, (int, float)) else []


@pytest.mark.parametrize("name", NAMES)
def test_help_tells_the_options_that_all_have(name):
    shown = run(ALONE, name, "--help")
    assert [option for option in ("--seed", "--smoke", "--out") if option not in shown] == []


@pytest.mark.parametrize(("name", "starter"), RUNS)
def test_a_smoke_run_leaves_numbers_and_pictures(name, starter, tmp_path):
    shown = run(starter, name, "--smoke", "--out", str(tmp_path))
    assert str(tmp_path) in "".join(shown.split())  # where to look
    found = numbers(json.loads((tmp_path / "results.json").read_text()))
    assert found
    assert [number for number in found if not math.isfinite(number)] == []
    pictures = sorted(tmp_path.glob("*.png"))
    assert pictures
    for picture in pictures:
        with Image.open(picture) as image:
            assert min(image.size) > 200
            darkest, lightest = image.convert("L").getextrema()
            assert lightest - darkest > 100, picture.name
