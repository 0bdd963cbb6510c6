# SPDX-License-Identifier: Apache-2.0
"""Leaves the modules for other libraries out of doctest where the library is missing.

Also names how long hypothesis searches in ``make fuzz``, and keeps the collector away from modules.
"""

from __future__ import annotations

import gc
from importlib.util import find_spec

import pytest
from hypothesis import HealthCheck, settings

collect_ignore = ["benchmarks"] + [
    f"src/treeops/integrations/{library}.py"
    for library in ("attrs", "jax", "numpy", "torch")
    if find_spec(library) is None
]

# The same examples in every run, however slow the machine; ``--hypothesis-profile`` still wins.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")
settings.register_profile(
    "fuzz",
    max_examples=2000,
    deadline=None,
    derandomize=False,
    suppress_health_check=list(HealthCheck),
)


def pytest_collection_finish(session: pytest.Session) -> None:
    """The tests collect garbage often: spare them the millions of objects of torch and JAX."""
    gc.collect()
    gc.freeze()
