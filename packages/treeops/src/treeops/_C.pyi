# SPDX-License-Identifier: Apache-2.0
import builtins
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar, final

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
    def type(self) -> builtins.type | None: ...
    def unflatten(self, leaves: Iterable[Any], /) -> Any: ...
    def flatten_up_to(self, tree: Any, /) -> list[Any]: ...
    def paths(self, /) -> list[_Path]: ...
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
def register_node(
    cls: type,
    flatten_func: Callable[[Any], Any],
    unflatten_func: Callable[[Any, Any], Any],
    namespace: str,
    /,
) -> None: ...
def unregister_node(
    cls: type, namespace: str, /
) -> tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]: ...
def is_namedtuple_class(cls: object, /) -> bool: ...
def is_structseq_class(cls: object, /) -> bool: ...
