# SPDX-License-Identifier: Apache-2.0
"""Types of trees, nodes and the functions that describe custom nodes."""

from __future__ import annotations

import abc
import types
from builtins import dict as Dict
from builtins import list as List
from builtins import tuple as Tuple
from collections import OrderedDict
from collections import defaultdict as DefaultDict
from collections import deque as Deque
from collections.abc import (
    Callable,
    Collection,
    Hashable,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Sequence,
    ValuesView,
)
from enum import IntEnum
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Final,
    ForwardRef,
    Generic,
    NamedTuple,
    NoReturn,
    Optional,
    ParamSpec,
    Protocol,
    TypeAlias,
    TypeVar,
    Union,
    final,
    runtime_checkable,
)
from weakref import WeakSet

from treeops import _C
from treeops._C import PyTreeSpec

if TYPE_CHECKING:
    from typing_extensions import Self, TypeAliasType

    from treeops.accessors import AutoEntry as AutoEntry
    from treeops.accessors import DataclassEntry as DataclassEntry
    from treeops.accessors import FlattenedEntry as FlattenedEntry
    from treeops.accessors import GetAttrEntry as GetAttrEntry
    from treeops.accessors import GetItemEntry as GetItemEntry
    from treeops.accessors import MappingEntry as MappingEntry
    from treeops.accessors import NamedTupleEntry as NamedTupleEntry
    from treeops.accessors import PyTreeAccessor as PyTreeAccessor
    from treeops.accessors import PyTreeEntry as PyTreeEntry
    from treeops.accessors import SequenceEntry as SequenceEntry
    from treeops.accessors import StructSequenceEntry as StructSequenceEntry

_FROM_ACCESSORS = (  # found here too, through __getattr__: that module imports this one
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
)

__all__ = [
    *_FROM_ACCESSORS,
    "KT",
    "VT",
    "Children",
    "CustomTreeNode",
    "DefaultDict",
    "Deque",
    "Dict",
    "F",
    "FlattenFunc",
    "Iterable",
    "List",
    "MetaData",
    "NamedTuple",
    "OrderedDict",
    "P",
    "PyTree",
    "PyTreeDef",
    "PyTreeKind",
    "PyTreeSpec",
    "PyTreeTypeVar",
    "S",
    "Sequence",
    "StructSequence",
    "T",
    "Tuple",
    "U",
    "UnflattenFunc",
    "is_namedtuple",
    "is_namedtuple_class",
    "is_namedtuple_instance",
    "is_structseq",
    "is_structseq_class",
    "is_structseq_instance",
    "namedtuple_fields",
    "structseq_fields",
]

PyTreeDef: TypeAlias = PyTreeSpec  # the name JAX uses

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
S = TypeVar("S")
U = TypeVar("U")
KT = TypeVar("KT")
VT = TypeVar("VT")
P = ParamSpec("P")
F = TypeVar("F", bound=Callable[..., Any])

Children: TypeAlias = Iterable[T]  # the subtrees of a node, in order
MetaData: TypeAlias = Optional[Hashable]  # noqa: UP045 - what unflattening needs besides them


class PyTreeKind(IntEnum):
    """What a node of a tree is; the numbers are those of OpTree."""

    CUSTOM = 0  # a registered class
    LEAF = 1
    NONE = 2  # None as a node without children
    TUPLE = 3
    LIST = 4
    DICT = 5
    NAMEDTUPLE = 6
    ORDEREDDICT = 7
    DEFAULTDICT = 8
    DEQUE = 9
    STRUCTSEQUENCE = 10
    FROZENDICT = 11  # reserved: no node has it yet


# ---- custom nodes ------------------------------------------------------------------------------


@runtime_checkable
class CustomTreeNode(Protocol[T]):
    """A class that :func:`treeops.register_pytree_node_class` takes as it is."""

    def __tree_flatten__(
        self, /
    ) -> tuple[Children[T], MetaData] | tuple[Children[T], MetaData, Iterable[Any] | None]:
        """Give ``(children, metadata)`` or ``(children, metadata, entries)``."""

    @classmethod
    def __tree_unflatten__(cls, metadata: MetaData, children: Children[T], /) -> Self:
        """Make an instance from what ``__tree_flatten__`` gave."""


class FlattenFunc(Protocol[T]):
    """A function that takes a custom node apart.

    It gives ``(children, metadata)`` or ``(children, metadata, entries)``; entries name the
    children in paths.
    """

    @abc.abstractmethod
    def __call__(
        self, container: Collection[T], /
    ) -> tuple[Children[T], MetaData] | tuple[Children[T], MetaData, Iterable[Any] | None]:
        """Give the children, the metadata and perhaps the entries of a node."""


class UnflattenFunc(Protocol[T]):
    """A function that makes a custom node of metadata and children."""

    @abc.abstractmethod
    def __call__(self, metadata: MetaData, children: Children[T], /) -> Collection[T]:
        """Make the node."""


# ---- trees of a leaf type ----------------------------------------------------------------------


_made: WeakSet[Any] = WeakSet()  # every PyTree[...], so that PyTree[PyTree[T]] is PyTree[T]
_by_item: dict[Any, Any] = {}


class PyTree(Generic[T]):
    """``PyTree[T]``: a leaf of type ``T``, or a container of such trees.

    ``PyTree[T, "name"]`` uses another name than ``PyTree[T]`` for itself where it recurs.

    Example:
        >>> PyTree[float]  # doctest: +ELLIPSIS
        typing.Union[float, tuple[ForwardRef('PyTree[float]'), ...], list[...
    """

    __slots__: ClassVar[tuple[()]] = ()

    def __class_getitem__(cls, item: Any) -> Any:
        """The type of trees whose leaves have one type."""
        parameter, name = _parameter_and_name(item)
        try:
            made = _by_item.get((parameter, name))
        except TypeError:  # an unhashable parameter: made anew each time
            return _tree_type(parameter, name)
        if made is None:
            made = _tree_type(parameter, name)
            _by_item[parameter, name] = made
        return made

    def __new__(cls, /) -> NoReturn:
        """Refused: there are no instances."""
        raise TypeError("PyTree: expected PyTree[type], got a call; it is a type, not a container")

    def __init_subclass__(cls, /, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("PyTree: expected PyTree[type], got a subclass")

    # What type checkers may assume of a tree; there are no instances to call these on.
    def __getitem__(self, key: Any, /) -> PyTree[T] | T:
        raise NotImplementedError

    def __getattr__(self, name: str, /) -> PyTree[T] | T:
        raise NotImplementedError

    def __contains__(self, key: Any, /) -> bool:
        raise NotImplementedError

    def __len__(self, /) -> int:
        raise NotImplementedError

    def __iter__(self, /) -> Iterator[PyTree[T] | T | Any]:
        raise NotImplementedError

    def index(self, key: Any, /) -> int:
        """As of a sequence."""
        raise NotImplementedError

    def count(self, key: Any, /) -> int:
        """As of a sequence."""
        raise NotImplementedError

    def get(self, key: Any, default: S | None = None, /) -> PyTree[T] | T | S | None:
        """As of a mapping."""
        raise NotImplementedError

    def keys(self, /) -> KeysView[Any]:
        """As of a mapping."""
        raise NotImplementedError

    def values(self, /) -> ValuesView[PyTree[T] | T]:
        """As of a mapping."""
        raise NotImplementedError

    def items(self, /) -> ItemsView[Any, PyTree[T] | T]:
        """As of a mapping."""
        raise NotImplementedError


class PyTreeTypeVar:
    """``PyTreeTypeVar(name, T)`` is ``PyTree[T]`` under a name of its own.

    Example:
        >>> PyTreeTypeVar("Numbers", float)  # doctest: +ELLIPSIS
        typing.Union[float, tuple[ForwardRef('Numbers'), ...], list[...
    """

    def __new__(cls, /, name: str, param: type | TypeAliasType) -> Any:
        """The type of trees of ``param``, called ``name``."""
        if not isinstance(name, str):
            raise TypeError(
                f"PyTreeTypeVar: expected the name to be a str, got {type(name).__name__}"
            )
        return PyTree[param, name]

    def __init_subclass__(cls, /, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("PyTreeTypeVar: expected a call, got a subclass")


def _parameter_and_name(item: Any) -> tuple[Any, str | None]:
    items = item if isinstance(item, tuple) else (item,)
    if len(items) not in (1, 2) or not isinstance(items[-1] if items[1:] else "", str | None):
        raise TypeError(
            "PyTree: expected PyTree[type] or PyTree[type, 'name'], got "
            f"PyTree[{', '.join(type(part).__name__ for part in items)}]"
        )
    return items[0], items[1] if items[1:] else None


def _tree_type(parameter: Any, name: str | None) -> Any:
    if _is_tree_type(parameter):
        return parameter
    tree = ForwardRef(name if name is not None else f"PyTree[{_spell(parameter)}]")
    made = Union[  # noqa: UP007 - a parameter may be a string
        parameter,
        tuple[tree, ...],
        list[tree],
        dict[Any, tree],
        Deque[tree],
        CustomTreeNode[tree],
    ]
    _made.add(made)
    return made


def _is_tree_type(parameter: Any) -> bool:
    try:
        return parameter in _made
    except TypeError:  # nothing that can be hashed or referred to weakly
        return False


def _spell(parameter: Any) -> str:
    if isinstance(parameter, TypeVar):
        return parameter.__name__
    if isinstance(parameter, type):
        if parameter.__module__ == "builtins":
            return parameter.__qualname__
        return f"{parameter.__module__}.{parameter.__qualname__}"
    return repr(parameter)


# ---- namedtuples -------------------------------------------------------------------------------


def is_namedtuple(obj: object | type, /) -> bool:
    """Whether this is a namedtuple or a class of namedtuples.

    Example:
        >>> from collections import namedtuple
        >>> Point = namedtuple("Point", "x y")
        >>> is_namedtuple(Point), is_namedtuple(Point(1, 2)), is_namedtuple((1, 2))
        (True, True, False)
    """
    return _C.is_namedtuple_class(obj if isinstance(obj, type) else type(obj))


def is_namedtuple_instance(obj: object, /) -> bool:
    """Whether this is a namedtuple."""
    return _C.is_namedtuple_class(type(obj))


def is_namedtuple_class(cls: object, /) -> bool:
    """Whether this is a class of namedtuples."""
    return _C.is_namedtuple_class(cls)


def namedtuple_fields(obj: tuple[Any, ...] | type[tuple[Any, ...]], /) -> tuple[str, ...]:
    """The names of the fields of a namedtuple or of a class of them.

    Raises:
        TypeError: It is neither.
    """
    cls: Any = obj if isinstance(obj, type) else type(obj)
    if not _C.is_namedtuple_class(cls):
        raise TypeError(f"namedtuple_fields: expected a namedtuple, got {_describe(obj)}")
    return cls._fields


# ---- struct sequences --------------------------------------------------------------------------


class _StructSequenceMeta(type):
    def __subclasscheck__(cls, subclass: type, /) -> bool:
        return is_structseq_class(subclass)

    def __instancecheck__(cls, instance: Any, /) -> bool:
        return is_structseq_instance(instance)


@final
class StructSequence(tuple[T_co, ...], metaclass=_StructSequenceMeta):
    """What :class:`time.struct_time` and its like are, for annotations and ``isinstance``.

    Example:
        >>> import time
        >>> isinstance(time.gmtime(0), StructSequence), isinstance((1, 2), StructSequence)
        (True, False)
    """

    __slots__: ClassVar[tuple[()]] = ()

    n_fields: Final[ClassVar[int]]
    n_sequence_fields: Final[ClassVar[int]]
    n_unnamed_fields: Final[ClassVar[int]]

    def __init_subclass__(cls, /) -> NoReturn:
        raise TypeError("StructSequence: expected no subclass; it describes classes written in C")

    def __new__(cls, /, sequence: Iterable[T_co], dict: Dict[str, Any] = ...) -> Self:
        """Refused: there are no instances."""
        raise TypeError("StructSequence: expected no instance; it describes classes written in C")


structseq: TypeAlias = StructSequence

StructSequenceFieldType = types.MemberDescriptorType
PyStructSequence_UnnamedField: Final[str] = "unnamed field"  # what CPython calls such a slot


def is_structseq(obj: object | type, /) -> bool:
    """Whether this is a struct sequence or a class of them.

    Example:
        >>> import time
        >>> is_structseq(time.struct_time), is_structseq(time.gmtime(0)), is_structseq((1, 2))
        (True, True, False)
    """
    return _C.is_structseq_class(obj if isinstance(obj, type) else type(obj))


def is_structseq_instance(obj: object, /) -> bool:
    """Whether this is a struct sequence."""
    return _C.is_structseq_class(type(obj))


def is_structseq_class(cls: object, /) -> bool:
    """Whether this is a class of struct sequences."""
    return _C.is_structseq_class(cls)


def structseq_fields(obj: tuple[Any, ...] | type[tuple[Any, ...]], /) -> tuple[str, ...]:
    """The names of the items of a struct sequence or of a class of them.

    An item that has no name is called ``"unnamed field"``, as CPython does.

    Raises:
        TypeError: It is neither.
    """
    cls: Any = obj if isinstance(obj, type) else type(obj)
    if not _C.is_structseq_class(cls):
        raise TypeError(f"structseq_fields: expected a struct sequence, got {_describe(obj)}")
    names = [name for name, member in vars(cls).items() if type(member) is StructSequenceFieldType]
    names = names[: cls.n_sequence_fields - cls.n_unnamed_fields]
    if len(names) == cls.n_sequence_fields:
        return tuple(names)
    # The class does not tell where its unnamed items are: ask an instance.
    marks = [object() for _ in range(cls.n_sequence_fields)]
    instance = cls(marks)
    by_mark = {id(getattr(instance, name)): name for name in names}
    return tuple(by_mark.get(id(mark), PyStructSequence_UnnamedField) for mark in marks)


def _describe(obj: object) -> str:
    return f"the class {obj.__qualname__}" if isinstance(obj, type) else type(obj).__name__


def __getattr__(name: str) -> Any:
    if name in _FROM_ACCESSORS:
        from treeops import accessors

        return getattr(accessors, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
