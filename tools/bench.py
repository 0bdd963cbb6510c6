# SPDX-License-Identifier: Apache-2.0
"""Run every ``packages/*/benchmarks/bench_*.py``, one after another, and write one report.

Usage: ``python tools/bench.py [--quick] [--out FOLDER] [WORD ...]`` runs those whose path holds one
of the words. Their output is shown as it comes; ``report.md``, ``report.html`` with plots and
``tables.json`` lie in ``out/bench`` afterwards. ``--quick`` takes fewer sizes and rounds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from _uv import ROOT, ToolError
from bench_report import Run, write_report


def main(arguments: list[str]) -> int:
    """Run the chosen benchmarks, write the report; return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", metavar="WORD", help="parts of the paths to run")
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds, in minutes")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "bench", help="for the report")
    options = parser.parse_args(arguments)
    chosen = choose(options.words)
    # Idle OpenMP threads that spin would take the core that the other side is timed on.
    env = {**os.environ, "OMP_WAIT_POLICY": "passive", "PYTHONUNBUFFERED": "1"}
    env.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch's RPC warns when its workers end
    runs = []
    for path in chosen:
        print(f"== {path}", flush=True)
        runs.append(run(path, ["--quick"] if options.quick else [], env))
        print(f"   {runs[-1].seconds:.0f} s\n", flush=True)
    report = write_report(runs, options.out)
    print(f"report: {report}; {sum(one.seconds for one in runs):.0f} s")
    failed = [one.path for one in runs if one.status]
    if failed:
        print(f"bench: failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def choose(words: list[str]) -> list[str]:
    """Return the benchmarks whose path holds one of the words, or all."""
    files = sorted(ROOT.glob("packages/*/benchmarks/bench_*.py"))
    paths = [str(path.relative_to(ROOT)) for path in files]
    chosen = [path for path in paths if not words or any(word in path for word in words)]
    if not chosen:
        raise ToolError(f"bench: expected words out of {', '.join(paths)}, got {' '.join(words)}")
    return chosen


def run(path: str, options: list[str], env: dict[str, str]) -> Run:
    """Run one benchmark, showing what it prints; return that and how it ended."""
    started, lines = time.monotonic(), []
    command = [sys.executable, path, *options]
    with subprocess.Popen(
        command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line)
    return Run(path, options, "".join(lines), process.returncode, time.monotonic() - started)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ToolError as error:
        sys.exit(str(error))
