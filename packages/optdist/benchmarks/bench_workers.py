# SPDX-License-Identifier: Apache-2.0
"""Several workers against one process, one thread each, on small and on large tasks.

Run: python packages/optdist/benchmarks/bench_workers.py [--nproc 2] [--rounds 12] [--tasks 8]
     python packages/optdist/benchmarks/bench_workers.py --wait [--rounds 12]

An outer step is the gradient of a MAML loss over a meta-batch: a multilayer perceptron (about 5 ms
a task) or a convolutional network (about 100 ms). All ways of taking it run in the same processes,
round after round, in turns:

serial        one process
optdist       `parallelize`
gloo          parameters by broadcast, each rank its tasks, gradients by all_reduce
TorchOpt      its remote calls and distributed autograd, a call for each task (as its example does)
              or one for each worker; only where torchopt is installed

Speed-up is the median over rounds of serial to parallel wall time. "CPU" is the processor time of
all processes in a step to that of the serial one; "bound" the serial one to that of the busiest
process: the speed-up on cores that nobody else uses.

With --wait the tasks sleep instead of computing: 1 to 16 workers on any number of cores show what
coordination alone costs, not what computing would gain.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

import optdist

try:
    import torchopt.distributed as todist
except ImportError:
    todist = None

SLEEP = 0.02  # seconds a waiting task takes
WAITING = 8  # such tasks a worker
CROWDS = (1, 2, 4, 8, 16)
INNER_STEPS = {2: 8, 4: 5}  # by the dimensions of a task's examples: vectors, images
STOP = -1


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

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def mlp() -> tuple[nn.Module, tuple[int, ...], int]:
    """A perceptron, the shape of an example, and the outputs."""
    net = nn.Sequential(nn.Linear(32, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh())
    return nn.Sequential(net, nn.Linear(128, 5)), (32,), 5


def conv() -> tuple[nn.Module, tuple[int, ...], int]:
    """A convolutional network, the shape of an example, and the outputs."""
    return Conv(), (1, 28, 28), 5


MAKERS = (mlp, conv)


def problem(kind: int, tasks: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Make a network and a meta-batch, the same in every process."""
    torch.manual_seed(0)
    net, shape, classes = MAKERS[kind]()
    return net, torch.randn(tasks, 25, *shape), torch.randint(classes, (tasks, 25))


def meta_loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean over tasks of the loss after a few inner steps."""
    return adapted_loss(net, dict(net.named_parameters()), x, y)


def adapted_loss(net: nn.Module, start: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The same from these parameters."""
    losses = []
    for task_x, task_y in zip(x, y, strict=True):
        params = dict(start)
        for _ in range(INNER_STEPS[task_x.ndim]):
            out = torch.func.functional_call(net, params, (task_x,))
            loss = nn.functional.cross_entropy(out, task_y)
            grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
            params = {n: p - 0.1 * g for (n, p), g in zip(params.items(), grads, strict=True)}
        out = torch.func.functional_call(net, params, (task_x,))
        losses.append(nn.functional.cross_entropy(out, task_y))
    return torch.stack(losses).mean()


def waiting_loss(net: nn.Module, x: Tensor) -> Tensor:
    """The same shape of work without the work."""
    time.sleep(SLEEP * len(x))
    return sum(p.sum() for p in net.parameters())


parallel_meta_loss = optdist.parallelize()(meta_loss)
parallel_waiting_loss = optdist.parallelize()(waiting_loss)


def of_ref(start_ref: optdist.rpc.RRef, kind: int, x: Tensor, y: Tensor) -> Tensor:
    """A chunk as TorchOpt gets it: the parameters by reference.

    As tensors, not in a module, whose gradients would not find the way back; and the module anew,
    as chunks run at once, in threads, and functional_call changes a module for a moment.
    """
    net = MAKERS[kind]()[0]
    names = [name for name, _ in net.named_parameters()]
    return adapted_loss(net, dict(zip(names, start_ref.to_here(), strict=True)), x, y)


def serial_step(net: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(meta_loss(net, x, y), list(net.parameters())))


def our_step(net: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(parallel_meta_loss(net, x, y), list(net.parameters())))


def gloo_step(kind: int, net: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """Rank 0's side; the others are in `follow`."""
    dist.broadcast(torch.tensor(kind), 0)
    return share(net, x, y)


def share(net: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """Take rank 0's parameters, do this rank's tasks, add up."""
    params = list(net.parameters())
    flat = torch.cat([p.detach().reshape(-1) for p in params])
    dist.broadcast(flat, 0)
    with torch.no_grad():
        for param, piece in zip(params, flat.split([p.numel() for p in params]), strict=True):
            param.copy_(piece.view_as(param))
    rank, size = dist.get_rank(), dist.get_world_size()
    mine, labels = x.tensor_split(size)[rank], y.tensor_split(size)[rank]
    grads = torch.autograd.grad(meta_loss(net, mine, labels), params)
    total = torch.cat([g.reshape(-1) for g in grads]).mul_(len(mine) / len(x))
    dist.all_reduce(total)
    pieces = total.split([p.numel() for p in params])
    return [piece.view_as(p) for piece, p in zip(pieces, params, strict=True)]


def follow(tasks: int) -> None:
    """Do what rank 0 broadcasts, until it says stop."""
    problems = [problem(kind, tasks) for kind in range(len(MAKERS))]
    while True:
        kind = torch.tensor(0)
        dist.broadcast(kind, 0)
        if kind == STOP:
            return
        share(*problems[int(kind)])


def torchopt_step(
    split: Callable[..., list], kind: int, net: nn.Module, x: Tensor, y: Tensor
) -> list[Tensor]:
    """What its `parallelize` does."""
    start = [param.detach().requires_grad_() for param in net.parameters()]
    args = (optdist.rpc.RRef(start), kind, x, y)
    with todist.autograd.context() as number:
        loss = todist.remote_sync_call(
            of_ref, args=args, partitioner=split, reducer=todist.mean_reducer
        )
        return list(todist.autograd.grad(number, loss, start))


def cpu_clock() -> int:
    """Name this process's clock of processor time, which others of this Linux may read."""
    return (~os.getpid() << 3) | 2  # as clock_getcpuclockid does


def clocks_of_all() -> list[int]:
    """Name the clocks of all workers: reading them costs no message."""
    ranks = range(optdist.get_world_size())
    return [optdist.remote_sync_call(cpu_clock, partitioner=rank)[0] for rank in ranks]


def read(clocks: list[int]) -> list[float]:
    """Read processor times."""
    return [time.clock_gettime(clock) for clock in clocks]


def ways(kind: int, net: nn.Module) -> dict[str, Callable[[Tensor, Tensor], list[Tensor]]]:
    """Return what is compared, by name."""
    found = {
        "serial": lambda x, y: serial_step(net, x, y),
        "optdist": lambda x, y: our_step(net, x, y),
        "gloo": lambda x, y: gloo_step(kind, net, x, y),
    }
    if todist is not None:
        for name, split in (
            ("TorchOpt, by task", todist.dim_partitioner(0, exclusive=True, keepdim=True)),
            ("TorchOpt, by worker", todist.batch_partitioner),
        ):
            found[name] = lambda x, y, split=split: torchopt_step(split, kind, net, x, y)
    return found


@optdist.auto_init_rpc()
def main(options: argparse.Namespace, meeting: str) -> None:
    if options.wait:
        wait(options)
        return
    rank, size = optdist.get_rank(), optdist.get_world_size()
    dist.init_process_group("gloo", store=dist.FileStore(meeting, size), rank=rank, world_size=size)
    if rank:
        follow(options.tasks)
    else:
        compute(options)
        dist.broadcast(torch.tensor(STOP), 0)
    dist.destroy_process_group()


def compute(options: argparse.Namespace) -> None:
    """Print one table, a row for each way on each kind of task."""
    print(f"{options.tasks} tasks, {optdist.get_world_size()} workers, {options.rounds} rounds\n")
    print("| task | way | ms a step | speed-up | bound | CPU |\n|---|---|---|---|---|---|")
    clocks = clocks_of_all()
    for kind, make in enumerate(MAKERS):
        net, x, y = problem(kind, options.tasks)
        steps = ways(kind, net)
        wanted = steps["serial"](x, y)
        walls: dict[str, list[float]] = {name: [] for name in steps}
        cpus: dict[str, list[list[float]]] = {name: [] for name in steps}
        names = list(steps)
        for number in range(options.rounds + 1):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                before = read(clocks)
                started = time.perf_counter()
                found = steps[name](x, y)
                elapsed = time.perf_counter() - started
                after = read(clocks)
                torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
                if number:  # the first round warms up
                    walls[name].append(elapsed)
                    cpus[name].append([b - a for a, b in zip(before, after, strict=True)])
        alone = statistics.median(used[0] for used in cpus["serial"])
        each = 1e3 * statistics.median(walls["serial"]) / options.tasks
        for name in names:
            pairs = zip(walls["serial"], walls[name], strict=True)
            ratio = statistics.median(one / many for one, many in pairs)
            total = statistics.median(sum(used) for used in cpus[name]) / alone
            bound = alone / statistics.median(max(used) for used in cpus[name])
            print(
                f"| {make.__name__}, {each:.1f} ms | {name} "
                f"| {1e3 * statistics.median(walls[name]):.1f} | {ratio:.2f} | {bound:.2f} "
                f"| {total:.2f} |",
                flush=True,
            )
    report = parallel_meta_loss.last_report
    print(f"\noptdist, conv: {report.bytes_out} bytes out, {report.bytes_back} back")


@optdist.rank_zero_only
def wait(options: argparse.Namespace) -> None:
    """Print one row: what is left of the ideal with so many workers."""
    size = optdist.get_world_size()
    net, x, _ = problem(0, WAITING * size)
    clocks = clocks_of_all()
    seconds, spent = [], []
    for number in range(options.rounds + 1):
        before, started = sum(read(clocks)), time.perf_counter()
        torch.autograd.grad(parallel_waiting_loss(net, x), list(net.parameters()))
        elapsed = time.perf_counter() - started
        if number:
            seconds.append(elapsed)
            spent.append(sum(read(clocks)) - before)
    median, ideal = statistics.median(seconds), SLEEP * WAITING
    print(
        f"| {size} | {1e3 * median:.1f} | {ideal / median:.3f} "
        f"| {1e3 * (median - ideal):.1f} | {1e3 * statistics.median(spent):.1f} |",
        flush=True,
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nproc", type=int, default=2, help="workers")
    parser.add_argument("--rounds", type=int, default=12, help="steps of each way")
    parser.add_argument("--tasks", type=int, default=8, help="tasks of a step")
    parser.add_argument("--wait", action="store_true", help="tasks wait; 1 to 16 workers")
    parser.add_argument("--quick", action="store_true", help="3 rounds, 4 tasks")
    options = parser.parse_args()
    if options.quick:
        parser.set_defaults(rounds=3, tasks=4)
        options = parser.parse_args()
    return options


def launch(nproc: int) -> int:
    """Run this file on so many workers."""
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "BENCH_MEETING": os.path.join(folder, "meeting")}
        command = [sys.executable, "-m", "optdist.launch", "--nproc", str(nproc), *sys.argv]
        return subprocess.run(command, env=env, check=False).returncode


if __name__ == "__main__":
    chosen = arguments()
    if "RANK" in os.environ:
        main(chosen, os.environ["BENCH_MEETING"])
    elif chosen.wait:
        print(f"{WAITING} tasks of {1e3 * SLEEP:.0f} ms a worker, which wait\n")
        print("| workers | ms a step | of ideal | ms over | CPU ms of all |\n|---|---|---|---|---|")
        sys.exit(max(launch(nproc) for nproc in CROWDS))
    else:
        sys.exit(launch(chosen.nproc))
