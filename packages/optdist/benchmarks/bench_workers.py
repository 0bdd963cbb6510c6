# SPDX-License-Identifier: Apache-2.0
"""Two workers against one process, one thread each, on small and on large tasks.

Run: python packages/optdist/benchmarks/bench_workers.py [--nproc 2] [--rounds 12] [--tasks 8]
An outer step is the gradient of a MAML loss over a meta-batch: a multilayer perceptron (a few ms a
task) or a convolutional network (about 100 ms). Serial steps of rank 0 and parallel steps of all
are interleaved; the speed-up is the median over rounds of serial to parallel wall time. "CPU" is
the processor time of all workers in a parallel step to that of the serial one, "bound" the serial
one to that of the busiest worker: the speed-up on cores that nobody else uses. With --wait the
tasks sleep instead of computing, which shows the cost of coordination alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

import torch
from torch import nn

import optdist

SLEEP = 0.005  # seconds a waiting task takes
INNER_STEPS = 5


class Conv(nn.Module):
    """Three blocks of convolutions."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [
            part
            for inputs in (1, 32, 32)
            for part in (nn.Conv2d(inputs, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        ]
        self.net = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(288, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def mlp() -> tuple[nn.Module, tuple[int, ...], int]:
    """A perceptron, the shape of an example, and the outputs."""
    net = nn.Sequential(nn.Linear(32, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh())
    return nn.Sequential(net, nn.Linear(128, 5)), (32,), 5


def conv() -> tuple[nn.Module, tuple[int, ...], int]:
    """A convolutional network, the shape of an example, and the outputs."""
    return Conv(), (1, 28, 28), 5


def meta_loss(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean over tasks of the loss after a few inner steps."""
    losses = []
    for task_x, task_y in zip(x, y, strict=True):
        params = dict(net.named_parameters())
        for _ in range(INNER_STEPS):
            out = torch.func.functional_call(net, params, (task_x,))
            loss = nn.functional.cross_entropy(out, task_y)
            grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
            params = {n: p - 0.1 * g for (n, p), g in zip(params.items(), grads, strict=True)}
        out = torch.func.functional_call(net, params, (task_x,))
        losses.append(nn.functional.cross_entropy(out, task_y))
    return torch.stack(losses).mean()


def waiting_loss(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The same shape of work without the work."""
    time.sleep(SLEEP * len(x))
    return sum(p.sum() for p in net.parameters())


parallel_meta_loss = optdist.parallelize()(meta_loss)
parallel_waiting_loss = optdist.parallelize()(waiting_loss)


def cpu_seconds() -> float:
    """Processor time of this process."""
    return time.process_time()


def cpu_of_all() -> list[float]:
    """Processor time of every worker."""
    ranks = range(optdist.get_world_size())
    return [optdist.remote_sync_call(cpu_seconds, partitioner=rank)[0] for rank in ranks]


@optdist.auto_init_rpc(lambda: torch.manual_seed(0))
def main() -> None:
    measure(arguments())


@optdist.rank_zero_only
def measure(options: argparse.Namespace) -> None:
    print("| tasks | serial ms | speed-up | bound | CPU | bytes out | back |")
    print("|---|---|---|---|---|---|---|")
    for make in (mlp, conv):
        net, shape, classes = make()
        x = torch.randn(options.tasks, 25, *shape)
        y = torch.randint(classes, (options.tasks, 25))
        parameters = list(net.parameters())
        ours = parallel_waiting_loss if options.wait else parallel_meta_loss
        serial = ours.optdist_function
        ratios, cpus, bounds, alone = [], [], [], []
        for number in range(options.rounds + 1):
            before = cpu_seconds()
            started = time.perf_counter()
            wanted = torch.autograd.grad(serial(net, x, y), parameters)
            middle = time.perf_counter()
            spent, between = cpu_seconds() - before, cpu_of_all()
            again = time.perf_counter()
            found = torch.autograd.grad(ours(net, x, y), parameters)
            ended = time.perf_counter()
            if number:  # the first round warms up
                ratios.append((middle - started) / (ended - again))
                used = [b - a for a, b in zip(between, cpu_of_all(), strict=True)]
                cpus.append(sum(used) / spent)
                bounds.append(spent / max(used))
                alone.append(middle - started)
            if not options.wait:
                torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
        report = ours.last_report
        name = f"{make.__name__} of {1e3 * statistics.median(alone) / options.tasks:.1f} ms"
        print(
            f"| {options.tasks} {name} | {1e3 * statistics.median(alone):.0f} "
            f"| {statistics.median(ratios):.2f} | {statistics.median(bounds):.2f} "
            f"| {statistics.median(cpus):.2f} | {report.bytes_out} | {report.bytes_back} |",
            flush=True,
        )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nproc", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--wait", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    if "RANK" in os.environ:
        main()
    else:
        command = [sys.executable, "-m", "optdist.launch", "--nproc", str(arguments().nproc)]
        sys.exit(subprocess.run([*command, *sys.argv], check=False).returncode)
