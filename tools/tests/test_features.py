# SPDX-License-Identifier: Apache-2.0
"""The table of features: its names can be imported, its paths and tests exist."""

from __future__ import annotations

import importlib
import re
from operator import attrgetter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TABLE = (ROOT / "tools/site/features.md").read_text(encoding="utf-8")
LINES = [line for line in TABLE.splitlines() if line.startswith("|")][2:]
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in LINES]
PACKAGES = ("treeops", "optcore", "optcore_accel", "optdiff", "optdist", "optviz")
NAMES = sorted({name for row in ROWS for name in re.findall(r"`([^`]+)`", row[1])})
PATHS = sorted({path for row in ROWS for path in re.findall(r"`([^`]+)`", row[-1])})


@pytest.mark.parametrize("name", NAMES)
def test_the_name_can_be_imported(name: str) -> None:
    package, _, attributes = name.partition(".")
    module = importlib.import_module(package)
    parts = attributes.split(".")
    for count in range(1, len(parts)):  # submodules that are imported when asked for
        importlib.import_module(".".join([package, *parts[:count]]))
    assert attrgetter(attributes)(module) is not None


@pytest.mark.parametrize("path", PATHS)
def test_the_path_exists_with_its_test(path: str) -> None:
    file, _, test = path.partition("::")
    assert (ROOT / file).is_file()
    assert not test or f"\ndef {test}(" in (ROOT / file).read_text(encoding="utf-8")


def test_every_feature_has_a_place() -> None:
    features = [row for row in ROWS if not row[0].startswith("**")]
    assert [row[0] for row in features if not re.search(r"`[\w./-]+(::\w+)?`$", row[-1])] == []
    assert len(features) >= 50
    assert {name.split(".")[0] for name in NAMES} == set(PACKAGES)
