# SPDX-License-Identifier: Apache-2.0
"""Run every ``packages/*/benchmarks/bench_*.py``, one after another, and show their tables.

Usage: ``python tools/bench.py [WORD ...]`` runs those whose path holds one of the words.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(words: list[str]) -> int:
    """Run the chosen benchmarks; return 1 if one failed."""
    files = sorted(ROOT.glob("packages/*/benchmarks/bench_*.py"))
    paths = [str(path.relative_to(ROOT)) for path in files]
    chosen = [path for path in paths if not words or any(word in path for word in words)]
    if not chosen:
        sys.exit(f"bench: expected words out of {', '.join(paths)}, got {' '.join(words)}")
    # Idle OpenMP threads that spin would take the core that the other side is timed on.
    env = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    failed = []
    for path in chosen:
        print(f"== {path}", flush=True)
        started = time.monotonic()
        if subprocess.run([sys.executable, path], cwd=ROOT, env=env, check=False).returncode:
            failed.append(path)
        print(f"   {time.monotonic() - started:.0f} s\n", flush=True)
    if failed:
        print(f"bench: failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
