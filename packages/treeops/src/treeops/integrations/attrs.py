# SPDX-License-Identifier: Apache-2.0
"""Classes made by attrs that are nodes of trees; otherwise names of that package.

Example:
    >>> import treeops
    >>> @define(namespace="doc-attrs")
    ... class Point:
    ...     x: float
    ...     y: float
    ...     unit: str = field(default="m", pytree_node=False)
    >>> treeops.tree_map(lambda v: 2 * v, Point(1, 2), namespace="doc-attrs")
    Point(x=2, y=4, unit='m')
"""

from __future__ import annotations

import functools
import sys
import warnings
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import attrs as _attrs
from attrs import (
    NOTHING,
    Attribute,
    Factory,
    asdict,
    astuple,
    cmp_using,
    converters,
    evolve,
    exceptions,
    fields,
    fields_dict,
    filters,
    has,
    resolve_types,
    setters,
    validate,
    validators,
)

from treeops.accessors import GetAttrEntry
from treeops.dataclasses import PYTREE_NODE, mark_registered, node_functions
from treeops.registry import GLOBAL_NAMESPACE, register_pytree_node

if TYPE_CHECKING:
    import builtins

__all__ = [
    "NOTHING",
    "Attribute",
    "AttrsEntry",
    "Factory",
    "asdict",
    "astuple",
    "cmp_using",
    "converters",
    "define",
    "evolve",
    "exceptions",
    "field",
    "fields",
    "fields_dict",
    "filters",
    "frozen",
    "has",
    "make_class",
    "mutable",
    "register_node",
    "resolve_types",
    "setters",
    "validate",
    "validators",
]

Class = TypeVar("Class", bound=type)

ATTRS_FIELDS = "__treeops_attrs_fields__"  # on a registered class: (children, metadata) by name


class AttrsEntry(GetAttrEntry):
    """A step to a field of an attrs class, by its name or by its number among the children."""

    __slots__: ClassVar[tuple[()]] = ()

    entry: str | int
    type: builtins.type

    @property
    def fields(self, /) -> tuple[str, ...]:
        """The names of all fields."""
        return tuple(attribute.name for attribute in fields(self.type))

    @property
    def init_fields(self, /) -> tuple[str, ...]:
        """The names of the fields that the constructor takes."""
        return tuple(attribute.name for attribute in fields(self.type) if attribute.init)

    @property
    def children_fields(self, /) -> tuple[str, ...]:
        """The names of the fields that are children, which a number counts.

        For a class that was registered with functions of its own, all fields.
        """
        registered = vars(self.type).get(ATTRS_FIELDS)  # not of the class it derives from
        return self.fields if registered is None else tuple(registered[0])

    @property
    def field(self, /) -> str:
        """The name of the field."""
        return self.children_fields[self.entry] if isinstance(self.entry, int) else self.entry

    @property
    def name(self, /) -> str:
        """The name of the attribute, which is the field."""
        return self.field

    def __repr__(self, /) -> str:
        return f"{self.__class__.__name__}(field={self.field!r}, type={self.type!r})"


def field(**kwargs: Any) -> Any:
    """Like :func:`attrs.field`, with ``pytree_node``: whether the field is a child of the node.

    Without it, ``metadata["pytree_node"]`` counts, and without that the field is a child.

    Raises:
        TypeError: A child that the constructor does not take.
    """
    pytree_node = kwargs.pop("pytree_node", None)
    metadata = dict(kwargs.pop("metadata", None) or {})
    if pytree_node is None:
        pytree_node = metadata.get(PYTREE_NODE, True)
    metadata[PYTREE_NODE] = pytree_node
    if pytree_node and not kwargs.get("init", True):
        raise TypeError(
            "field: expected a child to be an argument of the constructor, got init=False; "
            "pass pytree_node=False"
        )
    return _attrs.field(metadata=metadata, **kwargs)


def define(cls: Any = None, /, *, namespace: str, **kwargs: Any) -> Any:
    """Like :func:`attrs.define`, and makes instances nodes of trees.

    Args:
        cls: The class; without it this gives a decorator.
        namespace: Where to register the class; ``""`` is for everyone.
        kwargs: As there.

    Raises:
        TypeError: The class cannot be registered (see :func:`register_node`), or has been.
    """
    if cls is None:
        return functools.partial(define, namespace=namespace, **kwargs)
    _check_class("define", cls)
    return register_node(_attrs.define(cls, **kwargs), namespace=namespace)


def frozen(cls: Any = None, /, *, namespace: str, **kwargs: Any) -> Any:
    """Like :func:`attrs.frozen`, and makes instances nodes of trees; see :func:`define`."""
    return define(cls, namespace=namespace, **{"frozen": True, "on_setattr": None, **kwargs})


mutable = define


def make_class(name: str, attrs: Any, /, *, namespace: str, **kwargs: Any) -> type:
    """Like :func:`attrs.make_class`, and makes instances nodes of trees; see :func:`define`."""
    cls = _attrs.make_class(name, attrs, **kwargs)
    if "__module__" not in (kwargs.get("class_body") or {}):
        cls.__module__ = sys._getframe(1).f_globals.get("__name__", "__main__")  # for pickle
    return register_node(cls, namespace=namespace)


def register_node(cls: Any = None, /, *, namespace: str | None = None) -> Any:
    """Make instances of an existing attrs class nodes of trees.

    A function, or a class decorator ``@register_node("space")``, ``@register_node(namespace=...)``.
    Fields are children unless their metadata has a false ``"pytree_node"``; fields that the
    constructor does not take are left out. Nodes are made by calling the class, so that converters,
    validators and ``__attrs_post_init__`` run.

    Raises:
        TypeError: This is no attrs class, was registered by this function before, or has a child
            that the constructor does not take.
        ValueError: There is no namespace, there are two, or the class is registered there already.
    """
    who = "register_node"
    if isinstance(cls, str):
        if namespace is not None:
            raise ValueError(f"{who}: expected one namespace, got two")
        if cls is not GLOBAL_NAMESPACE and cls == "":
            raise ValueError(f"{who}: expected a non-empty namespace, got ''")
        cls, namespace = None, cls
    if namespace is None:
        raise ValueError(f"{who}: expected a namespace, got none; pass namespace=...")
    if cls is None:
        return functools.partial(register_node, namespace=namespace)
    _check_class(who, cls)
    if not has(cls):
        raise TypeError(f"{who}: expected an attrs class, got the class {cls.__qualname__}")
    if not isinstance(namespace, str):
        raise TypeError(f"{who}: expected namespace to be a str, got {type(namespace).__name__}")
    children, metadata = _split_fields(who, cls)
    flatten, unflatten = node_functions(
        cls,
        tuple(children),
        tuple(metadata),
        tuple(attribute.alias for attribute in children.values()),
        tuple(attribute.alias for attribute in metadata.values()),
    )
    space = GLOBAL_NAMESPACE if namespace == "" else namespace
    register_pytree_node(cls, flatten, unflatten, path_entry_type=AttrsEntry, namespace=space)
    mark_registered(cls, ATTRS_FIELDS, children, metadata, space)
    return cls


def _split_fields(who: str, cls: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields that are children and those that are metadata."""
    if ATTRS_FIELDS in vars(cls):
        raise TypeError(
            f"{who}: expected a class that is not registered, got {cls.__qualname__}, which is; "
            "register_pytree_node adds it to another namespace"
        )
    properties = getattr(cls, "__attrs_props__", None)
    if not getattr(properties, "added_init", True):
        warnings.warn(
            f"{who}: the constructor of {cls.__qualname__} is not the one attrs makes; "
            "unflattening calls the class with its fields as keywords and fails if it does not "
            "take them",
            UserWarning,
            stacklevel=3,
        )
    children, metadata = {}, {}
    for attribute in fields(cls):
        if attribute.metadata.get(PYTREE_NODE, True):
            if not attribute.init:
                raise TypeError(
                    f"{who}: expected the child {attribute.name} of {cls.__qualname__} to be an "
                    "argument of the constructor, got init=False; "
                    "use field(init=False, pytree_node=False)"
                )
            children[attribute.name] = attribute
        elif attribute.init:
            metadata[attribute.name] = attribute
    return children, metadata


def _check_class(who: str, cls: object) -> None:
    if not isinstance(cls, type):
        raise TypeError(f"{who}: expected a class, got {type(cls).__name__}")
