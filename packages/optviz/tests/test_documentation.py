# SPDX-License-Identifier: Apache-2.0
"""The README's listings run."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LISTINGS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)


@pytest.mark.parametrize("listing", LISTINGS, ids=range(len(LISTINGS)))
def test_listings_run(listing, tmp_path, monkeypatch):
    pytest.importorskip("optdiff")
    monkeypatch.chdir(tmp_path)
    exec(compile(listing, "README.md", "exec"), {})
