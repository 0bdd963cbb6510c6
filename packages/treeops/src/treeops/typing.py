# SPDX-License-Identifier: Apache-2.0
"""Types that custom nodes are described with."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

__all__ = ["Children", "CustomTreeNode", "FlattenFunc", "MetaData", "UnflattenFunc"]

T = TypeVar("T")

Children: TypeAlias = Iterable[T]  # the subtrees of a node, in order
MetaData: TypeAlias = Hashable  # what unflattening needs besides the children

# (children, metadata) or (children, metadata, entries); entries name the children in paths
FlattenFunc: TypeAlias = Callable[[Any], tuple[Any, ...]]
UnflattenFunc: TypeAlias = Callable[[Any, Any], Any]  # from metadata and a tuple of children


@runtime_checkable
class CustomTreeNode(Protocol):
    """A class that :func:`treeops.register_pytree_node_class` takes as it is."""

    def __tree_flatten__(self) -> tuple[Any, ...]:
        """Give ``(children, metadata)`` or ``(children, metadata, entries)``."""

    @classmethod
    def __tree_unflatten__(cls, metadata: Any, children: tuple[Any, ...], /) -> Any:
        """Make an instance from what ``__tree_flatten__`` gave."""
