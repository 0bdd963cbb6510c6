# SPDX-License-Identifier: Apache-2.0
"""Transformations by group of parameters: labels, and a group that stays frozen."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from optcore._declared import declares
from optcore._leafwise import check_gradient, check_shapes
from optcore._masking import (
    MaskedState,
    apply_to,
    basis,
    check_mask,
    check_transformation,
    hide,
    hide_extra,
    set_to_zero,
    spread,
)
from optcore._transform import GradientTransformation
from optcore._tree import (
    Tree,
    describe,
    path_to,
    tree_flatten,
    tree_leaves,
    tree_map,
    tree_unflatten,
)


class PartitionState(NamedTuple):
    """State of :func:`partition`."""

    inner_states: dict[Hashable, MaskedState]  # by label


def partition(
    transforms: Mapping[Hashable, GradientTransformation],
    param_labels: Tree | Callable[[Tree], Tree],
    *,
    mask_compatible_extra_args: bool = False,
) -> GradientTransformation:
    """Give each group of parameters a transformation of its own.

    Args:
        transforms: Label -> transformation of the parameters with this label.
        param_labels: A tree of labels like the parameters or a prefix of them, or a function that
            makes one: it is called with the parameters, or with the updates where ``update`` is
            given no parameters, and has to give the same labels every time.
        mask_compatible_extra_args: Hand each transformation only its own leaves of extra
            arguments of the same structure as the updates.

    State:
        ``inner_states``: label -> :class:`MaskedState`.

    Differentiable:
        As the transformations.

    Raises:
        TypeError: ``transforms`` is no mapping to transformations.
        ValueError: In ``init`` and ``update``, a label without a transformation, or labels that
            are not a prefix of the parameters.

    Example:
        >>> import torch
        >>> import optcore
        >>> params = {"w": torch.ones(2), "b": torch.ones(1)}
        >>> tx = partition(
        ...     {"slow": optcore.scale(-0.25), "fast": optcore.scale(-2.0)},
        ...     {"w": "slow", "b": "fast"},
        ... )
        >>> tx.update(params, tx.init(params))[0]
        {'w': tensor([-0.2500, -0.2500]), 'b': tensor([-2.])}
    """
    who = "partition"
    if not isinstance(transforms, Mapping):
        raise TypeError(
            f"{who}: expected transforms as a mapping from labels, got {describe(transforms)}"
        )
    for label, transformation in transforms.items():
        check_transformation(f"{who}[{label!r}]", transformation)
    return GradientTransformation(
        _partition_init,
        _partition_update,
        static={
            "transforms": dict(transforms),
            "param_labels": param_labels,
            "mask_compatible_extra_args": mask_compatible_extra_args,
        },
        name=who,
        needs_params=any(inner.needs_params for inner in transforms.values()),
    )


multi_transform = partition  # the older name


def selective_transform(
    optimizer: GradientTransformation, *, freeze_mask: Tree | Callable[[Tree], Tree]
) -> GradientTransformation:
    """Optimize some parameters; the others get zero updates and no state.

    Args:
        optimizer: For the parameters that are not frozen.
        freeze_mask: As in :func:`masked`: True freezes. One bool serves all parameters.

    State:
        That of :func:`partition` with the labels ``"train"`` and ``"freeze"``.

    Differentiable:
        As ``optimizer``; frozen leaves have no derivative.

    Raises:
        TypeError: ``optimizer`` is no transformation, or a leaf of the mask is no bool.
        ValueError: In ``init`` and ``update``, the mask is not a prefix of the parameters.

    Example:
        >>> import torch
        >>> import optcore
        >>> params = {"w": torch.ones(2), "b": torch.ones(1)}
        >>> tx = selective_transform(optcore.sgd(lr=0.5), freeze_mask={"w": True, "b": False})
        >>> tx.update(params, tx.init(params))[0]
        {'w': tensor([0., 0.]), 'b': tensor([-0.5000])}
    """
    who = "selective_transform"
    check_transformation(who, optimizer)
    if callable(freeze_mask):
        labels: Any = _Labels(freeze_mask)
    else:
        check_mask(who, freeze_mask)
        labels = tree_map(_train_or_freeze, freeze_mask)
    return partition({"train": optimizer, "freeze": set_to_zero()}, labels)


@dataclass(frozen=True)
class _Labels:
    """The labels of :func:`selective_transform` from a mask function; a value, so it pickles."""

    mask: Callable[[Tree], Tree]

    def __call__(self, params: Tree) -> Tree:
        wanted = self.mask(params)
        check_mask("selective_transform", wanted)
        return tree_map(_train_or_freeze, wanted)


def _train_or_freeze(frozen: bool) -> str:
    return "freeze" if frozen else "train"


def _partition_init(
    params: Tree,
    *,
    transforms: Mapping[Hashable, GradientTransformation],
    param_labels: Any,
    mask_compatible_extra_args: bool,
) -> PartitionState:
    labels = _labels(param_labels, transforms, params)
    return PartitionState(
        {
            label: MaskedState(inner.init(hide(params, [own == label for own in labels])))
            for label, inner in transforms.items()
        }
    )


@declares(calls="transforms")
def _partition_update(
    updates: Tree,
    state: PartitionState,
    params: Tree,
    *,
    inplace: bool,
    transforms: Mapping[Hashable, GradientTransformation],
    param_labels: Any,
    mask_compatible_extra_args: bool,
    **extra: Any,
) -> tuple[Tree, PartitionState]:
    made_for = basis("partition", "param_labels", param_labels, updates, params)
    labels = _labels(param_labels, transforms, made_for)
    leaves, spec = tree_flatten(updates)
    for leaf in leaves:  # before the first group's state changes
        if leaf is not None:
            check_gradient("partition", leaf)
    if params is not None:
        check_shapes("partition", leaves, tree_leaves(params), updates)
    states = {}
    new = leaves
    for label, inner in transforms.items():
        flags = [own == label for own in labels]
        own_extra = hide_extra(extra, spec, flags) if mask_compatible_extra_args else extra
        new, states[label] = apply_to(
            flags, new, spec, inner, state.inner_states[label], params, inplace, own_extra
        )
    return tree_unflatten(spec, new), PartitionState(states)


def _labels(
    param_labels: Any, transforms: Mapping[Hashable, GradientTransformation], params: Tree
) -> list[Hashable]:
    """One label per parameter, each with a transformation."""
    who = "partition"
    wanted = param_labels(params) if callable(param_labels) else param_labels
    labels = spread(who, "param_labels", wanted, params)
    for index, (label, param) in enumerate(zip(labels, tree_leaves(params), strict=True)):
        if label not in transforms and not (label is None and param is None):
            raise ValueError(
                f"{who}: expected labels among {list(transforms)!r}, got {label!r}, "
                f"at {path_to(params, index)}; add a transformation for it"
            )
    return labels
