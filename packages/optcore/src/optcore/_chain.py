# SPDX-License-Identifier: Apache-2.0
"""Transformations made of transformations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec

from optcore._declared import declares
from optcore._deferred import Deferred, defers, settled
from optcore._modes import under_transform
from optcore._transform import GradientTransformation
from optcore._tree import Tree, describe

_Arguments = ParamSpec("_Arguments")


def chain(*transformations: GradientTransformation) -> GradientTransformation:
    r"""Apply transformations one after the other: :math:`u = t_n(\cdots t_2(t_1(g)))`.

    Args:
        transformations: Applied from left to right. None at all is the identity.

    State:
        The tuple of their states.

    Differentiable:
        As its members.

    Raises:
        TypeError: A member is not a :class:`GradientTransformation`.
        ValueError: In ``update``, a state of another length.

    Example:
        >>> import torch
        >>> import optcore
        >>> tx = chain(optcore.scale(2.0), optcore.scale(-0.1))
        >>> tx.update([torch.ones(1)], tx.init([torch.ones(1)]))[0]
        [tensor([-0.2000])]
    """
    for index, transformation in enumerate(transformations):
        if not isinstance(transformation, GradientTransformation):
            raise TypeError(
                f"chain: expected a GradientTransformation, got {describe(transformation)}, "
                f"at argument {index + 1}"
            )
    return GradientTransformation(
        _chain_init,
        _chain_update,
        static={"transformations": transformations},
        name="chain",
        needs_params=any(transformation.needs_params for transformation in transformations),
    )


chain_flat = chain  # TorchOpt's name of the one that flattens its members into a list


def link(
    who: str,
    factory: Callable[_Arguments, GradientTransformation],
    /,
    *args: _Arguments.args,
    **kwargs: _Arguments.kwargs,
) -> GradientTransformation:
    """A transformation in the chain of an optimizer; what it refuses, the optimizer refuses.

    The user has called ``who``, and knows nothing of ``factory``.
    """
    try:
        return factory(*args, **kwargs)
    except (TypeError, ValueError) as error:
        before, sign, rest = str(error).partition(": ")
        if sign and before == factory.__name__:
            error.args = (f"{who}: {rest}",)
        raise


def _chain_init(params: Tree, *, transformations: Any) -> tuple[Tree, ...]:
    return tuple(transformation.init(params) for transformation in transformations)


@defers
@declares(calls="transformations")
def _chain_update(
    updates: Tree,
    state: tuple[Tree, ...],
    params: Tree,
    *,
    inplace: bool,
    transformations: tuple[GradientTransformation, ...],
    **extra: Any,
) -> tuple[Tree, tuple[Tree, ...]]:
    if not isinstance(state, tuple) or len(state) != len(transformations):
        size = f" of {len(state)}" if isinstance(state, tuple) else ""
        raise ValueError(
            f"chain: expected a state tuple of {len(transformations)}, got {describe(state)}{size};"
            " pass the state that this transformation's init made"
        )
    alone = not isinstance(updates, Deferred)
    deferring = inplace and not under_transform()
    states = []
    for transformation, inner in zip(transformations, state, strict=True):
        if deferring and transformation.takes_deferred and not isinstance(updates, Deferred):
            updates = Deferred(updates)
        updates, inner = transformation.apply(updates, inner, params, inplace, extra)
        states.append(inner)
    return settled(updates) if alone else updates, tuple(states)
