# SPDX-License-Identifier: Apache-2.0
"""Transformations from functions, and with parameters or states laid out in another way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from optcore._declared import declares
from optcore._leafwise import check_gradient
from optcore._masking import check_transformation
from optcore._transform import EmptyState, GradientTransformation, stateless_init
from optcore._tree import Tree, describe, flatten_like, path_to, tree_flatten, tree_unflatten


def stateless(f: Callable[[Tree, Tree], Tree]) -> GradientTransformation:
    """A transformation without state from a function of all updates.

    Args:
        f: ``(updates, params) -> updates``, out of place; ``params`` may be None.

    Differentiable:
        As ``f``.

    Raises:
        TypeError: ``f`` is not callable.

    Example:
        >>> import torch
        >>> tx = stateless(lambda updates, params: [2 * u for u in updates])
        >>> tx.update([torch.ones(1)], tx.init([torch.ones(1)]))[0]
        [tensor([2.])]
    """
    _check_function("stateless", f)
    return GradientTransformation(
        stateless_init, _stateless_update, static={"f": f}, name="stateless"
    )


def stateless_with_tree_map(
    f: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor],
) -> GradientTransformation:
    """A transformation without state from a function of one leaf.

    Args:
        f: ``(update, param) -> update``, out of place; ``param`` is None where ``update`` is given
            no parameters. It is not called for None updates, which stay None.

    Differentiable:
        As ``f``.

    Raises:
        TypeError: ``f`` is not callable.

    Example:
        >>> import torch
        >>> tx = stateless_with_tree_map(lambda u, p: u / u.norm())
        >>> tx.update([torch.tensor([3.0, 4.0]), None], tx.init(None))[0]
        [tensor([0.6000, 0.8000]), None]
    """
    _check_function("stateless_with_tree_map", f)
    return GradientTransformation(
        stateless_init, _mapped_update, static={"f": f}, name="stateless_with_tree_map"
    )


def with_extra_args_support(tx: GradientTransformation) -> GradientTransformation:
    """``tx`` itself: every transformation takes extra arguments, and ignores unknown ones.

    Raises:
        TypeError: ``tx`` is no transformation.

    Example:
        >>> import optcore
        >>> tx = optcore.scale(1.0)
        >>> with_extra_args_support(tx) is tx
        True
    """
    check_transformation("with_extra_args_support", tx)
    return tx


def flatten(inner: GradientTransformation) -> GradientTransformation:
    """Let a transformation see all parameters as one vector.

    For rules that look at all of them together (norms, quasi-Newton). It is not a way to go
    faster: one large vector costs a copy in and out, and what is elementwise is batched anyway.
    Under ``torch.compile`` it is: the copies are fused away, and one update compiles sooner than
    many.

    Args:
        inner: Gets vectors for parameters and updates; its hyperparameters cannot be trees.

    State:
        That of ``inner`` for one vector.

    Differentiable:
        As ``inner``.

    Raises:
        TypeError: ``inner`` is no transformation, or a leaf no real floating tensor.
        ValueError: Leaves of several dtypes or devices, or a None leaf: part of a vector cannot be
            left alone. Take such leaves out with :func:`masked` or :func:`partition`.

    Example:
        >>> import torch
        >>> params = {"w": torch.tensor([3.0]), "b": torch.tensor(4.0)}
        >>> tx = flatten(stateless(lambda u, p: u / u.norm()))
        >>> tx.update(params, tx.init(params))[0]
        {'w': tensor([0.6000]), 'b': tensor(0.8000)}
    """
    check_transformation("flatten", inner)
    return GradientTransformation(
        _flatten_init,
        _flatten_update,
        static={"inner": inner},
        name="flatten",
        needs_params=inner.needs_params,
    )


def named_chain(*members: tuple[str, GradientTransformation]) -> GradientTransformation:
    """:func:`optcore.chain` whose members have names, under which their states are found.

    Args:
        members: Pairs ``(name, transformation)``, applied from left to right.

    State:
        A dict: name -> state of that member.

    Differentiable:
        As its members.

    Raises:
        TypeError: A member is not a pair of a string and a transformation.
        ValueError: A name occurs twice, or (in ``update``) the state has other names.

    Example:
        >>> import torch
        >>> import optcore
        >>> tx = named_chain(("momentum", optcore.trace(0.9)), ("lr", optcore.scale(-0.1)))
        >>> state = tx.init([torch.ones(1)])
        >>> list(state)
        ['momentum', 'lr']
    """
    who = "named_chain"
    for index, member in enumerate(members):
        where = f"{who}, argument {index + 1}"
        if not isinstance(member, tuple) or len(member) != 2 or not isinstance(member[0], str):
            raise TypeError(f"{where}: expected (name, transformation), got {describe(member)}")
        check_transformation(where, member[1])
    names = [name for name, _ in members]
    if len(set(names)) != len(names):
        raise ValueError(f"{who}: expected different names, got {names}")
    return GradientTransformation(
        _named_init,
        _named_update,
        static={"members": members},
        name=who,
        needs_params=any(inner.needs_params for _, inner in members),
    )


def _check_function(who: str, f: object) -> None:
    if not callable(f):
        raise TypeError(f"{who}: expected a function (updates, params), got {describe(f)}")


def _stateless_update(
    updates: Tree, state: EmptyState, params: Tree, *, inplace: bool, f: Callable[..., Tree]
) -> tuple[Tree, EmptyState]:
    return f(updates, params), state


def _mapped_update(
    updates: Tree, state: EmptyState, params: Tree, *, inplace: bool, f: Callable[..., Any]
) -> tuple[Tree, EmptyState]:
    who = "stateless_with_tree_map"
    leaves, spec = tree_flatten(updates)
    own = [None] * len(leaves)
    if params is not None:
        own = flatten_like(who, "params differ from updates", spec, params)
    new = [None if u is None else f(u, p) for u, p in zip(leaves, own, strict=True)]
    return tree_unflatten(spec, new), state


def _flatten_init(params: Tree, *, inner: GradientTransformation) -> Tree:
    return inner.init(_vector("parameter", params))


@declares(calls="inner")
def _flatten_update(
    updates: Tree,
    state: Tree,
    params: Tree,
    *,
    inplace: bool,
    inner: GradientTransformation,
    **extra: Any,
) -> tuple[Tree, Tree]:
    leaves, spec = tree_flatten(updates)
    own = None if params is None else _vector("parameter", params)
    vector, state = inner.apply(_vector("gradient", updates), state, own, inplace, extra)
    parts = vector.split([leaf.numel() for leaf in leaves])
    shaped = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    return tree_unflatten(spec, shaped), state


def _vector(what: str, tree: Tree) -> torch.Tensor:
    """All leaves, one behind the other."""
    leaves, _ = tree_flatten(tree)
    for index, leaf in enumerate(leaves):
        if leaf is None:
            raise ValueError(
                f"flatten: expected a tensor for every {what}, got None, "
                f"at {path_to(tree, index)}; hide such leaves with masked or partition"
            )
        check_gradient("flatten", leaf)
        if (leaf.dtype, leaf.device) != (leaves[0].dtype, leaves[0].device):
            raise ValueError(
                f"flatten: expected every {what} like the first, {describe(leaves[0])} on "
                f"{leaves[0].device}, got {describe(leaf)} on {leaf.device}, "
                f"at {path_to(tree, index)}; group them with partition"
            )
    return torch.cat([leaf.reshape(-1) for leaf in leaves]) if leaves else torch.zeros(0)


def _named_init(params: Tree, *, members: Any) -> dict[str, Tree]:
    return {name: inner.init(params) for name, inner in members}


@declares(calls="members")
def _named_update(
    updates: Tree,
    state: dict[str, Tree],
    params: Tree,
    *,
    inplace: bool,
    members: tuple[tuple[str, GradientTransformation], ...],
    **extra: Any,
) -> tuple[Tree, dict[str, Tree]]:
    names = [name for name, _ in members]
    if not isinstance(state, dict) or set(state) != set(names):
        found = list(state) if isinstance(state, dict) else describe(state)
        raise ValueError(
            f"named_chain: expected a state dict with {names}, got {found}; pass the state that "
            "this transformation's init made"
        )
    states = {}
    for name, inner in members:
        updates, states[name] = inner.apply(updates, state[name], params, inplace, extra)
    return updates, states
