# SPDX-License-Identifier: Apache-2.0
"""The report of the benchmarks."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("markdown_it")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).resolve().parents[2]
PATHS = sorted(ROOT.glob("packages/*/benchmarks/bench_*.py"))
OUTPUT = """Adam in place, <b>60</b> tensors
| size | t | step | CPU us | x fused |
|---|---|---|---|---|
| 0.1M | 1 | ours    |   115 |  2.17 |
| 0.1M | 1 | torch's |   250 |  1.00 |
| 0.1M | 1 | torchopt.Adam | skipped: No module |
after it
"""


@pytest.fixture
def report() -> ModuleType:
    return importlib.import_module("bench_report")


def test_every_benchmark_has_its_drawing(report: ModuleType) -> None:
    assert {f"{path.parts[-3]}/{path.stem}" for path in PATHS} == report.FIGURES.keys()


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_benchmark_has_a_quick_run(path: Path) -> None:
    assert '"--quick"' in path.read_text()


def test_tables_are_found_between_other_lines(report: ModuleType) -> None:
    (table,) = report.tables_of(OUTPUT)
    assert table.head == ["size", "t", "step", "CPU us", "x fused"]
    assert table.rows[0] == ["0.1M", "1", "ours", "115", "2.17"]
    assert table.rows[2][3:] == ["skipped: No module", ""]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2.17", 2.17), ("12.3   1.5x", 1.5), ("1.6e-06", 1.6e-6), ("0.02 s", 0.02), ("-1.01", -1.01),
     ("-", None), ("", None), ("skipped: 3", None), ("68%", 68.0)],
)  # fmt: skip
def test_the_number_of_a_cell(report: ModuleType, text: str, expected: float | None) -> None:
    assert report.number(text) == expected


def test_the_report_holds_figures_failures_and_who_is_missing(
    report: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "version_of", lambda name: "" if name == "torchopt" else "1.0")
    path = "packages/optcore-accel/benchmarks/bench_steps.py"
    broken = "packages/optcore/benchmarks/bench_steps.py"
    runs = [
        report.Run(path, ["--quick"], OUTPUT, 0, 1.0),
        report.Run(broken, ["--quick"], "Traceback\n", 3, 2.0),
    ]
    page = report.write_report(runs, tmp_path).read_text()
    text = (tmp_path / "report.md").read_text()
    assert "**Missing here:** torchopt." in text
    assert "| missing | torchopt |" in text
    assert "**It failed** with exit status 3." in text
    assert "<td>2.17</td>" in page
    assert 'href="#optcore-accel-bench_steps"' in page
    assert 'id="optcore-accel-bench_steps"' in page
    assert "&lt;b&gt;60" in page
    assert "plots/optcore-accel-bench_steps.svg" in page
    assert "<svg" in (tmp_path / "plots" / "optcore-accel-bench_steps.svg").read_text()
    assert not (tmp_path / "plots" / "optcore-bench_steps.svg").exists()
    tables = json.loads((tmp_path / "tables.json").read_text())
    assert tables["optcore-accel/bench_steps"][0]["rows"][0][4] == "2.17"


def test_words_choose_benchmarks() -> None:
    bench = importlib.import_module("bench")
    assert bench.choose(["bench_trees"]) == ["packages/treeops/benchmarks/bench_trees.py"]
    assert len(bench.choose([])) == len(PATHS)
    with pytest.raises(importlib.import_module("_uv").ToolError, match="got nothing-like-it"):
        bench.choose(["nothing-like-it"])


def test_output_and_exit_status_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = importlib.import_module("bench")
    program = tmp_path / "bench_it.py"
    program.write_text("import sys; print('a line'); sys.exit(4)\n")
    done = bench.run(str(program), [], {"PATH": ""})
    assert (done.output, done.status) == ("a line\n", 4)
    assert "a line" in capsys.readouterr().out
