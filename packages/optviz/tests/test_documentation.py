# SPDX-License-Identifier: Apache-2.0
"""Tutorials, benchmarks and the README's listings run."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LISTINGS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)


def test_the_tutorial_runs(capsys):
    pytest.importorskip("optdiff")
    runpy.run_path(str(ROOT / "tutorials" / "where_does_it_flow.py"))
    assert "create_graph - no gradient reaches" in capsys.readouterr().out


@pytest.mark.parametrize("listing", LISTINGS, ids=range(len(LISTINGS)))
def test_listings_run(listing, tmp_path, monkeypatch):
    pytest.importorskip("optdiff")
    monkeypatch.chdir(tmp_path)
    exec(compile(listing, "README.md", "exec"), {})
