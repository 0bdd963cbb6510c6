# SPDX-License-Identifier: Apache-2.0
"""A small workspace in a git repository of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

PROJECT = """[project]
name = "{name}"
version = "{version}"
dependencies = {requires}
"""
CHANGELOG = "# Changelog of {name}\n\n## Unreleased\n\n* One line.\n"


@pytest.fixture(autouse=True)
def tools_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts import each other by name, as when one of them runs."""
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1])


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run git in the workspace, with nobody's settings."""
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "A tester")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "tester@example.org")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "")
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")

    def run(*words: str) -> str:
        command = ["git", "-C", str(tmp_path), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    return run


@pytest.fixture
def workspace(tmp_path: Path, git: Callable[..., str]) -> Path:
    """Three packages: high needs middle, middle needs low; the tests of middle name high."""
    for name, requires in (("low", []), ("middle", ["low>=0.1"]), ("high", ["middle>=0.1,<0.2"])):
        folder = tmp_path / "packages" / name
        (folder / "tests").mkdir(parents=True)
        text = PROJECT.format(name=name, version="0.1.0", requires=requires)
        (folder / "pyproject.toml").write_text(text)
        (folder / "CHANGELOG.md").write_text(CHANGELOG.format(name=name))
        (folder / "tests" / "test_it.py").write_text("")
    (tmp_path / "pyproject.toml").write_text("")
    git("init", "--quiet", "--initial-branch", "main")
    git("add", "--all")
    git("commit", "--quiet", "--message", "start")
    return tmp_path
