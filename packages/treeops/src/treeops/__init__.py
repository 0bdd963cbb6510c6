# SPDX-License-Identifier: Apache-2.0
"""Fast trees of nested containers: flatten, unflatten, map.

Layout: ``_C`` (C++, see ``csrc/``) walks trees; ``ops`` has every function on trees; ``registry``
adds custom node types; ``typing`` describes them; ``accessors`` are ways to leaves. Imported when
first used: ``dataclasses``, ``functools``, ``pytree`` and ``treespec`` (short names),
``integrations`` (other libraries).
"""

from typing import Any as _Any

from treeops._C import MAX_RECURSION_DEPTH as MAX_RECURSION_DEPTH
from treeops._C import PyTreeSpec as PyTreeSpec
from treeops.accessors import AutoEntry as AutoEntry
from treeops.accessors import DataclassEntry as DataclassEntry
from treeops.accessors import FlattenedEntry as FlattenedEntry
from treeops.accessors import GetAttrEntry as GetAttrEntry
from treeops.accessors import GetItemEntry as GetItemEntry
from treeops.accessors import MappingEntry as MappingEntry
from treeops.accessors import NamedTupleEntry as NamedTupleEntry
from treeops.accessors import PyTreeAccessor as PyTreeAccessor
from treeops.accessors import PyTreeEntry as PyTreeEntry
from treeops.accessors import SequenceEntry as SequenceEntry
from treeops.accessors import StructSequenceEntry as StructSequenceEntry
from treeops.accessors import keystr as keystr
from treeops.accessors import tree_leaves_with_path as tree_leaves_with_path
from treeops.ops import NONE_IS_LEAF as NONE_IS_LEAF
from treeops.ops import NONE_IS_NODE as NONE_IS_NODE
from treeops.ops import all_leaves as all_leaves
from treeops.ops import broadcast_common as broadcast_common
from treeops.ops import broadcast_prefix as broadcast_prefix
from treeops.ops import prefix_errors as prefix_errors
from treeops.ops import tree_accessors as tree_accessors
from treeops.ops import tree_all as tree_all
from treeops.ops import tree_any as tree_any
from treeops.ops import tree_broadcast_common as tree_broadcast_common
from treeops.ops import tree_broadcast_map as tree_broadcast_map
from treeops.ops import tree_broadcast_map_with_accessor as tree_broadcast_map_with_accessor
from treeops.ops import tree_broadcast_map_with_path as tree_broadcast_map_with_path
from treeops.ops import tree_broadcast_prefix as tree_broadcast_prefix
from treeops.ops import tree_flatten as tree_flatten
from treeops.ops import tree_flatten_one_level as tree_flatten_one_level
from treeops.ops import tree_flatten_with_accessor as tree_flatten_with_accessor
from treeops.ops import tree_flatten_with_path as tree_flatten_with_path
from treeops.ops import tree_is_leaf as tree_is_leaf
from treeops.ops import tree_iter as tree_iter
from treeops.ops import tree_leaves as tree_leaves
from treeops.ops import tree_map as tree_map
from treeops.ops import tree_map_ as tree_map_
from treeops.ops import tree_map_with_accessor as tree_map_with_accessor
from treeops.ops import tree_map_with_accessor_ as tree_map_with_accessor_
from treeops.ops import tree_map_with_path as tree_map_with_path
from treeops.ops import tree_map_with_path_ as tree_map_with_path_
from treeops.ops import tree_max as tree_max
from treeops.ops import tree_min as tree_min
from treeops.ops import tree_partition as tree_partition
from treeops.ops import tree_paths as tree_paths
from treeops.ops import tree_reduce as tree_reduce
from treeops.ops import tree_replace_nones as tree_replace_nones
from treeops.ops import tree_structure as tree_structure
from treeops.ops import tree_sum as tree_sum
from treeops.ops import tree_transpose as tree_transpose
from treeops.ops import tree_transpose_map as tree_transpose_map
from treeops.ops import tree_transpose_map_with_accessor as tree_transpose_map_with_accessor
from treeops.ops import tree_transpose_map_with_path as tree_transpose_map_with_path
from treeops.ops import tree_unflatten as tree_unflatten
from treeops.ops import treespec_accessors as treespec_accessors
from treeops.ops import treespec_child as treespec_child
from treeops.ops import treespec_children as treespec_children
from treeops.ops import treespec_defaultdict as treespec_defaultdict
from treeops.ops import treespec_deque as treespec_deque
from treeops.ops import treespec_dict as treespec_dict
from treeops.ops import treespec_entries as treespec_entries
from treeops.ops import treespec_entry as treespec_entry
from treeops.ops import treespec_from_collection as treespec_from_collection
from treeops.ops import treespec_frozendict as treespec_frozendict
from treeops.ops import treespec_is_leaf as treespec_is_leaf
from treeops.ops import treespec_is_one_level as treespec_is_one_level
from treeops.ops import treespec_is_prefix as treespec_is_prefix
from treeops.ops import treespec_is_strict_leaf as treespec_is_strict_leaf
from treeops.ops import treespec_is_suffix as treespec_is_suffix
from treeops.ops import treespec_leaf as treespec_leaf
from treeops.ops import treespec_list as treespec_list
from treeops.ops import treespec_namedtuple as treespec_namedtuple
from treeops.ops import treespec_none as treespec_none
from treeops.ops import treespec_one_level as treespec_one_level
from treeops.ops import treespec_ordereddict as treespec_ordereddict
from treeops.ops import treespec_paths as treespec_paths
from treeops.ops import treespec_structseq as treespec_structseq
from treeops.ops import treespec_transform as treespec_transform
from treeops.ops import treespec_tuple as treespec_tuple
from treeops.registry import dict_insertion_ordered as dict_insertion_ordered
from treeops.registry import register_pytree_node as register_pytree_node
from treeops.registry import register_pytree_node_class as register_pytree_node_class
from treeops.registry import unregister_pytree_node as unregister_pytree_node
from treeops.typing import CustomTreeNode as CustomTreeNode
from treeops.typing import FlattenFunc as FlattenFunc
from treeops.typing import PyTree as PyTree
from treeops.typing import PyTreeKind as PyTreeKind
from treeops.typing import PyTreeTypeVar as PyTreeTypeVar
from treeops.typing import UnflattenFunc as UnflattenFunc
from treeops.typing import is_namedtuple as is_namedtuple
from treeops.typing import is_namedtuple_class as is_namedtuple_class
from treeops.typing import is_namedtuple_instance as is_namedtuple_instance
from treeops.typing import is_structseq as is_structseq
from treeops.typing import is_structseq_class as is_structseq_class
from treeops.typing import is_structseq_instance as is_structseq_instance
from treeops.typing import namedtuple_fields as namedtuple_fields
from treeops.typing import structseq_fields as structseq_fields

__version__: str  # read when asked for: importlib.metadata would double the time

PyTreeDef = PyTreeSpec  # the name JAX uses

_LAZY = {  # where names are found that are imported when first used: they would double the time
    "Partial": "functools",
    "dataclasses": "",
    "functools": "",
    "integrations": "",
    "pytree": "",
    "register_dataclass": "dataclasses",
    "treespec": "",
}


def __getattr__(name: str) -> _Any:
    if name == "__version__":
        from importlib.metadata import version

        return globals().setdefault(name, version("treeops"))
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = import_module(f"{__name__}.{_LAZY[name] or name}")
    value = getattr(module, name) if _LAZY[name] else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, "__version__"} - {"_Any", "_LAZY"})
