# SPDX-License-Identifier: Apache-2.0
"""The operations under short names, ``tree_map`` as ``map``; meant for ``import treeops.pytree``.

Example:
    >>> from treeops import pytree
    >>> pytree.map(lambda x: -x, {"a": [1, 2]})
    {'a': [-1, -2]}
"""

from __future__ import annotations

import inspect as _inspect
import sys as _sys
from builtins import all as _all
from functools import wraps as _wraps
from types import ModuleType as _ModuleType
from typing import TYPE_CHECKING as _TYPE_CHECKING

import treeops.dataclasses as dataclasses
import treeops.functools as functools
from treeops import __version__ as __version__
from treeops import dict_insertion_ordered as dict_insertion_ordered
from treeops import register_pytree_node as register_node
from treeops import register_pytree_node_class as register_node_class
from treeops import tree_accessors as accessors
from treeops import tree_all as all
from treeops import tree_any as any
from treeops import tree_broadcast_common as broadcast_common
from treeops import tree_broadcast_map as broadcast_map
from treeops import tree_broadcast_map_with_accessor as broadcast_map_with_accessor
from treeops import tree_broadcast_map_with_path as broadcast_map_with_path
from treeops import tree_broadcast_prefix as broadcast_prefix
from treeops import tree_flatten as flatten
from treeops import tree_flatten_one_level as flatten_one_level
from treeops import tree_flatten_with_accessor as flatten_with_accessor
from treeops import tree_flatten_with_path as flatten_with_path
from treeops import tree_is_leaf as is_leaf
from treeops import tree_iter as iter
from treeops import tree_leaves as leaves
from treeops import tree_map as map
from treeops import tree_map_ as map_
from treeops import tree_map_with_accessor as map_with_accessor
from treeops import tree_map_with_accessor_ as map_with_accessor_
from treeops import tree_map_with_path as map_with_path
from treeops import tree_map_with_path_ as map_with_path_
from treeops import tree_max as max
from treeops import tree_min as min
from treeops import tree_partition as partition
from treeops import tree_paths as paths
from treeops import tree_reduce as reduce
from treeops import tree_replace_nones as replace_nones
from treeops import tree_structure as structure
from treeops import tree_sum as sum
from treeops import tree_transpose as transpose
from treeops import tree_transpose_map as transpose_map
from treeops import tree_transpose_map_with_accessor as transpose_map_with_accessor
from treeops import tree_transpose_map_with_path as transpose_map_with_path
from treeops import tree_unflatten as unflatten
from treeops import unregister_pytree_node as unregister_node
from treeops.accessors import PyTreeEntry
from treeops.registry import GLOBAL_NAMESPACE as _GLOBAL_NAMESPACE
from treeops.typing import PyTreeKind, PyTreeSpec

if _TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = [
    "PyTreeEntry",
    "PyTreeKind",
    "PyTreeSpec",
    "accessors",
    "all",
    "any",
    "broadcast_common",
    "broadcast_map",
    "broadcast_map_with_accessor",
    "broadcast_map_with_path",
    "broadcast_prefix",
    "dict_insertion_ordered",
    "flatten",
    "flatten_one_level",
    "flatten_with_accessor",
    "flatten_with_path",
    "is_leaf",
    "iter",
    "leaves",
    "map",
    "map_",
    "map_with_accessor",
    "map_with_accessor_",
    "map_with_path",
    "map_with_path_",
    "max",
    "min",
    "partition",
    "paths",
    "reduce",
    "reexport",
    "register_node",
    "register_node_class",
    "replace_nones",
    "structure",
    "sum",
    "transpose",
    "transpose_map",
    "transpose_map_with_accessor",
    "transpose_map_with_path",
    "unflatten",
    "unregister_node",
]


class ReexportedModule(_ModuleType):
    """A module whose functions are those of another, with a namespace as their default."""

    def __init__(
        self,
        name: str,
        *,
        namespace: str,
        original: _ModuleType,
        members: dict[str, Any] | None = None,
    ) -> None:
        """Make the module; ``members`` are in it besides those of ``original``."""
        super().__init__(name, f"The names of {original.__name__} for the namespace {namespace!r}.")
        public = {member for member in original.__all__ if member != "reexport"}
        self.__dict__.update(members or {})
        self.__dict__.update(
            __all__=sorted(public),
            _dir=sorted(public | set(members or {})),
            _namespace=namespace,
            _original=original,
        )

    def __dir__(self) -> list[str]:
        return list(self._dir)

    def __getattr__(self, name: str, /) -> Any:
        if name in self.__dict__.get("__all__", ()):
            member = getattr(self._original, name)
            if callable(member) and not isinstance(member, type):
                member = _for_namespace(member, self._namespace)
            setattr(self, name, member)
            return member
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


def _for_namespace(function: Callable[..., Any], namespace: str) -> Callable[..., Any]:
    """The function with another default for ``namespace``, if it takes one."""
    signature = _inspect.signature(function)
    parameters = list(signature.parameters.values())
    positions = [i for i, parameter in enumerate(parameters) if parameter.name == "namespace"]
    if not positions:
        return function
    position = positions[0]
    by_keyword_only = parameters[position].kind is _inspect.Parameter.KEYWORD_ONLY

    @_wraps(function)
    def bound(*args: Any, **kwargs: Any) -> Any:
        if by_keyword_only or len(args) <= position:
            kwargs.setdefault("namespace", namespace)
        return function(*args, **kwargs)

    parameters[position] = parameters[position].replace(default=namespace)
    bound.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    get = getattr(function, "get", None)  # register_node.get
    if callable(get):
        bound.get = _for_namespace(get, namespace)  # type: ignore[attr-defined]
    return bound


def reexport(*, namespace: str, module: str | None = None) -> Any:
    """Make a module like this one whose functions have ``namespace`` as their default.

    A library ``shop`` writes ``pytree = treeops.pytree.reexport(namespace="shop")`` in its
    ``__init__``; then ``shop.pytree.map`` and ``import shop.pytree`` see its nodes.

    Args:
        namespace: The default of every function that takes one.
        module: The name of the module; by default ``pytree`` below the caller's module.

    Returns:
        The module, which is put in ``sys.modules``, with its submodules ``dataclasses`` and
        ``functools``.

    Raises:
        TypeError: The namespace is not a str.
        ValueError: The name is no module name, or is taken.
    """
    if not isinstance(namespace, str):
        raise TypeError(f"reexport: expected namespace to be a str, got {type(namespace).__name__}")
    if namespace is _GLOBAL_NAMESPACE:
        namespace = ""
    if module is None:
        module = f"{_sys._getframe(1).f_globals.get('__name__', '__main__')}.pytree"
    if not _all(part.isidentifier() for part in module.split(".")):
        raise ValueError(f"reexport: expected module to be a module's name, got {module!r}")
    names = [module, f"{module}.dataclasses", f"{module}.functools"]
    for name in names:
        if name in _sys.modules:
            raise ValueError(f"reexport: expected a new module, got {name!r}, which is there")
    submodules = {
        original.__name__.rpartition(".")[2]: ReexportedModule(
            name, namespace=namespace, original=original
        )
        for name, original in zip(names[1:], (dataclasses, functools))
    }
    made = ReexportedModule(
        module,
        namespace=namespace,
        original=_sys.modules[__name__],
        members={"__version__": __version__, **submodules},
    )
    _sys.modules.update(zip(names, (made, *submodules.values())))
    return made
