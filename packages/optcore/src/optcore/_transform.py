# SPDX-License-Identifier: Apache-2.0
"""Gradient transformations as values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from numbers import Real
from typing import Any, NamedTuple

import torch

from optcore._declared import extra_checks, holds_kernels, takes_extra, uses_kernel
from optcore._deferred import settled
from optcore._hyperparams import (
    Hyperparam,
    at_count,
    check_broadcast,
    is_scheduled,
    per_leaf,
)
from optcore._modes import (
    OUT_OF_PLACE,
    carries_no_graph,
    differentiates,
    mark_no_graph,
    warn_no_graph,
)
from optcore._tokens import show, token
from optcore._tree import (
    Tree,
    describe,
    flatten_like,
    tensors_in,
    tree_leaves,
    tree_structure,
)


class EmptyState(NamedTuple):
    """State of a transformation that remembers nothing."""


class ScheduleState(NamedTuple):
    """State of a transformation one of whose hyperparameters is a schedule."""

    count: torch.Tensor  # i64[]: updates so far, whatever was skipped
    inner: Tree  # state of the transformation itself


class GradientTransformation:
    """A frozen pair of functions that turns gradients into updates.

    ``init(params)`` makes the state; ``update(updates, state, params)`` returns new updates and
    the new state. Transformations are values: equal functions and hyperparameters compare and
    hash equal (tensors by identity), they pickle, and no update leaves a trace in them.

    Args:
        init: Module-level function ``init(params, **hyperparams, **static) -> state``.
        update: Module-level function ``update(updates, state, params, *, inplace, **hyperparams,
            **static) -> (updates, state)``. Declaring ``**extra``, under this name, subscribes it
            to the extra arguments of :meth:`update`.
        hyperparams: Numbers, schedules, tensors or prefix trees; ``update`` gets schedules
            evaluated, ``init`` as they are.
        static: Everything else that the two functions need.
        name: How the transformation calls itself in ``repr`` and in errors.
        needs_params: Whether ``update`` cannot do without ``params``.

    Example:
        >>> import torch
        >>> double = GradientTransformation(stateless_init, lambda u, s, p, *, inplace: (2 * u, s))
        >>> updates, state = double.update(torch.ones(2), double.init(None))
        >>> updates
        tensor([2., 2.])
    """

    __slots__ = (
        "_extra",
        "_hyperparams",
        "_init",
        "_name",
        "_scheduled",
        "_static",
        "_update",
        "extra_checks",
        "holds_kernels",
        "needs_params",
        "takes_deferred",
        "uses_kernel",
    )

    def __init__(
        self,
        init: Callable[..., Tree],
        update: Callable[..., tuple[Tree, Tree]],
        hyperparams: Mapping[str, Hyperparam] | None = None,
        static: Mapping[str, Any] | None = None,
        *,
        name: str | None = None,
        needs_params: bool = False,
    ) -> None:
        for what, function in (("init", init), ("update", update)):
            if not callable(function):
                raise TypeError(
                    f"GradientTransformation: expected a callable {what}, got {describe(function)}"
                )
        told = uses_kernel(static or {})
        fields = {
            "_init": init,
            "_update": update,
            # Plain dicts: torch.compile reads no proxy once a dict has changed (functional_call).
            "_hyperparams": dict(hyperparams or {}),
            "_static": dict(static or {}),
            "_name": name or getattr(update, "__name__", "update"),
            "_scheduled": any(is_scheduled(value) for value in (hyperparams or {}).values()),
            "_extra": takes_extra(update),
            "extra_checks": extra_checks(update, static or {}),
            "takes_deferred": getattr(update, "takes_deferred", False),
            "needs_params": needs_params,
            "uses_kernel": told,
            "holds_kernels": told or holds_kernels(static or {}),
        }
        for field, value in fields.items():
            object.__setattr__(self, field, value)

    def init(self, params: Tree) -> Tree:
        """State for these parameters, before the first update.

        Raises:
            ValueError: A hyperparameter is a tree but not a prefix of the parameters.
        """
        self._check_hyperparams(params)
        state = self._init(params, **self._hyperparams, **self._static)
        return ScheduleState(new_count(), state) if self._scheduled else state

    def check(self, params: Tree) -> None:
        """Refuse parameters that the hyperparameters, those of a chain's members too, do not fit.

        Raises:
            ValueError: A tree that is no prefix of the parameters, or a tensor that does not
                broadcast to them.
        """
        self._check_hyperparams(params)
        members = self._static.get("transformations")
        for member in members if isinstance(members, tuple) else ():
            member.check(params)

    def check_extra(self, extra: Mapping[str, Any]) -> None:
        """Refuse a lack of extra arguments that :meth:`update` asks for."""
        for check in self.extra_checks:
            check(extra)

    def _check_hyperparams(self, params: Tree) -> None:
        for name, value in self._hyperparams.items():
            if isinstance(value, Real) or callable(value):
                continue
            values = per_leaf(self._name, name, value, params)
            for index, param in enumerate(tree_leaves(params)):
                own = value if values is None else values[index]
                if isinstance(own, torch.Tensor) and isinstance(param, torch.Tensor) and own.ndim:
                    check_broadcast(self._name, own, param, params, index)

    def update(
        self,
        updates: Tree,
        state: Tree,
        params: Tree = None,
        *,
        inplace: bool | None = None,
        **extra: Any,
    ) -> tuple[Tree, Tree]:
        """Transform gradients (or the updates of another transformation).

        Args:
            updates: Tree of gradients like the parameters. A None leaf means no gradient: it stays
                None and that leaf's state stays as it is.
            state: What :meth:`init` or the previous update returned.
            params: The parameters, where a transformation needs them (weight decay).
            inplace: False: differentiable, nothing is overwritten. True: no graph is recorded and
                buffers of ``state`` may be overwritten, gradients never. None: False if anything
                here is being differentiated or compiled, or a parameter is not a leaf; else True.
            extra: Arguments for transformations that declare ``**extra``; others do not see them.

        Returns:
            The new updates, to be given to :func:`apply_updates`, and the new state.

        Raises:
            ValueError: ``updates`` or ``params`` differ in structure from the parameters that the
                state was made for, or ``params`` are needed and missing; the state is as before.
                In place, what a link of a chain finds in the numbers themselves (as
                ``clip_grad_norm(error_if_nonfinite=True)``) comes after the links before it have
                moved: put such a link first. So does what a formula finds in a state that another
                transformation's ``init`` made; the states of kernels are all looked at first.

        Warns:
            UserWarning: ``inplace=False`` asks for a differentiable step but the gradients carry
                no graph although the parameters do.
        """
        if params is not None:
            spec = tree_structure(updates)
            flatten_like(self._name, "params differ from updates", spec, params)
        elif self.needs_params:
            raise ValueError(
                f"{self._name}: expected params, got None; call update(updates, state, params)"
            )
        self.check_extra(extra)
        if inplace is None:
            given = (updates, state, extra, list(self.tensors(state)))
            inplace = not (differentiates(given, params) or OUT_OF_PLACE.get())
        elif inplace is False and carries_no_graph(updates):
            if any(p.grad_fn is not None for p in tensors_in([params])):
                warn_no_graph(self._name)
            else:  # apply_updates may see parameters that are not leaves
                given = updates
                updates, state = self.apply(updates, state, params, False, extra)
                return mark_no_graph(updates, given), state
        with torch.no_grad() if inplace else nullcontext():
            if inplace and self.holds_kernels:
                from optcore._fused import Naming, check_apart  # these build on this module
                from optcore._kernel_checks import checked

                check_apart(checked(Naming(self._name), self, updates, state))
            return self.apply(updates, state, params, inplace, extra)

    def apply(
        self, updates: Tree, state: Tree, params: Tree, inplace: bool, extra: Mapping[str, Any]
    ) -> tuple[Tree, Tree]:
        """:meth:`update` with the mode already decided; for transformations that hold others."""
        extra = extra if self._extra else {}
        if not self.takes_deferred:
            updates = settled(updates)
        if not self._scheduled:
            return self._update(
                updates,
                state,
                params,
                inplace=inplace,
                **self._hyperparams,
                **self._static,
                **extra,
            )
        if not isinstance(state, ScheduleState):
            raise TypeError(f"{self._name}: expected a ScheduleState, got {describe(state)}")
        now = {name: at_count(value, state.count) for name, value in self._hyperparams.items()}
        updates, inner = self._update(
            updates, state.inner, params, inplace=inplace, **now, **self._static, **extra
        )
        return updates, ScheduleState(state.count + 1, inner)

    def step(
        self,
        grads: Tree,
        state: Tree,
        params: Tree,
        *,
        inplace: bool | None = None,
        **extra: Any,
    ) -> tuple[Tree, Tree]:
        """One step: :meth:`update`, then :func:`apply_updates`.

        With ``use_accelerated_op=True`` both are one call of a kernel, where the installed package
        has it.

        Args:
            grads: Tree of gradients like the parameters; None where there is none.
            state: What :meth:`init` or the previous step returned.
            params: The parameters.
            inplace: As in :meth:`update`.
            extra: As in :meth:`update`.

        Returns:
            The new parameters and the new state.

        Raises:
            NotImplementedError: A kernel that cannot take such hyperparameters; nothing has
                changed then, unless a schedule gave them.
            TypeError: A gradient that no formula takes; nothing has changed then.
            ValueError: Trees or shapes that differ; nothing has changed then. As in :meth:`update`
                what a link finds in the numbers themselves, or in a state that another
                transformation's ``init`` made, comes after the links before it have moved.

        Example:
            >>> import optcore
            >>> opt, params = optcore.sgd(lr=0.5), {"w": torch.ones(2)}
            >>> opt.step({"w": torch.ones(2)}, opt.init(params), params)[0]
            {'w': tensor([0.5000, 0.5000])}
        """
        from optcore._fused import take_step  # _fused.py builds on this module

        self.check_extra(extra)
        if inplace is None:
            given = (grads, state, extra, list(self.tensors(state)))
            inplace = not (differentiates(given, params) or OUT_OF_PLACE.get())
        with torch.no_grad() if inplace else nullcontext():
            return take_step(self, grads, state, params, inplace, extra)

    @property
    def arguments(self) -> dict[str, Any]:
        """What it was made with: ``GradientTransformation(**t.arguments) == t``.

        For programs that take transformations apart; those it holds are in ``static``.

        Example:
            >>> import optcore
            >>> optcore.sgd(lr=0.5).arguments["name"]
            'sgd'
        """
        return {
            "init": self._init,
            "update": self._update,
            "hyperparams": dict(self._hyperparams),
            "static": dict(self._static),
            "name": self._name,
            "needs_params": self.needs_params,
        }

    def named(self, name: str) -> GradientTransformation:
        """The same transformation, which calls itself ``name`` in ``repr`` and in errors."""
        return GradientTransformation(**{**self.arguments, "name": name})

    def chain(self, following: GradientTransformation) -> GradientTransformation:
        """This transformation, then ``following``."""
        from optcore._chain import chain  # chain.py builds on this module

        return chain(self, following)

    def tensors(self, state: Tree = None) -> Iterator[torch.Tensor]:
        """Tensors that the hyperparameters are or (schedules) give now, inner ones included.

        Args:
            state: Whose counts the schedules are evaluated at; None for the first step.
        """
        counts = iter(
            [
                node.count
                for node in tree_leaves(state, is_leaf=_is_schedule_state)
                if _is_schedule_state(node)
            ]
        )
        for transformation in self._all():
            count = next(counts, new_count()) if transformation._scheduled else None
            for value in transformation._hyperparams.values():
                yield from tensors_in([value if count is None else at_count(value, count)])

    def _all(self) -> Iterator[GradientTransformation]:
        """This transformation and those it holds, in the order of their states."""
        yield self
        for leaf in tree_leaves(dict(self._static)):
            if isinstance(leaf, GradientTransformation):
                yield from leaf._all()

    def __iter__(self) -> Iterator[Callable[..., Any]]:
        return iter((self.init, self.update))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{self._name}: expected no assignment to .{name}: it is frozen")

    __delattr__ = __setattr__  # type: ignore[assignment]

    def _key(self) -> tuple[Any, ...]:
        return (
            self._init,
            self._update,
            token(dict(self._hyperparams)),
            token(dict(self._static)),
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GradientTransformation):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, tuple(self.arguments.values())

    def __repr__(self) -> str:
        fields = {**self._hyperparams, **self._static}
        return f"{self._name}({', '.join(f'{k}={show(v)}' for k, v in fields.items())})"


def _rebuild(*arguments: Any) -> GradientTransformation:
    *fields, name, needs_params = arguments
    return GradientTransformation(*fields, name=name, needs_params=needs_params)


def _is_schedule_state(node: object) -> bool:
    return isinstance(node, ScheduleState)


def new_count() -> torch.Tensor:
    """A step count of zero: on the CPU, so that nothing ever waits for a device to read it."""
    return torch.zeros((), dtype=torch.int64)


def stateless_init(params: Tree, **_: Any) -> EmptyState:
    """``init`` of a transformation that remembers nothing."""
    return EmptyState()
