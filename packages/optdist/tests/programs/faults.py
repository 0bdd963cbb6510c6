# SPDX-License-Identifier: Apache-2.0
"""Workers raise, freeze and die in the middle of a step; rank 0 writes what became of the step."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

import optdist

W = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
X = torch.arange(14, dtype=torch.float64).reshape(7, 2)


class Refusal(Exception):
    def __init__(self, code, reason):
        super().__init__(code, reason)
        self.code, self.reason = code, reason


def step(w, x, victim, act):
    if optdist.get_rank() == victim:
        if act == "raise":
            raise Refusal(3, "no")
        os.kill(os.getpid(), getattr(signal, act))
        time.sleep(0.2)  # a signal stops the process a moment later
    return (w * x).square().sum(-1).mean()


patient = optdist.parallelize(replicate=["w"], timeout=1.0)(step)
strict = optdist.parallelize(replicate=["w"], timeout=1.0, on_worker_lost="raise")(step)
at_least_three = optdist.parallelize(replicate=["w"], timeout=1.0, min_workers=3)(step)


def pid():
    return os.getpid()


def tried(func, victim, act):
    """Return the step's error, or its distance from the truth, and its seconds."""
    started = time.monotonic()
    try:
        value = func(W, X, victim, act)
    except (Refusal, optdist.WorkerLostError, optdist.WorkerTimeoutError) as error:
        return {
            "error": type(error).__name__,
            "text": str(error),
            "cause": str(error.__cause__),
            "seconds": time.monotonic() - started,
        }
    wanted = (W * X).square().sum(-1).mean()
    pairs = zip((value, *torch.autograd.grad(value, W)), (wanted, *torch.autograd.grad(wanted, W)))
    return {
        "off": max((a - b).abs().max().item() for a, b in pairs),
        "seconds": time.monotonic() - started,
        "busy": sorted(func.last_report.busy),
        "lost": func.last_report.lost,
        "retries": func.last_report.retries,
    }


@optdist.auto_init_rpc(lambda: None)
def main():
    suffer()


@optdist.rank_zero_only
def suffer():
    found = {"well": tried(patient, None, "")}
    found["raises"] = tried(patient, 1, "raise")
    found["well again"] = tried(patient, None, "")
    (frozen,) = optdist.remote_sync_call(pid, partitioner=2)
    found["frozen"] = tried(patient, 2, "SIGSTOP")
    found["without it"] = tried(patient, None, "")
    os.kill(frozen, signal.SIGCONT)
    found["thawed"] = awake(["worker0", "worker1", "worker2", "worker3"])
    found["frozen, strict"] = tried(strict, 2, "SIGSTOP")
    os.kill(frozen, signal.SIGCONT)
    found["killed"] = tried(patient, 1, "SIGKILL")
    found["next"] = tried(patient, None, "")
    found["thawed again"] = awake(["worker0", "worker2", "worker3"])
    found["killed, strict"] = tried(strict, 2, "SIGKILL")
    found["too few"] = tried(at_least_three, None, "")
    found["last"] = tried(patient, 3, "SIGKILL")
    found["alone"] = tried(patient, None, "")
    Path(sys.argv[1]).write_text(json.dumps(found))


def awake(everybody):
    """Try until all take part again, for a bounded time."""
    for _ in range(200):
        found = tried(patient, None, "")
        if found["busy"] == everybody:
            return found
        time.sleep(0.05)
    return found


if __name__ == "__main__":
    main()
