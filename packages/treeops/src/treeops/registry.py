# SPDX-License-Identifier: Apache-2.0
"""Custom node types: registering them, by function or by class; the order of dicts."""

from __future__ import annotations

import contextlib
import warnings
from collections import namedtuple
from collections.abc import Callable, Generator
from operator import methodcaller
from typing import Any, Final, NamedTuple, TypeVar, cast

from treeops import _C
from treeops.accessors import AutoEntry, PyTreeEntry
from treeops.typing import FlattenFunc, PyTreeKind, UnflattenFunc

__all__ = [
    "GLOBAL_NAMESPACE",
    "PyTreeNodeRegistryEntry",
    "dict_insertion_ordered",
    "pytree_node_registry_get",
    "register_pytree_node",
    "register_pytree_node_class",
    "unregister_pytree_node",
]

Class = TypeVar("Class", bound=type)


class _GlobalNamespace(str):
    """The namespace every lookup falls back to; a str only so that it types as one."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<GLOBAL NAMESPACE>"


GLOBAL_NAMESPACE: Final[str] = _GlobalNamespace()


class PyTreeNodeRegistryEntry(NamedTuple):
    """How instances of a class are taken apart and put together.

    Given by ``register_pytree_node.get`` and :func:`unregister_pytree_node`. For built-in
    containers ``flatten_func`` and ``unflatten_func`` do in Python what the walks do in C++.
    """

    type: Any  # a class; collections.namedtuple and StructSequence stand for all such classes
    flatten_func: FlattenFunc[Any]
    unflatten_func: UnflattenFunc[Any]
    path_entry_type: type[PyTreeEntry] = AutoEntry
    kind: PyTreeKind = PyTreeKind.CUSTOM
    namespace: str = ""


def pytree_node_registry_get(cls: Any = None, /, *, namespace: str = "") -> Any:
    """What is registered; callable as ``register_pytree_node.get``.

    Args:
        cls: A class; ``collections.namedtuple`` stands for namedtuple classes.
        namespace: Where to look before the global namespace.

    Returns:
        The :class:`PyTreeNodeRegistryEntry` of ``cls``, ``None`` if its instances are leaves.
        Without ``cls``, a dict from every class to its entry.

    Example:
        >>> register_pytree_node.get(list).kind.name
        'LIST'
    """
    who = "register_pytree_node.get"
    if cls is not None and cls is not namedtuple:
        _check_class(who, cls)
    if not isinstance(namespace, str):
        raise TypeError(f"{who}: expected namespace to be a str, got {type(namespace).__name__}")
    from treeops._builtin_nodes import BUILTIN_NODES, INSERTION_ORDERED_NODES  # rarely needed

    space = str(namespace)
    builtin = dict(BUILTIN_NODES)
    if _C.is_dict_insertion_ordered(space):
        builtin.update(INSERTION_ORDERED_NODES)
    if cls is None:
        custom = (_registered(custom_class, space) for custom_class in _C.registered_classes(space))
        return builtin | {entry.type: entry for entry in custom if entry is not None}
    if cls in builtin:
        return builtin[cls]
    entry = _registered(cls, space)
    if entry is not None:
        return entry
    if _C.is_structseq_class(cls):
        return builtin[_builtin_structseq()]
    if _C.is_namedtuple_class(cls):
        return builtin[namedtuple]
    return None


def _registered(cls: type, space: str) -> PyTreeNodeRegistryEntry | None:
    found = _C.find_node(cls, space)
    if found is None:
        return None
    flatten_func, unflatten_func, path_entry_type, found_in = found
    return PyTreeNodeRegistryEntry(
        cls, flatten_func, unflatten_func, path_entry_type, PyTreeKind.CUSTOM, found_in
    )


def _builtin_structseq() -> type:
    from treeops.typing import StructSequence

    return StructSequence


def register_pytree_node(
    cls: Class,
    /,
    flatten_func: FlattenFunc,
    unflatten_func: UnflattenFunc,
    *,
    path_entry_type: type[PyTreeEntry] = AutoEntry,
    namespace: str,
) -> Class:
    """Make instances of exactly this class nodes of a tree.

    Args:
        cls: The class; subclasses are not included.
        flatten_func: ``flatten_func(node)`` gives ``(children, metadata)`` or
            ``(children, metadata, entries)``: an iterable of subtrees, anything hashable and
            comparable, and an iterable of the names that paths use (default: positions).
        unflatten_func: ``unflatten_func(metadata, children)`` makes the node again.
        path_entry_type: Class of the steps of accessors from such a node to its children;
            ``AutoEntry`` picks one by the class of the node.
        namespace: Functions given the same ``namespace`` see the class as a node, others as a
            leaf. ``GLOBAL_NAMESPACE`` makes it a node for everyone.

    Returns:
        ``cls``.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: The class is registered in that namespace already, or is a built-in container.

    Example:
        >>> class Pair:
        ...     def __init__(self, left, right):
        ...         self.left, self.right = left, right
        >>> _ = register_pytree_node(
        ...     Pair,
        ...     lambda pair: ((pair.left, pair.right), None, ("left", "right")),
        ...     lambda _, children: Pair(*children),
        ...     namespace="doc",
        ... )
        >>> _C.tree_paths({"a": Pair(1, [2])}, namespace="doc")
        [('a', 'left'), ('a', 'right', 0)]
    """
    who = "register_pytree_node"
    _check_class(who, cls)
    for name, func in (("flatten_func", flatten_func), ("unflatten_func", unflatten_func)):
        if not callable(func):
            raise TypeError(f"{who}: expected {name} to be callable, got {type(func).__name__}")
    _check_entry_type(who, path_entry_type)
    space = _namespace_text(who, namespace)
    kind = (
        "namedtuple"
        if _C.is_namedtuple_class(cls)
        else "struct sequence"
        if _C.is_structseq_class(cls)
        else None
    )
    if kind is not None:
        warnings.warn(
            f"{who}: {cls.__qualname__} is a {kind}, a node already; "
            "the registration overrides that",
            UserWarning,
            stacklevel=2,
        )
    _C.register_node(cls, flatten_func, unflatten_func, path_entry_type, space)
    return cls


register_pytree_node.get = pytree_node_registry_get  # type: ignore[attr-defined]


def register_pytree_node_class(
    cls: Any = None,
    /,
    *,
    path_entry_type: type[PyTreeEntry] | None = None,
    namespace: str | None = None,
) -> Any:
    """Register a class by its methods ``__tree_flatten__`` and ``__tree_unflatten__``.

    A class decorator in three forms: ``@register_pytree_node_class("space")``,
    ``@register_pytree_node_class(namespace="space")``, or a call with class and namespace.
    ``tree_flatten`` and ``tree_unflatten`` are taken where the methods with underscores are
    missing. The class of the steps of accessors is ``path_entry_type``, else the class's
    ``TREE_PATH_ENTRY_TYPE``, else ``AutoEntry``.

    Raises:
        TypeError: The class lacks the methods, or an argument has the wrong type.
        ValueError: No namespace, two of them, or the class is registered there already.

    Example:
        >>> @register_pytree_node_class("doc")
        ... class Point:
        ...     def __init__(self, x, y):
        ...         self.x, self.y = x, y
        ...     def __tree_flatten__(self):
        ...         return (self.x, self.y), None, ("x", "y")
        ...     @classmethod
        ...     def __tree_unflatten__(cls, metadata, children):
        ...         return cls(*children)
    """
    who = "register_pytree_node_class"
    if isinstance(cls, str):
        if namespace is not None:
            raise ValueError(f"{who}: expected one namespace, got two")
        cls, namespace = None, cls
    if namespace is None:
        raise ValueError(f"{who}: expected a namespace, got none; pass namespace=...")
    _namespace_text(who, namespace)
    if path_entry_type is not None:
        _check_entry_type(who, path_entry_type)
    if cls is None:

        def decorator(decorated: Class) -> Class:
            return cast(
                "Class",
                register_pytree_node_class(
                    decorated, path_entry_type=path_entry_type, namespace=namespace
                ),
            )

        return decorator

    _check_class(who, cls)
    flatten_name, unflatten_name = _method_names(who, cls)
    if path_entry_type is None:
        path_entry_type = getattr(cls, "TREE_PATH_ENTRY_TYPE", AutoEntry)
        _check_entry_type(who, path_entry_type)
    return register_pytree_node(
        cls,
        methodcaller(flatten_name),
        getattr(cls, unflatten_name),
        path_entry_type=path_entry_type,
        namespace=namespace,
    )


def unregister_pytree_node(cls: type, /, *, namespace: str) -> PyTreeNodeRegistryEntry:
    """Make instances of a class leaves again; treespecs that hold it keep working.

    Returns:
        What was registered.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: The class is not registered in that namespace, or is a built-in container.
    """
    who = "unregister_pytree_node"
    _check_class(who, cls)
    space = _namespace_text(who, namespace)
    flatten_func, unflatten_func, path_entry_type, _ = _C.unregister_node(cls, space)
    return PyTreeNodeRegistryEntry(
        cls, flatten_func, unflatten_func, path_entry_type, PyTreeKind.CUSTOM, space
    )


@contextlib.contextmanager
def dict_insertion_ordered(mode: bool, /, *, namespace: str) -> Generator[None]:
    """Take the values of dicts in the order of insertion rather than of sorted keys.

    Counts for functions given the same ``namespace`` while the context lasts, in all threads;
    ``GLOBAL_NAMESPACE`` counts for every namespace. Treespecs keep the order they were made with.

    Example:
        >>> with dict_insertion_ordered(True, namespace="doc"):
        ...     _C.tree_leaves({"b": 1, "a": 2}, namespace="doc")
        [1, 2]
    """
    space = _namespace_text("dict_insertion_ordered", namespace)
    previous = _C.set_dict_insertion_ordered(bool(mode), space)
    try:
        yield
    finally:
        _C.set_dict_insertion_ordered(previous, space)


def _check_class(who: str, cls: object) -> None:
    if not isinstance(cls, type):
        raise TypeError(f"{who}: expected a class, got {type(cls).__name__}")


def _check_entry_type(who: str, path_entry_type: object) -> None:
    if not (isinstance(path_entry_type, type) and issubclass(path_entry_type, PyTreeEntry)):
        got = path_entry_type if isinstance(path_entry_type, type) else type(path_entry_type)
        raise TypeError(
            f"{who}: expected path_entry_type to be a subclass of PyTreeEntry, got {got.__name__}"
        )


def _namespace_text(who: str, namespace: object) -> str:
    if namespace is GLOBAL_NAMESPACE:
        return ""
    if not isinstance(namespace, str):
        raise TypeError(f"{who}: expected namespace to be a str, got {type(namespace).__name__}")
    if namespace == "":
        raise ValueError(
            f"{who}: expected a non-empty namespace, got ''; "
            "pass treeops.registry.GLOBAL_NAMESPACE to register for everyone"
        )
    return namespace


def _method_names(who: str, cls: type) -> tuple[str, str]:
    for names in (("__tree_flatten__", "__tree_unflatten__"), ("tree_flatten", "tree_unflatten")):
        methods: list[Callable[..., Any] | None] = [getattr(cls, name, None) for name in names]
        if all(callable(method) for method in methods):
            return names
    raise TypeError(
        f"{who}: expected {cls.__qualname__} to define __tree_flatten__ and __tree_unflatten__, "
        "got a class without them"
    )
