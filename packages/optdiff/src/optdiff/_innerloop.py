# SPDX-License-Identifier: Apache-2.0
"""An inner loop on a copy of a module, in the form that users of higher know."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

import optcore
from optcore import GradientTransformation, ParamDict
from optdiff._containers import replace_tensors
from optdiff._meta_step import StepPart, differentiable_step, trainable
from optdiff._uncompiled import uncompiled
from optdiff.state import module_clone, stop_gradient

Module = TypeVar("Module", bound=nn.Module)


class _Group(NamedTuple):
    names: tuple[str, ...]  # of the parameters in the module
    transformation: GradientTransformation
    state: Any


class DifferentiableOptimizer:
    """Steps on the copy that :func:`innerloop_ctx` gives; made by it."""

    def __init__(self, module: nn.Module, groups: Sequence[_Group], track: bool) -> None:
        self._module = module
        self._groups = list(groups)
        self._track = track

    @uncompiled
    def step(
        self,
        loss: torch.Tensor,
        *,
        grad_callback: Callable[[list[torch.Tensor | None]], Sequence[torch.Tensor | None]]
        | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Replace the parameters of the copy by those after one step on ``loss``.

        Args:
            loss: Scalar ``()`` computed from the copy.
            grad_callback: Gets the gradients of the parameters that the optimizer moves, group by
                group (None where there is none), and gives those that the step takes.

        Returns:
            The new parameters, those that the optimizer does not move included.

        Raises:
            TypeError: ``loss`` is not a tensor.
            ValueError: ``loss`` is not a scalar, has no graph, or depends on no parameter; the
                copy is as before then.
            RuntimeError: ``loss`` was computed in a graph that torch.compile has made, whose second
                derivative torch drops (not with ``track_higher_grads=False`` or
                ``backend="eager"``).
        """
        params = trainable(self._module)
        parts = [
            StepPart(
                group.transformation,
                ParamDict((name, params[name]) for name in group.names),
                group.state,
            )
            for group in self._groups
        ]
        results = differentiable_step(
            type(self).__name__, loss, parts, self._track, grad_callback or list
        )
        new = {id(params[name]): tensor for moved, _ in results for name, tensor in moved.items()}
        replace_tensors(self._module, new)
        states = [state for _, state in results]
        if not self._track:
            stop_gradient(self._module)
            states = [optcore.map_tensors(torch.Tensor.detach, state) for state in states]
        self._groups = [
            group._replace(state=state) for group, state in zip(self._groups, states, strict=True)
        ]
        return tuple(self._module.parameters())


@contextmanager
def innerloop_ctx(
    module: Module,
    optimizer: torch.optim.Optimizer | GradientTransformation,
    *,
    copy_initial_weights: bool = True,
    override: Mapping[str, Any] | None = None,
    track_higher_grads: bool = True,
) -> Iterator[tuple[Module, DifferentiableOptimizer]]:
    """A copy of a module, and a differentiable optimizer of it that starts where yours stands.

    The copy is a module of the same class with buffers of its own; ``module`` and ``optimizer``
    stay as they are. After ``step`` the copy's parameters are functions of its first ones: list
    them before the loop to differentiate in them.

    Args:
        module: The module.
        optimizer: An optimizer of its parameters, of torch.optim (one that optcore has too) or of
            optcore, with its hyperparameters by group and its state; or a transformation.
        copy_initial_weights: False: the copy starts from the parameters of ``module`` themselves,
            so that a later ``backward`` reaches them (MAML). True: from detached copies.
        override: Keyword -> its value, or a list of its values in each group; tensors make it
            learnable, e.g. ``{"lr": lr}``.
        track_higher_grads: False: cut the graph after each step, to evaluate.

    Raises:
        TypeError: ``module`` is no module, or ``optimizer`` no optimizer that optcore has too.
        ValueError: An option that optcore does not have, parameters that are not the module's, or
            an ``override`` that does not fit.

    Differs:
        In higher the copy is called ``fmodel(x, params=...)`` too: here
        ``torch.func.functional_call(copy, params, (x,))``; ``fmodel.parameters(time=0)`` is the
        list taken before the loop. There is no ``device=`` (move the module first), and options
        are keywords; ``step`` has no ``params=`` and no ``override=`` (give tensors to this
        ``override`` and change what they are computed from).

    Example:
        >>> import torch
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> sgd = torch.optim.SGD(net.parameters(), lr=0.25)
        >>> with innerloop_ctx(net, sgd, copy_initial_weights=False) as (fnet, diffopt):
        ...     _ = diffopt.step((fnet.weight**2).sum())  # w' = w - 0.25 * 2 w = w / 2
        ...     fnet.weight.sum().backward()
        >>> net.weight.grad
        tensor([[0.5000]])

    Reference:
        Grefenstette et al., 2019, arXiv:1910.01727, section 4.
    """
    who = "innerloop_ctx"
    if not isinstance(module, nn.Module):
        raise TypeError(f"{who}: expected an nn.Module, got {type(module).__name__}")
    groups = groups_of(who, module, optimizer, dict(override or {}))
    twin = module_clone(module, by="deepcopy" if copy_initial_weights else "reference")
    yield twin, DifferentiableOptimizer(twin, groups, track_higher_grads)


def groups_of(
    who: str, module: nn.Module, optimizer: Any, override: dict[str, Any]
) -> list[_Group]:
    params = trainable(module)
    if isinstance(optimizer, GradientTransformation):
        if override:
            raise ValueError(
                f"{who}: expected no override with a transformation, got {sorted(override)}; give "
                "the tensors to the transformation"
            )
        return [_Group(tuple(params), optimizer, optimizer.init(params))]
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"{who}: expected a torch.optim.Optimizer or a GradientTransformation, got "
            f"{type(optimizer).__name__}"
        )
    own = _own(optimizer)
    for name, values in override.items():
        _override(who, own, name, values)
    names = {id(param): name for name, param in module.named_parameters()}
    groups = []
    for number, group in enumerate(own.param_groups):
        others = [list(param.shape) for param in group["params"] if id(param) not in names]
        if others:
            raise ValueError(
                f"{who}: expected an optimizer of parameters of the module, got others of shapes "
                f"{others}, in group {number} of {type(optimizer).__name__}"
            )
        members = ParamDict((names[id(p)], p) for p in group["params"] if p.requires_grad)
        if not members:
            continue
        groups.append(_Group(tuple(members), *own.functional(members)))
    return groups


def _own(optimizer: torch.optim.Optimizer) -> optcore.Optimizer:
    """An optimizer of optcore with groups of its own, to be read only: the state is shared."""
    if not isinstance(optimizer, optcore.Optimizer):
        return optcore.from_torch(optimizer)
    own = copy.copy(optimizer)
    own.param_groups = [dict(group) for group in optimizer.param_groups]
    return own


def _override(who: str, own: optcore.Optimizer, name: str, values: Any) -> None:
    names = own.row.defaults if own.row else {}
    if name not in names:
        raise ValueError(f"{who}: expected override of one of {sorted(names)}, got {name!r}")
    groups = own.param_groups
    values = values if isinstance(values, (list, tuple)) else [values]
    if len(values) not in (1, len(groups)):
        raise ValueError(
            f"{who}: expected override[{name!r}] of 1 or {len(groups)} values, one per group, got "
            f"{len(values)}"
        )
    for index, group in enumerate(groups):
        group[name] = values[index if len(values) > 1 else 0]
