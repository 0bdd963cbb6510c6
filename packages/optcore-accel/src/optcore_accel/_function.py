# SPDX-License-Identifier: Apache-2.0
"""The step of a whole list of tensors as one node of the graph.

The node saves what went into the step; its backward is a second node that runs the compiled
backward. What is asked beyond that, second derivatives and forward mode, goes through the torch
formula of the rule: composed, it is right to every order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import forward_ad

from optcore_accel._batches import by_example, folded, one_by_one
from optcore_accel._call import DECAY, L2, OUTER, Columns, Where, compute, pull_back
from optcore_accel._rules import Rule, Scalar


@dataclass(frozen=True)
class Signature:
    """What stands where in the flat arguments of the nodes: scalars, then columns.

    Attributes:
        who: Name for errors.
        rule: The rule.
        numbers: The scalars around the rule and its own; None for one that is a tensor.
        leaves: How many.
        steps: Whether there are parameters, and the result is new ones.
        decays: Whether the derivative needs the parameters.
        where: What says in errors where a tensor stands.
    """

    who: str
    rule: Rule
    numbers: tuple[float | None, ...]
    leaves: int
    steps: bool
    decays: bool
    where: Where | None

    @property
    def constant(self) -> bool:
        """Whether the derivative is the same wherever it is taken."""
        return self.rule.linear and None not in self.numbers

    @property
    def tensors(self) -> int:
        """How many scalars are tensors."""
        return self.numbers.count(None)

    def statistics(self) -> dict[str, str | int]:
        """What the node tells whoever reads the graph."""
        return {"by": self.who, "tensors": self.leaves, "buffers": self.rule.buffers}

    def scalars(self, tensors: Sequence[torch.Tensor]) -> list[Scalar]:
        """All scalars, from those that are tensors."""
        rest = iter(tensors)
        return [next(rest) if number is None else number for number in self.numbers]

    def columns(self, tensors: Sequence[torch.Tensor], params: bool) -> Columns:
        """The lists in a flat sequence; ``params`` tells whether it begins with them."""
        lists = [list(tensors[at : at + self.leaves]) for at in range(0, len(tensors), self.leaves)]
        return Columns(lists.pop(0) if params else None, lists[0], lists[1:])


def step(
    who: str,
    rule: Rule,
    scalars: Sequence[Scalar],
    columns: Columns,
    where: Where | None = None,
) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
    """One step out of place, differentiable in every tensor given.

    Returns:
        New parameters (or updates) and new buffers.
    """
    given = [scalar for scalar in scalars if isinstance(scalar, torch.Tensor)]
    numbers = tuple(None if isinstance(s, torch.Tensor) else float(s) for s in scalars)
    leaves = len(columns.grads)
    steps = columns.params is not None
    decays = steps and any(numbers[k] != 0.0 for k in (L2, DECAY))
    signature = Signature(who, rule, numbers, leaves, steps, decays, where)
    flat = [tensor for column in columns.all() for tensor in column]
    found = _Step.apply(signature, *given, *flat)
    rows = [list(found[at : at + leaves]) for at in range(0, len(found), leaves)]
    return rows[0], rows[1:]


class _Node(torch.autograd.Function):
    """A Function that spends less on hundreds of arguments where no transform is active."""

    @classmethod
    def apply(cls, *args: Any) -> Any:
        if not torch._C._are_functorch_transforms_active():
            if not torch.is_grad_enabled() and forward_ad._current_level < 0:
                plain: Any = cls.forward  # nothing to keep: most ways back end here
            else:
                plain = super(torch.autograd.Function, cls).apply  # no defaults to fill in
            try:
                return plain(*args)
            except (TypeError, RuntimeError):  # a pull-back may hold tensors of a transform's end
                if not any(map(_is_wrapper, args)):
                    raise
        return super().apply(*args)

    @staticmethod
    def keep(ctx: Any, tensors: Sequence[torch.Tensor | None]) -> None:
        """Save for the derivatives."""
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        if not _is_plain_backward():
            ctx.save_for_forward(*tensors)


def _is_plain_backward() -> bool:
    """Whether nothing but a backward pass can ask for derivatives."""
    return forward_ad._current_level < 0 and not torch._C._are_functorch_transforms_active()


def _stand_ins(likes: Sequence[Any], cotangents: Sequence[torch.Tensor | None]) -> list[Any]:
    """A tensor for each leaf, whatever it holds: none that are kept, where values do not matter."""
    found = []
    for leaf, (shape, dtype, device) in enumerate(likes):
        given = next((c for c in cotangents[leaf :: len(likes)] if c is not None), None)
        if given is None:
            given = torch.zeros((), dtype=dtype, device=device).expand(shape)
        found.append(given.detach())
    return found


def _is_wrapper(value: Any) -> bool:
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    return isinstance(value, torch.Tensor) and wrapped(value)


class _Step(_Node):
    @staticmethod
    def forward(signature: Signature, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        scalars = signature.scalars(tensors)
        columns = signature.columns(tensors[signature.tensors :], signature.steps)
        out, fresh = compute(signature.who, signature.rule, scalars, columns, signature.where)
        return (*out, *(tensor for column in fresh for tensor in column))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        signature, *tensors = inputs
        ctx.signature = signature
        ctx.statistics = signature.statistics()
        ctx.groups = (signature.tensors, signature.leaves)  # leaves do not mix, scalars reach all
        first = signature.tensors
        kept = list(tensors)
        if signature.steps and not signature.decays:
            del kept[first : first + signature.leaves]  # only added to
        ctx.likes = None
        if signature.constant and _is_plain_backward() and len({t.dtype for t in kept}) == 1:
            ctx.likes = [
                (grad.shape, grad.dtype, grad.device) for grad in kept[-signature.leaves :]
            ]
            ctx.columns = len(kept) // signature.leaves
            kept = []
        _Node.keep(ctx, kept)

    @staticmethod
    @by_example
    def backward(ctx: Any, *cotangents: torch.Tensor | None) -> tuple[Any, ...]:
        needs = tuple(ctx.needs_input_grad[1:])
        if not any(needs) or all(cotangent is None for cotangent in cotangents):
            return (None,) * (1 + len(needs))
        signature = ctx.signature
        first, leaves = signature.tensors, signature.leaves
        straight: tuple[Any, ...] = ()
        if signature.steps and not signature.decays:  # parameters were only added to
            straight = cotangents[:leaves]
            needs = (*needs[:first], *(False,) * leaves, *needs[first + leaves :])
        plan = _Backward(signature, needs, len(cotangents))
        found: Iterator[Any] = iter(())
        if any(needs):
            kept = ctx.saved_tensors
            if ctx.likes is not None:
                kept = _stand_ins(ctx.likes, cotangents) * ctx.columns
            found = iter(_StepBackward.apply(plan, *kept, *cotangents))
        results = [next(found) if need else None for need in needs]
        results[first : first + len(straight)] = straight
        return (None, *results)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        signature = ctx.signature
        kept = ctx.saved_tensors
        primals = list(kept)
        if signature.steps and not signature.decays:  # their values do not matter
            grads = kept[signature.tensors : signature.tensors + signature.leaves]
            primals[signature.tensors : signature.tensors] = [g.detach() for g in grads]
        return _push(lambda *x: _formula(signature, x), primals, tangents)

    @staticmethod
    def vmap(info: Any, in_dims: Any, signature: Signature, *tensors: torch.Tensor) -> Any:
        dims = in_dims[1:]
        if any(dim is not None for dim in dims[: signature.tensors]):
            return one_by_one(info, _Step, signature, tensors, dims)
        larger, batched = folded(info, signature, tensors, dims)
        found = _Step.apply(signature, *larger)
        columns = len(found) // signature.leaves
        return found, tuple(0 if b else None for b in batched) * columns


@dataclass(frozen=True)
class _Backward:
    """What the second node is told: the first one's signature, and what is wanted of it."""

    signature: Signature
    needs: tuple[bool, ...]  # inputs of the first node that want a cotangent
    cotangents: int

    @property
    def tensors(self) -> int:
        return self.signature.tensors

    @property
    def leaves(self) -> int:
        return self.signature.leaves

    def split(self, tensors: Sequence[Any]) -> tuple[list[Scalar], Columns, list[list[Any]]]:
        """Scalars, columns and cotangents."""
        signature = self.signature
        kept = tensors[signature.tensors : len(tensors) - self.cotangents]
        columns = signature.columns(kept, signature.steps and signature.decays)
        rest = tensors[len(tensors) - self.cotangents :]
        rows = [list(rest[at : at + self.leaves]) for at in range(0, len(rest), self.leaves)]
        return signature.scalars(tensors), columns, rows

    def formula(self, tensors: Sequence[Any]) -> tuple[torch.Tensor, ...]:
        """The same by the torch formula."""
        signature = self.signature
        first = signature.tensors
        kept = list(tensors[: len(tensors) - self.cotangents])
        cotangents = tensors[len(tensors) - self.cotangents :]
        if signature.steps and not signature.decays:
            kept[first:first] = [g.detach() for g in kept[first : first + signature.leaves]]
        wanted = [tensor for tensor, need in zip(kept, self.needs, strict=True) if need]

        def run(*wanted: torch.Tensor) -> tuple[torch.Tensor, ...]:
            given = iter(wanted)
            inputs = [
                next(given) if need else tensor
                for tensor, need in zip(kept, self.needs, strict=True)
            ]
            found = _formula(signature, inputs)
            return tuple(x for x, c in zip(found, cotangents, strict=True) if c is not None)

        _, pull = torch.func.vjp(run, *wanted)
        return pull(tuple(c for c in cotangents if c is not None))


class _StepBackward(_Node):
    @staticmethod
    def forward(plan: _Backward, *tensors: Any) -> tuple[torch.Tensor, ...]:
        signature = plan.signature
        scalars, columns, cotangents = plan.split(tensors)
        first, leaves = signature.tensors, signature.leaves
        needs = plan.needs[first:]
        if not signature.steps:
            needs = (False,) * leaves + needs
        rows = [needs[at : at + leaves] for at in range(0, len(needs), leaves)]
        found, derivatives = pull_back(
            signature.who,
            signature.rule,
            scalars,
            columns,
            signature.steps,
            cotangents,
            [any(row) for row in rows],
            any(plan.needs[:first]),
        )
        results = []
        places = [k for k, number in enumerate(signature.numbers) if number is None]
        for tensor, place, need in zip(tensors, places, plan.needs):
            if need:
                found_there = derivatives[place].to(tensor.device, tensor.dtype)
                results.append(found_there.clone())  # no view: those confuse forward mode
        for column, row in zip(found, rows, strict=True):
            results += [tensor for tensor, need in zip(column or row, row, strict=True) if need]
        return tuple(results)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.plan = inputs[0]
        ctx.present = [tensor is not None for tensor in inputs[1:]]
        _Node.keep(ctx, inputs[1:])

    @staticmethod
    @by_example
    def backward(ctx: Any, *cotangents: torch.Tensor | None) -> tuple[Any, ...]:
        needs = [need and there for need, there in zip(ctx.needs_input_grad[1:], ctx.present)]
        tensors = ctx.saved_tensors
        wanted = [tensor for tensor, need in zip(tensors, needs, strict=True) if need]

        def run(*wanted: torch.Tensor) -> tuple[torch.Tensor, ...]:
            given = iter(wanted)
            inputs = [
                next(given) if need else tensor for tensor, need in zip(tensors, needs, strict=True)
            ]
            found = ctx.plan.formula(inputs)
            return tuple(x for x, c in zip(found, cotangents, strict=True) if c is not None)

        if not wanted or all(c is None for c in cotangents):
            return (None,) * (1 + len(needs))
        _, pull = torch.func.vjp(run, *wanted)
        found = iter(pull(tuple(c for c in cotangents if c is not None)))
        return (None, *(next(found) if need else None for need in needs))

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        return _push(lambda *x: ctx.plan.formula(x), ctx.saved_tensors, tangents)

    @staticmethod
    def vmap(info: Any, in_dims: Any, plan: _Backward, *tensors: Any) -> Any:
        dims = in_dims[1:]
        first = plan.tensors
        if any(plan.needs[:first]) or any(dim is not None for dim in dims[:first]):
            return one_by_one(info, _StepBackward, plan, tensors, dims)
        larger, batched = folded(info, plan, tensors, dims)
        found = _StepBackward.apply(plan, *larger)
        needs = plan.needs[first:]
        leaves = [leaf % plan.leaves for leaf, need in enumerate(needs) if need]
        return found, tuple(0 if batched[leaf] else None for leaf in leaves)


def _formula(signature: Signature, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """A step in torch's operations, on the flat arguments of the first node."""
    columns = signature.columns(tensors[signature.tensors :], signature.steps)
    everything = [tensor for column in columns.all() for tensor in column]
    wide = any(tensor.dtype == torch.float64 for tensor in everything)
    dtype = torch.float64 if wide else torch.float32
    given = signature.scalars(tensors)
    out: list[torch.Tensor] = []
    fresh: list[list[torch.Tensor]] = [[] for _ in columns.buffers]
    for leaf, grad in enumerate(columns.grads):
        scalars = [s.to(grad.device, dtype) if isinstance(s, torch.Tensor) else s for s in given]
        sign, l2, decay, lr = scalars[:OUTER]
        g = sign * grad.to(dtype)
        p = None if columns.params is None else columns.params[leaf]
        if p is not None and signature.decays:
            g = g + l2 * p.to(dtype)
        old = [buffer[leaf] for buffer in columns.buffers]
        u, *new = signature.rule.formula(scalars[OUTER:], g, *(b.to(dtype) for b in old))
        if p is None:
            out.append(u.to(grad.dtype))
        else:
            u = u + decay * p.to(dtype) if signature.decays else u
            out.append((p.to(dtype) - lr * u).to(p.dtype))
        for column, value, like in zip(fresh, new, old, strict=True):
            column.append(value.to(like.dtype))
    return (*out, *(tensor for column in fresh for tensor in column))


def _push(
    function: Any, primals: Sequence[Any], tangents: Sequence[torch.Tensor | None]
) -> tuple[torch.Tensor, ...]:
    """Forward derivative by differentiating the backward one, which is linear: no nested duals.

    Torch calls ``jvp`` with forward mode off, which would lose the tangents of outer levels; with
    it on, those of this level must not take part.
    """
    moving = [i for i, tangent in enumerate(tangents) if tangent is not None]
    with forward_ad._set_fwd_grad_enabled(True):
        still = [None if x is None else forward_ad.unpack_dual(x).primal for x in primals]
        return _pushed(function, still, moving, [tangents[i] for i in moving])


def _pushed(
    function: Any,
    primals: Sequence[Any],
    moving: Sequence[int],
    tangents: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, ...]:

    def run(*wanted: torch.Tensor) -> tuple[torch.Tensor, ...]:
        inputs = list(primals)
        for i, tensor in zip(moving, wanted, strict=True):
            inputs[i] = tensor
        return function(*inputs)

    found, pull = torch.func.vjp(run, *(primals[i] for i in moving))
    _, push = torch.func.vjp(pull, tuple(torch.zeros_like(x) for x in found))
    (result,) = push(tuple(tangents))
    return result
