# SPDX-License-Identifier: Apache-2.0
"""What a graph is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["op", "leaf", "output"]


@dataclass(frozen=True)
class Saved:
    """A tensor that a node keeps for its backward pass."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int  # of its storage
    storage: int  # equal numbers share memory


@dataclass(frozen=True)
class Scope:
    """One entry into a scope: a name alone may be used many times."""

    name: str
    entry: int  # which entry, counted over the graph
    kind: str = "scope"  # scope, step, forward, gradient, transform, apply, fused


@dataclass(frozen=True)
class Node:
    """An operation, a leaf tensor or an output.

    ``id`` counts from 0 such that every edge goes from a smaller to a larger one. ``name`` is
    autograd's name of an operation, the given name of a tensor. ``order`` is how many times a
    derivative was taken to make it: 0 for what the program computed itself.
    """

    id: int
    kind: Kind
    name: str
    shape: tuple[int, ...] | None = None
    dtype: str = ""
    scopes: tuple[Scope, ...] = ()
    order: int = 0
    saved: tuple[Saved, ...] = ()
    attributes: tuple[tuple[str, str], ...] = ()
    custom: bool = False  # a torch.autograd.Function written in Python
    freed: bool = False  # its saved tensors are gone: backward has run
    overwritten: tuple[str, ...] = ()  # saved tensors that were changed in place since
    by_hooks: tuple[str, ...] = ()  # saved tensors that a hook unpacks, of unknown size
    groups: tuple[int, int] | None = None  # as a Function told: from input k on, n apart
    statistics: tuple[tuple[str, str], ...] = ()  # what a solver or a kernel tells of its work
    storage: int | None = None  # of a leaf
    key: tuple[Any, ...] = field(default=(), compare=False)  # finds it again; holds no tensor

    @property
    def label(self) -> str:
        """The name as a reader wants it: ``Mul`` for ``MulBackward0``."""
        if self.kind != "op":
            return self.name
        stem = self.name.rsplit("::", 1)[-1].rstrip("0123456789")
        return (stem[: -len("Backward")] if stem.endswith("Backward") else stem).strip("_") or stem

    @property
    def path(self) -> tuple[str, ...]:
        """Names of the scopes it was made in, outermost first."""
        return tuple(scope.name for scope in self.scopes)


@dataclass(frozen=True)
class Edge:
    """Data went from ``source`` to ``target``; gradients go back, at position ``slot``."""

    source: int
    target: int
    slot: int
    norm: float | None = None  # of the gradient, where flow() has measured it
    state: str = ""  # "", "nan", "inf", "zero" or "never", likewise
    output: int = 0  # which of the results of ``source``
