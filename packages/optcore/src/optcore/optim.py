# SPDX-License-Identifier: Apache-2.0
"""``torch.optim`` classes derived from the functional optimizers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from typing import TYPE_CHECKING, Any

import torch

from optcore._deferred import Deferred, Run
from optcore._fused import FusedStep, Naming, Ready, check_apart
from optcore._hyperparams import check_range
from optcore._inject import assigned, injected
from optcore._kept import Kept, comparable, kinds
from optcore._leafwise import check_gradient
from optcore._masking import MaskedNode, spread
from optcore._optimizers import OPTIMIZERS
from optcore._param_group import guarded
from optcore._rows import OptimizerRow
from optcore._torch_state import (
    check_options,
    handed_over,
    restore_scalars,
    row_of,
    taken_over,
    written,
)
from optcore._transform import GradientTransformation, apply_updates, show
from optcore._tree import (
    ParamDict,
    Tree,
    describe,
    is_param_dict,
    map_tensors,
    tree_flatten,
    tree_unflatten,
)

if TYPE_CHECKING:
    from typing_extensions import Self

_TREES = ("mask", "param_labels")  # what a transformation holds beside its hyperparameters
_SHARED = "shared_state"  # group entry for state that belongs to no single parameter


class Optimizer(torch.optim.Optimizer):
    """Any transformation as a ``torch.optim.Optimizer``.

    Parameter groups, hooks, ``state_dict``, GradScaler and pickling are torch's own. A step updates
    parameters and state in place; gradients are left as they are.

    Args:
        params: Parameters, named parameters, or dicts of parameter groups.
        transformation: The optimizer in its functional form. What :func:`inject_hyperparams` keeps
            in its state stands in the groups instead (an ``lr`` for schedulers, a value per
            group); any other has no learning rate that a scheduler could set.

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
            ValueError: A hyperparameter is out of range; the optimizer is as before then.
        """
        who = type(self).__name__
        if isinstance(param_group, dict):  # torch says what else is wrong
            check_options(who, self.row, param_group, len(self.param_groups))
            self._group_transformation({**self.defaults, **param_group})
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
                for name in _TREES:
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

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: Recomputes the loss (and the gradients) first.

        Returns:
            What ``closure`` returned, or None.

        Raises:
            TypeError: A gradient is sparse or complex; nothing has changed then.
            ValueError: A hyperparameter was set out of its range, or a loaded state lacks a
                buffer; nothing has changed then.
        """
        self._check_ready()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for index in [i for i in self._kept if i >= len(self.param_groups)]:
            del self._kept[index]
        # all checks before any change
        found = [self._prepared(i, group) for i, group in enumerate(self.param_groups)]
        steps = [step for step in found if step is not None]
        check_apart([call for step in steps for call in step.calls])
        for step in steps:
            step.take()
        return loss

    def _check_ready(self) -> None:
        """Refuse a step that must not be taken now."""

    def _prepared(self, index: int, group: dict[str, Any]) -> Ready | None:
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
                self._kept[index] = kept
                return again
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

        def step() -> None:
            run: Run | FusedStep | None = None
            if fused is not None:
                new = fused.add()
                run = fused if fused.repeats else None
            else:
                deferred = Deferred(tree)
                updates, new = transformation.apply(deferred, state, params, True, {})
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

        return Ready(step, () if fused is None else fused.calls)

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

    def _check_buffers(
        self, index: int, transformation: GradientTransformation, state: Any, params: ParamDict
    ) -> None:
        """Refuse what was loaded for, or assigned to, a parameter of another shape."""
        who = type(self).__name__
        for i, p in params.items():
            if p.grad is not None and p.grad.shape != p.shape:
                raise ValueError(
                    f"{who}: expected a gradient like its parameter {describe(p)}, got "
                    f"{describe(p.grad)}, at parameter {i} of group {index}"
                )
        if torch.compiler.is_compiling():
            return
        expected: dict[str, Any] = {}

        def note(name: str, slot: Any) -> None:
            expected.setdefault(name, slot)

        def check(name: str, slot: Any) -> None:
            for i, p in params.items() if is_param_dict(slot) else ():
                own = slot[i]
                if not isinstance(own, torch.Tensor) or not own.ndim or own.shape == p.shape:
                    continue
                if not expected:  # on the device without memory
                    like = [(j, torch.empty_like(q, device="meta")) for j, q in params.items()]
                    self._map_slots(note, transformation.init(ParamDict(like)))
                wanted = expected[name][i]
                if isinstance(wanted, torch.Tensor) and wanted.shape != own.shape:
                    raise ValueError(
                        f"{who}: expected {name!r} as {describe(wanted)}, got {describe(own)}, at "
                        f"parameter {i} of group {index}; load a state made for this parameter"
                    )

        self._map_slots(check, state)

    def _settings(self, group: dict[str, Any]) -> tuple[Any, ...] | None:
        """What decides how a group is treated, if it can be compared; else None."""
        return ()

    def _group_transformation(self, group: dict[str, Any]) -> GradientTransformation:
        return self._transformation

    def _holds_trees(self, group: dict[str, Any], transformation: GradientTransformation) -> bool:
        """Whether something has a value per parameter: by its place in the group, in a dict."""
        if any(isinstance(group.get(name), dict) for name in self.defaults):
            return True
        for member in transformation._all():
            values = [*member._hyperparams.values(), *map(member._static.get, _TREES)]
            for name in ("numbers", "schedules", "fixed"):  # of inject_hyperparams
                values += (member._static.get(name) or {}).values()
            if any(isinstance(value, dict) for value in values):
                return True
        return False

    def _read_state(
        self, transformation: GradientTransformation, group: dict[str, Any], params: ParamDict
    ) -> Any:
        """The functional state of some parameters, from what torch keeps per parameter."""
        shared = group.get(_SHARED, {})
        implied = self.row.implied if self.row else {}
        counts = {name: torch.tensor(value) for name, value in implied.items()}

        def read(name: str, fresh: Any) -> Any:
            if not is_param_dict(fresh):
                return shared.get(name, fresh)
            slot = ParamDict()
            for i, p in params.items():
                own = self.state.get(p)
                kept = {**counts, **(own or {})}
                if own and name not in kept:
                    raise ValueError(
                        f"{type(self).__name__}: expected {name!r} in the state of parameter {i}, "
                        f"got {sorted(kept)}; load a state that this optimizer made"
                    )
                slot[i] = kept[name] if own else fresh[i]
                if isinstance(slot[i], tuple):
                    slot[i] = MaskedNode()  # kept as (), which every checkpoint can hold
            return slot

        fresh = params
        if not self._holds_trees(group, transformation):
            fresh = ParamDict((i, p) for i, p in params.items() if not self.state.get(p))
        return self._map_slots(read, transformation.init(fresh))

    def _write_state(
        self, group: dict[str, Any], params: ParamDict, state: Any, known: Any = None
    ) -> None:
        """Keep the state per parameter, but for what stands there already in ``known``."""
        for name, slot in self._changed_slots(state, known):
            if is_param_dict(slot):
                for i, p in params.items():
                    if p.grad is None and not self.state.get(p):
                        continue  # its state is made when it moves
                    self.state[p][name] = () if isinstance(slot[i], MaskedNode) else slot[i]
            else:
                group.setdefault(_SHARED, {})[name] = slot

    def _changed_slots(
        self, node: Any, known: Any, path: tuple[str, ...] = ()
    ) -> Iterator[tuple[str, Any]]:
        """Torch's name and the value of each slot that is not the one in ``known``."""
        if node is known and node is not None:
            return
        if isinstance(node, tuple):
            names = getattr(node, "_fields", map(str, range(len(node))))
            old = known if isinstance(known, tuple) and len(known) == len(node) else repeat(None)
            for name, part, other in zip(names, node, old, strict=False):
                yield from self._changed_slots(part, other, (*path, name))
        elif isinstance(node, dict) and not is_param_dict(node):
            old = known if isinstance(known, dict) else {}
            for key, part in node.items():
                yield from self._changed_slots(part, old.get(key), (*path, str(key)))
        else:
            yield self._slot_name(path), node

    def _map_slots(
        self, fn: Callable[[str, Any], Any], node: Any, path: tuple[str, ...] = ()
    ) -> Any:
        """Map the per-parameter buffers and the other leaves of a state, with torch's names."""
        if isinstance(node, tuple):
            names = getattr(node, "_fields", map(str, range(len(node))))
            parts = [self._map_slots(fn, v, (*path, k)) for k, v in zip(names, node, strict=True)]
            return type(node)(*parts) if hasattr(node, "_fields") else tuple(parts)
        if isinstance(node, dict) and not is_param_dict(node):
            return {k: self._map_slots(fn, v, (*path, str(k))) for k, v in node.items()}
        return fn(self._slot_name(path), node)

    def _slot_name(self, path: tuple[str, ...]) -> str:
        keys = self.row.torch_keys if self.row and path else {}
        return keys.get(path[-1] if path else "", ".".join(path))

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
    entries = [entry for kept in own for entry in kept.values()]
    return [*entries, *group[_SHARED].values()] if _SHARED in group else entries


def _members(transformation: GradientTransformation) -> Iterator[GradientTransformation]:
    """The transformation and the members of chains: they all see the parameters as they are."""
    yield transformation
    members = transformation._static.get("transformations")
    for member in members if isinstance(members, tuple) else ():
        yield from _members(member)


class TableOptimizer(Optimizer):
    """An optimizer whose hyperparameters stand in its groups, where schedulers find them."""

    row: OptimizerRow

    def __init__(self, params: Any, **hyperparams: Any) -> None:
        self._transformation = self.row.factory(**hyperparams)  # refuses before anything exists
        self._kept = {}
        torch.optim.Optimizer.__init__(self, params, {**self.row.defaults, **hyperparams})

    @classmethod
    def from_torch(cls, optimizer: torch.optim.Optimizer) -> Self:
        """Go on where an optimizer of torch.optim stands: same parameters, groups and steps.

        The buffers of its state are taken over, not copied: go on with one of the two. Hooks and
        schedulers stay behind. ``foreach``, ``fused`` and ``capturable`` choose how torch computes
        a step, not what, and are dropped.

        Args:
            optimizer: Of the torch.optim class whose steps are those of this class, also one
                that took no step yet.

        Raises:
            TypeError: Another class, complex parameters, or ``differentiable=True``.
            ValueError: An option that this class does not have.

        Example:
            >>> import torch
            >>> import optcore
            >>> w = torch.nn.Parameter(torch.ones(2))
            >>> optcore.Adam.from_torch(torch.optim.Adam([w], lr=0.5)).param_groups[0]["lr"]
            0.5
        """
        return taken_over(cls, optimizer)

    def to_torch(self) -> torch.optim.Optimizer:
        """Go on with torch.optim: its optimizer of the same parameters, groups and steps.

        The buffers are handed over, not copied: go on with one of the two. A step count that the
        rule does not need (``rmsprop``, ``adadelta``, ``rprop``) starts at 0.

        Raises:
            TypeError: torch.optim has no such optimizer.
            ValueError: A hyperparameter that torch.optim cannot have: a schedule, a tree, an
                option of optcore only.

        Example:
            >>> import torch
            >>> import optcore
            >>> w = torch.nn.Parameter(torch.ones(2))
            >>> type(optcore.AMSGrad([w]).to_torch())
            <class 'torch.optim.adam.Adam'>
        """
        return handed_over(self)

    def _group_transformation(self, group: dict[str, Any]) -> GradientTransformation:
        return self.row.factory(**{name: group.get(name) for name in self.row.defaults})

    def _settings(self, group: dict[str, Any]) -> tuple[Any, ...] | None:
        return comparable([group.get(name) for name in self.row.defaults])


# options of torch.optim's classes -> what to do here
_TORCH_ONLY = {
    "amsgrad": "use optcore.AMSGrad",
    "decoupled_weight_decay": "use optcore.AdamW",
    "differentiable": "a class steps outside the graph: use the functional form, inplace=False",
    "capturable": "drop it: an accelerated step is captured where its counts are on the GPU",
    "foreach": "drop it: small tensors always go together",
    "fused": "drop it, or ask for use_accelerated_op=True",
}


def derive_class(row: OptimizerRow, base: type, module: str, prefix: str = "") -> Any:
    """The class of a row: ``base`` taking the factory's keywords where its own end.

    Args:
        row: The optimizer.
        base: A class with a ``row`` whose constructor hands ``**hyperparams`` to the factory.
        module: Where the class will stand, for pickling.
        prefix: Put before the row's class name.

    Example:
        >>> derive_class(OPTIMIZERS["adam"], TableOptimizer, __name__, "My").__name__
        'MyAdam'
    """
    name = prefix + row.class_name
    own = [*inspect.signature(base.__init__).parameters.values()]  # type: ignore[misc]
    keywords = [*inspect.signature(row.factory).parameters.values()]
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    signature = inspect.Signature(
        [p for kind in kinds for p in (*own, *keywords) if p.kind is kind]
    )

    def __init__(*args: Any, **kwargs: Any) -> None:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            keywords = ", ".join([*signature.parameters][1:])
            hints = [hint for option, hint in _TORCH_ONLY.items() if option in kwargs]
            raise TypeError(
                "; ".join([f"{name}: expected arguments ({keywords}), but {error}", *hints])
            ) from None
        base.__init__(**bound.arguments)  # type: ignore[misc]

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    summary = (base.__doc__ or name).splitlines()[0]
    doc = f"{summary}\n\nKeywords, equations and references: :func:`optcore.{row.name}`."
    body = {"row": row, "__module__": module, "__qualname__": name, "__init__": __init__}
    return type(name, (base,), {**body, "__doc__": doc})


SGD = derive_class(OPTIMIZERS["sgd"], TableOptimizer, __name__)
Adam = derive_class(OPTIMIZERS["adam"], TableOptimizer, __name__)
AdamW = derive_class(OPTIMIZERS["adamw"], TableOptimizer, __name__)
Adamax = AdaMax = derive_class(OPTIMIZERS["adamax"], TableOptimizer, __name__)
AdaBelief = derive_class(OPTIMIZERS["adabelief"], TableOptimizer, __name__)
Yogi = derive_class(OPTIMIZERS["yogi"], TableOptimizer, __name__)
AMSGrad = derive_class(OPTIMIZERS["amsgrad"], TableOptimizer, __name__)
RAdam = derive_class(OPTIMIZERS["radam"], TableOptimizer, __name__)
NAdam = derive_class(OPTIMIZERS["nadam"], TableOptimizer, __name__)
RMSprop = RMSProp = derive_class(OPTIMIZERS["rmsprop"], TableOptimizer, __name__)
Adagrad = AdaGrad = derive_class(OPTIMIZERS["adagrad"], TableOptimizer, __name__)
Adadelta = AdaDelta = derive_class(OPTIMIZERS["adadelta"], TableOptimizer, __name__)
Adan = derive_class(OPTIMIZERS["adan"], TableOptimizer, __name__)
NovoGrad = derive_class(OPTIMIZERS["novograd"], TableOptimizer, __name__)
Rprop = derive_class(OPTIMIZERS["rprop"], TableOptimizer, __name__)
ASGD = derive_class(OPTIMIZERS["asgd"], TableOptimizer, __name__)
Adafactor = derive_class(OPTIMIZERS["adafactor"], TableOptimizer, __name__)
Muon = derive_class(OPTIMIZERS["muon"], TableOptimizer, __name__)
Lamb = derive_class(OPTIMIZERS["lamb"], TableOptimizer, __name__)
LARS = derive_class(OPTIMIZERS["lars"], TableOptimizer, __name__)
Lion = derive_class(OPTIMIZERS["lion"], TableOptimizer, __name__)
SignSGD = derive_class(OPTIMIZERS["sign_sgd"], TableOptimizer, __name__)
Signum = derive_class(OPTIMIZERS["signum"], TableOptimizer, __name__)
SM3 = derive_class(OPTIMIZERS["sm3"], TableOptimizer, __name__)
Fromage = derive_class(OPTIMIZERS["fromage"], TableOptimizer, __name__)


def from_torch(optimizer: torch.optim.Optimizer) -> TableOptimizer:
    """The optcore optimizer that goes on where one of torch.optim stands.

    The class is the one that takes the same steps: ``torch.optim.Adam(amsgrad=True)`` becomes
    :class:`AMSGrad`. What is kept and what is refused: see ``from_torch`` of the classes.

    Raises:
        TypeError: Not of torch.optim, or without a counterpart here; see the classes.
        ValueError: Flags that are classes here differ among the groups; see the classes.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> type(from_torch(torch.optim.Adam([w], amsgrad=True))).__name__
        'AMSGrad'
    """
    return globals()[row_of("from_torch", optimizer).class_name].from_torch(optimizer)
