# SPDX-License-Identifier: Apache-2.0
import builtins
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, SupportsIndex, SupportsInt, TypeVar, final

from treeops.accessors import PyTreeAccessor, PyTreeEntry
from treeops.typing import PyTreeKind

T = TypeVar("T")

_Path = tuple[Any, ...]
_IsLeaf = Callable[[Any], bool] | None

MAX_RECURSION_DEPTH: Final[int]

@final
class PyTreeSpec:
    @property
    def num_leaves(self) -> int: ...
    @property
    def num_nodes(self) -> int: ...
    @property
    def num_children(self) -> int: ...
    @property
    def none_is_leaf(self) -> bool: ...
    @property
    def namespace(self) -> str: ...
    @property
    def kind(self) -> PyTreeKind: ...
    @property
    def type(self) -> builtins.type | None: ...
    def unflatten(self, leaves: Iterable[Any], /) -> Any: ...
    def flatten_up_to(self, tree: Any, /) -> list[Any]: ...
    def paths(self, /) -> list[_Path]: ...
    def accessors(self, /) -> list[PyTreeAccessor]: ...
    def entries(self, /) -> list[Any]: ...
    def entry(self, index: SupportsInt | SupportsIndex, /) -> Any: ...
    def children(self, /) -> list[PyTreeSpec]: ...
    def child(self, index: SupportsInt | SupportsIndex, /) -> PyTreeSpec: ...
    def one_level(self, /) -> PyTreeSpec | None: ...
    def is_leaf(self, /, *, strict: bool = True) -> bool: ...
    def is_one_level(self, /) -> bool: ...
    def is_prefix(self, other: PyTreeSpec, /, *, strict: bool = False) -> bool: ...
    def is_suffix(self, other: PyTreeSpec, /, *, strict: bool = False) -> bool: ...
    def broadcast_to_common_suffix(self, other: PyTreeSpec, /) -> PyTreeSpec: ...
    def compose(self, inner: PyTreeSpec, /) -> PyTreeSpec: ...
    def transform(
        self,
        /,
        f_node: Callable[[PyTreeSpec], PyTreeSpec] | None = None,
        f_leaf: Callable[[PyTreeSpec], PyTreeSpec] | None = None,
    ) -> PyTreeSpec: ...
    def traverse(
        self,
        leaves: Iterable[Any],
        /,
        f_node: Callable[[Any], Any] | None = None,
        f_leaf: Callable[[Any], Any] | None = None,
    ) -> Any: ...
    def walk(
        self,
        leaves: Iterable[Any],
        /,
        f_node: Callable[[builtins.type, Any, tuple[Any, ...]], Any] | None = None,
        f_leaf: Callable[[Any], Any] | None = None,
    ) -> Any: ...
    def __lt__(self, other: PyTreeSpec, /) -> bool: ...
    def __le__(self, other: PyTreeSpec, /) -> bool: ...
    def __gt__(self, other: PyTreeSpec, /) -> bool: ...
    def __ge__(self, other: PyTreeSpec, /) -> bool: ...
    def __len__(self) -> int: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

def tree_flatten(
    tree: Any, /, is_leaf: _IsLeaf = None, *, none_is_leaf: bool = False, namespace: str = ""
) -> tuple[list[Any], PyTreeSpec]: ...
def tree_flatten_with_path(
    tree: Any, /, is_leaf: _IsLeaf = None, *, none_is_leaf: bool = False, namespace: str = ""
) -> tuple[list[_Path], list[Any], PyTreeSpec]: ...
def tree_leaves(
    tree: Any, /, is_leaf: _IsLeaf = None, *, none_is_leaf: bool = False, namespace: str = ""
) -> list[Any]: ...
def tree_structure(
    tree: Any, /, is_leaf: _IsLeaf = None, *, none_is_leaf: bool = False, namespace: str = ""
) -> PyTreeSpec: ...
def tree_paths(
    tree: Any, /, is_leaf: _IsLeaf = None, *, none_is_leaf: bool = False, namespace: str = ""
) -> list[_Path]: ...
def tree_unflatten(treespec: PyTreeSpec, leaves: Iterable[Any]) -> Any: ...
def tree_map(
    func: Callable[..., Any],
    tree: Any,
    /,
    *rests: Any,
    is_leaf: _IsLeaf = None,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> Any: ...
def tree_map_(
    func: Callable[..., Any],
    tree: T,
    /,
    *rests: Any,
    is_leaf: _IsLeaf = None,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> T: ...
def tree_map_with_path(
    func: Callable[..., Any],
    tree: Any,
    /,
    *rests: Any,
    is_leaf: _IsLeaf = None,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> Any: ...
def tree_map_with_path_(
    func: Callable[..., Any],
    tree: T,
    /,
    *rests: Any,
    is_leaf: _IsLeaf = None,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> T: ...
def tree_flatten_with_accessor(
    tree: Any, /, is_leaf: _IsLeaf = None, *, none_is_leaf: bool = False, namespace: str = ""
) -> tuple[list[PyTreeAccessor], list[Any], PyTreeSpec]: ...
def tree_accessors(
    tree: Any, /, is_leaf: _IsLeaf = None, *, none_is_leaf: bool = False, namespace: str = ""
) -> list[PyTreeAccessor]: ...
def tree_iter(
    tree: Any, /, is_leaf: _IsLeaf = None, *, none_is_leaf: bool = False, namespace: str = ""
) -> Iterator[Any]: ...
def tree_is_leaf(
    tree: Any, /, is_leaf: _IsLeaf = None, *, none_is_leaf: bool = False, namespace: str = ""
) -> bool: ...
def all_leaves(
    iterable: Iterable[Any],
    /,
    is_leaf: _IsLeaf = None,
    *,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> bool: ...
def broadcast_prefix(
    prefix_tree: Any,
    full_tree: Any,
    /,
    is_leaf: _IsLeaf = None,
    *,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> list[Any]: ...
def tree_broadcast_prefix(
    prefix_tree: Any,
    full_tree: Any,
    /,
    is_leaf: _IsLeaf = None,
    *,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> Any: ...
def tree_map_with_accessor(
    func: Callable[..., Any],
    tree: Any,
    /,
    *rests: Any,
    is_leaf: _IsLeaf = None,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> Any: ...
def tree_map_with_accessor_(
    func: Callable[..., Any],
    tree: T,
    /,
    *rests: Any,
    is_leaf: _IsLeaf = None,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> T: ...
def make_leaf(none_is_leaf: bool, /) -> PyTreeSpec: ...
def make_none(none_is_leaf: bool, /) -> PyTreeSpec: ...
def make_from_collection(
    who: str, collection: Any, none_is_leaf: bool, namespace: str, /
) -> PyTreeSpec: ...
def flatten_each_up_to(
    who: str,
    treespec: PyTreeSpec,
    trees: Iterable[Any],
    what: str,
    first_number: int,
    differs_from: str,
    /,
) -> list[list[Any]]: ...
def common_suffix(who: str, treespecs: Iterable[PyTreeSpec], /) -> PyTreeSpec: ...
def register_node(
    cls: type,
    flatten_func: Callable[[Any], Any],
    unflatten_func: Callable[[Any, Any], Any],
    path_entry_type: type[PyTreeEntry],
    namespace: str,
    /,
) -> None: ...

_Registered = tuple[Callable[[Any], Any], Callable[[Any, Any], Any], type[PyTreeEntry], str]

def unregister_node(cls: type, namespace: str, /) -> _Registered: ...
def find_node(cls: type, namespace: str, /) -> _Registered | None: ...
def registered_classes(namespace: str, /) -> list[type]: ...
def set_dict_insertion_ordered(mode: bool, namespace: str, /) -> bool: ...
def is_dict_insertion_ordered(namespace: str, /) -> bool: ...
def is_namedtuple_class(cls: object, /) -> bool: ...
def is_structseq_class(cls: object, /) -> bool: ...
