# SPDX-License-Identifier: Apache-2.0
"""Updates in place, a few leaves at a time through all formulas of a chain.

Formula after formula over all leaves would keep a temporary of every leaf alive and read each
from memory again. So in place a chain only notes its formulas, and then they run part by part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from optcore._hyperparams import is_number, read
from optcore._kernel_rules import KernelRule
from optcore._tensorlist import TensorList
from optcore._tree import Tree, tree_flatten, tree_leaves, tree_unflatten

_PART = 2**17  # elements: with its buffers and temporaries a part still fits into the cache


def defers(update: Callable[..., Any]) -> Callable[..., Any]:
    """Mark the ``update`` of a transformation: its ``updates`` may be :class:`Deferred`.

    Such a function hands them to ``leafwise`` or to another transformation's ``apply``, or passes
    them through :func:`settled` first.
    """
    update.takes_deferred = True  # type: ignore[attr-defined]
    return update


def settled(updates: Tree) -> Tree:
    """A tree of tensors, computed now if it was deferred."""
    return updates.settled() if isinstance(updates, Deferred) else updates


class Rule:
    """A formula and what it gets beside the gradients: a column has an entry per leaf."""

    __slots__ = (
        "columns",
        "formula",
        "hyperparams",
        "owned",
        "states",
        "ticks",
        "together",
        "trees",
    )

    def __init__(
        self,
        formula: Callable[..., Any],
        columns: Sequence[Sequence[Any]],
        states: int,
        ticks: Sequence[Any] | None,
        hyperparams: Mapping[str, Any],
        trees: Mapping[str, Sequence[Any]],
    ) -> None:
        self.formula = formula
        self.columns = columns
        self.states = states  # so many columns, the first ones, are buffers to be overwritten
        self.ticks = ticks
        self.trees = trees  # hyperparameters with a value per leaf
        self.together = all(map(is_number, hyperparams.values()))
        self.hyperparams = hyperparams
        # trees and tensors that their owner may change before the next step
        self.owned = not self.together

    def read(self) -> None:
        """Take numbers for 0-d tensors, so that one call may serve many leaves: in place only."""
        if not self.together:
            self.hyperparams = {name: read(value) for name, value in self.hyperparams.items()}
            self.together = all(map(is_number, self.hyperparams.values()))

    def arguments(self, leaf: int) -> dict[str, Any]:
        """Keywords of the formula for one leaf, or for all that share its step count."""
        own = {name: values[leaf] for name, values in self.trees.items()}
        if self.ticks is not None:
            own["tick"] = self.ticks[leaf]
        return {**self.hyperparams, **own}


class Deferred:
    """Gradients, and the formulas that will turn them into updates.

    Args:
        tree: The gradients.
    """

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.grads, self.spec = tree_flatten(tree)
        self.rules: list[Rule | KernelRule] = []

    def note(self, rule: KernelRule) -> None:
        """Have a kernel run after what was noted so far; the first one is checked now."""
        if not self.rules:  # the gradients of the others are not known yet
            rule.check(self.grads)
        self.rules.append(rule)

    def settled(self) -> Tree:
        """The updates."""
        if not self.rules:
            return self.tree
        before, formulas = self._split()
        grads = self._after(before)
        if formulas:
            grads = _written(grads, formulas)
        return tree_unflatten(self.spec, grads)

    def add_to(self, params: Sequence[Any]) -> Run:
        """Add the updates to parameters; without kernels the run can be repeated."""
        before, formulas = self._split()
        grads = self._after(before)
        run = Run(grads, formulas, params, repeats=not before)
        run.add(grads)
        return run

    def _split(self) -> tuple[list[Rule | KernelRule], list[Any]]:
        """What is noted up to the last kernel, and the formulas after it."""
        kernels = [k for k, rule in enumerate(self.rules) if isinstance(rule, KernelRule)]
        last = kernels[-1] + 1 if kernels else 0
        return self.rules[:last], self.rules[last:]

    def _after(self, rules: Sequence[Rule | KernelRule]) -> Sequence[Any]:
        """What some of the rules make of the gradients."""
        grads: Sequence[Any] = self.grads
        formulas: list[Rule] = []
        for rule in rules:
            if isinstance(rule, Rule):
                formulas.append(rule)
                continue
            if formulas:
                grads = _written(grads, formulas)
            grads, formulas = rule.overwrite(grads), []
        return grads


class Run:
    """The formulas of a step, laid out part by part.

    Args:
        grads: What they are applied to; not kept.
        rules: The formulas.
        params: What :meth:`add` adds to, an entry per leaf.
        repeats: Whether they are the whole step.
    """

    def __init__(
        self,
        grads: Sequence[Any],
        rules: Sequence[Rule],
        params: Sequence[Any] | None = None,
        repeats: bool = True,
    ) -> None:
        self._parts = [
            (members, targets, [_step(rule, members, many) for rule in rules])
            for members, many, targets in _parts(grads, rules, params)
        ]
        self._own = not repeats or any(rule.owned for rule in rules)
        self._ticks = list({id(t): t for rule in rules for t in rule.ticks or () if t}.values())

    def write(self, grads: Sequence[Any], updates: list[Any]) -> None:
        """Put the updates into a list."""
        for members, _, steps in self._parts:
            value = _through(steps, grads, members)
            if isinstance(value, TensorList):
                for index, tensor in zip(members, value.tensors, strict=True):
                    updates[index] = tensor
            else:
                updates[members] = value

    def add(self, grads: Sequence[Any]) -> None:
        """Add the updates to the parameters."""
        for members, targets, steps in self._parts:
            value = _through(steps, grads, members)
            if isinstance(value, TensorList):
                value.add_to(targets)
            else:
                targets.add_(value)

    def repeat(self, grads: Sequence[Any]) -> None:
        """The step after the last: add to the parameters what other gradients give."""
        for tick in self._ticks:
            tick.advance()
        self.add(grads)

    def carries(self, before: Tree, after: Tree) -> bool:
        """Whether all that changed in a state is what :meth:`repeat` overwrites."""
        if self._own:
            return False
        counts = {id(tick.count) for tick in self._ticks}
        old, new = tree_leaves(before), tree_leaves(after)
        pairs = zip(old, new, strict=True)
        return len(old) == len(new) and all(a is b or id(b) in counts for a, b in pairs)


def _written(grads: Sequence[Any], formulas: Sequence[Rule]) -> list[Any]:
    updates: list[Any] = [None] * len(grads)
    Run(grads, formulas).write(grads, updates)
    return updates


def _through(steps: Sequence[Any], grads: Sequence[Any], members: Any) -> Any:
    value = grads[members] if isinstance(members, int) else TensorList([grads[i] for i in members])
    for formula, rows, states, arguments in steps:
        given = value
        buffers: Sequence[Any] = ()
        if states:
            value, *buffers = formula(value, *rows, **arguments)
        else:
            value = formula(value, *rows, **arguments)
        for old, new in zip(rows[:states], buffers, strict=True):
            if new is not old:
                old.copy_(new)
        if isinstance(value, TensorList) and value is not given:
            value.temporary = not any(value is kept for kept in (*rows, *buffers))
    return value


def _step(rule: Rule, members: Any, many: bool) -> tuple[Any, ...]:
    if many:
        rows = [TensorList([column[i] for i in members]) for column in rule.columns]
        return rule.formula, rows, rule.states, rule.arguments(members[0])
    rows = [column[members] for column in rule.columns]
    return rule.formula, rows, rule.states, rule.arguments(members)


def _parts(
    grads: Sequence[Any], rules: Sequence[Rule], params: Sequence[Any] | None
) -> Iterable[tuple[Any, bool, Any]]:
    """Leaves that one call of a formula may serve, and the parameters to which they belong.

    Many at a time where they are alike in dtype, device and step count, and every hyperparameter
    is a number.
    """
    together = all(rule.together for rule in rules)
    columns = [column for rule in rules for column in rule.columns]
    columns += [] if params is None else [params]
    ticks = [rule.ticks for rule in rules if rule.ticks is not None]
    found = {(t.dtype, t.device) for column in (grads, *columns) for t in column if t is not None}
    alike = len(found) == 1 and all(len({*map(id, filter(None, own))}) == 1 for own in ticks)
    open_parts: dict[Any, tuple[list[int], int]] = {}
    for i, grad in enumerate(grads):
        if grad is None:
            continue
        if not together or type(grad) is not torch.Tensor:
            yield i, False, None if params is None else params[i]
            continue
        key = None
        if not alike:
            kinds = [(column[i].dtype, column[i].device) for column in columns]
            key = (grad.dtype, grad.device, *[id(tick[i]) for tick in ticks], *kinds)
        members, size = open_parts.get(key, ([], 0))
        if members and grad.is_cpu and size + grad.numel() > _PART:
            yield members, True, None if params is None else [params[m] for m in members]
            members, size = [], 0
        members.append(i)
        open_parts[key] = members, size + grad.numel()
    for members, _ in open_parts.values():
        yield members, True, None if params is None else [params[m] for m in members]
