# SPDX-License-Identifier: Apache-2.0
"""How hyperparameters compare, hash and print: tensors by identity, never by contents."""

from __future__ import annotations

from typing import Any

import torch

from optcore._tree import Tree, describe, tree_flatten


class _Identity:
    """Compares a tensor by identity and keeps it alive, so that its id stays its own."""

    __slots__ = ("value",)

    def __init__(self, value: torch.Tensor) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def token(tree: Tree) -> tuple[Any, ...]:
    """What compares and hashes as a tree of values does, tensors by identity."""
    leaves, spec = tree_flatten(tree)
    return (spec, *(_Identity(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves))


def show(value: Any) -> str:
    """A hyperparameter as ``repr`` shows it: tensors without contents, functions by name."""
    if isinstance(value, torch.Tensor):
        return describe(value)
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(show, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{k!r}: {show(v)}' for k, v in value.items())}}}"
    return getattr(value, "__qualname__", None) or repr(value)
