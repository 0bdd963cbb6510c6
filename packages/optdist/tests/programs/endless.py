# SPDX-License-Identifier: Apache-2.0
"""Steps until somebody ends it; every rank says its process id first."""

import os
import sys
import time
from pathlib import Path

import torch

import optdist


@optdist.parallelize()
def loss(w, x):
    time.sleep(0.02)
    return (w * x).mean()


@optdist.auto_init_rpc()
def main():
    folder = Path(sys.argv[1])
    (folder / f"rank{optdist.get_rank()}").write_text(str(os.getpid()))
    train(folder)


@optdist.rank_zero_only
def train(folder):
    w, x = torch.ones((), requires_grad=True), torch.ones(4)
    while True:
        loss(w, x).backward()
        (folder / "stepped").touch()


if __name__ == "__main__":
    main()
