# SPDX-License-Identifier: Apache-2.0
"""Modules whose parameters solve an inner problem and get their derivatives from its equation."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn

import treeops
from optcore import describe
from optdiff._containers import every_module, relist, replace_tensors, settle, tensors_of
from optdiff._explicit import shallow_copy
from optdiff._implicit_rule import Leaves
from optdiff._meta_module import MetaGradientModule
from optdiff._methods import Method, check_method, refuse_on_instance, wrap_method
from optdiff._root_problem import Problem
from optdiff._tracking import below_every_level, is_tracked, is_wrapped, peel
from optdiff._trees import NAMESPACE
from optdiff._uncompiled import uncompiled
from optdiff.linear_solve import LinearSolver, solve_gmres
from optdiff.linear_solve._given import adapt

_WRITTEN = ("solve", "optimality", "objective")


class ImplicitMetaGradientModule(MetaGradientModule):
    r"""A module whose ``solve`` trains it, differentiable by the implicit function theorem.

    ``solve(*args, **kwargs)``, which a subclass writes or takes from a mixin, moves the parameters
    :math:`w` to where

    .. math::
        F(w, \phi) = 0, \qquad
        \frac{\partial w}{\partial\phi} =
        -\Bigl(\frac{\partial F}{\partial w}\Bigr)^{-1} \frac{\partial F}{\partial\phi}

    for ``optimality(*args, **kwargs)`` as :math:`F`, by default the gradient of
    ``objective(*args, **kwargs)`` in the parameters. Afterwards the parameters are functions of the
    meta-parameters, of the parameters of meta-modules and of the floating tensors in the arguments,
    whatever ``solve`` did. When ``solve`` is called again it finds the leaf parameters of before,
    as the last solve left them, so that an optimizer made once goes on.

    Inside ``solve`` nothing leads to the meta-parameters: ``loss.backward()`` fills no ``.grad`` of
    theirs. What it returns is returned: the module, parameters (those with derivatives) or
    anything else, without a graph. Only parameters that require grad are unknowns. The optimality
    is evaluated on copies, with the mode and the buffers that ``solve`` left.

    Args:
        linear_solve: Class keyword: the linear solver for the derivative, as for
            :func:`optdiff.custom_root`. A subclass that gives none inherits it.

    Differentiable:
        As :func:`optdiff.custom_root`, in the meta-parameters and the arguments, to any order, but
        not under ``vmap``. The parameters that ``solve`` starts from carry no gradient.

    Raises:
        TypeError: When the class is defined: it has ``solve`` but neither ``optimality`` nor
            ``objective``, or one of them is no method. When made: it has no ``solve``. When one of
            the three is assigned to an instance.
        ValueError: In ``solve``: no parameter requires grad, or the optimality is not like those
            that do, or needs a tensor that requires grad and is neither a meta-parameter nor an
            argument.
        RuntimeError: In ``solve``, under ``vmap``.

    Example:
        >>> class Ridge(ImplicitMetaGradientModule):
        ...     def __init__(self, decay):
        ...         super().__init__()
        ...         self.decay = decay
        ...         self.w = torch.nn.Parameter(torch.zeros(()))
        ...
        ...     def objective(self, target):
        ...         return (self.w - target) ** 2 + self.decay * self.w**2
        ...
        ...     def solve(self, target):
        ...         optimizer = torch.optim.SGD(self.parameters(), lr=0.2)
        ...         for _ in range(100):
        ...             optimizer.zero_grad()
        ...             self.objective(target).backward()
        ...             optimizer.step()
        ...         return self
        >>> decay = torch.tensor(1.0, requires_grad=True)
        >>> ridge = Ridge(decay).solve(torch.tensor(4.0))  # w = 4 / (1 + decay)
        >>> torch.autograd.grad(ridge.w, decay)[0]
        tensor(-1.)

    Reference:
        Blondel et al., 2022, arXiv:2105.15183, equations 2 and 3; Rajeswaran et al., 2019,
        arXiv:1909.04630 (iMAML).
    """

    linear_solve: ClassVar[LinearSolver] = solve_gmres()

    _starts: dict[int, tuple[torch.Tensor, int, nn.Parameter]]  # see _give_leaves_back
    _solving: bool
    _unknowns: list[str] | None  # of a copy that the optimality is evaluated on

    def __new__(cls, *args: Any, **kwargs: Any) -> ImplicitMetaGradientModule:
        if cls.solve is ImplicitMetaGradientModule.solve:
            raise TypeError(f"{cls.__name__}: expected a class with a method solve, got none")
        instance = super().__new__(cls, *args, **kwargs)
        instance.__dict__["_starts"] = {}
        instance.__dict__["_solving"] = False
        instance.__dict__["_unknowns"] = None
        return instance

    def __init_subclass__(
        cls, linear_solve: LinearSolver | Method | None = None, **kwargs: Any
    ) -> None:
        super().__init_subclass__(**kwargs)
        if linear_solve is not None:
            cls.linear_solve = adapt(cls.__name__, linear_solve)
        base = ImplicitMetaGradientModule
        for name in _WRITTEN:
            check_method(cls, name)
        derived = cls.optimality is base.optimality
        if cls.solve is not base.solve and derived and cls.objective is base.objective:
            raise TypeError(
                f"{cls.__name__}: expected a method optimality or objective, got neither"
            )
        wrap_method(cls, "solve", base, _differentiated)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _WRITTEN:
            refuse_on_instance(self, name, value)
        super().__setattr__(name, value)

    def solve(self, *args: Any, **kwargs: Any) -> Any:
        """Move the parameters to where the optimality is zero; a subclass writes it.

        Args:
            args: What the inner problem depends on, passed to ``optimality`` or ``objective`` too.
            kwargs: The same, by name.

        Raises:
            NotImplementedError: No subclass wrote it.
        """
        raise NotImplementedError(f"{type(self).__name__}: expected a method solve, got none")

    def optimality(self, *args: Any, **kwargs: Any) -> Any:
        """What is zero at the solution.

        Args:
            args: As for :meth:`solve`.
            kwargs: As for :meth:`solve`.

        Returns:
            A tensor for each parameter that requires grad, in the order of ``parameters()``; or a
            dict of them by the parameters' names. By default the gradient of :meth:`objective`.

        Raises:
            ValueError: The objective is no scalar.
        """
        names = self._unknowns or _unknowns(self)
        found = dict(self.named_parameters())
        snapshot = _Snapshot(self, names)

        def objective(*parameters: torch.Tensor) -> torch.Tensor:
            replica = snapshot.module(parameters, snapshot.metas)
            value = replica.objective(*args, **kwargs)
            if not isinstance(value, torch.Tensor) or value.ndim:
                raise ValueError(
                    f"{type(self).__name__}.objective: expected a scalar, got {describe(value)}"
                )
            return value

        parameters = [found[name] for name in names]
        return torch.func.grad(objective, tuple(range(len(names))))(*parameters)

    def objective(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """What the solution minimizes, a scalar; not needed where ``optimality`` is written.

        Args:
            args: As for :meth:`solve`.
            kwargs: As for :meth:`solve`.

        Raises:
            NotImplementedError: No subclass wrote it.
        """
        raise NotImplementedError(f"{type(self).__name__}: expected a method objective, got none")

    def __getstate__(self) -> dict[str, Any]:
        """What a copy needs: it solves for itself."""
        return {**super().__getstate__(), "_starts": {}, "_solving": False}


class _Snapshot:
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
        self.names = _unknowns(module)
        self.snapshot: _Snapshot | None = None
        self.output: Any = None

    def parameters(self) -> list[torch.Tensor]:
        """The unknowns."""
        found = dict(self.module.named_parameters())
        return [found[name] for name in self.names]


def _unknowns(module: nn.Module) -> list[str]:
    return [name for name, parameter in module.named_parameters() if parameter.requires_grad]


def _differentiated(solve: Method) -> Method:
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
    call.snapshot = _Snapshot(module, call.names)
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
