# SPDX-License-Identifier: Apache-2.0
"""Modules whose parameters solve an inner problem and get their derivatives from its equation."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from optcore import describe
from optdiff._implicit_solve import Snapshot, differentiated, unknowns_of
from optdiff._meta_module import MetaGradientModule
from optdiff._methods import Method, check_method, refuse_on_instance, wrap_method
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
        wrap_method(cls, "solve", base, differentiated)

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
        names = self._unknowns or unknowns_of(self)
        found = dict(self.named_parameters())
        snapshot = Snapshot(self, names)

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
