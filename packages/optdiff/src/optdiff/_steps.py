# SPDX-License-Identifier: Apache-2.0
"""Steps of a loop, and runs of them as repeatable functions of flat tensors."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple, TypeAlias

import torch
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

import treeops
from optcore import out_of_place
from optdiff._recompute import Results, Tensors, is_continuous, transforms_active
from optdiff._recording import Recording
from optdiff._trees import tree_flatten, tree_map

Tree: TypeAlias = Any


class Layout(NamedTuple):
    """A tree without its tensors."""

    spec: Any
    leaves: tuple[Any, ...]  # None in the place of a tensor
    is_tensor: tuple[bool, ...]

    def filled(self, tensors: Iterable[torch.Tensor]) -> Tree:
        """The tree with these tensors."""
        given = iter(tensors)
        leaves = [
            next(given) if is_tensor else leaf
            for leaf, is_tensor in zip(self.leaves, self.is_tensor, strict=True)
        ]
        return treeops.tree_unflatten(self.spec, leaves)


def taken_apart(tree: Tree) -> tuple[list[torch.Tensor], Layout]:
    """The tensors of a tree, and the rest of it."""
    leaves, spec = tree_flatten(tree)
    is_tensor = tuple(isinstance(leaf, torch.Tensor) for leaf in leaves)
    rest = tuple(None if tensor else leaf for leaf, tensor in zip(leaves, is_tensor, strict=True))
    tensors = [leaf for leaf, tensor in zip(leaves, is_tensor, strict=True) if tensor]
    return tensors, Layout(spec, rest, is_tensor)


class Step:
    """A user's step: checked, out of place, with an output (None if it gives none).

    Args:
        who: Who is named in errors.
        function: ``function(carry, i, *args)``.
        carry: What the results have to look like.
        has_aux: Whether it returns ``(carry, output)``.
        first_order: Whether gradients taken inside are constants.
    """

    def __init__(
        self, who: str, function: Callable[..., Any], carry: Tree, has_aux: bool, first_order: bool
    ) -> None:
        self.who = who
        self._function = function
        self._spec = tree_flatten(carry)[1]
        self._has_aux = has_aux
        self._first_order = first_order

    def __call__(self, carry: Tree, i: int, args: tuple[Any, ...]) -> tuple[Tree, Tree]:
        with out_of_place(first_order=self._first_order):
            if self._first_order:
                with _ConstantGradients(self.who):
                    result = self._function(carry, i, *args)
            else:
                result = self._function(carry, i, *args)
        output = None
        if self._has_aux:
            if not isinstance(result, tuple) or len(result) != 2:
                raise TypeError(
                    f"{self.who}: expected step to return (carry, output) for has_aux=True, got "
                    f"{type(result).__name__}, at step {i}"
                )
            result, output = result
        spec = tree_flatten(result)[1]
        if spec != self._spec:
            raise ValueError(
                f"{self.who}: expected step to return a carry like the one it got, "
                f"{self._spec}, got {spec}, at step {i}; to return (carry, output) set has_aux=True"
            )
        return result, output

    def refuse_closed_over(self) -> None:
        """Refuse a function that holds tensors of a torch.func transform.

        Recomputation leaves the transform, where such a tensor would count as a constant.

        Raises:
            ValueError: It does.
        """
        for tensor in _held(self._function):
            if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
                raise ValueError(foreign_tensor(self.who, tensor, ""))


class _ConstantGradients(TorchFunctionMode):
    """Inside, torch.autograd.grad and what torch.func builds on it give constants."""

    def __init__(self, who: str) -> None:
        super().__init__()
        self._who = who

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if torch.compiler.is_compiling():  # gradients are traced without asking here
            raise RuntimeError(
                f"{self._who}(first_order=True): expected a step that is not compiled; detach the "
                "gradients inside it instead"
            )
        kwargs = kwargs or {}
        if func is not torch.autograd.grad:
            return func(*args, **kwargs)
        kept = kwargs.get("retain_graph")
        kept = kwargs.get("create_graph", False) if kept is None else kept
        found = func(*args, **{**kwargs, "create_graph": False, "retain_graph": kept})
        return tuple(None if grad is None else grad.detach() for grad in found)


def cut(tree: Tree) -> Tree:
    """The tree outside the graph; what required grad does so still, so that steps can use it."""

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if transforms_active():
            return leaf.detach()
        return leaf.detach().requires_grad_(leaf.requires_grad)

    return tree_map(one, tree)


def is_followed(tensor: torch.Tensor) -> bool:
    """Whether something may be differentiated in this tensor."""
    if tensor.requires_grad:
        return True
    if not is_continuous(tensor):
        return False
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return True
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None


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
        self._followed = [is_followed(tensor) for tensor in tensors]
        self._carried = len(taken_apart(carry)[0])  # the carry's tensors come first
        self._recording = recording
        self.differentiable: tuple[bool, ...] = ()
        self.layout: Layout  # of the results, (carry, outputs); known after the first call

    def __call__(self, tensors: Tensors, graph: bool) -> Results:
        first = not self._recording.made
        own = [self._own(index, tensor, graph) for index, tensor in enumerate(tensors)]
        carry, args = self._layout.filled(own)
        outputs = []
        smooth: list[bool] = []
        with torch.enable_grad(), self._recording.running():
            for i in self._numbers:
                found = self._step(carry, i, args)
                if first:
                    known = taken_apart((carry, args))[0]
                    smooth += map(_is_smooth, taken_apart(found[1])[0])
                    ends = list(map(_is_smooth, taken_apart(found[0])[0]))
                    foreign = _foreign_leaves(taken_apart(found)[0], known)
                carry, output = found if graph else cut(found)
                del found
                if first:
                    self._refuse([leaf() for leaf in foreign], i)
                outputs.append(output)
        results, layout = taken_apart((carry, outputs))
        if first:
            self.layout, self.differentiable = layout, (*ends, *smooth)
        if graph:
            return tuple(results)
        return tuple(result.detach() for result in results)

    def _own(self, index: int, tensor: torch.Tensor, graph: bool) -> torch.Tensor:
        """An input as the step sees it: it may take gradients in what requires grad outside."""
        followed = self._followed[index]
        if not followed and index < self._carried:
            return tensor.clone()  # such as a module's buffers, overwritten by the step
        if transforms_active() or (graph and tensor.requires_grad):
            return tensor
        return tensor.detach().requires_grad_(followed)

    def _refuse(self, leaves: Iterable[torch.Tensor | None], i: int) -> None:
        for leaf in leaves:
            if leaf is not None:
                raise ValueError(foreign_tensor(self._step.who, leaf, f", at step {i}"))


def foreign_tensor(who: str, tensor: torch.Tensor, where: str) -> str:
    """The error for a tensor that a recomputed step reads past its arguments."""
    kind = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
    return (
        f"{who}: expected a step that under checkpoint gets everything to be differentiated from "
        f"its carry and args, got one that reads another tensor {kind} that requires grad{where}; "
        "pass that tensor in args, or detach it"
    )


def _is_smooth(tensor: torch.Tensor) -> bool:
    """Whether a result has a derivative; inside a transform only its type tells."""
    return tensor.requires_grad or (is_continuous(tensor) and transforms_active())


def _held(function: Callable[..., Any]) -> Iterator[torch.Tensor]:
    """The tensors that a function holds: in its closure, defaults, bound object or partial."""
    stack: list[Any] = [function]
    seen: dict[int, Any] = {}  # keeps what it names alive, so that no id comes twice
    while stack:
        value = stack.pop()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, FunctionType):
            for cell in value.__closure__ or ():
                with suppress(ValueError):  # not assigned yet
                    stack.append(cell.cell_contents)
            stack += [value.__defaults__, value.__kwdefaults__]
        elif isinstance(value, MethodType):
            stack += [value.__self__, value.__func__]
        elif isinstance(value, partial):
            stack += [value.func, value.args, value.keywords]
        elif isinstance(value, dict):
            stack += value.values()
        elif isinstance(value, (list, tuple, set)):
            stack += value
        elif not isinstance(value, (type, ModuleType)):
            stack += getattr(value, "__dict__", {}).values()


def _unwrapped(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor outside all transforms."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def _foreign_leaves(
    results: Iterable[torch.Tensor], known: Iterable[torch.Tensor]
) -> list[weakref.ref[torch.Tensor]]:
    """Leaves behind some tensors that are not known.

    Weak references: those that the step made for itself are gone once its graph is.
    """
    own = {id(tensor) for tensor in known}
    results = [_unwrapped(result) for result in results]
    found = [weakref.ref(t) for t in results if t.requires_grad and t.is_leaf and id(t) not in own]
    stack = [tensor.grad_fn for tensor in results if tensor.grad_fn is not None]
    seen = set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if type(node).__name__ == "AccumulateGrad" and id(node.variable) not in own:
            found.append(weakref.ref(node.variable))
        stack += [parent for parent, _ in node.next_functions if parent is not None]
    return found
