# SPDX-License-Identifier: Apache-2.0
"""Refusing steps that cannot be run again: they give other numbers or read what is outside."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from optdiff._recompute import is_continuous
from optdiff._tracking import (
    belongs_elsewhere,
    below_every_level,
    is_wrapped,
    peel,
    transform_depth,
    unwrapped,
)
from optdiff._trees import tree_leaves


class Numbers(NamedTuple):
    """What a carry was, to see whether it comes out again; shares the memory of its tensors."""

    tensors: list[tuple[torch.Tensor, int, torch.Size]]  # plain tensor, version, shape inside vmap

    @classmethod
    def of(cls, carry: Sequence[torch.Tensor]) -> Numbers:
        """Those of a carry."""
        found = [(peel(tensor), tensor) for tensor in carry]
        return cls([(plain, plain._version, tensor.shape) for plain, tensor in found])

    def check(self, who: str, carry: Sequence[torch.Tensor], i: int) -> None:
        """Refuse another carry.

        Raises:
            RuntimeError: It differs by more than rounding.
        """
        again = Numbers.of(carry).tensors
        with below_every_level():
            if len(again) == len(self.tensors) and all(map(_equal, self.tensors, again)):
                return
        raise _another_carry(who, i)


class Norms(NamedTuple):
    """:class:`Numbers` that keep no memory: the norm of each tensor, and how exact it is."""

    values: torch.Tensor
    tolerance: torch.Tensor

    @classmethod
    def of(cls, carry: Sequence[torch.Tensor]) -> Norms:
        """Those of a carry."""
        return cls(
            torch.tensor([_norm(tensor) for tensor in carry], dtype=torch.float64),
            torch.tensor([_rounding(tensor) for tensor in carry], dtype=torch.float64),
        )

    def close(self, other: Norms) -> bool:
        """Whether both are of the same carry, but for rounding."""
        if self.values.shape != other.values.shape:
            return False
        apart = (self.values - other.values).abs() > self.tolerance * self.values.abs()
        strange = self.values.isfinite() != other.values.isfinite()
        return not bool((apart | strange).any())

    def check(self, who: str, carry: Sequence[torch.Tensor], i: int) -> None:
        """Refuse another carry.

        Raises:
            RuntimeError: It differs by more than rounding.
        """
        if not self.close(Norms.of(carry)):
            raise _another_carry(who, i)


def _another_carry(who: str, i: int) -> RuntimeError:
    return RuntimeError(
        f"{who}: expected step to repeat itself when it is run again, got another carry at "
        f"step {i}; pass random numbers and data through args, and leave what steps read as "
        "it is until the backward pass"
    )


def _norm(tensor: torch.Tensor) -> float:
    tensor = tensor.detach()
    exact = tensor.abs() if tensor.is_complex() else tensor
    return float(torch.linalg.vector_norm(exact.double()))


def _rounding(tensor: torch.Tensor) -> float:
    return torch.finfo(tensor.dtype).eps ** 0.5 if is_continuous(tensor) else 0.0


def _equal(
    one: tuple[torch.Tensor, int, torch.Size], other: tuple[torch.Tensor, int, torch.Size]
) -> bool:
    (a, version, shape), (b, _, again) = one, other
    if shape != again or a.dtype != b.dtype:
        return False
    if a.shape != b.shape or a._version != version:
        return True  # batched in another way, or overwritten since: nothing to compare
    if torch.equal(a, b):
        return True
    if not is_continuous(a):
        return False
    finite = a[a.isfinite()].abs()
    # rounding may differ where gradients are recorded; a step that does not repeat itself is far
    close = torch.finfo(a.dtype).eps ** 0.5
    scale = float(finite.max()) if finite.numel() else 0.0
    return torch.allclose(a, b, rtol=close, atol=close * scale, equal_nan=True)


class Strangers(TorchFunctionMode):
    """Refuses tensors of transforms outside that functions get, at once or after the step.

    Transforms inside may have the levels of those outside, which recomputation steps out of; only
    when they are over are their tensors dead and those from outside not.

    Args:
        who: Who is named in errors.
        outside: Levels of transforms outside.
    """

    def __init__(self, who: str, outside: int) -> None:
        super().__init__()
        self._who = who
        self._inside = range(outside + 1, transform_depth() + 1)
        self._seen: dict[int, weakref.ref[torch.Tensor]] = {}
        self.i = 0  # the step that runs

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        now = transform_depth() + 1
        possible = range(self._inside.start, now) if self._inside else range(1, now)
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor):
                if is_wrapped(leaf) and belongs_elsewhere(leaf, possible):
                    raise stranger(self._who, leaf, self.i)
                if is_wrapped(leaf) or forward_ad._current_level >= 0:
                    self._seen[id(leaf)] = weakref.ref(leaf)
        return func(*args, **(kwargs or {}))

    def refuse(self) -> None:
        """Refuse what belongs to a transform now that the step is over.

        Raises:
            ValueError: There is such a tensor.
        """
        for reference in list(self._seen.values()):  # looking at a tensor may add another
            tensor = reference()
            if tensor is not None and belongs_elsewhere(tensor, self._inside):
                raise stranger(self._who, tensor, self.i)
        self._seen.clear()


def stranger(who: str, tensor: torch.Tensor, i: int, args: tuple[Any, ...] = ()) -> ValueError:
    """The error for a tensor that a recomputed step reads past the tensors in its arguments."""
    kind = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
    for module in tree_leaves(args):
        if not isinstance(module, nn.Module):
            continue
        for name, param in module.named_parameters():
            if param is tensor:
                return ValueError(
                    f"{who}: expected the tensors of args in trees under checkpoint, got a step "
                    f"that reads {name!r} {kind} of the module {type(module).__name__} in args, at "
                    f"step {i}; pass dict(module.named_parameters()) too, and call the module by "
                    "torch.func.functional_call"
                )
    return ValueError(
        f"{who}: expected a step that under checkpoint gets everything to be differentiated from "
        f"its carry and args, got one that reads another tensor {kind} that requires grad, at step "
        f"{i}; pass that tensor in args, or detach it"
    )


def foreign_leaves(
    results: Iterable[torch.Tensor], known: Iterable[torch.Tensor]
) -> list[weakref.ref[torch.Tensor]]:
    """Leaves behind some tensors that are not known.

    Weak references: those that the step made for itself are gone once its graph is.
    """
    own = {id(tensor) for tensor in known}
    results = [unwrapped(result) for result in results]
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
