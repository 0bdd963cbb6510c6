# SPDX-License-Identifier: Apache-2.0
"""Releases, in a repository of their own."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def release() -> ModuleType:
    return importlib.import_module("release")


@pytest.fixture
def error() -> type[Exception]:
    return importlib.import_module("_uv").ToolError


def commit_all(git: Callable[..., str]) -> None:
    git("add", "--all")
    git("commit", "--quiet", "--message", "change")


def test_bump_writes_the_version_and_dates_the_changelog(
    release: ModuleType, workspace: Path
) -> None:
    release.bump(workspace, "low", "minor", "2026-01-02", dry_run=False)
    folder = workspace / "packages" / "low"
    assert 'version = "0.2.0"\n' in (folder / "pyproject.toml").read_text()
    expected = "# Changelog of low\n\n## 0.2.0 (2026-01-02)\n\n* One line.\n"
    assert (folder / "CHANGELOG.md").read_text() == expected


def test_a_dry_run_writes_nothing(
    release: ModuleType, workspace: Path, git: Callable[..., str]
) -> None:
    release.bump(workspace, "low", "major", "2026-01-02", dry_run=True)
    assert git("status", "--porcelain") == ""


def test_bump_dates_a_heading_with_blanks_behind_it(release: ModuleType, workspace: Path) -> None:
    changelog = workspace / "packages" / "low" / "CHANGELOG.md"
    changelog.write_text("# Changelog of low\n\n## Unreleased  \n\n* One line.\n")
    release.bump(workspace, "low", "minor", "2026-01-02", dry_run=False)
    expected = "# Changelog of low\n\n## 0.2.0 (2026-01-02)\n\n* One line.\n"
    assert changelog.read_text() == expected


@pytest.mark.parametrize(
    ("to", "bound"), [("minor", "<0.3"), ("patch", "<0.2"), ("0.7.2", "<0.8"), ("major", "<2")]
)
def test_bump_raises_the_bounds_that_refuse_the_new_version(
    release: ModuleType,
    workspace: Path,
    capsys: pytest.CaptureFixture[str],
    to: str,
    bound: str,
) -> None:
    project = workspace / "packages" / "high" / "pyproject.toml"
    before = project.read_text()
    release.bump(workspace, "middle", to, "2026-01-02", dry_run=True)
    assert project.read_text() == before
    release.bump(workspace, "middle", to, "2026-01-02", dry_run=False)
    assert project.read_text() == before.replace("<0.2", bound)
    assert capsys.readouterr().out.count("high: ") == 2 * (bound != "<0.2")
    assert release.check(workspace, []) == 0


def test_bump_refuses_a_bound_that_it_cannot_raise(
    release: ModuleType, error: type[Exception], workspace: Path, git: Callable[..., str]
) -> None:
    project = workspace / "packages" / "high" / "pyproject.toml"
    project.write_text(project.read_text().replace(">=0.1,<0.2", "==0.1.0"))
    commit_all(git)
    with pytest.raises(error, match=re.escape("expected 'middle==0.1.0' to allow middle 0.2.0")):
        release.bump(workspace, "middle", "minor", "2026-01-02", dry_run=False)
    assert git("status", "--porcelain") == ""


@pytest.mark.parametrize(
    ("current", "to", "expected"),
    [
        ("0.1.2", "patch", "0.1.3"),
        ("0.1.2", "minor", "0.2.0"),
        ("0.1.2", "major", "1.0.0"),
        ("0.1.2", "0.10.0", "0.10.0"),
        ("0.1.2", "0.1.2", "0.1.2"),  # the first release
    ],
)
def test_next_version(release: ModuleType, current: str, to: str, expected: str) -> None:
    assert release.next_version(current, to, []) == expected


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("0.1.1", "expected a version above 0.1.2, got 0.1.1"),
        ("0.1.2", "expected a version above 0.1.2, got 0.1.2"),
        ("1.0", "expected X.Y.Z, got '1.0'"),
        ("v0.2.0", "expected X.Y.Z, got 'v0.2.0'"),
    ],
)
def test_wrong_versions_are_refused(
    release: ModuleType, error: type[Exception], to: str, message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        release.next_version("0.1.2", to, ["0.1.2"])


@pytest.mark.parametrize(
    ("changelog", "message"),
    [
        ("# Changelog\n\n## Unreleased\n\n## 0.0.1\n\n* Old.\n", "'## Unreleased' with 0 lines"),
        ("# Changelog\n\n## 0.1.0\n\n* Old.\n", "got '## 0.1.0' with 1 lines"),
        ("# Changelog\n", "expected CHANGELOG.md with '## Unreleased', got none"),
    ],
)
def test_bump_needs_unreleased_lines(
    release: ModuleType, error: type[Exception], workspace: Path, changelog: str, message: str
) -> None:
    (workspace / "packages" / "low" / "CHANGELOG.md").write_text(changelog)
    with pytest.raises(error, match=re.escape(message)):
        release.bump(workspace, "low", "patch", "2026-01-02", dry_run=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing", "patch", "2026-01-02"), "expected packages among ['high', 'low', 'middle']"),
        (("low", "patch", "today"), "expected --date YYYY-MM-DD, got 'today'"),
        (("low", "patch", "20260102"), "expected --date YYYY-MM-DD, got '20260102'"),
    ],
)
def test_bump_refuses(
    release: ModuleType, error: type[Exception], workspace: Path, arguments: Any, message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        release.bump(workspace, *arguments, dry_run=False)


@pytest.fixture
def bumped(release: ModuleType, workspace: Path, git: Callable[..., str]) -> Path:
    """A workspace whose low is ready to be tagged."""
    release.bump(workspace, "low", "patch", "2026-01-02", dry_run=False)
    commit_all(git)
    return workspace


def test_tag_makes_an_annotated_tag(
    release: ModuleType, bumped: Path, git: Callable[..., str]
) -> None:
    release.tag(bumped, "low", "main", dry_run=True)
    assert git("tag") == ""
    release.tag(bumped, "low", "main", dry_run=False)
    assert git("tag") == "low-v0.1.1"
    assert git("cat-file", "-t", "low-v0.1.1") == "tag"
    assert release.tags(bumped, "low") == ["0.1.1"]


def test_tag_is_pushed_where_asked_to(
    release: ModuleType, bumped: Path, git: Callable[..., str], tmp_path_factory: Any
) -> None:
    remote = tmp_path_factory.mktemp("remote")
    git("clone", "--quiet", "--bare", str(bumped), str(remote))
    git("remote", "add", "origin", str(remote))
    release.tag(bumped, "low", "main", dry_run=False, push=True)
    assert git("ls-remote", "--tags", "origin", "low-v0.1.1").endswith("refs/tags/low-v0.1.1")


def test_tag_refuses_what_is_not_committed(
    release: ModuleType, error: type[Exception], bumped: Path
) -> None:
    (bumped / "new.txt").write_text("")
    with pytest.raises(error, match="expected a clean tree, got 1 changes; commit them"):
        release.tag(bumped, "low", "main", dry_run=False)


def test_tag_refuses_another_branch(
    release: ModuleType, error: type[Exception], bumped: Path, git: Callable[..., str]
) -> None:
    git("checkout", "--quiet", "-b", "other")
    with pytest.raises(error, match="expected branch main, got other"):
        release.tag(bumped, "low", "main", dry_run=False)


def test_tag_refuses_a_version_that_has_one(
    release: ModuleType, error: type[Exception], bumped: Path
) -> None:
    release.tag(bumped, "low", "main", dry_run=False)
    with pytest.raises(error, match=re.escape("expected a new version, got one with a tag")):
        release.tag(bumped, "low", "main", dry_run=False)


def test_tag_refuses_a_version_below_the_last(
    release: ModuleType, error: type[Exception], bumped: Path, git: Callable[..., str]
) -> None:
    git("tag", "low-v0.10.0")
    git("tag", "low-v0.9.0")
    with pytest.raises(error, match=re.escape("expected a version above 0.10.0")):
        release.tag(bumped, "low", "main", dry_run=False)


def test_tag_refuses_an_undated_changelog(
    release: ModuleType, error: type[Exception], workspace: Path
) -> None:
    with pytest.raises(error, match=re.escape("begin with '## 0.1.0 (date)', got '## Unreleased'")):
        release.tag(workspace, "low", "main", dry_run=False)


def test_check_refuses_a_sibling_that_is_not_allowed(
    release: ModuleType, error: type[Exception], workspace: Path
) -> None:
    assert release.check(workspace, []) == 0
    project = workspace / "packages" / "middle" / "pyproject.toml"
    project.write_text(project.read_text().replace('"0.1.0"', '"0.2.0"'))
    assert release.check(workspace, ["middle"]) == 0
    with pytest.raises(error, match=re.escape("expected 'middle>=0.1,<0.2' to allow middle 0.2.0")):
        release.check(workspace, ["high"])


def test_check_refuses_a_changelog_of_another_version(
    release: ModuleType, error: type[Exception], workspace: Path
) -> None:
    changelog = workspace / "packages" / "low" / "CHANGELOG.md"
    changelog.write_text(changelog.read_text().replace("Unreleased", "0.3.0 (2026-01-02)"))
    with pytest.raises(error, match=re.escape("'## 0.1.0 (date)', got '## 0.3.0'")):
        release.check(workspace, ["low"])


def test_the_packages_here_can_be_released(release: ModuleType) -> None:
    assert release.main(["check"]) == 0


@pytest.mark.parametrize(
    ("line", "expected"),
    [("low>=0.1", "0.1.0"), ("low>=0.2.3,<0.4", "0.2.3"), ("low~=1.4", "1.4.0")],
)
def test_the_lowest_version_of_a_bound(workspace: Path, line: str, expected: str) -> None:
    low = importlib.import_module("_packages").packages(workspace)["low"]
    assert importlib.import_module("_trials").lowest_version("high", line, low) == expected


def test_a_sibling_without_a_lower_bound_is_refused(
    error: type[Exception], workspace: Path
) -> None:
    low = importlib.import_module("_packages").packages(workspace)["low"]
    with pytest.raises(error, match="high: expected a lower bound of low, got 'low<2'"):
        importlib.import_module("_trials").lowest_version("high", "low<2", low)


def test_old_versions_come_from_their_tags(
    error: type[Exception],
    release: ModuleType,
    bumped: Path,
    git: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    release.tag(bumped, "low", "main", dry_run=False)
    release_text = (bumped / "packages" / "low" / "CHANGELOG.md").read_text()
    (bumped / "packages" / "low" / "CHANGELOG.md").write_text(
        release_text.replace("## 0.1.1", "## Unreleased\n\n* More.\n\n## 0.1.1")
    )
    release.bump(bumped, "low", "minor", "2026-02-02", dry_run=False)
    trials, known = importlib.import_module("_trials"), importlib.import_module("_packages")
    monkeypatch.setattr(trials, "ROOT", bumped)
    shop = trials.Shop("uv", tmp_path_factory.mktemp("shop"), known.packages(bumped))
    assert shop.package("low", "0.1.1").version == "0.1.1"
    assert shop.source("low", "0.1.1") == "tag"
    assert shop.source("low", "0.2.0") == "working tree"
    with pytest.raises(error, match=re.escape("expected the tag low-v0.1.0 or this version")):
        shop.tree("low", "0.1.0")
