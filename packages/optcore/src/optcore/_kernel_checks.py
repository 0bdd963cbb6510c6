# SPDX-License-Identifier: Apache-2.0
"""What kernels would refuse of a step in place, found before any part of it is taken.

A step that is no single call of a kernel goes transformation by transformation: each kernel then
sees its tensors only after others have written theirs. So all buffers that kernels of the step will
write, wherever they stand in it, are shown to the package first, with gradients and parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from optcore._accumulation import MultiStepsState
from optcore._control import (
    ApplyIfFiniteState,
    ConditionallyMaskState,
    ConditionallyTransformState,
)
from optcore._fused import Naming
from optcore._hyperparams import per_leaf
from optcore._inject import InjectHyperparamsState
from optcore._kernels import buffers_of, whole_step
from optcore._leafwise import check_gradient
from optcore._masking import MaskedState
from optcore._modes import under_transform
from optcore._transform import GradientTransformation, ScheduleState
from optcore._tree import Tree, describe, flatten_like, path_to, tree_flatten, tree_unflatten

_RATE = "scale_by_learning_rate"
# of combinators whose inner transformation sees trees like their own
_SAME_TREES = (
    MaskedState,
    ApplyIfFiniteState,
    ConditionallyTransformState,
    ConditionallyMaskState,
    MultiStepsState,
)


def checked(
    naming: Naming,
    transformation: GradientTransformation,
    grads: Tree,
    state: Tree,
    params: Tree = None,
) -> list[Any]:
    """Calls that are never taken, but hold all that the kernels of a step read and write.

    Seen are chains, partitions, masks, and combinators that hand on trees like their own.

    Args:
        naming: For errors.
        transformation: Any.
        grads: What it is given.
        state: Its own.
        params: None where the step does not write them.

    Raises:
        NotImplementedError: A hyperparameter with a value per element.
        RuntimeError: A device without kernels.
        TypeError: A tensor that kernels cannot read.
        ValueError: Trees or shapes that differ.
    """
    if not transformation.holds_kernels or under_transform():
        return []
    probe = whole_step([(_RATE, {"lr": 0.0})])
    if probe is None:  # the installed package has no whole steps
        return []
    written = list(_written(transformation, state, grads, True))
    if not written or (params is None and len(written) == 1 and written[0][3]):
        return []  # the one kernel there is comes first, and checks itself
    leaves, spec = tree_flatten(grads)
    columns: list[tuple[str | None, list[Any], bool]] = []
    for who, names, trees, first in written:
        for name, tree in zip(names, trees, strict=True):
            column = flatten_like(who, "state differs from updates", spec, tree)
            columns.append((naming.buffers.get(name, name), column, first))
    if params is not None:
        column = flatten_like(naming.who, "gradients differ from params", spec, params)
        seen = [*map(_any_tensor, zip(*(own for _, own, _ in columns), strict=True))]
        column = [p if found else None for p, found in zip(_distinct(column), seen, strict=True)]
        columns.insert(0, (None, column, False))
    places = tree_unflatten(spec, range(spec.num_leaves))
    calls = []
    for name, column, first in columns:
        for members in _alike(naming.who, leaves, column, first):
            where = _words(naming, places, members, name, params is not None)
            given = [leaves[i] if first else leaves[i].resolve_neg() for i in members]
            own = [column[i] for i in members]
            for leaf, (grad, tensor) in enumerate(zip(given, own, strict=True)):
                if tensor.shape != grad.shape:
                    raise ValueError(
                        f"{naming.who}: expected a tensor like {describe(grad)}, got "
                        f"{describe(tensor)}, at {where('params', 0, leaf)}"
                    )
            calls.append(probe.prepared(own, given, [], None, who=naming.who, where=where))
    return calls


def _written(
    transformation: GradientTransformation, state: Any, grads: Tree, first: bool
) -> Iterator[tuple[str, Sequence[str], list[Tree], bool]]:
    """Of each kernel: who, names and trees of buffers, and whether it gets gradients as given."""
    if transformation._scheduled and isinstance(state, ScheduleState):
        state = state.inner
    for k, (inner, own) in enumerate(_held(transformation, state)):
        if not getattr(inner, "holds_kernels", False):
            continue
        # of a chain the first alone, of a partition every one; what accumulates hands on sums
        given = k == 0 or "transforms" in transformation._static
        accumulates = isinstance(state, MultiStepsState)
        yield from _written(inner, own, grads, first and given and not accumulates)
    if not transformation.uses_kernel:
        return
    name = transformation._name
    names = buffers_of(name)
    if names and all(hasattr(state, field) for field in names):
        _check_hyperparams(transformation, grads)
        yield name, names, [getattr(state, field) for field in names], first


def _held(
    transformation: GradientTransformation, state: Any
) -> Iterator[tuple[GradientTransformation, Any]]:
    """The transformations that one holds, with their states; a state that does not fit: none."""
    held = transformation._static
    if isinstance(held.get("transformations"), tuple) and isinstance(state, tuple):
        yield from zip(held["transformations"], state, strict=False)
    elif isinstance(held.get("transforms"), dict):
        inner_states = getattr(state, "inner_states", {})
        for label, inner in held["transforms"].items():
            if hasattr(inner_states.get(label), "inner_state"):
                yield inner, inner_states[label].inner_state
    elif isinstance(held.get("members"), tuple) and isinstance(state, dict):
        yield from ((inner, state[name]) for name, inner in held["members"] if name in state)
    elif "inner_factory" in held and isinstance(state, InjectHyperparamsState):
        if {*state.hyperparams} == {*held["numbers"], *held["schedules"]}:
            yield held["inner_factory"](**held["fixed"], **state.hyperparams), state.inner_state
    elif isinstance(state, _SAME_TREES):
        own = state.inner_opt_state if isinstance(state, MultiStepsState) else state.inner_state
        if isinstance(held.get("inner"), GradientTransformation):  # else the state is another's
            yield held["inner"], own


def _check_hyperparams(transformation: GradientTransformation, grads: Tree) -> None:
    """Have the package refuse values per element."""
    name = transformation._name
    for key, value in transformation._hyperparams.items():
        if isinstance(value, (dict, list, tuple)):
            values = per_leaf(name, key, value, grads) or []
        else:
            values = [value]
        for own in values:
            if isinstance(own, torch.Tensor) and own.ndim:
                whole_step([(name, {key: own}), (_RATE, {"lr": 0.0})])


def _distinct(params: Sequence[Any]) -> list[Any]:
    """Each parameter once: a tied one moves by the sum of its updates."""
    place: dict[int, int] = {}
    for i, param in enumerate(params):
        place.setdefault(id(param), i)
    return [param if place[id(param)] == i else None for i, param in enumerate(params)]


def _any_tensor(values: Iterable[Any]) -> bool:
    return any(isinstance(value, torch.Tensor) for value in values)


def _alike(who: str, grads: Sequence[Any], column: Sequence[Any], first: bool) -> list[list[int]]:
    """Leaves alike in dtype and device, without those that are hidden or have no gradient.

    Nor those of whose gradients another transformation has yet to make what kernels can read.
    """
    found: dict[Any, list[int]] = {}
    for i, (grad, own) in enumerate(zip(grads, column, strict=True)):
        if grad is None or not isinstance(own, torch.Tensor):
            continue
        if first or not isinstance(grad, torch.Tensor):
            check_gradient(who, grad)
        if grad.layout is torch.strided and grad.dtype.is_floating_point:
            found.setdefault((grad.device, grad.dtype, own.dtype), []).append(i)
    return list(found.values())


def _words(
    naming: Naming, places: Tree, members: Sequence[int], buffer: str | None, steps: bool
) -> Callable[[str, int, int], str]:
    """Where a tensor stands; what is written is called ``params`` by the package."""

    def where(name: str, column: int, leaf: int) -> str:
        index = members[leaf]
        if naming.place is not None:
            place = naming.place(index)
        else:
            place = path_to(places, index)
            if steps:
                place = f"params{place}" if place.startswith("[") else "params"
        if name == "params":
            return place if buffer is None else f"{place}, {buffer}"
        return f"{place}, grad"

    return where
