# SPDX-License-Identifier: Apache-2.0
"""Rank 0 writes, for every case or those with a word, how far it is from the serial one."""

import json
import sys
from pathlib import Path

import cases
import torch

import optdist


@optdist.auto_init_rpc(lambda: torch.set_default_dtype(torch.float64))
def main():
    measure()


@optdist.rank_zero_only
def measure():
    path, word = sys.argv[1:]
    found = {name: case() for name, case in cases.CASES.items() if word in name}
    Path(path).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
