# SPDX-License-Identifier: Apache-2.0
"""Any transformation as a ``torch.optim.Optimizer``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import Any

import torch

from optcore._apply import apply_updates
from optcore._class_state import SHARED, TREES, ClassState
from optcore._deferred import Deferred, Run
from optcore._fused import FusedStep, Naming, Ready, check_apart
from optcore._hyperparams import check_range
from optcore._inject import assigned, check_entries, injected
from optcore._kept import Kept, kinds
from optcore._kernel_checks import checked
from optcore._leafwise import check_gradient
from optcore._masking import spread
from optcore._one_group import check_one_group
from optcore._param_group import check_known, guarded, listed
from optcore._rows import OptimizerRow
from optcore._tokens import show
from optcore._torch_state import (
    check_options,
    restore_scalars,
    written,
)
from optcore._transform import GradientTransformation
from optcore._tree import (
    ParamDict,
    Tree,
    describe,
    is_param_dict,
    map_tensors,
    tree_flatten,
    tree_unflatten,
)
from optcore._watched import watched


class Optimizer(ClassState, torch.optim.Optimizer):
    """Any transformation as a ``torch.optim.Optimizer``.

    Parameter groups, hooks, ``state_dict``, GradScaler and pickling are torch's own. A step updates
    parameters and state in place; gradients are left as they are.

    Args:
        params: Parameters, named parameters, or dicts of parameter groups.
        transformation: The optimizer in its functional form. What :func:`inject_hyperparams` keeps
            in its state stands in the groups instead (an ``lr`` for schedulers, a value per
            group); any other has no learning rate that a scheduler could set. Groups are stepped
            one by one: a norm of all updates (:func:`clip_by_global_norm`) is that of a group, and
            a group without gradients is not stepped at all.

    Raises:
        TypeError: ``transformation`` is not a :class:`GradientTransformation`.

    Example:
        >>> import torch
        >>> import optcore
        >>> w = torch.nn.Parameter(torch.tensor([2.0]))
        >>> optimizer = Optimizer([w], optcore.chain(optcore.trace(0.9), optcore.scale(-0.25)))
        >>> (w**2).sum().backward()
        >>> optimizer.step()
        >>> w.detach()
        tensor([1.])
    """

    row: OptimizerRow | None = None

    def __init__(self, params: Any, transformation: GradientTransformation) -> None:
        if not isinstance(transformation, GradientTransformation):
            raise TypeError(
                f"{type(self).__name__}: expected a GradientTransformation, got "
                f"{describe(transformation)}; e.g. optcore.adam()"
            )
        self._transformation = transformation
        self._kept: dict[int, Kept] = {}
        super().__init__(params, injected(transformation))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take in more parameters, with hyperparameters of their own where the dict has them.

        Raises:
            TypeError: An option of torch.optim that optcore does not have.
            ValueError: A hyperparameter is out of range or one that nothing here reads, or a second
                group where the transformation needs all parameters together; the optimizer is as
                before then.
        """
        who = type(self).__name__
        if isinstance(param_group, dict):  # torch says what else is wrong
            check_options(who, self.row, param_group, len(self.param_groups))
            if self.row is None:
                check_known(who, param_group, self.defaults, len(self.param_groups))
                check_entries(who, self._transformation, {**self.defaults, **param_group})
            transformation = self._group_transformation({**self.defaults, **param_group})
            check_one_group(who, transformation, len(self.param_groups))
        super().add_param_group(param_group)
        group = self.param_groups.pop()
        self._check_trees(group, len(self.param_groups))
        self.param_groups.append(guarded(group, who))

    def _check_trees(self, group: dict[str, Any], index: int) -> None:
        """Refuse hyperparameters and masks whose parts belong to no parameters of the group."""
        transformation = self._group_transformation(group)
        params = ParamDict.fromkeys(range(len(group["params"])))  # shapes are a step's to check
        try:
            transformation.check(params)
            for member in _members(transformation):
                for name in TREES:
                    tree = member._static.get(name)
                    if isinstance(tree, (dict, list, tuple)):
                        spread(member._name, name, tree, params)
        except ValueError as error:
            raise ValueError(
                f"{type(self).__name__}: {error}, at group {index}; give a value per parameter by "
                "its place in the group: {0: ..., 1: ...}"
            ) from None

    def state_dict(self) -> dict[str, Any]:
        """The state as torch.optim's class of the same name writes it, if there is one.

        It loads there and goes on with the same steps, provided that the hyperparameters are what
        torch has too (:meth:`TableOptimizer.to_torch` checks that). Buffers are those of the
        optimizer, step counts and other scalars are copies.
        """
        hook = self.register_state_dict_post_hook(written, prepend=True)  # others see the result
        try:
            return super().state_dict()
        finally:
            hook.remove()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state, also from one of the torch.optim class with the same name.

        Torch 2.6 writes the same for Adam and AdamW: only the class, or ``AMSGrad`` made with
        ``decoupled_weight_decay=True``, then says how weights decay.

        Raises:
            TypeError: The state of a differentiable optimizer.
            ValueError: Other groups, or options that make another optimizer of it (``amsgrad``);
                the optimizer is as before then.
        """
        who = f"{type(self).__name__}.load_state_dict"
        loaded: list[dict[str, Any]] = []

        def look(_: Any, given: dict[str, Any]) -> None:  # at what other hooks made of it
            for index, group in enumerate(given["param_groups"]):
                check_options(who, self.row, group, index)
            loaded.append(given)

        hook = self.register_load_state_dict_pre_hook(look)
        try:
            super().load_state_dict(state_dict)
        finally:
            hook.remove()
        self._restore(loaded[-1])

    def _restore(self, loaded: dict[str, Any]) -> None:
        """Undo what torch did to scalars of a loaded state."""
        restore_scalars(self, loaded)

    def functional(self, params: Tree) -> tuple[GradientTransformation, Tree]:
        """The transformation and the state with which functional steps go on from here.

        Args:
            params: A tree of parameters of this optimizer, all of one group.

        Returns:
            The transformation with the hyperparameters that the group has now, and a copy of its
            state in the shape of ``params``.

        Raises:
            ValueError: A leaf is no parameter of this optimizer, or they are of several groups.

        Example:
            >>> import torch
            >>> import optcore
            >>> w = torch.nn.Parameter(torch.ones(2))
            >>> tx, state = optcore.from_torch(torch.optim.Adam([w])).functional({"w": w})
            >>> state[0].mu
            {'w': tensor([0., 0.])}
        """
        leaves, spec = tree_flatten(params)
        wanted = {id(leaf) for leaf in leaves}
        groups = [g for g in self.param_groups if wanted <= {id(p) for p in g["params"]}]
        if not groups:
            raise ValueError(
                f"{type(self).__name__}.functional: expected parameters of one group of this "
                "optimizer, got others; call it for each group"
            )
        transformation = self._group_transformation(groups[0])
        state = self._read_state(transformation, groups[0], ParamDict(enumerate(leaves)))
        state = map_tensors(torch.clone, assigned(transformation, state, groups[0]))

        def shaped(_: str, slot: Any) -> Any:
            return tree_unflatten(spec, slot.values()) if is_param_dict(slot) else slot

        return transformation, self._map_slots(shaped, state)

    @watched
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, **extra: Any) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: Recomputes the loss (and the gradients) first.
            extra: Arguments for transformations that ask for some. ``value`` is what ``closure``
                returned, unless given. What is shaped like parameters is a dict by their place in
                the group.

        Returns:
            What ``closure`` returned, or None.

        Raises:
            TypeError: A gradient is sparse or complex, or no tensor for kernels where they are
                asked for; nothing has changed then.
            ValueError: A hyperparameter was set out of its range, a loaded state lacks a buffer,
                or tensors that kernels write share memory; nothing has changed then. What the
                transformation finds in the numbers themselves comes after the groups before have
                moved.
        """
        self._check_ready()
        loss = self._evaluated(closure)
        if closure is not None:
            extra.setdefault("value", loss.detach() if isinstance(loss, torch.Tensor) else loss)
        self._transformation.check_extra(extra)
        groups = listed(self)
        for index in [i for i in self._kept if i >= len(groups)]:
            del self._kept[index]
        # all checks before any change
        found = [self._prepared(i, group, extra) for i, group in enumerate(groups)]
        steps = [step for step in found if step is not None]
        check_apart([call for step in steps for call in step.calls])
        for step in steps:
            step.take()
        return loss

    def _check_ready(self) -> None:
        """Refuse a step that must not be taken now."""

    def _evaluated(self, closure: Callable[[], Any] | None) -> Any:
        """What the closure returned; afterwards the gradients are those to step by."""
        if closure is None:
            return None
        with torch.enable_grad():
            return closure()

    def _prepared(self, index: int, group: dict[str, Any], extra: dict[str, Any]) -> Ready | None:
        """The step of a group; None if nothing there has a gradient."""
        found = [p.grad for p in group["params"]]
        present = [p for p, g in zip(group["params"], found, strict=True) if g is not None]
        kept = self._kept.pop(index, None)
        if not present:
            return None
        # nothing of a compiled step is kept: its tensors stand for others
        settings = None if torch.compiler.is_compiling() else self._settings(group)
        every = [*self.state.values()]
        if kept is not None and not kept.continues(
            settings, present, every, _entries(group, kept.own)
        ):
            kept = None  # what was replaced need not live on
        if kept is not None:
            grads = found
            if len(kept.params) < len(found):  # it saw those with a gradient only
                grads = [grad for grad in found if grad is not None]
            if kept.settings != settings:
                kept = self._renumbered(kept, settings, group)
            again = kept.repetition(grads)
            if again is not None:
                return Ready(partial(self._repeat, index, kept, again.take), again.calls)
            if not kept.fits(present):
                kept = None
        if kept is not None:
            params, known = kept.params, kept.state
            state = known
            transformation = kept.transformation or self._group_transformation(group)
        else:
            for p in present:
                check_gradient(type(self).__name__, p.grad)
            transformation = self._group_transformation(group)
            params = ParamDict(enumerate(group["params"]))
            transformation.check(params)
            if not self._holds_trees(group, transformation):  # a tree fits all parameters only
                params = ParamDict((i, p) for i, p in params.items() if p.grad is not None)
            grads = [p.grad for p in params.values()]
            state, known = self._read_state(transformation, group, params), None
            self._check_buffers(index, transformation, state, params)
        state = assigned(transformation, state, group)
        tree = ParamDict(zip(params, grads, strict=True))
        naming = self._naming(index, [*params])
        fused = FusedStep.of(naming, transformation, tree, state, params, True)

        calls = (
            checked(naming, transformation, tree, state, params) if fused is None else fused.calls
        )

        def step() -> None:
            run: Run | FusedStep | None = None
            if fused is not None:
                new = fused.add()
                run = fused if fused.repeats else None
            else:
                deferred = Deferred(tree)
                updates, new = transformation.apply(deferred, state, params, True, extra)
                if isinstance(updates, Deferred):
                    run = updates.add_to([*params.values()])
                    run = run if updates is deferred and run.carries(state, new) else None
                else:
                    apply_updates(params, updates, inplace=True)
            self._write_state(group, params, new, known)
            if settings is not None:
                own = [self.state[p] for p in params.values() if p in self.state]
                self._kept[index] = Kept(
                    settings=settings,
                    transformation=transformation,
                    params=params,
                    present=present,
                    kinds=kinds(present),
                    every=[*self.state.values()],
                    own=own,
                    entries=_entries(group, own),
                    state=new,
                    run=run,
                )

        return Ready(step, calls)

    def _repeat(self, index: int, kept: Kept, take: Callable[[], None]) -> None:
        """Take the last step once more; while it runs no other thread may begin with it."""
        take()
        self._kept[index] = kept

    def _naming(self, index: int, keys: list[int]) -> Naming:
        """What errors of kernels call the parameters of a group, and their buffers."""
        names = self.row.torch_keys if self.row else {}

        def place(leaf: int) -> str:
            return f"parameter {keys[leaf]} of group {index}"

        return Naming(type(self).__name__, place, names)

    def _renumbered(self, kept: Kept, settings: tuple[Any, ...], group: dict[str, Any]) -> Kept:
        """The last step with the hyperparameters that the group has now.

        Raises:
            ValueError: One is out of its range.
        """
        lr = group.get("lr")
        if lr is settings[0] and kept.settings[1:] == settings[1:]:  # as a scheduler leaves it
            check_range(self.row.name, "lr", lr, 0.0)
            rated = kept.at_rate(settings, lr)
            if rated is not None:
                return rated
        return kept.renumbered(settings, self._group_transformation(group))

    def _settings(self, group: dict[str, Any]) -> tuple[Any, ...] | None:
        """What decides how a group is treated, if it can be compared; else None."""
        return ()

    def _group_transformation(self, group: dict[str, Any]) -> GradientTransformation:
        return self._transformation

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_transformation": self._transformation}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._kept = {}
        self.param_groups = [guarded(group, type(self).__name__) for group in self.param_groups]
        for group in self.param_groups:  # a checkpoint may lack what its writer had no name for
            for name, value in self.defaults.items():
                if name != "differentiable":  # a default that torch adds on the way
                    group.setdefault(name, value)

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for index, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {index}")
            lines += [f"    {k}: {show(group.get(k))}" for k in sorted(group) if k != "params"]
        return "\n".join([*lines, ")"])


def _entries(group: dict[str, Any], own: Iterable[dict[str, Any]]) -> list[Any]:
    """All that is kept for some parameters of a group."""
    entries = [*chain.from_iterable(map(dict.values, own))]
    return [*entries, *group[SHARED].values()] if SHARED in group else entries


def _members(transformation: GradientTransformation) -> Iterator[GradientTransformation]:
    """The transformation and the members of chains: they all see the parameters as they are."""
    yield transformation
    members = transformation._static.get("transformations")
    for member in members if isinstance(members, tuple) else ():
        yield from _members(member)
