# SPDX-License-Identifier: Apache-2.0
"""How optcore walks trees: ``None`` is a leaf, node types come from the namespace ``"optcore"``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeAlias

import torch

import treeops
import treeops.integrations.torch  # lets torch.compile trace through treeops

Tree: TypeAlias = Any  # a nested container of tensors (and None)

NAMESPACE = "optcore"

tree_flatten = partial(treeops.tree_flatten, none_is_leaf=True, namespace=NAMESPACE)
tree_leaves = partial(treeops.tree_leaves, none_is_leaf=True, namespace=NAMESPACE)
tree_map = partial(treeops.tree_map, none_is_leaf=True, namespace=NAMESPACE)
tree_structure = partial(treeops.tree_structure, none_is_leaf=True, namespace=NAMESPACE)
tree_unflatten = treeops.tree_unflatten


class ParamDict(dict):  # type: ignore[type-arg]
    """Parameters by key, recognisable inside a state.

    The optimizer classes initialise their transformation with one. Because a state mirrors its
    parameters, every ``ParamDict`` found in the state is one per-parameter buffer, which lets the
    classes store state per parameter and take parameters in later.
    """


treeops.register_pytree_node(
    ParamDict,
    lambda params: (tuple(params.values()), tuple(params), tuple(params)),
    lambda keys, values: ParamDict(zip(keys, values, strict=True)),
    namespace=NAMESPACE,
)


def is_param_dict(node: object) -> bool:
    """Whether ``node`` is one per-parameter buffer of a state."""
    return isinstance(node, ParamDict)


def flatten_like(who: str, what: str, spec: Any, tree: Tree) -> list[Any]:
    """Leaves of ``tree`` in the order of ``spec``; a mismatch names who was called with what."""
    try:
        return flatten_up_to(spec, tree)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{who}: {what}: {error}") from None


def flatten_up_to(spec: Any, tree: Tree) -> list[Any]:
    """What stands in ``tree`` at the leaves of ``spec``."""
    if not torch.compiler.is_compiling():
        return spec.flatten_up_to(tree)
    found: list[Any] = []  # the compiler knows tree_map, but no method of a treespec
    places = treeops.tree_unflatten(spec, range(spec.num_leaves))
    tree_map(lambda _, part: found.append(part), places, tree)
    return found


def path_to(tree: Tree, index: int) -> str:
    """Where a leaf stands, as ``['enc'][0]``."""
    paths = treeops.tree_paths(tree, none_is_leaf=True, namespace=NAMESPACE)
    return "".join(f"[{key!r}]" for key in paths[index]) or "the root"


def map_tensors(fn: Callable[[torch.Tensor], torch.Tensor], tree: Tree) -> Tree:
    """Map the tensors of a state, keeping what is shared shared (a count serves many leaves).

    Args:
        fn: Called once per distinct tensor.
        tree: Any tree; leaves that are no tensors stay.

    Example:
        >>> shared = torch.zeros(())
        >>> a, b = map_tensors(torch.clone, (shared, shared))
        >>> a is b
        True
    """
    seen: dict[torch.Tensor, torch.Tensor] = {}  # hashed by identity

    def once(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if leaf not in seen:
            seen[leaf] = fn(leaf)
        return seen[leaf]

    return tree_map(once, tree)


def describe(value: object) -> str:
    """How errors show a value: ``f32[3, 4]`` for a tensor, else the type's name; never contents.

    Example:
        >>> describe(torch.zeros(3, 4)), describe([1])
        ('f32[3, 4]', 'list')
    """
    if isinstance(value, torch.Tensor):
        name = str(value.dtype).removeprefix("torch.")
        for long, short in (("bfloat", "bf"), ("float", "f"), ("complex", "c"), ("int", "i")):
            name = name.replace(long, short)
        return f"{name}{list(value.shape)}"
    return type(value).__name__


def tensors_in(trees: Iterable[Tree]) -> Iterable[torch.Tensor]:
    """Every tensor in some trees."""
    for tree in trees:
        for leaf in tree_leaves(tree):
            if isinstance(leaf, torch.Tensor):
                yield leaf
