# SPDX-License-Identifier: Apache-2.0
"""Every ``python`` block of every Markdown page runs, in order, as a reader would paste it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATTERNS = ("*.md", ".github/**/*.md", "packages/*/*.md", "packages/*/*/*.md", "tools/**/*.md")
PAGES = sorted({path for pattern in PATTERNS for path in ROOT.glob(pattern)})
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Python that the pattern above would not see: under another name, indented, or as a session.
UNSEEN = re.compile(
    r"^([ \t]+(```|~~~)|~~~|```+ *\{code[^}]*\} *|```+ +)python"
    r"|^[ \t]*(```|~~~) *(py|pycon|python3|Python)\b|^[ \t]*>>> ",
    re.MULTILINE,
)
SNIPPETS = [path for path in PAGES if BLOCK.search(path.read_text(encoding="utf-8"))]


def named(path: Path) -> str:
    """The page as its reader knows it."""
    return str(path.relative_to(ROOT))


# Dynamo looks at .grad of what it compiles, whether it is a leaf or not.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("path", SNIPPETS, ids=named)
def test_snippets_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # some write files
    text = path.read_text(encoding="utf-8")
    namespace: dict[str, object] = {"__name__": "readme"}
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start(1))
        code = compile("\n" * line + block[1], str(path), "exec")  # errors show the page's line
        exec(code, namespace)


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_no_python_hides_from_that(path: Path) -> None:
    hidden = [found[0] for found in UNSEEN.finditer(path.read_text(encoding="utf-8"))]
    assert hidden == []


def test_every_package_has_a_readme_with_a_program() -> None:
    packages = {path.parent for path in ROOT.glob("packages/*/pyproject.toml")}
    assert packages | {ROOT} <= {path.parent for path in SNIPPETS if path.name == "README.md"}
