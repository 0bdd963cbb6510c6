# SPDX-License-Identifier: Apache-2.0
"""The constructors of treespecs by short names, to be imported as a namespace.

Example:
    >>> import treeops.treespec as treespec
    >>> treespec.dict({"a": treespec.leaf(), "b": treespec.none()})
    PyTreeSpec({'a': *, 'b': None})
"""

from treeops._treespecs import treespec_defaultdict as defaultdict
from treeops._treespecs import treespec_deque as deque
from treeops._treespecs import treespec_dict as dict
from treeops._treespecs import treespec_from_collection as from_collection
from treeops._treespecs import treespec_frozendict as frozendict
from treeops._treespecs import treespec_leaf as leaf
from treeops._treespecs import treespec_list as list
from treeops._treespecs import treespec_namedtuple as namedtuple
from treeops._treespecs import treespec_none as none
from treeops._treespecs import treespec_ordereddict as ordereddict
from treeops._treespecs import treespec_structseq as structseq
from treeops._treespecs import treespec_tuple as tuple

__all__ = [
    "defaultdict",
    "deque",
    "dict",
    "from_collection",
    "frozendict",
    "leaf",
    "list",
    "namedtuple",
    "none",
    "ordereddict",
    "structseq",
    "tuple",
]
