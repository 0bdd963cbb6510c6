# SPDX-License-Identifier: Apache-2.0
"""Which packages a change concerns."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest

ALL = ["low", "middle", "high"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([], []),
        (["packages/high/src/high.py"], ["high"]),
        (["packages/middle/README.md"], ["middle", "high"]),
        (["packages/low/csrc/a.cpp"], ALL),
        (["packages/gone/src/gone.py"], ALL),
        (["tools/setup.py"], ALL),
        ([".github/workflows/ci.yml"], ALL),
        (["pyproject.toml", "packages/high/a.py"], ALL),
        (["README.md", "CITATION.cff", ".github/ISSUE_TEMPLATE/bug.yml"], []),
        (["CONTRIBUTING.md", "packages/high/a.py"], ["high"]),
    ],
)
def test_touched_packages_and_their_dependents(
    workspace: Path, files: list[str], expected: list[str]
) -> None:
    touched, known = importlib.import_module("touched"), importlib.import_module("_packages")
    assert touched.concerned(files, known.packages(workspace)) == expected


def test_a_package_that_only_tests_name_counts(workspace: Path) -> None:
    touched, known = importlib.import_module("touched"), importlib.import_module("_packages")
    (workspace / "packages/low/tests/test_it.py").write_text('importorskip("high")\n')
    assert touched.concerned(["packages/high/a.py"], known.packages(workspace)) == ALL


def test_changed_files_since_a_commit(workspace: Path, git: Callable[..., str]) -> None:
    touched = importlib.import_module("touched")
    base = git("rev-parse", "HEAD")
    assert touched.changed(workspace, base) == [""]
    (workspace / "packages" / "low" / "a file.py").write_text("")
    git("add", "--all")
    git("commit", "--quiet", "--message", "change")
    assert touched.changed(workspace, base) == ["packages/low/a file.py"]


def test_a_file_that_moves_counts_at_both_ends(workspace: Path, git: Callable[..., str]) -> None:
    touched = importlib.import_module("touched")
    base = git("rev-parse", "HEAD")
    moved = "packages/high/moved.toml"
    git("mv", "packages/low/pyproject.toml", moved)
    git("commit", "--quiet", "--message", "move")
    assert touched.changed(workspace, base) == [moved, "packages/low/pyproject.toml"]


@pytest.mark.parametrize("base", ["", "0" * 40, "1" * 40, "--output=x"])
def test_without_a_base_nothing_is_known(workspace: Path, base: str) -> None:
    assert importlib.import_module("touched").changed(workspace, base) is None


def test_the_workspace_prints_what_ci_reads(capsys: pytest.CaptureFixture[str]) -> None:
    assert importlib.import_module("touched").main([]) == 0
    lines = dict(line.split("=", 1) for line in capsys.readouterr().out.splitlines())
    assert lines.keys() == {"packages", "tests", "treeops"}
    root = Path(__file__).resolve().parents[2]
    assert all((root / path).is_dir() for path in lines["tests"].split())
    assert lines["packages"].split().index("treeops") < lines["packages"].split().index("optcore")
