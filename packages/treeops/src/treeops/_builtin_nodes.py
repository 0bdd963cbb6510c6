# SPDX-License-Identifier: Apache-2.0
"""The built-in containers as registry entries: what the compiled walks do, in Python.

Used where one level of a tree is wanted as plain data; the walks themselves never come here.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Iterable
from operator import itemgetter
from typing import Any, Final

from treeops.accessors import (
    MappingEntry,
    NamedTupleEntry,
    PyTreeEntry,
    SequenceEntry,
    StructSequenceEntry,
)
from treeops.registry import PyTreeNodeRegistryEntry
from treeops.typing import PyTreeKind, StructSequence

__all__ = ["BUILTIN_NODES", "INSERTION_ORDERED_NODES", "DictKeys", "sorted_by_key"]


class DictKeys(list[Any]):
    """The keys of a dict in the order of its children; remembers the order of the dict."""

    __slots__ = ("original_keys",)

    def __init__(self, keys: Iterable[Any] = (), /, *, original_keys: Iterable[Any] = ()) -> None:
        super().__init__(keys)
        self.original_keys = list(original_keys)

    def __reduce__(self) -> Any:
        return _make_dict_keys, (list(self), self.original_keys)


def _make_dict_keys(keys: list[Any], original_keys: list[Any]) -> DictKeys:
    return DictKeys(keys, original_keys=original_keys)


def sorted_by_key(items: Iterable[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Sort pairs by key; by type and key if the keys cannot be compared; else not at all."""
    pairs = list(items)
    try:
        return sorted(pairs, key=itemgetter(0))
    except TypeError:
        pass

    def type_and_key(pair: tuple[Any, Any]) -> tuple[str, Any]:
        cls = type(pair[0])
        return f"{cls.__module__}.{cls.__qualname__}", pair[0]

    try:
        return sorted(pairs, key=type_and_key)
    except TypeError:
        return pairs


def _flatten_none(_: None, /) -> tuple[Any, ...]:
    return (), None


def _unflatten_none(_: None, children: Iterable[Any], /) -> None:
    count = len(tuple(children))
    if count:
        raise ValueError(f"unflatten_func of None: expected no children, got {count}")


def _flatten_sequence(sequence: Iterable[Any], /) -> tuple[Any, ...]:
    return sequence, None


def _unflatten_tuple(_: None, children: Iterable[Any], /) -> tuple[Any, ...]:
    return tuple(children)


def _unflatten_list(_: None, children: Iterable[Any], /) -> list[Any]:
    return list(children)


def _flatten_dict(mapping: dict[Any, Any], /) -> tuple[Any, ...]:
    return _parts(sorted_by_key(mapping.items()), mapping)


def _flatten_dict_in_order(mapping: dict[Any, Any], /) -> tuple[Any, ...]:
    return _parts(list(mapping.items()), mapping)


def _parts(pairs: list[tuple[Any, Any]], mapping: dict[Any, Any]) -> tuple[Any, ...]:
    keys = tuple(key for key, _ in pairs)
    return tuple(value for _, value in pairs), DictKeys(keys, original_keys=mapping), keys


def _unflatten_dict(keys: list[Any], children: Iterable[Any], /) -> dict[Any, Any]:
    mapping: dict[Any, Any] = dict.fromkeys(getattr(keys, "original_keys", ()))
    mapping.update(zip(keys, children, strict=True))
    return mapping


def _flatten_ordered_dict(mapping: OrderedDict[Any, Any], /) -> tuple[Any, ...]:
    keys = tuple(mapping)
    return tuple(mapping.values()), list(keys), keys


def _unflatten_ordered_dict(keys: list[Any], children: Iterable[Any], /) -> OrderedDict[Any, Any]:
    return OrderedDict(zip(keys, children, strict=True))


def _flatten_defaultdict(mapping: defaultdict[Any, Any], /) -> tuple[Any, ...]:
    children, keys, entries = _flatten_dict(mapping)
    return children, (mapping.default_factory, keys), entries


def _flatten_defaultdict_in_order(mapping: defaultdict[Any, Any], /) -> tuple[Any, ...]:
    children, keys, entries = _flatten_dict_in_order(mapping)
    return children, (mapping.default_factory, keys), entries


def _unflatten_defaultdict(
    metadata: tuple[Any, list[Any]], children: Iterable[Any], /
) -> defaultdict[Any, Any]:
    factory, keys = metadata
    return defaultdict(factory, _unflatten_dict(keys, children))


def _flatten_deque(items: deque[Any], /) -> tuple[Any, ...]:
    return items, items.maxlen


def _unflatten_deque(maxlen: int | None, children: Iterable[Any], /) -> deque[Any]:
    return deque(children, maxlen=maxlen)


def _flatten_tuple_subclass(items: tuple[Any, ...], /) -> tuple[Any, ...]:
    return items, type(items)


def _unflatten_namedtuple(cls: type, children: Iterable[Any], /) -> Any:
    return cls(*children)


def _unflatten_structseq(cls: Any, children: Iterable[Any], /) -> Any:
    return cls(children)


def _by_type(*rows: tuple[Any, Any, Any, type[PyTreeEntry], PyTreeKind]) -> dict[Any, Any]:
    return {row[0]: PyTreeNodeRegistryEntry(*row) for row in rows}


_DICT, _DEFAULTDICT = PyTreeKind.DICT, PyTreeKind.DEFAULTDICT

BUILTIN_NODES: Final[dict[Any, PyTreeNodeRegistryEntry]] = _by_type(
    (type(None), _flatten_none, _unflatten_none, PyTreeEntry, PyTreeKind.NONE),
    (tuple, _flatten_sequence, _unflatten_tuple, SequenceEntry, PyTreeKind.TUPLE),
    (list, _flatten_sequence, _unflatten_list, SequenceEntry, PyTreeKind.LIST),
    (dict, _flatten_dict, _unflatten_dict, MappingEntry, _DICT),
    (
        namedtuple,
        _flatten_tuple_subclass,
        _unflatten_namedtuple,
        NamedTupleEntry,
        PyTreeKind.NAMEDTUPLE,
    ),
    (
        OrderedDict,
        _flatten_ordered_dict,
        _unflatten_ordered_dict,
        MappingEntry,
        PyTreeKind.ORDEREDDICT,
    ),
    (defaultdict, _flatten_defaultdict, _unflatten_defaultdict, MappingEntry, _DEFAULTDICT),
    (deque, _flatten_deque, _unflatten_deque, SequenceEntry, PyTreeKind.DEQUE),
    (
        StructSequence,
        _flatten_tuple_subclass,
        _unflatten_structseq,
        StructSequenceEntry,
        PyTreeKind.STRUCTSEQUENCE,
    ),
)
INSERTION_ORDERED_NODES: Final[dict[Any, PyTreeNodeRegistryEntry]] = _by_type(
    (dict, _flatten_dict_in_order, _unflatten_dict, MappingEntry, _DICT),
    (
        defaultdict,
        _flatten_defaultdict_in_order,
        _unflatten_defaultdict,
        MappingEntry,
        _DEFAULTDICT,
    ),
)
