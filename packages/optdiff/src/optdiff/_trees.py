# SPDX-License-Identifier: Apache-2.0
"""Trees as optcore walks them: its registered nodes, and None as a leaf."""

from __future__ import annotations

from functools import partial
from typing import Any, TypeAlias

import treeops

Tree: TypeAlias = Any  # a nested container of tensors (and None)

NAMESPACE = "optcore"

tree_flatten = partial(treeops.tree_flatten, none_is_leaf=True, namespace=NAMESPACE)
tree_leaves = partial(treeops.tree_leaves, none_is_leaf=True, namespace=NAMESPACE)
tree_map = partial(treeops.tree_map, none_is_leaf=True, namespace=NAMESPACE)
