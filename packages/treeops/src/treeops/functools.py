# SPDX-License-Identifier: Apache-2.0
"""Functions with some arguments given, as nodes of trees; and ``reduce`` for trees."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from treeops.accessors import GetAttrEntry, PyTreeEntry
from treeops.ops import tree_reduce as reduce
from treeops.registry import GLOBAL_NAMESPACE, register_pytree_node_class
from treeops.typing import CustomTreeNode, T

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Partial", "partial", "reduce"]

if hasattr(functools, "Placeholder"):  # Python 3.14
    Placeholder = functools.Placeholder
    __all__ += ["Placeholder"]


class _Whole:
    """A partial function that :class:`functools.partial` must not merge with its own arguments."""

    __slots__ = ("whole",)

    def __init__(self, whole: functools.partial[Any], /) -> None:
        self.whole = whole

    @property
    def func(self) -> Callable[..., Any]:
        return self.whole.func

    @property
    def args(self) -> tuple[Any, ...]:
        return self.whole.args

    @property
    def keywords(self) -> dict[str, Any]:
        return self.whole.keywords

    def __call__(self, /, *args: Any, **keywords: Any) -> Any:
        return self.whole(*args, **keywords)

    def __eq__(self, other: object, /) -> bool:
        return self.whole == (other.whole if isinstance(other, _Whole) else other)

    def __hash__(self, /) -> int:
        return hash(self.whole)

    def __repr__(self, /) -> str:
        return repr(self.whole)


@register_pytree_node_class(namespace=GLOBAL_NAMESPACE)
class partial(functools.partial, CustomTreeNode[T]):
    """A :class:`functools.partial` whose arguments are children and whose function is metadata.

    A partial function given to ``partial`` stays one piece, which is metadata.

    Example:
        >>> import operator, treeops
        >>> add_one = partial(operator.add, 1)
        >>> treeops.tree_leaves(add_one)
        [1]
        >>> treeops.tree_map(lambda x: 10 * x, add_one)(5)
        15
    """

    __slots__: ClassVar[tuple[()]] = ()

    func: Callable[..., Any]
    args: tuple[T, ...]
    keywords: dict[str, T]

    TREE_PATH_ENTRY_TYPE: ClassVar[type[PyTreeEntry]] = GetAttrEntry

    def __new__(cls, func: Callable[..., Any], /, *args: T, **keywords: T) -> Self:
        """The function with these arguments given."""
        if isinstance(func, functools.partial):
            func = _Whole(func)
        elif not callable(func):
            raise TypeError(
                f"{cls.__name__}: expected func to be callable, got {type(func).__name__}"
            )
        return super().__new__(cls, func, *args, **keywords)

    def __repr__(self, /) -> str:
        parts = [repr(self.func), *(repr(value) for value in self.args)]
        parts += [f"{name}={value!r}" for name, value in self.keywords.items()]
        cls = self.__class__
        return f"{cls.__module__}.{cls.__qualname__}({', '.join(parts)})"

    def __tree_flatten__(
        self, /
    ) -> tuple[tuple[tuple[T, ...], dict[str, T]], Callable[..., Any], tuple[str, str]]:
        """The arguments, the function, and how to get at the arguments."""
        return (self.args, self.keywords), self.func, ("args", "keywords")

    @classmethod
    def __tree_unflatten__(
        cls, metadata: Callable[..., Any], children: tuple[tuple[T, ...], dict[str, T]], /
    ) -> Self:
        """The function with other arguments."""
        args, keywords = children
        return cls(metadata, *args, **keywords)


Partial = partial  # the name JAX uses
