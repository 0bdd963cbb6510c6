# SPDX-License-Identifier: Apache-2.0
"""Workers that raise, freeze or die in the middle of a step: what the step gives, and how soon."""

import json
import os
import signal
import time

import pytest

pytestmark = pytest.mark.slow  # how soon a loss is noticed says nothing on a crowded machine

SLACK = 2.0  # seconds; a lost worker may cost this much, a frozen one its timeout more
TIMEOUT = 1.0


@pytest.fixture(scope="module")
def found(program, tmp_path_factory):
    """What one run with four workers tells, fault after fault."""
    path = tmp_path_factory.mktemp("faults") / "found.json"
    started = program(("optdist.launch", "--nproc", "4"), "faults.py", [path])
    try:
        assert started.wait() == 0, started.err
    finally:
        started.end()
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    ("case", "busy", "lost", "seconds"),
    [
        ("well", [0, 1, 2, 3], [], SLACK),
        ("well again", [0, 1, 2, 3], [], SLACK),
        ("frozen", None, [2], TIMEOUT + SLACK),
        ("without it", [0, 1, 3], [], SLACK),
        ("thawed", [0, 1, 2, 3], [], SLACK),
        ("killed", None, [1], SLACK),
        ("next", None, [], SLACK),
        ("thawed again", [0, 2, 3], [], SLACK),
        ("last", [0], [3], SLACK),
        ("alone", [0], [], SLACK),
    ],
)
def test_the_step_is_right_whoever_is_left(found, case, busy, lost, seconds):
    got = found[case]
    assert got["off"] < 1e-12
    assert got["lost"] == [f"worker{rank}" for rank in lost]
    assert got["retries"] == len(lost)
    assert got["seconds"] < seconds
    # whoever is free takes the next chunk: not everyone need be quick enough for one
    assert busy is None or {*got["busy"]} <= {f"worker{rank}" for rank in busy}


def test_an_exception_keeps_type_arguments_and_traceback(found):
    got = found["raises"]
    assert (got["error"], got["text"]) == ("Refusal", "(3, 'no')")
    assert "on worker1" in got["cause"]
    assert 'raise Refusal(3, "no")' in got["cause"]


@pytest.mark.parametrize(
    ("case", "error", "text"),
    [
        (
            "frozen, strict",
            "WorkerTimeoutError",
            "worker2: expected an answer within 1 s, got none; give a longer timeout if the task "
            "takes longer",
        ),
        (
            "killed, strict",
            "WorkerLostError",
            "worker2: expected an answer, got a closed connection; see that process's last output",
        ),
        (
            "too few",
            "WorkerLostError",
            "step: expected at least 3 live workers (min_workers), got 2; start again from a "
            "checkpoint",
        ),
    ],
)
def test_errors(found, case, error, text):
    assert found[case]["error"] == error
    assert found[case]["text"] == text


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (
            "absent",
            "WorkerLostError: auto_init_rpc: expected 3 processes, got none for ranks [1], which "
            "ended before; see their last output",
        ),
        (
            "late",
            "WorkerTimeoutError: auto_init_rpc: expected 3 processes within 3 s, got none for "
            "ranks [1]; see their last output, or give a longer start_timeout",
        ),
        (
            "dies",
            "WorkerLostError: auto_init_rpc: expected all processes to connect within 3 s, got an "
            "error (",
        ),
    ],
)
def test_a_start_ends_when_one_does_not_come(start, kind, error):
    started = start("starts.py", kind, nproc=3)
    assert started.wait() == 1
    assert error in started.err
    assert started.group() == []


def test_exits_and_lost_gradients_have_words(finish):
    told = dict(line.split(" | ") for line in finish("starts.py", "words").out.splitlines())
    assert told == {
        "outside": "RuntimeError: remote_async_call: expected a context for arguments that require "
        "grad, got none, and their gradients would be lost; call inside "
        "optdist.autograd.context(), or under torch.no_grad()",
        "exits": "SystemExit: 3",
        "exits later": "RuntimeError: SystemExit: 3",
        "backward": "WorkerLostError: grad: expected gradients from every worker, got a closed "
        "connection; see the last output of the workers, and start the context again without the "
        "lost one",
    }


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_wait_for_a_task_that_hangs(start, number):
    started = start("starts.py", "hangs")
    assert started.process.stdout.readline() == "waiting\n"
    began = time.monotonic()
    started.process.send_signal(number)
    assert started.wait(60) != 0
    assert time.monotonic() - began < 20
    assert started.group() == []


@pytest.fixture
def stepping(start, tmp_path):
    """A run of two workers that has made a step, and the process id of rank 0."""
    started = start("endless.py", tmp_path, nproc=2)
    started.until((tmp_path / "stepped").exists)
    return started, int((tmp_path / "rank0").read_text())


def test_workers_leave_when_rank_0_is_killed(stepping):
    started, first = stepping
    os.kill(first, signal.SIGKILL)
    began = time.monotonic()
    assert started.wait(30) == 128 + signal.SIGKILL
    assert time.monotonic() - began < 13
    assert started.group() == []
    assert "WorkerLostError: worker1: expected rank 0, got no answer; leaving" in started.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everybody(stepping, number):
    started, _ = stepping
    began = time.monotonic()
    started.process.send_signal(number)
    assert started.wait(30) != 0
    assert time.monotonic() - began < 13
    assert started.group() == []


def test_nobody_outlives_a_killed_launcher(stepping):
    started, first = stepping
    os.kill(first, signal.SIGSTOP)  # one that hears nothing any more
    started.process.kill()
    deadline = time.monotonic() + 20
    while started.group():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_signal_ends_even_a_frozen_first_worker(stepping):
    started, first = stepping
    os.kill(first, signal.SIGSTOP)
    started.process.terminate()
    assert started.wait(60) == 128 + signal.SIGKILL
    assert started.group() == []


def test_two_hundred_steps_with_a_death_every_twenty(finish, tmp_path):
    done = finish("training.py", "kills", tmp_path / "saved.pt", nproc=8)
    _, off, _, deaths = done.out.split()
    assert float(off) < 1e-12
    assert int(deaths) == 7


def test_one_agent_of_torchrun_each_lets_workers_die_alone(start, tmp_path, free_port):
    """As on a cluster: one torchrun a worker. Worker 1 is killed; the others step on."""
    started = [
        start(
            "endless.py", tmp_path,
            starter=("torch.distributed.run", "--nnodes=3", "--nproc_per_node=1", "--rdzv-id=one",
                     "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port}",
                     "--local-addr=127.0.0.1", f"--rdzv-conf=is_host={int(number == 0)}"),
        )
        for number in range(3)
    ]  # fmt: skip
    stepped = tmp_path / "stepped"
    started[0].until(stepped.exists)
    os.kill(int((tmp_path / "rank1").read_text()), signal.SIGKILL)
    for _ in range(20):  # steps after the death
        stepped.unlink()
        started[0].until(stepped.exists)
    for one in started:
        one.process.terminate()
    for one in started:
        one.wait(60)
    assert [one.group() for one in started] == [[], [], []]


def test_ten_restarts_by_torchrun_in_a_row(finish, tmp_path):
    starter = ("torch.distributed.run", "--nproc_per_node=2", "--max-restarts=10",
               "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0")  # fmt: skip
    done = finish("training.py", "restarts", tmp_path / "saved.pt", starter=starter, seconds=300)
    _, off, _, deaths = done.out.split()[-4:]
    assert float(off) < 1e-12
    assert int(deaths) == 10
