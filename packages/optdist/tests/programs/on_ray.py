# SPDX-License-Identifier: Apache-2.0
"""Chunks on a Ray of this machine: equal to one process, also when one's process dies."""

import json
import os
import signal
import sys
from pathlib import Path

import cases
import ray
import torch

import optdist

torch.set_default_dtype(torch.float64)


class Line(torch.nn.Module):
    """Defined in the main program, which Ray's processes do not run."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))

    def forward(self, x):
        return x @ self.w


class Refusal(Exception):
    pass


def step(line, x, folder, act):
    first = Path(folder) / act
    if act != "none" and os.getpid() != int(Path(folder, "caller").read_text()):
        if act == "raise":
            raise Refusal(3, "no")
        if act == "kill" or not first.exists():
            first.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return line(x).square().mean(), torch.get_num_threads()


on_ray = optdist.parallelize(engine="ray", timeout=60.0)(step)
explicit = optdist.parallelize(engine="ray")(cases.explicit_loss.optdist_function)


def tried(folder, act):
    line, x = Line(), torch.arange(14.0).reshape(7, 2)
    try:
        value, threads = on_ray(line, x, folder, act)
    except (Refusal, optdist.WorkerLostError) as error:
        return [type(error).__name__, str(error)]
    (found,) = torch.autograd.grad(value, line.w)
    wanted = line(x).square().mean()
    off = cases.error([value, found], [wanted, *torch.autograd.grad(wanted, line.w)])
    report = on_ray.last_report
    return {"off": off, "threads": threads, "chunks": report.chunks, "lost": report.lost}


def main():
    folder = Path(sys.argv[1])
    (folder / "caller").write_text(str(os.getpid()))
    told = {}
    try:
        on_ray(Line(), torch.ones(4, 2), str(folder), "none")
    except RuntimeError as error:
        told["no ray"] = str(error)
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error")
    for act in ("none", "once", "kill", "raise"):
        told[act] = tried(str(folder), act)
    told["maml"] = cases.of_net(explicit, 5)
    try:
        optdist.parallelize("worker1", engine="ray")(step)(Line(), torch.ones(2, 2), "", "none")
    except ValueError as error:
        told["placed"] = str(error)
    ray.shutdown()
    (folder / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
