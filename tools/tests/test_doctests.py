# SPDX-License-Identifier: Apache-2.0
"""The examples in the docstrings of the tools run."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["_packages", "bench_report", "release"])
def test_examples_in_docstrings(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted
    assert not found.failed
