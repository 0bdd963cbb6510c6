# SPDX-License-Identifier: Apache-2.0
"""Start workers that die alone: ``python -m optdist.launch --nproc 4 script.py ...``.

One agent of torchrun ends all its workers when one dies. Here each is a process of its own, with
the same environment variables; the run ends with rank 0 and has its exit status.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from types import FrameType

from optdist._rendezvous import ENDED

GRACE_SECONDS = 10.0  # for workers after rank 0, and for everybody after a signal
PR_SET_PDEATHSIG = 1  # Linux: a signal when the parent dies


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run the workers, return the exit status of rank 0."""
    parser = argparse.ArgumentParser("python -m optdist.launch", description=__doc__)
    parser.add_argument("--nproc", type=int, required=True, help="workers on this host")
    parser.add_argument("--nnodes", type=int, default=1, help="hosts")
    parser.add_argument("--node-rank", type=int, default=0, help="number of this host, from 0")
    parser.add_argument("--master-addr", default="127.0.0.1", help="address of host 0")
    parser.add_argument("--master-port", type=int, default=0, help="0: a free one (one host)")
    parser.add_argument("-m", dest="module", action="store_true", help="script names a module")
    parser.add_argument("script")
    parser.add_argument("args", nargs=argparse.REMAINDER)
    options = parser.parse_args(argv)
    if options.nproc < 1 or not 0 <= options.node_rank < options.nnodes:
        parser.error("expected --nproc >= 1 and 0 <= --node-rank < --nnodes")
    if options.nnodes > 1 and options.master_port == 0:
        parser.error("expected --master-port with several hosts, the same on each")
    command = [sys.executable, *(["-m"] if options.module else []), options.script, *options.args]
    return run(command, options)


def run(command: Sequence[str], options: argparse.Namespace) -> int:
    """Start the workers, pass signals on, and wait."""
    port = options.master_port or free_port(options.master_addr)
    workers: list[subprocess.Popen[bytes]] = []
    signals: list[int] = []
    previous = pass_signals_on(workers, signals)
    ended = tempfile.TemporaryFile()  # noqa: SIM115 - closed below, after the workers
    try:
        for local_rank in range(options.nproc):
            variables = {
                "RANK": options.node_rank * options.nproc + local_rank,
                "WORLD_SIZE": options.nnodes * options.nproc,
                "LOCAL_RANK": local_rank,
                "LOCAL_WORLD_SIZE": options.nproc,
                "MASTER_ADDR": options.master_addr,
                "MASTER_PORT": port,
                ENDED: f"{ended.fileno()}:{os.fstat(ended.fileno()).st_ino}",
            }
            env = {**os.environ, **{name: str(value) for name, value in variables.items()}}
            env.setdefault("OMP_NUM_THREADS", "1")
            env.setdefault("MALLOC_ARENA_MAX", "2")  # else each of RPC's threads keeps memory
            started = subprocess.Popen(
                command, env=env, preexec_fn=die_with_parent(), pass_fds=[ended.fileno()]
            )
            workers.append(started)
        return wait(workers, options, signals, ended.fileno())
    finally:
        ended.close()
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
            worker.wait()
        for number, handler in previous.items():
            signal.signal(number, handler)


def wait(
    workers: list[subprocess.Popen[bytes]],
    options: argparse.Namespace,
    signals: Sequence[int],
    ended: int,
) -> int:
    """Wait for the first worker here, or all where rank 0 is elsewhere; then a while for others.

    After a signal that while begins at once: a worker deep in C code does not hear it.
    """
    told: set[int] = set()
    deadline: float | None = None
    while True:
        running = [worker for worker in workers if worker.poll() is None]
        for number, worker in enumerate(workers):
            if worker.returncode is None or number in told:
                continue
            told.add(number)
            rank = options.node_rank * options.nproc + number
            os.write(ended, b"%d " % rank)
            if worker.returncode != 0:
                print(f"optdist.launch: rank {rank}: exit {worker.returncode}", file=sys.stderr)
        leads = options.node_rank == 0
        if not running:
            codes = [worker.returncode for worker in workers]
            return shell_code(codes[0] if leads else next((code for code in codes if code), 0))
        over = bool(signals) or (leads and workers[0].returncode is not None)
        if over and deadline is None:
            deadline = time.monotonic() + GRACE_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            first = workers[0].returncode if leads else None
            return shell_code(-signal.SIGKILL if first is None else first)
        time.sleep(0.05)


def shell_code(code: int) -> int:
    """Return an exit status as shells give it: 128 and the signal."""
    return code if code >= 0 else 128 - code


def pass_signals_on(workers: list[subprocess.Popen[bytes]], seen: list[int]) -> dict[int, object]:
    """Give SIGINT and SIGTERM to the workers, and note them; a second one ends the workers."""

    def handle(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(number if len(seen) == 1 else signal.SIGKILL)

    return {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}


def free_port(address: str) -> int:
    """Return a port that nobody listens on."""
    with socket.create_server((address, 0)) as probe:
        return probe.getsockname()[1]


def die_with_parent() -> Callable[[], None] | None:
    """Return what a child does first so as not to outlive a killed launcher (Linux)."""
    if not sys.platform.startswith("linux"):
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def begin() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a frozen process hears nothing else
        if os.getppid() != parent:
            os._exit(1)

    return begin


if __name__ == "__main__":
    sys.exit(main())
