# SPDX-License-Identifier: Apache-2.0
"""Functions on treespecs: queries, as the methods of PyTreeSpec, and constructors."""

from __future__ import annotations

import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn, SupportsIndex, SupportsInt

from treeops import _C
from treeops._C import PyTreeSpec

__all__ = [
    "treespec_accessors",
    "treespec_child",
    "treespec_children",
    "treespec_defaultdict",
    "treespec_deque",
    "treespec_dict",
    "treespec_entries",
    "treespec_entry",
    "treespec_from_collection",
    "treespec_frozendict",
    "treespec_is_leaf",
    "treespec_is_one_level",
    "treespec_is_prefix",
    "treespec_is_strict_leaf",
    "treespec_is_suffix",
    "treespec_leaf",
    "treespec_list",
    "treespec_namedtuple",
    "treespec_none",
    "treespec_one_level",
    "treespec_ordereddict",
    "treespec_paths",
    "treespec_structseq",
    "treespec_transform",
    "treespec_tuple",
]

Items = Mapping[Any, PyTreeSpec] | Iterable[tuple[Any, PyTreeSpec]]


def treespec_paths(treespec: PyTreeSpec, /) -> list[tuple[Any, ...]]:
    """The path of each leaf, a tuple of keys and positions."""
    return _checked("treespec_paths", treespec).paths()


def treespec_accessors(treespec: PyTreeSpec, /) -> list[Any]:
    """The accessor of each leaf, a :class:`PyTreeAccessor`."""
    return _checked("treespec_accessors", treespec).accessors()


def treespec_entries(treespec: PyTreeSpec, /) -> list[Any]:
    """The key or position of each child of the root."""
    return _checked("treespec_entries", treespec).entries()


def treespec_entry(treespec: PyTreeSpec, index: SupportsInt | SupportsIndex, /) -> Any:
    """The key or position of one child of the root."""
    return _checked("treespec_entry", treespec).entry(index)


def treespec_children(treespec: PyTreeSpec, /) -> list[PyTreeSpec]:
    """The treespec of each child of the root."""
    return _checked("treespec_children", treespec).children()


def treespec_child(treespec: PyTreeSpec, index: SupportsInt | SupportsIndex, /) -> PyTreeSpec:
    """The treespec of one child of the root."""
    return _checked("treespec_child", treespec).child(index)


def treespec_one_level(treespec: PyTreeSpec, /) -> PyTreeSpec | None:
    """The root with leaves for children; ``None`` for a leaf."""
    return _checked("treespec_one_level", treespec).one_level()


def treespec_transform(
    treespec: PyTreeSpec,
    /,
    f_node: Callable[[PyTreeSpec], PyTreeSpec] | None = None,
    f_leaf: Callable[[PyTreeSpec], PyTreeSpec] | None = None,
) -> PyTreeSpec:
    """The treespec with every node and leaf replaced; see :meth:`PyTreeSpec.transform`."""
    return _checked("treespec_transform", treespec).transform(f_node, f_leaf)


def treespec_is_leaf(treespec: PyTreeSpec, /, *, strict: bool = True) -> bool:
    """Whether it is that of a leaf; if not ``strict``, of anything without children.

    Example:
        >>> [treespec_is_leaf(treespec_none(), strict=strict) for strict in (True, False)]
        [False, True]
    """
    return _checked("treespec_is_leaf", treespec).is_leaf(strict=strict)


def treespec_is_strict_leaf(treespec: PyTreeSpec, /) -> bool:
    """Whether it is that of a leaf."""
    return _checked("treespec_is_strict_leaf", treespec).is_leaf()


def treespec_is_one_level(treespec: PyTreeSpec, /) -> bool:
    """Whether it is that of a node whose children are all leaves."""
    return _checked("treespec_is_one_level", treespec).is_one_level()


def treespec_is_prefix(
    treespec: PyTreeSpec, other_treespec: PyTreeSpec, /, *, strict: bool = False
) -> bool:
    """Whether ``other_treespec`` is ``treespec`` with subtrees in the place of leaves.

    Example:
        >>> one, two = treespec_leaf(), treespec_list([treespec_leaf()])
        >>> treespec_is_prefix(one, two), treespec_is_prefix(two, one)
        (True, False)
    """
    return _checked("treespec_is_prefix", treespec).is_prefix(other_treespec, strict=strict)


def treespec_is_suffix(
    treespec: PyTreeSpec, other_treespec: PyTreeSpec, /, *, strict: bool = False
) -> bool:
    """Whether ``other_treespec`` is a prefix of ``treespec``."""
    return _checked("treespec_is_suffix", treespec).is_suffix(other_treespec, strict=strict)


def treespec_leaf(*, none_is_leaf: bool = False, namespace: str = "") -> PyTreeSpec:
    """The treespec of a leaf; ``namespace`` makes no difference."""
    return _C.make_leaf(none_is_leaf)


def treespec_none(*, none_is_leaf: bool = False, namespace: str = "") -> PyTreeSpec:
    """The treespec of ``None``; ``namespace`` makes no difference."""
    return _C.make_none(none_is_leaf)


def treespec_tuple(
    iterable: Iterable[PyTreeSpec] = (), /, *, none_is_leaf: bool = False, namespace: str = ""
) -> PyTreeSpec:
    """The treespec of a tuple.

    Example:
        >>> treespec_tuple([treespec_leaf(), treespec_none()])
        PyTreeSpec((*, None))
    """
    who = "treespec_tuple"
    return _make(who, tuple(_iterate(who, "an iterable", iterable)), none_is_leaf, namespace)


def treespec_list(
    iterable: Iterable[PyTreeSpec] = (), /, *, none_is_leaf: bool = False, namespace: str = ""
) -> PyTreeSpec:
    """The treespec of a list."""
    who = "treespec_list"
    return _make(who, list(_iterate(who, "an iterable", iterable)), none_is_leaf, namespace)


def treespec_dict(
    mapping: Items = (),
    /,
    *,
    none_is_leaf: bool = False,
    namespace: str = "",
    **kwargs: PyTreeSpec,
) -> PyTreeSpec:
    """The treespec of a dict.

    Example:
        >>> treespec_dict({"b": treespec_leaf()}, a=treespec_none())
        PyTreeSpec({'a': None, 'b': *})
    """
    who = "treespec_dict"
    return _make(who, dict(_items(who, mapping), **kwargs), none_is_leaf, namespace)


def treespec_ordereddict(
    mapping: Items = (),
    /,
    *,
    none_is_leaf: bool = False,
    namespace: str = "",
    **kwargs: PyTreeSpec,
) -> PyTreeSpec:
    """The treespec of an OrderedDict."""
    who = "treespec_ordereddict"
    return _make(who, OrderedDict(_items(who, mapping), **kwargs), none_is_leaf, namespace)


def treespec_defaultdict(
    default_factory: Callable[[], Any] | None = None,
    mapping: Items = (),
    /,
    *,
    none_is_leaf: bool = False,
    namespace: str = "",
    **kwargs: PyTreeSpec,
) -> PyTreeSpec:
    """The treespec of a defaultdict."""
    who = "treespec_defaultdict"
    if default_factory is not None and not callable(default_factory):
        raise TypeError(
            f"{who}: expected default_factory to be callable or None, "
            f"got {type(default_factory).__name__}"
        )
    made = defaultdict(default_factory, _items(who, mapping), **kwargs)
    return _make(who, made, none_is_leaf, namespace)


def treespec_frozendict(
    mapping: Items = (),
    /,
    *,
    none_is_leaf: bool = False,
    namespace: str = "",
    **kwargs: PyTreeSpec,
) -> NoReturn:
    """Refused: no Python this package supports has a frozendict.

    Raises:
        RuntimeError: Always.
    """
    raise RuntimeError(
        "treespec_frozendict: expected a Python with a built-in frozendict (3.15), got none; "
        "use treespec_dict"
    )


def treespec_deque(
    iterable: Iterable[PyTreeSpec] = (),
    /,
    maxlen: int | None = None,
    *,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> PyTreeSpec:
    """The treespec of a deque."""
    who = "treespec_deque"
    if maxlen is not None:
        if not isinstance(maxlen, int):
            raise TypeError(
                f"{who}: expected maxlen to be an int or None, got {type(maxlen).__name__}"
            )
        if abs(maxlen) > sys.maxsize:
            raise OverflowError(f"{who}: expected maxlen to be at most {sys.maxsize}, got more")
        if maxlen < 0:
            raise ValueError(f"{who}: expected maxlen to be at least 0, got {maxlen}")
    made = deque(_iterate(who, "an iterable", iterable), maxlen=maxlen)
    return _make(who, made, none_is_leaf, namespace)


def treespec_namedtuple(
    namedtuple: Any, /, *, none_is_leaf: bool = False, namespace: str = ""
) -> PyTreeSpec:
    """The treespec of a namedtuple, given one of treespecs."""
    who = "treespec_namedtuple"
    if not _C.is_namedtuple_class(type(namedtuple)):
        raise ValueError(f"{who}: expected a namedtuple, got {type(namedtuple).__name__}")
    return _make(who, namedtuple, none_is_leaf, namespace)


def treespec_structseq(
    structseq: Any, /, *, none_is_leaf: bool = False, namespace: str = ""
) -> PyTreeSpec:
    """The treespec of a C struct sequence, given one of treespecs."""
    who = "treespec_structseq"
    if not _C.is_structseq_class(type(structseq)):
        raise ValueError(f"{who}: expected a struct sequence, got {type(structseq).__name__}")
    return _make(who, structseq, none_is_leaf, namespace)


def treespec_from_collection(
    collection: Any, /, *, none_is_leaf: bool = False, namespace: str = ""
) -> PyTreeSpec:
    """The treespec of any container, custom nodes included, given one of treespecs.

    Warns:
        UserWarning: ``collection`` is a leaf; so is the result.

    Example:
        >>> treespec_from_collection([treespec_leaf(), treespec_tuple()])
        PyTreeSpec([*, ()])
    """
    return _make("treespec_from_collection", collection, none_is_leaf, namespace)


def _checked(who: str, treespec: PyTreeSpec) -> PyTreeSpec:
    if not isinstance(treespec, PyTreeSpec):
        # The class of error that OpTree raises here, where it asks for the method.
        raise AttributeError(
            f"{who}: expected treespec to be a PyTreeSpec, got {type(treespec).__name__}"
        )
    return treespec


def _iterate(who: str, what: str, value: Iterable[Any]) -> Iterator[Any]:
    try:
        return iter(value)
    except TypeError as error:
        raise TypeError(f"{who}: expected {what}, got {type(value).__name__}") from error


def _items(who: str, mapping: Items) -> Any:
    return mapping if hasattr(mapping, "keys") else _iterate(who, "a mapping or pairs", mapping)


def _make(who: str, collection: Any, none_is_leaf: bool, namespace: str) -> PyTreeSpec:
    if not isinstance(namespace, str):
        raise TypeError(f"{who}: expected namespace to be a str, got {type(namespace).__name__}")
    return _C.make_from_collection(who, collection, none_is_leaf, namespace)
