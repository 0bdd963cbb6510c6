# SPDX-License-Identifier: Apache-2.0
"""What torch.compile traces in place of the compiled functions.

In a compiled function trees are walked by the Python functions below. Treespecs are constants of
the compilation: ``_make_treespec``, ``_describe`` and the like run while it traces.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from operator import methodcaller
from typing import Any

import treeops
from treeops import _C, PyTreeSpec, register_pytree_node
from treeops.typing import PyTreeKind

# Plain numbers, which the compiler compares without more ado.
_CUSTOM = int(PyTreeKind.CUSTOM)
_LEAF = int(PyTreeKind.LEAF)
_NONE = int(PyTreeKind.NONE)
_TUPLE = int(PyTreeKind.TUPLE)
_LIST = int(PyTreeKind.LIST)
_DICT = int(PyTreeKind.DICT)
_NAMEDTUPLE = int(PyTreeKind.NAMEDTUPLE)
_ORDEREDDICT = int(PyTreeKind.ORDEREDDICT)
_DEFAULTDICT = int(PyTreeKind.DEFAULTDICT)
_DEQUE = int(PyTreeKind.DEQUE)
_STRUCT = int(PyTreeKind.STRUCTSEQUENCE)
_MAPPINGS = (_DICT, _ORDEREDDICT, _DEFAULTDICT)

_EXACT_KINDS = {
    tuple: _TUPLE,
    list: _LIST,
    dict: _DICT,
    OrderedDict: _ORDEREDDICT,
    defaultdict: _DEFAULTDICT,
    deque: _DEQUE,
}

# A node of a structure is (kind, class, keys, order, extra, name of extra, children). `keys` are in
# the order of the children and `order` as they were inserted; `extra` is a default_factory, maxlen
# or the metadata of a custom node. A class may be given by its name in `_Published`, and `extra` by
# the `name of extra`. A leaf is None.
Structure = Any


class _Published:
    """Objects that traced code finds by name: the compiler can guard what it reads here."""


_names: dict[int, tuple[str, Any]] = {}  # by id; holds the object, so that the id stays its own


def _publish(value: Any) -> str:
    name, _ = _names.setdefault(id(value), (f"object_{len(_names)}", value))
    setattr(_Published, name, value)
    return name


# ---- called while tracing; the results are constants -------------------------------------------


def _kind_of(cls: type, namespace: str) -> int:
    entry = register_pytree_node.get(cls, namespace=namespace)
    if entry is None:
        return _LEAF
    return int(entry.kind)


def _functions_of(cls: type, namespace: str) -> tuple[str, str]:
    """Where the functions of a custom node are published."""
    entry = register_pytree_node.get(cls, namespace=namespace)
    return _publish_flatten(cls, entry.flatten_func), _publish(entry.unflatten_func)


_traceable: dict[int, tuple[Any, Any]] = {}  # flatten function by id, and its substitute


def _publish_flatten(cls: type, flatten: Any) -> str:
    if id(flatten) not in _traceable:
        _traceable[id(flatten)] = (flatten, _traceable_flatten(cls, flatten))
    return _publish(_traceable[id(flatten)][1])


def _traceable_flatten(cls: type, flatten: Any) -> Any:
    """The compiler cannot call objects of module operator."""
    if isinstance(flatten, methodcaller):
        return getattr(cls, flatten.__reduce__()[1][0])
    described = getattr(flatten, "described_fields", None)  # see treeops.dataclasses
    if described is None:
        return flatten
    children, metadata, arguments = described

    def flatten_fields(node: Any, /) -> tuple[Any, ...]:
        kept = tuple([(arguments[i], getattr(node, name)) for i, name in enumerate(metadata)])
        return tuple([getattr(node, name) for name in children]), kept

    return flatten_fields


def _is_insertion_ordered(namespace: str) -> bool:
    return _C.is_dict_insertion_ordered(namespace)


def _describe(treespec: PyTreeSpec) -> Structure:
    kind = int(treespec.kind)
    if kind == _LEAF:
        return None
    keys: tuple[Any, ...] = ()
    order: tuple[Any, ...] = ()
    extra: Any = None
    children = tuple([_describe(child) for child in treespec.children()])
    if kind in _MAPPINGS or kind == _DEQUE:
        one_level = treespec.one_level()
        node = one_level.unflatten(range(one_level.num_leaves))
        if kind == _DEQUE:
            extra = node.maxlen
        else:
            keys, order = tuple(treespec.entries()), tuple(node)
            extra = node.default_factory if kind == _DEFAULTDICT else None
    elif kind == _CUSTOM:
        one_level = treespec.one_level()
        extra = one_level.walk(range(one_level.num_leaves), lambda cls, data, below: data, None)
    name = None
    if extra is not None:
        extra, name = None, _publish(extra)
    return (kind, _publish(treespec.type), keys, order, extra, name, children)


class _Place:
    """Stands for a leaf while a treespec is made."""

    __slots__ = ()


def _make_treespec(structure: Structure, none_is_leaf: bool, namespace: str) -> str:
    """Where the treespec is published: it can go on into other functions."""
    places = iter(_Place, None)
    tree = _build(structure, places, namespace)
    return _publish(
        treeops.tree_structure(
            tree, lambda node: type(node) is _Place, none_is_leaf=none_is_leaf, namespace=namespace
        )
    )


def _paths(treespec: PyTreeSpec) -> tuple[tuple[Any, ...], ...]:
    return tuple(treespec.paths())


def _entries(treespec: PyTreeSpec) -> tuple[Any, ...]:
    return tuple(treespec.entries())


def _children(treespec: PyTreeSpec) -> tuple[str, ...]:
    """Where the treespecs of the children are published."""
    return tuple([_publish(child) for child in treespec.children()])


def _one_level(treespec: PyTreeSpec) -> str:
    return _publish(treespec.one_level())


def _is_leaf(treespec: PyTreeSpec, strict: bool) -> bool:
    return treespec.is_leaf(strict=strict)


def _is_one_level(treespec: PyTreeSpec) -> bool:
    return treespec.is_one_level()


# ---- traced ------------------------------------------------------------------------------------


def _sorted_keys(keys: list[Any], namespace: str) -> list[Any]:
    if _is_insertion_ordered(namespace):
        return keys
    try:
        return sorted(keys)
    except TypeError:
        pass
    try:
        return sorted(keys, key=_type_and_key)
    except TypeError:
        return keys


def _type_and_key(key: Any) -> tuple[str, Any]:
    return f"{type(key).__module__}.{type(key).__qualname__}", key


def _flatten(
    node: Any,
    leaves: list[Any],
    is_leaf: Callable[[Any], bool] | None,
    none_is_leaf: bool,
    namespace: str,
) -> Structure:
    """Append the leaves of a tree; gives its structure."""
    if is_leaf is not None and is_leaf(node):
        leaves.append(node)
        return None
    if node is None:
        if none_is_leaf:
            leaves.append(None)
            return None
        return (_NONE, None, (), (), None, None, ())
    cls = type(node)
    kind = _EXACT_KINDS.get(cls, _LEAF)
    if kind == _LEAF:
        kind = _kind_of(cls, namespace)
        if kind == _LEAF:
            leaves.append(node)
            return None
    keys: list[Any] = []
    order: list[Any] = []
    extra: Any = None
    if kind in _MAPPINGS:
        order = list(node)
        keys = order if kind == _ORDEREDDICT else _sorted_keys(list(node), namespace)
        subtrees = [node[key] for key in keys]
        if kind == _DEFAULTDICT:
            extra = node.default_factory
    elif kind == _CUSTOM:
        flatten_name, _ = _functions_of(cls, namespace)
        parts = getattr(_Published, flatten_name)(node)
        subtrees, extra = list(parts[0]), parts[1]
    else:
        subtrees = list(node)
        if kind == _DEQUE:
            extra = node.maxlen
    children = [_flatten(subtree, leaves, is_leaf, none_is_leaf, namespace) for subtree in subtrees]
    return (kind, cls, tuple(keys), tuple(order), extra, None, tuple(children))


def _build(structure: Structure, leaves: Iterator[Any], namespace: str) -> Any:
    """The tree of a structure."""
    if structure is None:
        return next(leaves)
    kind, cls, keys, order, extra, name, below = structure
    if kind == _NONE:
        return None
    if isinstance(cls, str):
        cls = getattr(_Published, cls)
    if name is not None:
        extra = getattr(_Published, name)
    children = [_build(child, leaves, namespace) for child in below]
    if kind == _TUPLE:
        return tuple(children)
    if kind == _LIST:
        return children
    if kind in _MAPPINGS:
        by_key = dict(zip(keys, children))
        items = [(key, by_key[key]) for key in order]
        if kind == _DICT:
            return dict(items)
        return OrderedDict(items) if kind == _ORDEREDDICT else defaultdict(extra, items)
    if kind == _DEQUE:
        return deque(children, extra)
    if kind == _NAMEDTUPLE:
        return cls(*children)
    if kind == _STRUCT:
        return cls(children)
    _, unflatten_name = _functions_of(cls, namespace)
    return getattr(_Published, unflatten_name)(extra, tuple(children))


def _flatten_up_to(
    structure: Structure, node: Any, found: list[Any], namespace: str, role: str
) -> None:
    """Append what stands in a tree at the leaves of a structure; errors begin with `role`."""
    if structure is None:
        found.append(node)
        return
    kind, cls, keys, _, extra, name, below = structure
    if kind == _NONE:
        if node is not None:
            raise ValueError(f"{role}: expected None, got {type(node)}")
        return
    if isinstance(cls, str):
        cls = getattr(_Published, cls)
    if name is not None:
        extra = getattr(_Published, name)
    if kind in _MAPPINGS:
        if type(node) not in (dict, OrderedDict, defaultdict):
            raise ValueError(f"{role}: expected {cls}, got {type(node)}")
        if set(node) != set(keys):
            raise ValueError(f"{role}: expected {cls} with the same keys, got one with others")
        subtrees = [node[key] for key in keys]
    elif type(node) is not cls:
        raise ValueError(f"{role}: expected {cls}, got {type(node)}")
    elif kind == _CUSTOM:
        flatten_name, _ = _functions_of(cls, namespace)
        parts = getattr(_Published, flatten_name)(node)
        if parts[1] != extra:
            raise ValueError(f"{role}: expected {cls} with the same metadata, got one with other")
        subtrees = list(parts[0])
    else:
        subtrees = list(node)
    if len(subtrees) != len(below):
        raise ValueError(f"{role}: expected {len(below)} children, got {len(subtrees)}")
    for child, subtree in zip(below, subtrees):
        _flatten_up_to(child, subtree, found, namespace, role)


def tree_flatten(
    tree: Any,
    /,
    is_leaf: Callable[[Any], bool] | None = None,
    *,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> tuple[list[Any], PyTreeSpec]:
    leaves: list[Any] = []
    structure = _flatten(tree, leaves, is_leaf, none_is_leaf, namespace)
    return leaves, getattr(_Published, _make_treespec(structure, none_is_leaf, namespace))


def tree_leaves(
    tree: Any,
    /,
    is_leaf: Callable[[Any], bool] | None = None,
    *,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> list[Any]:
    leaves: list[Any] = []
    _flatten(tree, leaves, is_leaf, none_is_leaf, namespace)
    return leaves


def tree_structure(
    tree: Any,
    /,
    is_leaf: Callable[[Any], bool] | None = None,
    *,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> PyTreeSpec:
    leaves: list[Any] = []
    structure = _flatten(tree, leaves, is_leaf, none_is_leaf, namespace)
    return getattr(_Published, _make_treespec(structure, none_is_leaf, namespace))


def tree_unflatten(treespec: PyTreeSpec, leaves: Iterable[Any]) -> Any:
    return _unflatten("tree_unflatten", treespec, leaves)


def _unflatten(who: str, treespec: PyTreeSpec, leaves: Iterable[Any]) -> Any:
    values = list(leaves)
    if len(values) != treespec.num_leaves:
        raise ValueError(f"{who}: expected {treespec.num_leaves} leaves, got {len(values)}")
    return _build(_describe(treespec), iter(values), treespec.namespace)


def tree_map(
    func: Callable[..., Any],
    tree: Any,
    /,
    *rests: Any,
    is_leaf: Callable[[Any], bool] | None = None,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> Any:
    leaves: list[Any] = []
    structure = _flatten(tree, leaves, is_leaf, none_is_leaf, namespace)
    columns = [leaves]
    for position, rest in enumerate(rests, start=2):
        found: list[Any] = []
        _flatten_up_to(structure, rest, found, namespace, f"tree_map: argument {position}")
        columns.append(found)
    results = [func(*values) for values in zip(*columns)]
    return _build(structure, iter(results), namespace)


def tree_map_(
    func: Callable[..., Any],
    tree: Any,
    /,
    *rests: Any,
    is_leaf: Callable[[Any], bool] | None = None,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> Any:
    leaves: list[Any] = []
    structure = _flatten(tree, leaves, is_leaf, none_is_leaf, namespace)
    columns = [leaves]
    for position, rest in enumerate(rests, start=2):
        found: list[Any] = []
        _flatten_up_to(structure, rest, found, namespace, f"tree_map_: argument {position}")
        columns.append(found)
    for values in zip(*columns):
        func(*values)
    return tree


class _Methods:
    """What stands for the methods of treespecs."""

    def unflatten(self: PyTreeSpec, leaves: Iterable[Any], /) -> Any:
        return _unflatten("PyTreeSpec.unflatten", self, leaves)

    def flatten_up_to(self: PyTreeSpec, tree: Any, /) -> list[Any]:
        found: list[Any] = []
        role = "PyTreeSpec.flatten_up_to: tree"
        _flatten_up_to(_describe(self), tree, found, self.namespace, role)
        return found

    def paths(self: PyTreeSpec, /) -> list[Any]:
        return list(_paths(self))

    def entries(self: PyTreeSpec, /) -> list[Any]:
        return list(_entries(self))

    def entry(self: PyTreeSpec, index: int, /) -> Any:
        return _entries(self)[index]

    def children(self: PyTreeSpec, /) -> list[PyTreeSpec]:
        return [getattr(_Published, name) for name in _children(self)]

    def child(self: PyTreeSpec, index: int, /) -> PyTreeSpec:
        return getattr(_Published, _children(self)[index])

    def one_level(self: PyTreeSpec, /) -> PyTreeSpec | None:
        return getattr(_Published, _one_level(self))

    def is_leaf(self: PyTreeSpec, /, *, strict: bool = True) -> bool:
        return _is_leaf(self, strict)

    def is_one_level(self: PyTreeSpec, /) -> bool:
        return _is_one_level(self)


def install() -> None:
    """Tell the compiler of torch, which must have been imported."""
    import torch

    for constant in (
        _kind_of,
        _functions_of,
        _is_insertion_ordered,
        _describe,
        _make_treespec,
        _paths,
        _entries,
        _children,
        _one_level,
        _is_leaf,
        _is_one_level,
    ):
        torch.compiler.assume_constant_result(constant)
    for traceable in (
        tree_flatten,
        tree_leaves,
        tree_structure,
        tree_unflatten,
        tree_map,
        tree_map_,
    ):
        torch.compiler.substitute_in_graph(getattr(treeops, traceable.__name__))(traceable)
    for name, method in vars(_Methods).items():
        if not name.startswith("_"):
            torch.compiler.substitute_in_graph(getattr(PyTreeSpec, name))(method)
    if hasattr(torch._dynamo, "allow_c_slot"):  # treespecs are immutable: they may be compared
        torch._dynamo.allow_c_slot(PyTreeSpec)
