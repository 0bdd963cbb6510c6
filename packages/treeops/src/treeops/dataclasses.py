# SPDX-License-Identifier: Apache-2.0
"""Dataclasses that are nodes of trees; otherwise the names of the standard library's module.

Example:
    >>> import treeops
    >>> @dataclass(namespace="doc-points")
    ... class Point:
    ...     x: float
    ...     y: float
    ...     unit: str = field(default="m", pytree_node=False)
    >>> treeops.tree_map(lambda v: 2 * v, Point(1, 2), namespace="doc-points")
    Point(x=2, y=4, unit='m')
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import (
    KW_ONLY,
    MISSING,
    Field,
    FrozenInstanceError,
    InitVar,
    asdict,
    astuple,
    fields,
    is_dataclass,
    replace,
)
from operator import attrgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from treeops.accessors import DATACLASS_FIELDS, DataclassEntry
from treeops.registry import GLOBAL_NAMESPACE, register_pytree_node, unregister_pytree_node

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:  # what it does at run time, without the package

    def dataclass_transform(**_: Any) -> Callable[[Any], Any]:
        return lambda decorator: decorator


__all__ = [
    "KW_ONLY",
    "MISSING",
    "DataclassEntry",
    "Field",
    "FrozenInstanceError",
    "InitVar",
    "asdict",
    "astuple",
    "dataclass",
    "field",
    "fields",
    "is_dataclass",
    "make_dataclass",
    "register_dataclass",
    "register_node",
    "replace",
]

Class = TypeVar("Class", bound=type)

_IMMUTABLE = 1 << 8  # of a class's __flags__: its attributes cannot be set
PYTREE_NODE = "pytree_node"  # the key of a field's metadata that says whether it is a child


def field(
    *,
    default: Any = dataclasses.MISSING,
    default_factory: Any = dataclasses.MISSING,
    init: bool = True,
    repr: bool = True,
    hash: bool | None = None,
    compare: bool = True,
    metadata: dict[Any, Any] | None = None,
    kw_only: Any = dataclasses.MISSING,
    doc: str | None = None,
    pytree_node: bool | None = None,
) -> Any:
    """Like :func:`dataclasses.field`, and says whether the field is a child of the node.

    Args:
        default: As there.
        default_factory: As there.
        init: As there.
        repr: As there.
        hash: As there.
        compare: As there.
        kw_only: As there.
        metadata: As there; its ``"pytree_node"`` counts if ``pytree_node`` is not given.
        doc: As there; Python 3.14 and later.
        pytree_node: Whether the field is a subtree, as by default, or metadata of the node.

    Raises:
        TypeError: A child that the constructor does not take, or ``doc`` on an older Python.
    """
    metadata = dict(metadata or {})
    if pytree_node is None:
        pytree_node = metadata.get(PYTREE_NODE, True)
    metadata[PYTREE_NODE] = pytree_node
    if pytree_node and not init:
        raise TypeError(
            "field: expected a child to be an argument of the constructor, got init=False; "
            "pass pytree_node=False"
        )
    newer: dict[str, Any] = {}
    if doc is not None:
        _require("field: doc", (3, 14))
        newer["doc"] = doc
    return dataclasses.field(
        default=default,
        default_factory=default_factory,
        init=init,
        repr=repr,
        hash=hash,
        compare=compare,
        metadata=metadata,
        kw_only=kw_only,
        **newer,
    )


@dataclass_transform(field_specifiers=(field,))
def dataclass(
    cls: Any = None,
    /,
    *,
    init: bool = True,
    repr: bool = True,
    eq: bool = True,
    order: bool = False,
    unsafe_hash: bool = False,
    frozen: bool = False,
    match_args: bool = True,
    kw_only: bool = False,
    slots: bool = False,
    weakref_slot: bool = False,
    namespace: str,
) -> Any:
    """Like :func:`dataclasses.dataclass`, and makes instances nodes of trees.

    Args:
        cls: The class; without it this gives a decorator.
        init: As there.
        repr: As there.
        eq: As there.
        order: As there.
        unsafe_hash: As there.
        frozen: As there.
        match_args: As there.
        kw_only: As there.
        slots: As there.
        weakref_slot: As there; Python 3.11 and later.
        namespace: Where to register the class; ``""`` is for everyone.

    Raises:
        TypeError: The class cannot be registered (see :func:`register_node`), or has been.
    """
    options: dict[str, Any] = {
        "init": init,
        "repr": repr,
        "eq": eq,
        "order": order,
        "unsafe_hash": unsafe_hash,
        "frozen": frozen,
        "match_args": match_args,
        "kw_only": kw_only,
        "slots": slots,
        **_weakref_option("dataclass", weakref_slot),
    }
    _check_namespace("dataclass", namespace)

    def decorate(decorated: Class) -> Class:
        _check_class("dataclass", decorated)
        _check_mutable("dataclass", decorated)
        made = dataclasses.dataclass(**options)(decorated)
        return _register(made, namespace, *_split_fields("dataclass", made))

    return decorate if cls is None else decorate(cls)


def make_dataclass(
    cls_name: str,
    fields: Iterable[str | tuple[str, Any] | tuple[str, Any, Any]],
    *,
    bases: tuple[type, ...] = (),
    ns: dict[str, Any] | None = None,
    init: bool = True,
    repr: bool = True,
    eq: bool = True,
    order: bool = False,
    unsafe_hash: bool = False,
    frozen: bool = False,
    match_args: bool = True,
    kw_only: bool = False,
    slots: bool = False,
    weakref_slot: bool = False,
    module: str | None = None,
    decorator: Any = dataclasses.dataclass,
    namespace: str,
) -> Any:
    """Like :func:`dataclasses.make_dataclass`, and makes instances nodes of trees.

    Args:
        cls_name: As there.
        fields: As there.
        bases: As there.
        init: As there.
        repr: As there.
        eq: As there.
        order: As there.
        unsafe_hash: As there.
        frozen: As there.
        match_args: As there.
        kw_only: As there.
        slots: As there.
        ns: What is called ``namespace`` there: the members of the class.
        weakref_slot: As there; Python 3.11 and later.
        module: As there; Python 3.12 and later.
        decorator: As there; Python 3.14 and later.
        namespace: Where to register the class; ``""`` is for everyone. If ``ns`` and ``namespace``
            are the wrong way round, they are exchanged.

    Raises:
        TypeError: The class cannot be registered, or an argument needs a newer Python.
    """
    who = "make_dataclass"
    if (namespace is None or isinstance(namespace, dict)) and isinstance(ns, str):
        ns, namespace = namespace, ns
    _check_namespace(who, namespace)
    options = _weakref_option(who, weakref_slot)
    if sys.version_info >= (3, 12):
        options["module"] = module or sys._getframemodulename(1) or "__main__"
    elif module is not None:
        _require(f"{who}: module", (3, 12))
    if decorator is not dataclasses.dataclass and decorator is not dataclass:
        _require(f"{who}: decorator", (3, 14))
        options["decorator"] = decorator
    made = dataclasses.make_dataclass(
        cls_name,
        fields,
        bases=bases,
        namespace=ns,
        init=init,
        repr=repr,
        eq=eq,
        order=order,
        unsafe_hash=unsafe_hash,
        frozen=frozen,
        match_args=match_args,
        kw_only=kw_only,
        slots=slots,
        **options,
    )
    return register_node(made, namespace=namespace)


def register_node(cls: Any = None, /, *, namespace: str | None = None) -> Any:
    """Make instances of an existing dataclass nodes of trees.

    A function, or a class decorator ``@register_node("space")``, ``@register_node(namespace=...)``.
    Fields are children unless their metadata has a false ``"pytree_node"``; fields that the
    constructor does not take are left out. Nodes are made by calling the class, so that
    ``__post_init__`` runs.

    Raises:
        TypeError: This is no dataclass, was registered by this function before, has a child that
            the constructor does not take, or an ``InitVar``, whose value cannot be known.
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
    if not is_dataclass(cls):
        raise TypeError(f"{who}: expected a dataclass, got the class {cls.__qualname__}")
    _check_namespace(who, namespace)
    return _register(cls, namespace, *_split_fields(who, cls))


def register_dataclass(
    nodetype: Class,
    data_fields: Sequence[str] | None = None,
    meta_fields: Sequence[str] | None = None,
    drop_fields: Sequence[str] = (),
    *,
    namespace: str = "",
) -> Class:
    """Register a dataclass by the names of its fields, as :func:`jax.tree_util.register_dataclass`.

    Args:
        nodetype: A dataclass; another class if all fields are named.
        data_fields: The children. Without them and ``meta_fields``, the fields decide: metadata
            are those with ``metadata={"pytree_node": False}`` or ``{"static": True}``.
        meta_fields: The metadata of the node; hashable.
        drop_fields: Fields that a walk forgets; they need a default.
        namespace: Where to register the class; by default for everyone.

    Returns:
        ``nodetype``.

    Raises:
        TypeError: The class cannot be registered.
        ValueError: The names are not those of the fields the constructor takes.

    Example:
        >>> import treeops
        >>> @dataclasses.dataclass
        ... class Layer:
        ...     weight: float
        ...     name: str
        >>> _ = register_dataclass(Layer, ["weight"], ["name"], namespace="doc-layers")
        >>> treeops.tree_leaves(Layer(1.5, "first"), namespace="doc-layers")
        [1.5]
    """
    who = "register_dataclass"
    _check_class(who, nodetype)
    _check_namespace(who, namespace)
    if (data_fields is None) != (meta_fields is None):
        raise ValueError(f"{who}: expected both or neither of data_fields and meta_fields, got one")
    if data_fields is None or meta_fields is None:
        if not is_dataclass(nodetype):
            raise TypeError(
                f"{who}: expected a dataclass, got the class {nodetype.__qualname__}; "
                "pass data_fields and meta_fields"
            )
        children, metadata = _split_fields(who, nodetype)
        children = {name: f for name, f in children.items() if name not in drop_fields}
        static = {name: f for name, f in children.items() if f.metadata.get("static", False)}
        children = {name: f for name, f in children.items() if name not in static}
        metadata = {**metadata, **static}
        return _register(
            nodetype,
            namespace,
            children,
            {n: f for n, f in metadata.items() if n not in drop_fields},
        )
    _check_mutable(who, nodetype)
    if is_dataclass(nodetype):
        expected = {f.name for f in fields(nodetype) if f.init} - set(drop_fields)
        named = {*data_fields, *meta_fields}
        if expected != named or len(data_fields) + len(meta_fields) != len(named):
            raise ValueError(
                f"{who}: expected data_fields and meta_fields to name each field of "
                f"{nodetype.__qualname__} once, got missing {sorted(expected - named)}, "
                f"extra {sorted(named - expected)}, "
                f"twice {sorted(set(data_fields) & set(meta_fields))}"
            )
    return _register(nodetype, namespace, dict.fromkeys(data_fields), dict.fromkeys(meta_fields))


def _split_fields(who: str, cls: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields that are children and those that are metadata."""
    if DATACLASS_FIELDS in vars(cls):
        raise TypeError(
            f"{who}: expected a class that is not registered, got {cls.__qualname__}, which is; "
            "register_pytree_node adds it to another namespace"
        )
    params = cls.__dataclass_params__  # type: ignore[attr-defined]
    if not params.init:
        warnings.warn(
            f"{who}: {cls.__qualname__} has init=False; unflattening calls it with its fields "
            "as keywords and fails if its constructor does not take them",
            UserWarning,
            stacklevel=3,
        )
    init_only = [
        name
        for name, f in cls.__dataclass_fields__.items()  # type: ignore[attr-defined]
        if f._field_type is dataclasses._FIELD_INITVAR  # type: ignore[attr-defined]
    ]
    if init_only:
        raise TypeError(
            f"{who}: expected fields that instances keep, got InitVar {', '.join(init_only)} of "
            f"{cls.__qualname__}; register_pytree_node takes functions of your own"
        )
    children, metadata = {}, {}
    for f in fields(cls):  # type: ignore[arg-type]
        if f.metadata.get(PYTREE_NODE, True):
            if not f.init:
                raise TypeError(
                    f"{who}: expected the child {f.name} of {cls.__qualname__} to be an argument "
                    "of the constructor, got init=False; use field(init=False, pytree_node=False)"
                )
            children[f.name] = f
        elif f.init:
            metadata[f.name] = f
    return children, metadata


def _register(
    cls: Class, namespace: str, children: dict[str, Any], metadata: dict[str, Any]
) -> Class:
    flatten, unflatten = node_functions(cls, tuple(children), tuple(metadata))
    space = GLOBAL_NAMESPACE if namespace == "" else namespace
    register_pytree_node(cls, flatten, unflatten, path_entry_type=DataclassEntry, namespace=space)
    mark_registered(cls, DATACLASS_FIELDS, children, metadata, space)
    return cls


def node_functions(
    cls: type,
    children: tuple[str, ...],
    metadata: tuple[str, ...],
    arguments: tuple[str, ...] | None = None,
    metadata_arguments: tuple[str, ...] | None = None,
) -> tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]:
    """Flatten and unflatten functions of a class that keeps its arguments as attributes.

    ``arguments`` and ``metadata_arguments`` are the constructor's names where they differ.
    """
    arguments = children if arguments is None else arguments
    metadata_arguments = metadata if metadata_arguments is None else metadata_arguments
    get_children = _attributes(children)
    get_metadata = _attributes(metadata)

    def flatten(node: Any, /) -> tuple[Any, ...]:
        kept = tuple(zip(metadata_arguments, get_metadata(node)))
        return get_children(node), kept, children

    flatten.described_fields = (children, metadata, metadata_arguments)  # type: ignore[attr-defined]

    def unflatten(kept: tuple[tuple[str, Any], ...], subtrees: Iterable[Any], /) -> Any:
        keywords = dict(zip(arguments, subtrees))
        keywords.update(kept)
        return cls(**keywords)

    return flatten, unflatten


def _attributes(names: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    if len(names) > 1:
        return attrgetter(*names)  # in C, but gives no tuple for one name
    if names:
        (name,) = names
        return lambda node: (getattr(node, name),)
    return lambda node: ()


def mark_registered(
    cls: type, attribute: str, children: dict[str, Any], metadata: dict[str, Any], namespace: str
) -> None:
    """Note the fields on the class; undoes the registration of a class that refuses the note."""
    try:
        setattr(cls, attribute, (MappingProxyType(children), MappingProxyType(metadata)))
    except BaseException:
        unregister_pytree_node(cls, namespace=namespace)
        raise


def _check_class(who: str, cls: object) -> None:
    if not isinstance(cls, type):
        raise TypeError(f"{who}: expected a class, got {type(cls).__name__}")


def _check_mutable(who: str, cls: type) -> None:
    if cls.__flags__ & _IMMUTABLE:
        raise TypeError(
            f"{who}: expected a class that can be changed, got {cls.__qualname__}; "
            "make a subclass of it"
        )


def _check_namespace(who: str, namespace: object) -> None:
    if not isinstance(namespace, str):
        raise TypeError(f"{who}: expected namespace to be a str, got {type(namespace).__name__}")


def _weakref_option(who: str, weakref_slot: bool) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        return {"weakref_slot": weakref_slot}
    if weakref_slot:
        _require(f"{who}: weakref_slot", (3, 11))
    return {}


def _require(what: str, version: tuple[int, int]) -> None:
    if sys.version_info < version:
        raise TypeError(
            f"{what}: expected Python {version[0]}.{version[1]} or later, "
            f"got {sys.version_info[0]}.{sys.version_info[1]}"
        )
