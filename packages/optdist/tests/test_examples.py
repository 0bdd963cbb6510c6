# SPDX-License-Identifier: Apache-2.0
"""Examples and the tutorial run, on workers, and tell the same as one process."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]
MAML = HERE / "examples" / "distributed_maml.py"
PARTED = HERE / "examples" / "parted_program.py"
LEARNS = pytest.mark.skipif(
    not (HERE.parent / "optdiff" / "examples").is_dir(), reason="optdiff's examples are not here"
)
TINY = ("--iterations", 3, "--test-tasks", 4, "--width", 4, "--meta-batch", 3)


@LEARNS
def test_help_needs_no_workers():
    command = [sys.executable, str(MAML), "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout
    for option in ("--algo", "--iterations", "--meta-batch", "--seed", "--checkpoint", "--out"):
        assert option in shown


@LEARNS
@pytest.mark.slow
@pytest.mark.parametrize("algo", ["maml", "imaml", "es-maml"])
def test_few_shot_learning_goes_on_where_it_stopped(finish, tmp_path, algo):
    options = (*TINY, "--algo", algo, "--out", tmp_path)
    whole = finish(MAML, *options, nproc=2)
    saved = ("--checkpoint", tmp_path / "saved.ckpt")
    finish(MAML, *options, "--iterations", 2, *saved, nproc=2)
    rest = finish(MAML, *options, *saved, nproc=2)
    losses = re.compile(r"learns \d/\d  loss (\d\.\d+)")
    assert len(losses.findall(whole.out)) == 3
    assert losses.findall(rest.out) == losses.findall(whole.out)[-1:]
    # worker 0 may be so late that worker 1 takes all chunks
    for words in ("accuracy", "worker1", "0 chunks run again", "with 2 workers"):
        assert words in whole.out


@LEARNS
@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04" + bytes(60)])
def test_few_shot_learning_refuses_a_damaged_checkpoint(finish, tmp_path, content):
    damaged = tmp_path / "saved.ckpt"
    damaged.write_bytes(content)
    done = finish(MAML, *TINY, "--out", tmp_path, "--checkpoint", damaged, status=2)
    assert "expected a checkpoint of a run with the same options" in done.err
    assert "Traceback" not in done.err
    assert damaged.read_bytes() == content


@LEARNS
def test_a_program_in_parts_equals_one_process(finish, tmp_path):
    done = finish(PARTED, "--steps", 20, "--out", tmp_path, nproc=2)
    before, after, off = re.search(r"loss (\S+) -> (\S+); .* by (\S+)\n", done.out).groups()
    assert float(after) < 0.5 * float(before)
    assert float(off) < 1e-10


@LEARNS
@pytest.mark.slow
def test_a_program_in_three_parts_equals_one_process(finish, tmp_path):
    done = finish(PARTED, "--steps", 5, "--out", tmp_path, nproc=3)
    assert float(re.search(r"differs by (\S+)\n", done.out)[1]) < 1e-10


@LEARNS
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--lr", "-1"), "expected a number above 0, got -1.0, at --lr"),
        ((), "expected at least 2 workers, got 1"),
    ],
)
@LEARNS
def test_what_a_program_in_parts_refuses_before_workers_start(options, told):
    alone = {name: value for name, value in os.environ.items() if name != "WORLD_SIZE"}
    done = subprocess.run(
        [sys.executable, str(PARTED), *options],
        capture_output=True, text=True, timeout=100, check=False, env=alone,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"parted_program: {told}" in done.stderr


@LEARNS
@pytest.mark.parametrize("program", [MAML, PARTED], ids=lambda program: program.stem)
def test_a_folder_that_cannot_be_one_is_refused_before_workers_start(tmp_path, program):
    (tmp_path / "file").touch()
    done = subprocess.run(
        [sys.executable, str(program), "--out", str(tmp_path / "file")],
        capture_output=True, text=True, timeout=100, check=False,
        env={**os.environ, "WORLD_SIZE": "2"},
    )  # fmt: skip
    assert done.returncode == 2
    told = f"{program.stem}: expected a folder to write to, got 'File exists', at "
    assert done.stderr.startswith(told)
    assert done.stderr.count("\n") == 1
