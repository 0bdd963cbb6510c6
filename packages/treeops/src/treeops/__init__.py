# SPDX-License-Identifier: Apache-2.0
"""Fast trees of nested containers: flatten, unflatten, map.

Layout: ``_C`` (C++, see ``csrc/``) walks trees, and its functions are the public ones; ``ops``
reduces leaves; ``registry`` adds custom node types; ``typing`` describes them.
"""

from treeops._C import MAX_RECURSION_DEPTH as MAX_RECURSION_DEPTH
from treeops._C import PyTreeSpec as PyTreeSpec
from treeops._C import tree_flatten as tree_flatten
from treeops._C import tree_flatten_with_path as tree_flatten_with_path
from treeops._C import tree_leaves as tree_leaves
from treeops._C import tree_map as tree_map
from treeops._C import tree_map_ as tree_map_
from treeops._C import tree_map_with_path as tree_map_with_path
from treeops._C import tree_map_with_path_ as tree_map_with_path_
from treeops._C import tree_paths as tree_paths
from treeops._C import tree_structure as tree_structure
from treeops._C import tree_unflatten as tree_unflatten
from treeops.ops import NONE_IS_LEAF as NONE_IS_LEAF
from treeops.ops import NONE_IS_NODE as NONE_IS_NODE
from treeops.ops import tree_all as tree_all
from treeops.ops import tree_any as tree_any
from treeops.ops import tree_reduce as tree_reduce
from treeops.registry import register_pytree_node as register_pytree_node
from treeops.registry import register_pytree_node_class as register_pytree_node_class
from treeops.registry import unregister_pytree_node as unregister_pytree_node

__version__ = "0.1.0"

PyTreeDef = PyTreeSpec  # the name JAX uses
