# SPDX-License-Identifier: Apache-2.0
"""Whole steps by one kernel call: gradients in, new parameters out.

A chain that was told to use kernels becomes one call where the installed package knows it, from the
sign to the learning rate. What it does not know goes transformation by transformation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, NamedTuple

import torch

from optcore._apply import apply_updates
from optcore._hyperparams import at_count, is_number
from optcore._kernels import check_one_value, whole_step
from optcore._leafwise import Tick, check_gradient, check_shapes, ticks_of
from optcore._transform import GradientTransformation, ScheduleState
from optcore._tree import Tree, flatten_like, path_to, tree_flatten, tree_unflatten


def take_step(
    transformation: GradientTransformation,
    grads: Tree,
    state: Tree,
    params: Tree,
    inplace: bool,
    extra: Mapping[str, Any],
) -> tuple[Tree, Tree]:
    """New parameters and state, the mode already decided."""
    naming = Naming(transformation._name)
    fused = FusedStep.of(naming, transformation, grads, state, params, inplace)
    if fused is not None:
        return fused.taken()
    if inplace and transformation.holds_kernels:
        from optcore._kernel_checks import checked  # which builds on this module

        check_apart(checked(naming, transformation, grads, state, params))
    updates, state = transformation.apply(grads, state, params, inplace, extra)
    return apply_updates(params, updates, inplace=inplace), state


@dataclass(frozen=True)
class Naming:
    """How errors call things, so that the user knows them.

    Attributes:
        who: What takes the step.
        place: From the number of a parameter; None: its path in the tree.
        buffers: What a buffer is called, if not by its name in the state.
    """

    who: str
    place: Callable[[int], str] | None = None
    buffers: Mapping[str, str] = field(default_factory=dict)


class Ready(NamedTuple):
    """A step with all its own checks done."""

    take: Callable[[], None]
    calls: Sequence[Any] = ()  # of kernels, for :func:`check_apart`


def check_apart(calls: Sequence[Any]) -> None:
    """Refuse calls of kernels that write what others hold, or they themselves.

    Raises:
        ValueError: Memory in common.
    """
    for call in calls[:1]:
        call.check_apart(calls)


class _Group(NamedTuple):
    """Leaves that one call serves."""

    members: list[int]
    params: list[Any]
    buffers: list[list[Any]]
    tick: Tick | None
    where: Callable[[str, int, int], str]


class FusedStep:
    """A kernel and its arguments, checked; in place it can be repeated with other gradients.

    Args:
        naming: For errors.
        take: What :func:`optcore._kernels.whole_step` gave.
        links: Name and hyperparameters of each transformation.
        states: Theirs.
        scheduled: Which of them are ScheduleStates.
        params: Tree of parameters.
        grads: Tree like it.
        inplace: Whether parameters and buffers are overwritten.

    Raises:
        TypeError: A gradient that no formula would take.
        ValueError: Trees that differ.
    """

    @classmethod
    def of(
        cls,
        naming: Naming,
        transformation: GradientTransformation,
        grads: Tree,
        state: Tree,
        params: Tree,
        inplace: bool,
    ) -> FusedStep | None:
        """The step of a transformation; None where it cannot be one call."""
        chain = _accelerated_chain(transformation)
        if chain is None or not isinstance(state, tuple) or len(state) != len(chain):
            return None
        links = _links(naming.who, chain, state)
        take = None if links is None else whole_step(links)
        if take is None:
            return None
        leaves = tree_flatten(params)[0]
        if len({id(leaf) for leaf in leaves}) < len(leaves):
            return None  # a tied parameter moves by the sum of its updates
        scheduled = [link._scheduled for link in chain]
        return cls(naming, take, links, state, scheduled, params, grads, inplace)

    def __init__(
        self,
        naming: Naming,
        take: Any,
        links: Sequence[tuple[str, Mapping[str, Any]]],
        states: Sequence[Any],
        scheduled: Sequence[bool],
        params: Tree,
        grads: Tree,
        inplace: bool,
    ) -> None:
        self._naming, self._who = naming, naming.who
        self._take, self._links, self._inplace = take, links, inplace
        self._states, self._scheduled = states, scheduled
        self._params, self._spec = tree_flatten(params)
        self._grads = flatten_like(self._who, "gradients differ from params", self._spec, grads)
        for grad in self._grads:
            if grad is not None:
                check_gradient(self._who, grad)
        check_shapes(self._who, self._grads, self._params, grads)
        self._inner = [s.inner if late else s for s, late in zip(states, scheduled, strict=True)]
        self._slots = [  # (which link, name of the buffer)
            (k, name)
            for k, own in enumerate(self._inner)
            for name in own._fields
            if name != "count"
        ]
        self._columns = [self._flat(getattr(self._inner[k], name)) for k, name in self._slots]
        self._ticks: dict[int, Sequence[Tick | None]] = {}
        for k, own in enumerate(self._inner):
            if "count" in own._fields and own.count != ():  # (): this one need not count
                old = self._flat(own.count)
                self._ticks[k] = ticks_of(self._who, old, self._grads, inplace, inplace)
        every = [tick for ticks in self._ticks.values() for tick in ticks if tick is not None]
        self._distinct = list({id(tick): tick for tick in every}.values())
        self._groups = list(self._grouped())
        # all of them before the first is taken
        self._calls = self._prepared(self._grads, repeat(None)) if inplace else []

    def _flat(self, tree: Tree) -> list[Any]:
        return flatten_like(self._who, "state differs from params", self._spec, tree)

    def _grouped(self) -> Iterator[_Group]:
        """Leaves alike in dtype, device and count: one call each."""
        moving = [i for i, grad in enumerate(self._grads) if grad is not None]
        columns = [self._grads, self._params, *self._columns]
        if len(moving) < len(self._grads):
            columns = [[column[i] for i in moving] for column in columns]
        kinds: list[list[Any]] = [[tensor.dtype for tensor in column] for column in columns]
        kinds.append([tensor.device for tensor in columns[0]])
        kinds += [[id(own[i]) for i in moving] for own in self._ticks.values()]
        alike: dict[Any, list[int]] = {}
        if moving and all(len({*kind}) == 1 for kind in kinds):  # as nearly always
            alike[()] = moving
        else:
            for i, *key in zip(moving, *kinds, strict=True):
                alike.setdefault((*key,), []).append(i)
        for members in alike.values():
            buffers = [[column[i] for i in members] for column in self._columns]
            own = [own[members[0]] for own in self._ticks.values()]
            params = [self._params[i] for i in members]
            yield _Group(members, params, buffers, own[0] if own else None, self._where(members))

    def _prepared(self, grads: Sequence[Any], last: Iterable[Any]) -> list[Any]:
        return [
            self._take.prepared(
                group.params,
                _chosen(grads, group.members),
                group.buffers,
                None if group.tick is None else group.tick.count,
                who=self._who,
                where=group.where,
                last=call,
            )
            for group, call in zip(self._groups, last)
        ]

    def _where(self, members: Sequence[int]) -> Callable[[str, int, int], str]:
        """Where a tensor stands: calls and graphs keep this, so it must hold no tensors."""
        naming, spec, slots = self._naming, self._spec, self._slots

        def where(name: str, column: int, leaf: int) -> str:
            index = members[leaf]
            if naming.place is not None:
                place = naming.place(index)
            else:
                path = path_to(tree_unflatten(spec, range(spec.num_leaves)), index)
                place = f"params{path}" if path.startswith("[") else "params"
            if name == "params":
                return place
            if name == "buffers":
                own = slots[column][1]
                return f"{place}, {naming.buffers.get(own, own)}"
            return f"{place}, {'grad' if name == 'grads' else name}"

        return where

    @property
    def calls(self) -> Sequence[Any]:
        """The kernels of the step in place."""
        return self._calls

    def add(self) -> Tree:
        """Take the step in place; the new state, in which only counts are new tensors."""
        self._grads = []  # a kept step keeps no gradients alive, nor does a call that was taken
        for tick in self._distinct:
            tick.begin()
        for call in self._calls:
            call()
        return self._after(self._columns)

    @property
    def repeats(self) -> bool:
        """Whether the next step differs in nothing but gradients, counts and numbers."""
        return not any(self._scheduled) and all(
            is_number(value) for _, own in self._links for value in own.values()
        )

    def repetition(self, grads: Sequence[Any]) -> Ready | None:
        """The step after the last, in place; None if it cannot be repeated as it is."""
        try:
            calls = self._calls = self._prepared(grads, self._calls)
        except (RuntimeError, TypeError, ValueError):  # a step from the start says why, or goes
            return None

        def take() -> None:
            for tick in self._distinct:
                tick.advance()
            for call in calls:
                call()

        return Ready(take, calls)

    def renumbered(self, transformation: GradientTransformation) -> FusedStep | None:
        """The same step with other numbers as hyperparameters; None if it is not the same."""
        chain = _accelerated_chain(transformation)
        if chain is None or len(chain) != len(self._states):
            return None
        links = _links(self._who, chain, self._states)
        if links is None or [name for name, _ in links] != [name for name, _ in self._links]:
            return None
        return self._with(links)

    def at_rate(self, lr: float) -> FusedStep | None:
        """The same step at another learning rate, which is a matter of the last link alone."""
        *links, (name, own) = self._links
        return self._with([*links, (name, {**own, "lr": lr})]) if "lr" in own else None

    def _with(self, links: Sequence[tuple[str, Mapping[str, Any]]]) -> FusedStep | None:
        take = whole_step(links)
        if take is None:
            return None
        twin = copy.copy(self)
        twin._take, twin._links = take, links
        return twin if twin.repeats else None

    def taken(self) -> tuple[Tree, Tree]:
        """New parameters and state."""
        if self._inplace:
            check_apart(self._calls)
            state = self.add()
            return tree_unflatten(self._spec, self._params), state
        params, columns = list(self._params), [list(column) for column in self._columns]
        for group in self._groups:
            own, buffers = self._take(
                group.params,
                _chosen(self._grads, group.members),
                group.buffers,
                None if group.tick is None else group.tick.count,
                who=self._who,
                where=group.where,
            )
            for i, tensor in zip(group.members, own, strict=True):
                params[i] = tensor
            for column, values in zip(columns, buffers, strict=True):
                for i, tensor in zip(group.members, values, strict=True):
                    column[i] = tensor
        return tree_unflatten(self._spec, params), self._after(columns)

    def _after(self, columns: Sequence[Sequence[Any]]) -> tuple[Tree, ...]:
        """The states with these buffers and with counts one further."""
        changed: list[dict[str, Tree]] = [{} for _ in self._inner]
        if not self._inplace:
            for (k, name), column in zip(self._slots, columns, strict=True):
                changed[k][name] = tree_unflatten(self._spec, column)
        for k, ticks in self._ticks.items():
            old = self._flat(self._inner[k].count)
            moved = [c if t is None else t.count for c, t in zip(old, ticks, strict=True)]
            changed[k]["count"] = tree_unflatten(self._spec, moved)
        states = []
        for own, new, outer, late in zip(
            self._inner, changed, self._states, self._scheduled, strict=True
        ):
            own = own._replace(**new) if new else own
            states.append(ScheduleState(outer.count + 1, own) if late else own)
        return tuple(states)


def _links(
    who: str, chain: Sequence[GradientTransformation], states: Sequence[Any]
) -> list[tuple[str, Mapping[str, Any]]] | None:
    """Names and hyperparameters now; None if one has a value per leaf or element.

    Raises:
        NotImplementedError: One has, and the chain has no kernel but that of a whole step.
    """
    links = []
    for link, own in zip(chain, states, strict=True):
        now: Mapping[str, Any] = link._hyperparams
        if link._scheduled:
            now = {name: at_count(value, own.count) for name, value in now.items()}
        if not all(is_number(value) or _is_scalar(value) for value in now.values()):
            if chain[-1].uses_kernel and not torch.compiler.is_compiling():
                check_one_value(who, **now)  # plain descent: no other kernel would run
            return None
        flags = {"nesterov": link._static["nesterov"]} if "nesterov" in link._static else {}
        links.append((link._name, {**now, **flags}))
    return links


def _chosen(grads: Sequence[Any], members: Sequence[int]) -> list[Any]:
    return list(grads) if len(members) == len(grads) else [grads[i] for i in members]


def _accelerated_chain(
    transformation: GradientTransformation,
) -> tuple[GradientTransformation, ...] | None:
    """The links of a chain that was told to use kernels, if all of it may be one call."""
    chain = transformation._static.get("transformations")
    if not isinstance(chain, tuple):
        return None
    if not any(map(_accelerated, chain)):
        return None
    for link in chain:
        masked = link._static.get("mask") is not None
        upwards = link._static.get("flip_sign") is False
        learned = link._name == "scale" and not is_number(link._hyperparams.get("step_size"))
        if masked or upwards or learned or _accelerated(link) is False:
            return None
    return chain


def _accelerated(link: GradientTransformation) -> bool | None:
    """Whether it was told to use a kernel; None if it cannot be told."""
    rule = link._static.get("rule")
    own = link._static.get("use_accelerated_op")
    return getattr(rule, "use_accelerated_op", None) if own is None else own


def _is_scalar(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not value.ndim
