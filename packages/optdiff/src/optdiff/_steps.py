# SPDX-License-Identifier: Apache-2.0
"""Steps of a loop, and runs of them as repeatable functions of flat tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn

import treeops
from optcore import out_of_place
from optdiff._first_order import ConstantGradients
from optdiff._recompute import Results, Tensors, is_continuous
from optdiff._recording import Recording
from optdiff._repeats import Numbers, Strangers, foreign_leaves, stranger
from optdiff._tracking import is_tracked, is_wrapped, transform_depth, under_transform
from optdiff._trees import NAMESPACE, tree_flatten, tree_leaves

Tree: TypeAlias = Any


class Layout(NamedTuple):
    """A tree without its tensors."""

    spec: Any
    leaves: tuple[Any, ...]  # None in the place of a tensor
    places: tuple[int | None, ...]  # which tensor is there

    def filled(self, tensors: Iterable[torch.Tensor]) -> Tree:
        """The tree with these tensors."""
        given = list(tensors)
        leaves = [
            leaf if place is None else given[place]
            for leaf, place in zip(self.leaves, self.places, strict=True)
        ]
        return treeops.tree_unflatten(self.spec, leaves)


def taken_apart(tree: Tree) -> tuple[list[torch.Tensor], Layout]:
    """The tensors of a tree, each once though it may occur often, and the rest of it."""
    leaves, spec = tree_flatten(tree)
    tensors: list[torch.Tensor] = []
    index: dict[int, int] = {}
    places: list[int | None] = []
    for leaf in leaves:
        if not isinstance(leaf, torch.Tensor):
            places.append(None)
            continue
        place = index.setdefault(id(leaf), len(tensors))
        if place == len(tensors):
            tensors.append(leaf)
        places.append(place)
    rest = [leaf if place is None else None for leaf, place in zip(leaves, places, strict=True)]
    return tensors, Layout(spec, tuple(rest), tuple(places))


class Step:
    """A user's step: checked, out of place, with an output (None if it gives none).

    Args:
        who: Who is named in errors.
        function: ``function(carry, i, *args)``.
        carry: What the results have to look like.
        has_aux: Whether it returns ``(carry, output)``; None: the loop has no such option.
        first_order: Whether gradients taken inside are constants.
    """

    def __init__(
        self,
        who: str,
        function: Callable[..., Any],
        carry: Tree,
        has_aux: bool | None = None,
        first_order: bool = False,
    ) -> None:
        self.who = who
        self._function = function
        leaves, self._spec = tree_flatten(carry)
        self._tensors = [isinstance(leaf, torch.Tensor) for leaf in leaves]
        self._has_aux = has_aux
        self._first_order = first_order

    def __call__(self, carry: Tree, i: int, args: tuple[Any, ...]) -> tuple[Tree, Tree]:
        carry = _apart_from(args, carry)
        constant = ConstantGradients(self.who, i) if self._first_order else nullcontext()
        with out_of_place(first_order=self._first_order), constant:
            result = self._function(carry, i, *args)
        # autocast outside of the loop would keep its copies of every carry until it ends
        torch.clear_autocast_cache()
        output = None
        if self._has_aux:
            if not isinstance(result, tuple) or len(result) != 2:
                raise TypeError(
                    f"{self.who}: expected step to return (carry, output) for has_aux=True, got "
                    f"{type(result).__name__}, at step {i}"
                )
            result, output = result
        leaves, spec = tree_flatten(result)
        if spec != self._spec:
            advice = "put what else is wanted into the carry"
            if self._has_aux is not None:
                advice = "to return (carry, output) set has_aux=True"
            raise ValueError(
                f"{self.who}: expected step to return a carry like the one it got, "
                f"{self._spec}, got {spec}, at step {i}; {advice}"
            )
        for index, (leaf, was) in enumerate(zip(leaves, self._tensors, strict=True)):
            if was and not isinstance(leaf, torch.Tensor):
                accessors = treeops.tree_accessors(result, none_is_leaf=True, namespace=NAMESPACE)
                path = accessors[index].codify("")
                raise TypeError(
                    f"{self.who}: expected step to return a tensor where init has one, got "
                    f"{'None' if leaf is None else type(leaf).__name__}{path and f', at {path}'}, "
                    f"at step {i}; return the new carry"
                )
        return result, output

    def advance(
        self, carry: Tree, i: int, args: tuple[Any, ...], *, graph: bool, inspect: bool
    ) -> tuple[Tree, Tree]:
        """A step of a loop that is run again, and without ``graph`` one whose result has none.

        Raises:
            ValueError: With ``inspect``, it reads tensors to be differentiated past its inputs.
            RuntimeError: It overwrites what of its carry requires grad.
        """
        if not inspect:
            found = self(carry, i, args)
            return found if graph else cut(found)
        tensors = [t for t in taken_apart(carry)[0] if t.requires_grad and not is_wrapped(t)]
        versions = [tensor._version for tensor in tensors]
        try:
            found = self(carry, i, args)
        except RuntimeError as error:
            if "a leaf Variable that requires grad" not in str(error):
                raise
            raise _overwritten(self.who, i) from error
        if [tensor._version for tensor in tensors] != versions:
            raise _overwritten(self.who, i)
        foreign = foreign_leaves(taken_apart(found)[0], taken_apart((carry, args))[0])
        result = found if graph else cut(found)
        del found, carry, tensors  # the leaves that the step made for itself go too
        for leaf in foreign:
            if (tensor := leaf()) is not None:
                raise stranger(self.who, tensor, i, args)
        return result


def _overwritten(who: str, i: int) -> RuntimeError:
    return RuntimeError(
        f"{who}: expected step to leave tensors that require grad as they are, got one of its "
        f"carry or args overwritten, at step {i}; compute a new one, or overwrite a clone (a carry "
        "requires grad once it depends on something that does)"
    )


def _apart_from(args: tuple[Any, ...], carry: Tree) -> Tree:
    """The carry with tensors of its own for those that are in the args too.

    A gradient that the step takes in its carry must not depend on whether it was copied before.
    """
    given = {id(leaf) for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)}
    if not given or given.isdisjoint(map(id, tree_leaves(carry))):
        return carry
    tensors, layout = taken_apart(carry)
    return layout.filled(t.view_as(t) if id(t) in given else t for t in tensors)


def cut(tree: Tree) -> Tree:
    """The tree outside the graph; what required grad does so still, so that steps can use it."""

    def one(tensor: torch.Tensor) -> torch.Tensor:
        if transform_depth():
            return tensor.detach()
        return tensor.detach().requires_grad_(tensor.requires_grad)

    tensors, layout = taken_apart(tree)
    return layout.filled(map(one, tensors))


def refuse_modules(who: str, carry: Tree) -> None:
    """Refuse a carry with modules, whose tensors a tree does not show.

    Raises:
        TypeError: There is one.
    """
    for leaf in tree_leaves(carry):
        if isinstance(leaf, nn.Module):
            raise TypeError(
                f"{who}: expected a carry of tensors, got the module {type(leaf).__name__}; carry "
                "dict(module.named_parameters()), and call it by torch.func.functional_call"
            )


class Segment:
    """Some steps as a repeatable function of the tensors in ``(carry, args)``.

    Args:
        step: The step.
        numbers: Which steps.
        carry: Where they start.
        args: What every step gets.
        recording: Where the surroundings of the first run are kept.
    """

    def __init__(
        self, step: Step, numbers: range, carry: Tree, args: tuple[Any, ...], recording: Recording
    ) -> None:
        tensors, self._layout = taken_apart((carry, args))
        self._step = step
        self._numbers = numbers
        self._followed = [is_tracked(tensor) for tensor in tensors]
        self._carried = len(taken_apart(carry)[0])  # the carry's tensors come first
        self._recording = recording
        self._transformed = under_transform()
        self.outside = transform_depth()
        self.differentiable: tuple[bool, ...] = ()
        self.layout: Layout  # of the results, (carry, outputs); known after the first call
        self._end: Numbers

    def __call__(self, tensors: Tensors, graph: bool) -> Results:
        first = not self._recording.made
        who = self._step.who
        strangers = Strangers(who, self.outside) if first and self._transformed else None
        own = [self._own(index, tensor, graph) for index, tensor in enumerate(tensors)]
        carry, args = self._layout.filled(own)
        outputs = []
        with torch.enable_grad(), self._recording.running(), strangers or nullcontext():
            for i in self._numbers:
                if strangers:
                    strangers.i = i
                carry, output = self._step.advance(carry, i, args, graph=graph, inspect=first)
                if strangers:
                    strangers.refuse()
                outputs.append(output)
        if first:
            self._end = Numbers.of(taken_apart(carry)[0])
        else:
            self._end.check(who, taken_apart(carry)[0], self._numbers[-1])
        results, layout = taken_apart((carry, outputs))
        if first:
            self.layout = layout
            self.differentiable = tuple(map(_is_smooth, results))
        if graph:
            return tuple(results)
        return tuple(result.detach() for result in results)

    def _own(self, index: int, tensor: torch.Tensor, graph: bool) -> torch.Tensor:
        """An input as the step sees it: it may take gradients in what requires grad outside."""
        followed = self._followed[index]
        if not followed and index < self._carried:
            return tensor.clone()  # such as a module's buffers, overwritten by the step
        if transform_depth() or (graph and tensor.requires_grad):
            return tensor
        return tensor.detach().requires_grad_(followed)


def _is_smooth(tensor: torch.Tensor) -> bool:
    """Whether a result has a derivative; inside a transform only its type tells."""
    return tensor.requires_grad or (is_continuous(tensor) and transform_depth() > 0)
