# SPDX-License-Identifier: Apache-2.0
"""Ways from a tree to its leaves: entries, one per level, and accessors made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NoReturn, TypeVar

from treeops._C import tree_flatten_with_path
from treeops.typing import (
    PyStructSequence_UnnamedField,
    PyTreeKind,
    is_namedtuple_class,
    is_structseq_class,
    namedtuple_fields,
    structseq_fields,
)

if TYPE_CHECKING:
    import builtins

    from typing_extensions import Self

__all__ = [
    "AutoEntry",
    "DataclassEntry",
    "FlattenedEntry",
    "GetAttrEntry",
    "GetItemEntry",
    "MappingEntry",
    "NamedTupleEntry",
    "PyTreeAccessor",
    "PyTreeEntry",
    "SequenceEntry",
    "StructSequenceEntry",
    "keystr",
    "tree_leaves_with_path",
]

T_co = TypeVar("T_co", covariant=True)
KT_co = TypeVar("KT_co", covariant=True)
VT_co = TypeVar("VT_co", covariant=True)

# Where a class that treeops registered keeps its fields: (children, metadata), mappings by name.
DATACLASS_FIELDS = "__treeops_dataclass_fields__"

_CHILDLESS = (PyTreeKind.LEAF, PyTreeKind.NONE)


class PyTreeEntry:
    """One step from a node to a child; immutable.

    Subclasses say how: they override ``__call__`` and :meth:`codify`.

    Attributes:
        entry: What names the child: a key, a position, the name of an attribute.
        type: The class of the node.
        kind: The kind of the node.

    Raises:
        ValueError: Nodes of this kind have no children.
    """

    __slots__ = ("entry", "kind", "type")
    __match_args__ = ("entry", "type", "kind")

    entry: Any
    type: builtins.type
    kind: PyTreeKind

    def __init__(self, /, entry: Any, type: builtins.type, kind: PyTreeKind) -> None:
        if kind in _CHILDLESS:
            raise ValueError(
                f"{self.__class__.__name__}: expected a kind of node that has children, "
                f"got {PyTreeKind(kind).name}"
            )
        _set_entry(self, entry)
        _set_type(self, type)
        _set_kind(self, kind)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        self.__delattr__(name)

    def __delattr__(self, name: str) -> NoReturn:
        from dataclasses import FrozenInstanceError  # an import too slow for every program

        raise FrozenInstanceError(
            f"{self.__class__.__name__}: expected no change of an entry, got one of {name!r}"
        )

    def __call__(self, obj: Any, /) -> Any:
        """The child of this node."""
        try:
            return obj[self.entry]
        except TypeError as error:
            raise TypeError(
                f"{self.__class__.__name__}: expected a node whose children are got by [...], "
                f"got {type_name(obj)}; give its class a path_entry_type"
            ) from error

    def __add__(self, other: object, /) -> PyTreeAccessor:
        """The accessor that takes this step, then the others."""
        if isinstance(other, PyTreeEntry):
            return PyTreeAccessor((self, other))
        if isinstance(other, PyTreeAccessor):
            return PyTreeAccessor((self, *other))
        return NotImplemented

    def __eq__(self, other: object, /) -> bool:
        return isinstance(other, PyTreeEntry) and self._identity() == other._identity()

    def __hash__(self, /) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[Any, ...]:
        cls = self.__class__
        return self.entry, self.type, self.kind, cls.__call__, cls.codify

    def __reduce__(self) -> tuple[Any, ...]:
        return self.__class__, (self.entry, self.type, self.kind)

    def __repr__(self, /) -> str:
        return f"{self.__class__.__name__}(entry={self.entry!r}, type={self.type!r})"

    def codify(self, /, node: str = "") -> str:
        """Source code of this step, taken from the node that ``node`` is the code of."""
        return f"{node}[<flat index {self.entry!r}>]"


_set_entry, _set_type, _set_kind = (
    PyTreeEntry.__dict__[name].__set__ for name in ("entry", "type", "kind")
)


def type_name(obj: object) -> str:
    return type(obj).__qualname__


class AutoEntry(PyTreeEntry):
    """An entry of a custom node that becomes the class of entries that suits the node's class.

    Struct sequences, namedtuples, dataclasses, mappings and sequences have one each; what is none
    of these gets :class:`FlattenedEntry`. Subclasses stay what they are.

    Raises:
        ValueError: The node is not of a custom kind.
    """

    __slots__: ClassVar[tuple[()]] = ()

    def __new__(cls, /, entry: Any, type: builtins.type, kind: PyTreeKind) -> PyTreeEntry:
        """An entry of the class that suits ``type``."""
        if cls is not AutoEntry:
            return super().__new__(cls)
        if kind != PyTreeKind.CUSTOM:
            raise ValueError(f"AutoEntry: expected the kind CUSTOM, got {PyTreeKind(kind).name}")
        return _entry_type_of(type)(entry, type, kind)


class GetItemEntry(PyTreeEntry):
    """A step by ``node[entry]``."""

    __slots__: ClassVar[tuple[()]] = ()

    def __call__(self, obj: Any, /) -> Any:
        """The child of this node."""
        return obj[self.entry]

    def codify(self, /, node: str = "") -> str:
        """Source code of this step."""
        return f"{node}[{self.entry!r}]"


class GetAttrEntry(PyTreeEntry):
    """A step by ``node.entry``; dots in the entry go through attributes of attributes."""

    __slots__: ClassVar[tuple[()]] = ()

    entry: str

    @property
    def name(self, /) -> str:
        """The name of the attribute."""
        return self.entry

    def __call__(self, obj: Any, /) -> Any:
        """The child of this node."""
        for name in self.name.split("."):
            obj = getattr(obj, name)
        return obj

    def codify(self, /, node: str = "") -> str:
        """Source code of this step."""
        for name in self.name.split("."):
            node = f"{node}.{name}" if name.isidentifier() else f"getattr({node}, {name!r})"
        return node


class FlattenedEntry(PyTreeEntry):
    """A step to a child that is known only by its number among the children."""

    __slots__: ClassVar[tuple[()]] = ()


class SequenceEntry(GetItemEntry, Generic[T_co]):
    """A step into a sequence."""

    __slots__: ClassVar[tuple[()]] = ()

    entry: int
    type: builtins.type[Sequence[T_co]]

    @property
    def index(self, /) -> int:
        """The position."""
        return self.entry

    def __repr__(self, /) -> str:
        return f"{self.__class__.__name__}(index={self.index!r}, type={self.type!r})"


class MappingEntry(GetItemEntry, Generic[KT_co, VT_co]):
    """A step into a mapping."""

    __slots__: ClassVar[tuple[()]] = ()

    entry: KT_co
    type: builtins.type[Mapping[KT_co, VT_co]]

    @property
    def key(self, /) -> KT_co:
        """The key."""
        return self.entry

    def __repr__(self, /) -> str:
        return f"{self.__class__.__name__}(key={self.key!r}, type={self.type!r})"


class NamedTupleEntry(SequenceEntry[T_co]):
    """A step to a field of a namedtuple."""

    __slots__: ClassVar[tuple[()]] = ()

    @property
    def fields(self, /) -> tuple[str, ...]:
        """The names of all fields."""
        return namedtuple_fields(self.type)

    @property
    def field(self, /) -> str:
        """The name of the field."""
        return self.fields[self.entry]

    def __repr__(self, /) -> str:
        return f"{self.__class__.__name__}(field={self.field!r}, type={self.type!r})"

    def codify(self, /, node: str = "") -> str:
        """Source code of this step."""
        return f"{node}.{self.field}"


class StructSequenceEntry(SequenceEntry[T_co]):
    """A step to an item of a struct sequence."""

    __slots__: ClassVar[tuple[()]] = ()

    @property
    def fields(self, /) -> tuple[str, ...]:
        """The names of all items."""
        return structseq_fields(self.type)

    @property
    def field(self, /) -> str:
        """The name of the item."""
        return self.fields[self.entry]

    @property
    def is_unnamed(self, /) -> bool:
        """Whether the item has a position only."""
        return self.field == PyStructSequence_UnnamedField

    def __repr__(self, /) -> str:
        if self.is_unnamed:
            return f"{self.__class__.__name__}(entry={self.entry!r}, type={self.type!r})"
        return f"{self.__class__.__name__}(field={self.field!r}, type={self.type!r})"

    def codify(self, /, node: str = "") -> str:
        """Source code of this step."""
        return super().codify(node) if self.is_unnamed else f"{node}.{self.field}"


class DataclassEntry(GetAttrEntry):
    """A step to a field of a dataclass, by its name or by its number among the children."""

    __slots__: ClassVar[tuple[()]] = ()

    entry: str | int

    @property
    def fields(self, /) -> tuple[str, ...]:
        """The names of all fields."""
        from dataclasses import fields

        return tuple(field.name for field in fields(self.type))

    @property
    def init_fields(self, /) -> tuple[str, ...]:
        """The names of the fields that the constructor takes."""
        from dataclasses import fields

        return tuple(field.name for field in fields(self.type) if field.init)

    @property
    def children_fields(self, /) -> tuple[str, ...]:
        """The names of the fields that are children, which a number counts.

        For a class that was registered with functions of its own, all fields.
        """
        registered = vars(self.type).get(DATACLASS_FIELDS)  # not of the class it derives from
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


def _entry_type_of(cls: type) -> type[PyTreeEntry]:
    if is_structseq_class(cls):
        return StructSequenceEntry
    if is_namedtuple_class(cls):
        return NamedTupleEntry
    if hasattr(cls, "__dataclass_fields__"):
        return DataclassEntry
    if issubclass(cls, Mapping):
        return MappingEntry
    if issubclass(cls, Sequence):
        return SequenceEntry
    return FlattenedEntry


class PyTreeAccessor(tuple[PyTreeEntry, ...]):
    """The steps from a tree to one of its subtrees; a call takes them.

    Raises:
        TypeError: Something in ``path`` is not an entry.

    Example:
        >>> accessor = PyTreeAccessor(
        ...     (MappingEntry("a", dict, PyTreeKind.DICT), SequenceEntry(0, list, PyTreeKind.LIST))
        ... )
        >>> accessor({"a": [1, 2]}), accessor.path, accessor.codify("tree")
        (1, ('a', 0), "tree['a'][0]")
    """

    __slots__: ClassVar[tuple[()]] = ()

    def __new__(cls, /, path: Iterable[PyTreeEntry] = ()) -> Self:
        """The accessor that takes these steps in turn."""
        self = super().__new__(cls, path)
        for position, entry in enumerate(self):
            if not isinstance(entry, PyTreeEntry):
                raise TypeError(
                    f"PyTreeAccessor: expected entries, got {type(entry).__name__} "
                    f"at position {position}"
                )
        return self

    @property
    def path(self, /) -> tuple[Any, ...]:
        """The keys, positions and names along the way."""
        return tuple([entry.entry for entry in self])

    def __call__(self, obj: Any, /) -> Any:
        """What stands at this place of a tree."""
        for entry in self:
            obj = entry(obj)
        return obj

    def __getitem__(self, index: Any, /) -> Any:
        """An entry, or for a slice the accessor of a part of the way."""
        item = super().__getitem__(index)
        return self.__class__(item) if isinstance(index, slice) else item

    def __add__(self, other: object, /) -> Self:
        """This way, then the other."""
        if isinstance(other, PyTreeEntry):
            return self.__class__((*self, other))
        if isinstance(other, PyTreeAccessor):
            return self.__class__((*self, *other))
        return NotImplemented

    def __mul__(self, value: int, /) -> Self:
        return self.__class__(super().__mul__(value))

    def __rmul__(self, value: int, /) -> Self:
        return self.__class__(super().__rmul__(value))

    def __eq__(self, other: object, /) -> bool:
        return isinstance(other, PyTreeAccessor) and super().__eq__(other)

    def __ne__(self, other: object, /) -> bool:
        return not self == other

    def __hash__(self, /) -> int:
        return super().__hash__()

    def __repr__(self, /) -> str:
        return f"{self.__class__.__name__}({self.codify()}, {super().__repr__()})"

    def codify(self, /, root: str = "*") -> str:
        """Source code of this way, taken from the tree that ``root`` is the code of."""
        for entry in self:
            root = entry.codify(root)
        return root


def keystr(keys: Iterable[Any], *, simple: bool = False, separator: str = "") -> str:
    """A path as text, as :func:`jax.tree_util.keystr` gives it.

    Args:
        keys: An accessor, or a path as :func:`treeops.tree_paths` gives it; a path does not tell
            attributes from keys, so all its parts are written as keys.
        simple: Write names and keys bare, without brackets, quotes and dots.
        separator: Goes between the parts.

    Raises:
        TypeError: ``keys`` cannot be iterated over.

    Example:
        >>> import treeops
        >>> [keystr(path) for path in treeops.tree_paths({"a": [1, 2]})]
        ["['a'][0]", "['a'][1]"]
        >>> keystr(("a", 0), simple=True, separator="/")
        'a/0'
    """
    try:
        parts = iter(keys)
    except TypeError as error:
        raise TypeError(f"keystr: expected an accessor or a path, got {type_name(keys)}") from error
    spell = _simple_key if simple else _bracketed_key
    return separator.join([spell(key) for key in parts])


def _bracketed_key(key: Any) -> str:
    return key.codify() if isinstance(key, PyTreeEntry) else f"[{key!r}]"


def _simple_key(key: Any) -> str:
    if isinstance(key, NamedTupleEntry | DataclassEntry):
        return key.field
    if isinstance(key, StructSequenceEntry):
        return str(key.entry) if key.is_unnamed else key.field
    return str(key.entry if isinstance(key, PyTreeEntry) else key)


def tree_leaves_with_path(
    tree: Any,
    /,
    is_leaf: Callable[[Any], bool] | None = None,
    *,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> list[tuple[tuple[Any, ...], Any]]:
    """The leaves of a tree, each with its path, as :func:`jax.tree_util.tree_leaves_with_path`.

    Args:
        tree: Any tree.
        is_leaf: As for :func:`treeops.tree_flatten`.
        none_is_leaf: As for :func:`treeops.tree_flatten`.
        namespace: As for :func:`treeops.tree_flatten`.

    Example:
        >>> tree_leaves_with_path({"a": [1, 2]})
        [(('a', 0), 1), (('a', 1), 2)]
    """
    paths, leaves, _ = tree_flatten_with_path(
        tree, is_leaf, none_is_leaf=none_is_leaf, namespace=namespace
    )
    return list(zip(paths, leaves))
