# SPDX-License-Identifier: Apache-2.0
"""Trains with checkpoints while workers die: `restarts` of all by torchrun, or `kills` of some."""

import os
import random
import signal
import sys
from pathlib import Path

import torch

import optdist


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layer = torch.nn.Linear(3, 1, dtype=torch.float64)

    def forward(self, x):
        return self.layer(x).tanh()


def loss_of(net, batch, victim):
    if optdist.get_rank() == victim:
        os.kill(os.getpid(), signal.SIGKILL)
    return (net(batch) - 1).square().mean()


LOSSES = {
    "kills": optdist.parallelize(timeout=20.0)(loss_of),
    "restarts": optdist.parallelize(timeout=20.0, on_worker_lost="raise")(loss_of),
}


def train(kind, steps, path, victim_at):
    loss, net = LOSSES[kind], Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    first = 0
    if path.exists():
        saved = torch.load(path)
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    lost = []
    for step in range(first, steps):
        batch = torch.randn(
            9, 3, generator=torch.Generator().manual_seed(step), dtype=torch.float64
        )
        optimizer.zero_grad()
        loss(net, batch, victim_at(step)).backward()
        optimizer.step()
        lost += loss.last_report.lost
        if kind == "restarts":
            content = {
                "net": net.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step + 1,
            }
            torch.save(content, path.with_suffix(".new"))
            path.with_suffix(".new").rename(path)
    return net, lost


def plain(steps):
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    for step in range(steps):
        batch = torch.randn(
            9, 3, generator=torch.Generator().manual_seed(step), dtype=torch.float64
        )
        optimizer.zero_grad()
        loss_of(net, batch, None).backward()
        optimizer.step()
    return net


@optdist.auto_init_rpc()
def main():
    measure()


@optdist.rank_zero_only
def measure():
    kind, path = sys.argv[1], Path(sys.argv[2])
    if kind == "restarts":
        attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
        most = int(os.environ["TORCHELASTIC_MAX_RESTARTS"])
        steps = 2 * most + 2
        dies = {2 * attempt + 1: 1} if attempt < most else {}
    else:
        steps, chance = 200, random.Random(4)
        victims = list(range(1, optdist.get_world_size()))
        chance.shuffle(victims)
        dies = {20 * n + chance.randrange(20): rank for n, rank in enumerate(victims)}
    net, lost = train(kind, steps, path, dies.get)
    wanted = plain(steps).state_dict()
    off = max((net.state_dict()[n] - wanted[n]).abs().max().item() for n in wanted)
    count = len(lost) if kind == "kills" else attempt
    print("off", off, "deaths", count)


if __name__ == "__main__":
    main()
