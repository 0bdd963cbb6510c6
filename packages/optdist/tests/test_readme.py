# SPDX-License-Identifier: Apache-2.0
"""The program in the README runs."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_program_runs_on_two_workers(finish, tmp_path):
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    script = tmp_path / "script.py"
    script.write_text(block)
    finish(script)
