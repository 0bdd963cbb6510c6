# SPDX-License-Identifier: Apache-2.0
"""What a stranger meets first; the installs themselves are run by `make first-contact`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "readme", sorted(ROOT.glob("packages/*/README.md")), ids=lambda path: path.parent.name
)
def test_every_readme_says_how_to_install_and_begins_with_a_program(readme: Path) -> None:
    first_contact = importlib.import_module("first_contact")
    block = first_contact.BLOCK.search(readme.read_text())
    compile(block[1], str(readme), "exec")
    assert f"\n    pip install {readme.parent.name}" in readme.read_text()[: block.start()]


def test_a_stranger_has_an_empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_CACHE_DIR", "somewhere")
    monkeypatch.setenv("PYTHONPATH", "somewhere")
    monkeypatch.setenv("PIP_FIND_LINKS", "a b")
    env = importlib.import_module("first_contact").stranger(tmp_path)
    assert not {"UV_CACHE_DIR", "PYTHONPATH"} & env.keys()
    assert env["PIP_FIND_LINKS"] == "a b"
    assert list(Path(env["HOME"]).iterdir()) == []


def test_a_failing_example_shows_what_it_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_contact = importlib.import_module("first_contact")
    monkeypatch.setattr(first_contact, "ROOT", tmp_path)
    (tmp_path / "packages" / "low").mkdir(parents=True)
    readme = tmp_path / "packages" / "low" / "README.md"
    readme.write_text("# low\n")
    error = importlib.import_module("_uv").ToolError
    with pytest.raises(error, match=r"low: expected a Python example in README.md, found none"):
        first_contact.first_example("low", sys.executable, tmp_path, {})
    readme.write_text("# low\n\n```python\nprint('a line'); 1 / 0\n```\n")
    with pytest.raises(error, match=r"(?s)a line.*first example: expected exit status 0"):
        first_contact.first_example("low", sys.executable, tmp_path, {})
