# SPDX-License-Identifier: Apache-2.0
"""Worker 1 is missing or late, or goes away in the middle of a start; or tasks exit, or hang."""

import os
import signal
import sys
import time

import torch

import optdist


def die(*args, **options):
    os.kill(os.getpid(), signal.SIGKILL)


class Deadly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, outer):
        if optdist.get_rank() == 1:
            die()
        return outer


def deadly_loss(w):
    return Deadly.apply(w).square().sum()


@optdist.parallelize()
def exits(w, x):
    if optdist.get_rank() == 1:
        sys.exit(3)
    return (w * x).mean()


@optdist.parallelize_async(engine="local")
def exits_later(w, x):
    sys.exit(3)


@optdist.parallelize_async()
def hangs(w, x):
    time.sleep(1000)
    return (w * x).mean()


def word(kind):
    """What the caller hears of an exit, or of a lost gradient."""
    w, x = torch.tensor(2.0, requires_grad=True), torch.ones(4)
    try:
        if kind == "exits":
            exits(w, x)
        elif kind == "exits later":
            exits_later(w, x).wait()
        elif kind == "backward":
            with optdist.autograd.context() as number:
                (loss,) = optdist.remote_sync_call(deadly_loss, args=(w,), partitioner=1)
                optdist.autograd.grad(number, loss, w)
        else:
            optdist.remote_sync_call(deadly_loss, args=(w,), partitioner=1)
    except (RuntimeError, SystemExit) as error:
        return f"{type(error).__name__}: {error}"


@optdist.auto_init_rpc(start_timeout=3.0 if sys.argv[1] in ("late", "dies") else 120.0)
def main(kind):
    if optdist.get_rank() == 0 and kind == "hangs":
        future = hangs(torch.ones(()), torch.ones(4))
        print("waiting", flush=True)
        future.wait()
    elif optdist.get_rank() == 0:
        for one in ("outside", "exits", "exits later", "backward"):
            print(one, "|", word(one), flush=True)


if __name__ == "__main__":
    chosen = sys.argv[1]
    if os.environ["RANK"] == "1" and chosen == "absent":
        sys.exit(7)
    if os.environ["RANK"] == "1" and chosen == "late":
        time.sleep(5)
    if os.environ["RANK"] == "1" and chosen == "dies":
        optdist.rpc.init_rpc = die
    main(chosen)
