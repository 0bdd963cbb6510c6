# SPDX-License-Identifier: Apache-2.0
"""Start programs on several workers, seeded, in float64; leave no process behind."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
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
    """A program and its workers."""

    def __init__(self, starter, program, args, env=(), prefix=()):
        words = (*prefix, sys.executable, "-m", *starter, PROGRAMS / program, *args)
        command = [str(word) for word in words]
        name, value = "OPTDIST_TEST", uuid.uuid4().hex
        self.mark = f"{name}={value}".encode()
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", name: value, **dict(env)},
        )

    def wait(self, seconds=LONGEST):
        self.out, self.err = self.process.communicate(timeout=seconds)
        return self.process.returncode

    def until(self, condition, seconds=LONGEST):
        """Wait for something that the program does; fail with its last words if it ends first."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def group(self):
        """Those of its processes that still live: known by a variable that all inherit."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                variables = (folder / "environ").read_bytes()  # empty for a zombie
            except OSError:  # gone, or not ours
                continue
            if self.mark in variables.split(b"\0"):
                found.append(int(folder.name))
        return found

    def end(self):
        for pid in self.group():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.communicate()


@pytest.fixture(scope="session")
def program():
    """Return the class, for runs that several tests look at."""
    return Started


@pytest.fixture
def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@pytest.fixture
def start():
    """Return a function that starts a program; whatever still runs afterwards is killed."""
    started = []

    def begin(program, *args, nproc=2, starter=None, env=(), prefix=()):
        starter = starter or ("optdist.launch", "--nproc", nproc)
        started.append(Started(starter, program, args, env, prefix))
        return started[-1]

    yield begin
    for one in started:
        one.end()


@pytest.fixture
def finish(start):
    """Return a function that runs a program to its end, with the exit status it must have."""

    def run(program, *args, seconds=LONGEST, status=0, **options):
        one = start(program, *args, **options)
        assert one.wait(seconds) == status, one.err
        return one

    return run
