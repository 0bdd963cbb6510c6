# SPDX-License-Identifier: Apache-2.0
"""A tree of arrays as one long array and back, for every array library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from treeops import PyTreeSpec, tree_flatten


class ArrayLibrary(NamedTuple):
    """What raveling needs of a library; module-level functions, so that it can be pickled."""

    empty: Callable[[], Any]  # an array without elements, of the default type
    shape: Callable[[Any], tuple[int, ...]]  # raises ValueError for what is no array
    dtype: Callable[[Any], Any]
    promote: Callable[[tuple[Any, ...]], Any]  # the type that holds all of these
    concatenate: Callable[[list[Any], Any], Any]  # arrays of any shape, to one of this type
    split: Callable[[Any, tuple[int, ...]], list[Any]]  # by the sizes of the pieces
    cast: Callable[[Any, Any], Any]  # a complex array to a real type: the real part


@dataclass(frozen=True)
class Unravel:
    """The way back from one array to the tree; can be hashed, compared and pickled."""

    library: ArrayLibrary
    treespec: PyTreeSpec
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[Any, ...] | None  # None if all were alike: then the array may have any
    dtype: Any

    def __call__(self, flat: Any, /) -> Any:
        sizes = tuple(prod(shape) for shape in self.shapes)
        found = self.library.shape(flat)
        if found != (sum(sizes),):
            raise ValueError(f"unravel: expected an array of shape ({sum(sizes)},), got {found}")
        if self.dtypes is None:
            pieces = self.library.split(flat, sizes) if sizes else []
            return self.treespec.unflatten(
                [piece.reshape(shape) for piece, shape in zip(pieces, self.shapes)]
            )
        if self.library.dtype(flat) != self.dtype:
            raise ValueError(
                f"unravel: expected an array of type {self.dtype}, got {self.library.dtype(flat)}"
            )
        pieces = self.library.split(flat, sizes)
        return self.treespec.unflatten(
            [
                self.library.cast(piece.reshape(shape), dtype)
                for piece, shape, dtype in zip(pieces, self.shapes, self.dtypes)
            ]
        )


def ravel(
    library: ArrayLibrary,
    tree: Any,
    is_leaf: Callable[[Any], bool] | None,
    none_is_leaf: bool,
    namespace: str,
) -> tuple[Any, Unravel]:
    """The leaves in one array, and the way back."""
    leaves, treespec = tree_flatten(tree, is_leaf, none_is_leaf=none_is_leaf, namespace=namespace)
    if not leaves:
        return library.empty(), Unravel(library, treespec, (), None, None)
    shapes = tuple(library.shape(leaf) for leaf in leaves)
    dtypes = tuple(library.dtype(leaf) for leaf in leaves)
    dtype = library.promote(dtypes)
    one_type = all(found == dtype for found in dtypes)
    flat = library.concatenate(leaves, dtype)
    return flat, Unravel(library, treespec, shapes, None if one_type else dtypes, dtype)
