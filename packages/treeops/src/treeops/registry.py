# SPDX-License-Identifier: Apache-2.0
"""Custom node types: registering them, by function or by class."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from operator import methodcaller
from typing import Any, Final, NamedTuple, TypeVar, cast

from treeops import _C
from treeops.typing import FlattenFunc, UnflattenFunc

__all__ = [
    "GLOBAL_NAMESPACE",
    "PyTreeNodeRegistryEntry",
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
    """A registration that :func:`unregister_pytree_node` has removed."""

    type: type
    flatten_func: FlattenFunc
    unflatten_func: UnflattenFunc
    namespace: str


def register_pytree_node(
    cls: Class,
    /,
    flatten_func: FlattenFunc,
    unflatten_func: UnflattenFunc,
    *,
    namespace: str,
) -> Class:
    """Make instances of exactly this class nodes of a tree.

    Args:
        cls: The class; subclasses are not included.
        flatten_func: ``flatten_func(node)`` gives ``(children, metadata)`` or
            ``(children, metadata, entries)``: an iterable of subtrees, anything hashable and
            comparable, and an iterable of the names that paths use (default: positions).
        unflatten_func: ``unflatten_func(metadata, children)`` makes the node again.
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
    _C.register_node(cls, flatten_func, unflatten_func, space)
    return cls


def register_pytree_node_class(cls: Any = None, /, *, namespace: str | None = None) -> Any:
    """Register a class by its methods ``__tree_flatten__`` and ``__tree_unflatten__``.

    A class decorator in three forms: ``@register_pytree_node_class("space")``,
    ``@register_pytree_node_class(namespace="space")``, or a call with class and namespace.
    ``tree_flatten`` and ``tree_unflatten`` are taken where the methods with underscores are
    missing.

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
    if cls is None:

        def decorator(decorated: Class) -> Class:
            return cast("Class", register_pytree_node_class(decorated, namespace=namespace))

        return decorator

    _check_class(who, cls)
    flatten_name, unflatten_name = _method_names(who, cls)
    return register_pytree_node(
        cls, methodcaller(flatten_name), getattr(cls, unflatten_name), namespace=namespace
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
    flatten_func, unflatten_func = _C.unregister_node(cls, space)
    return PyTreeNodeRegistryEntry(cls, flatten_func, unflatten_func, space)


def _check_class(who: str, cls: object) -> None:
    if not isinstance(cls, type):
        raise TypeError(f"{who}: expected a class, got {type(cls).__name__}")


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
