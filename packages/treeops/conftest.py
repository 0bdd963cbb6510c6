# SPDX-License-Identifier: Apache-2.0
"""Leaves the modules for other libraries out of doctest where the library is missing."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore = [
    f"src/treeops/integrations/{library}.py"
    for library in ("attrs", "jax", "numpy", "torch")
    if find_spec(library) is None
]
