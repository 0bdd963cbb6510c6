# SPDX-License-Identifier: Apache-2.0
"""Start programs on several workers, seeded, in float64; leave no process behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

collect_ignore = ["programs"]  # scripts, which doctest would import
PROGRAMS = Path(__file__).parent / "programs"
LONGEST = 240  # seconds: a bound, not a claim; the machine may be busy


@pytest.fixture(autouse=True)
def _float64_and_seeded():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


class Started:
    """A program and its workers, in a session of their own."""

    def __init__(self, starter, program, args, env=()):
        command = [sys.executable, "-m", *starter, str(PROGRAMS / program), *map(str, args)]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **dict(env)},
        )

    def wait(self, seconds=LONGEST):
        self.out, self.err = self.process.communicate(timeout=seconds)
        return self.process.returncode

    def group(self):
        """Processes of the session that still live."""
        listing = subprocess.run(
            ["ps", "-o", "pid=,stat=", "-s", str(self.process.pid)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        rows = [row.split() for row in listing.stdout.splitlines()]
        return [int(pid) for pid, stat in rows if not stat.startswith("Z")]

    def end(self):
        for pid in self.group():
            os.kill(pid, signal.SIGKILL)
        self.process.communicate()


@pytest.fixture(scope="session")
def program():
    """Return the class, for runs that several tests look at."""
    return Started


@pytest.fixture
def start():
    """Return a function that starts a program; whatever still runs afterwards is killed."""
    started = []

    def begin(program, *args, nproc=2, starter=None, env=()):
        starter = starter or ("optdist.launch", "--nproc", str(nproc))
        started.append(Started(starter, program, args, env))
        return started[-1]

    yield begin
    for one in started:
        one.end()


@pytest.fixture
def finish(start):
    """Return a function that runs a program to its end, which must be a good one."""

    def run(program, *args, seconds=LONGEST, **options):
        one = start(program, *args, **options)
        assert one.wait(seconds) == 0, one.err
        return one

    return run
