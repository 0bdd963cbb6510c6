# SPDX-License-Identifier: Apache-2.0
"""What makes ``solve`` of an implicit module differentiable."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import treeops
from optcore import describe
from optdiff._containers import every_module, relist, replace_tensors, settle, tensors_of
from optdiff._explicit import shallow_copy
from optdiff._implicit_rule import Leaves
from optdiff._methods import Method
from optdiff._root_problem import Problem
from optdiff._tracking import below_every_level, is_tracked, is_wrapped, peel
from optdiff._trees import NAMESPACE
from optdiff._uncompiled import uncompiled

if TYPE_CHECKING:
    from optdiff._implicit_module import ImplicitMetaGradientModule


def differentiated(solve: Method) -> Method:
    @uncompiled
    @functools.wraps(solve)
    def wrapped(self: ImplicitMetaGradientModule, *args: Any, **kwargs: Any) -> Any:
        if self._solving:  # a subclass calls its parent's
            return solve(self, *args, **kwargs)
        _give_leaves_back(self)
        call = _Call(self)
        if not call.names:
            raise ValueError(f"{call.who}: expected a parameter that requires grad, got none")
        metas = tuple(self.meta_parameters())
        problem = Problem(
            call.who,
            partial(_residual, call),
            partial(_run, call, solve),
            None,
            False,
            type(self).linear_solve,
        )
        solution = problem((None, metas, args, kwargs), {})
        leaves, output = call.parameters(), call.output
        call.module = call.output = None  # the graph holds the call, and the module the graph
        if not any(is_tracked(tensor) for tensor in solution):
            return _output(output, {})
        self.__dict__["_starts"] = {
            id(tensor): (tensor, tensor._version, leaf)
            for leaf, tensor in zip(leaves, solution, strict=True)
        }
        new = {id(leaf): tensor for leaf, tensor in zip(leaves, solution, strict=True)}
        replace_tensors(self, new)
        return _output(output, new)

    return wrapped


class Snapshot:
    """A module as it is now, and the same module with other parameters and meta-parameters."""

    def __init__(self, module: ImplicitMetaGradientModule, names: Sequence[str]) -> None:
        self._module = shallow_copy(module, {})
        for owner in every_module(self._module):
            for name, value in owner.__dict__.items():
                if type(value) in (list, dict, set):  # the graph, which holds this, may get into it
                    owner.__dict__[name] = copy.copy(value)
        self._module.__dict__["_unknowns"] = [*names]
        parameters = dict(module.named_parameters())
        self._places = {id(parameters[name]): index for index, name in enumerate(names)}
        self.metas = tuple(module.meta_parameters())
        self._meta_places = {id(meta): index for index, meta in enumerate(self.metas)}
        self._buffers = {
            id(buffer): buffer.detach().clone()
            for owner in every_module(module)
            for buffer in owner._buffers.values()
            if buffer is not None and not is_tracked(buffer)
        }

    def module(
        self, parameters: Sequence[torch.Tensor], metas: Sequence[torch.Tensor]
    ) -> ImplicitMetaGradientModule:
        """A module of its own: what is done to it, and to its buffers, is not done to any other."""
        new = {key: parameters[index] for key, index in self._places.items()}
        new |= {key: metas[index] for key, index in self._meta_places.items()}
        new |= {key: buffer.clone() for key, buffer in self._buffers.items()}
        replica = shallow_copy(self._module, {})
        _put(every_module(replica), new)
        settle(replica)
        return replica


class _Call:
    """One call of ``solve``: what it is about, and what it leaves.

    It is no callable and no tree, so nothing looks for tensors in it.
    """

    def __init__(self, module: ImplicitMetaGradientModule) -> None:
        self.module: ImplicitMetaGradientModule | None = module
        self.who = f"{type(module).__name__}.solve"
        self.names = unknowns_of(module)
        self.snapshot: Snapshot | None = None
        self.output: Any = None

    def parameters(self) -> list[torch.Tensor]:
        """The unknowns."""
        found = dict(self.module.named_parameters())
        return [found[name] for name in self.names]


def unknowns_of(module: nn.Module) -> list[str]:
    return [name for name, parameter in module.named_parameters() if parameter.requires_grad]


def _run(
    call: _Call,
    solve: Method,
    init: None,
    metas: Leaves,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Leaves:
    """Solve in numbers; the solution in the order of the names."""
    given = treeops.tree_leaves((metas, args, kwargs), namespace=NAMESPACE)
    if any(isinstance(leaf, torch.Tensor) and is_wrapped(leaf) for leaf in given):
        raise RuntimeError(
            f"{call.who}: expected no vmap around it, got one; a module holds the parameters of "
            "one problem, use optdiff.custom_root"
        )
    module = call.module
    unknowns = call.parameters()
    new = dict(zip(map(id, module.meta_parameters()), metas, strict=True))
    with _metas_replaced(module, new):
        module.__dict__["_solving"] = True
        try:
            call.output = solve(module, *args, **kwargs)
        finally:
            module.__dict__["_solving"] = False
    found = dict(module.named_parameters())
    missing = [name for name in call.names if name not in found]
    if missing:
        raise ValueError(
            f"{call.who}: expected solve to keep the parameters {call.names}, got a module without "
            f"{missing}"
        )
    call.snapshot = Snapshot(module, call.names)
    solution = tuple(tensor.detach() for tensor in call.parameters())
    for before, after in zip(unknowns, call.parameters(), strict=True):
        if before is not after and not isinstance(after, nn.Parameter):
            with torch.no_grad():
                before.copy_(after)
            replace_tensors(module, {id(after): before})
    return solution


def _residual(
    call: _Call,
    solution: Leaves,
    metas: Leaves,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """The optimality at some parameters, in the order of the names."""
    image = call.snapshot.module(solution, metas).optimality(*args, **kwargs)
    if isinstance(image, torch.Tensor):
        return (image,)
    if isinstance(image, Mapping):
        if image.keys() != {*call.names}:
            raise ValueError(
                f"{call.who}: expected the optimality to have the keys {call.names}, got {[*image]}"
            )
        return tuple(image[name] for name in call.names)
    if isinstance(image, (tuple, list)) or inspect.isgenerator(image):
        return tuple(image)
    raise TypeError(
        f"{call.who}: expected the optimality to be a tensor for each of {call.names}, got "
        f"{describe(image)}"
    )


def _give_leaves_back(module: ImplicitMetaGradientModule) -> None:
    """Put leaf parameters where the last solve put its solution.

    They hold the same numbers, unless the solution was overwritten since, and are the ones that an
    optimizer may know.
    """
    new: dict[int, torch.Tensor] = {}
    for tensor in module.parameters():
        known, version, leaf = module._starts.get(id(tensor), (None, 0, None))
        if known is tensor:
            alike = tensor.dtype == leaf.dtype and tensor.device == leaf.device
            if tensor._version != version or not alike:
                leaf.data = tensor.detach().clone()
            new[id(tensor)] = leaf
        elif is_wrapped(tensor) or not tensor.is_leaf:
            wanted = tensor.requires_grad or not isinstance(tensor, nn.Parameter)
            with below_every_level():
                new[id(tensor)] = nn.Parameter(_plain(module, tensor), requires_grad=wanted)
    for tensor in module.buffers():
        if is_wrapped(tensor):
            new[id(tensor)] = _plain(module, tensor)
    module.__dict__["_starts"] = {}  # never changed in place: copies may share it
    if new:
        replace_tensors(module, new)


def _plain(module: nn.Module, tensor: torch.Tensor) -> torch.Tensor:
    """The numbers of a tensor made inside of a torch.func transform."""
    plain = peel(tensor)
    if plain.shape != tensor.shape:
        raise RuntimeError(
            f"{type(module).__name__}.solve: expected no vmap around its parameters, got one; a "
            "module holds the parameters of one problem, use optdiff.custom_root"
        )
    with below_every_level():
        return plain.clone()


@contextmanager
def _metas_replaced(
    module: ImplicitMetaGradientModule, new: Mapping[int, torch.Tensor]
) -> Iterator[None]:
    """Have other tensors as meta-parameters, also in the meta-modules."""
    owners = every_module(module)
    before = {id(tensor): tensor for tensor in module.meta_parameters()}
    back = {id(tensor): before[key] for key, tensor in new.items()}
    _put(owners, new)
    try:
        yield
    finally:
        _put(owners, back)


def _put(owners: Sequence[nn.Module], new: Mapping[int, torch.Tensor]) -> None:
    for owner in owners:
        for kind in tensors_of(owner):
            container = owner.__dict__[kind]
            for name, tensor in container.items():
                if tensor is not None and id(tensor) in new:
                    container[name] = new[id(tensor)]
        relist(owner)


def _output(output: Any, new: Mapping[int, torch.Tensor]) -> Any:
    """What solve returned: solutions in the place of parameters, other tensors without a graph."""
    if isinstance(output, nn.Module):
        return output
    return treeops.tree_map(
        lambda leaf: (
            new.get(id(leaf), leaf.detach() if not isinstance(leaf, nn.Parameter) else leaf)
            if isinstance(leaf, torch.Tensor)
            else leaf
        ),
        output,
        namespace=NAMESPACE,
    )
