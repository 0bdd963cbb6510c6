# SPDX-License-Identifier: Apache-2.0
"""Optimizers whose steps stay in the graph: the loop inside a bilevel program."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from optcore import (
    INFORMED_OPTIMIZERS,
    OPTIMIZERS,
    GradientTransformation,
    OptimizerRow,
    ParamDict,
    derive_class,
    map_tensors,
)
from optdiff._containers import replace_tensors
from optdiff._meta_documentation import documentation
from optdiff._meta_states import Place, check_structure, grow, places_in, places_of
from optdiff._meta_step import StepPart, differentiable_step, trainable
from optdiff._uncompiled import uncompiled


class MetaOptimizer:
    r"""Differentiable steps on the parameters of a module.

    Each step writes :math:`\theta' = \theta + u(\nabla_\theta L)` into the module as non-leaf
    tensors, so that a later loss of the module is a function of the initial parameters, of
    everything the inner losses depended on and of tensor hyperparameters, and one ``backward``
    reaches them all.

    Tied parameters stay tied, frozen ones (``requires_grad=False``) are left alone, submodules and
    parameters that appear later are taken in, and ``copy.deepcopy(module)`` goes on working (the
    copy has detached parameters; a shallow ``copy.copy(module)`` cannot be copied deeply any more).
    A state goes with the module that holds a parameter, its name there and its shape: a layer that
    takes the place of another starts afresh, one that moves in the module keeps its state.

    Args:
        module: The module to optimize.
        transformation: The optimizer in its functional form, e.g. ``optcore.adam(lr=0.1)``.
        first_order: Take the inner gradients as constants (FOMAML): cheaper, and the derivative
            of the step is the identity.

    Raises:
        TypeError: ``module`` is no module or ``transformation`` no transformation.
        ValueError: No parameter of the module requires grad.

    Example:
        >>> import torch, optcore
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> init = net.weight
        >>> opt = MetaOptimizer(net, optcore.sgd(lr=0.25))
        >>> opt.step((net.weight**2).sum())  # w' = w - 0.25 * 2 w = w / 2
        >>> torch.autograd.grad(net.weight.sum(), init)[0]
        tensor([[0.5000]])

    Reference:
        Finn, Abbeel and Levine, 2017, arXiv:1703.03400, equation 1 and Algorithm 1.
    """

    row: OptimizerRow | None = None

    def __init__(
        self,
        module: nn.Module,
        transformation: GradientTransformation,
        *,
        first_order: bool = False,
    ) -> None:
        check_transformation(type(self).__name__, transformation)
        self.transformation = transformation
        self.first_order = first_order
        self._modules: list[nn.Module] = []
        self._states: list[Any] = []
        self._places: list[dict[str, Place]] = []  # where the parameters of a state are
        self.add_param_group(module)

    def add_param_group(self, module: nn.Module) -> None:
        """Optimize the parameters of another module too, with a state of its own.

        Raises:
            TypeError: ``module`` is not a module.
            ValueError: No parameter of it requires grad, one is lazy and has no shape yet, or
                another group has it.
        """
        who = type(self).__name__
        if not isinstance(module, nn.Module):
            raise TypeError(f"{who}: expected an nn.Module, got {type(module).__name__}")
        params = trainable(module)
        lazy = [name for name, param in params.items() if is_lazy(param)]
        if lazy:
            raise ValueError(
                f"{who}: expected parameters that have a shape, got lazy ones {lazy}; call the "
                "module once before"
            )
        if not params:
            raise ValueError(
                f"{who}: expected a module with parameters that require grad, got "
                f"{type(module).__name__} with none; call module.requires_grad_()"
            )
        taken = {id(p) for other in self._modules for p in other.parameters()}
        shared = [name for name, param in params.items() if id(param) in taken]
        if shared:
            raise ValueError(
                f"{who}: expected parameters that no other group has, got {shared} again"
            )
        state = self.transformation.init(params)
        self._modules.append(module)
        self._states.append(state)
        self._places.append(places_of(module, params))

    @uncompiled
    def step(self, loss: torch.Tensor, **extra: Any) -> None:
        """Replace the parameters by those after one step on ``loss``.

        Args:
            loss: Scalar ``()`` that depends on the parameters of the module. It is also the
                ``value`` of transformations that ask for it.
            extra: Other arguments that they ask for; parameters are dicts by name.

        Raises:
            TypeError: ``loss`` is not a tensor.
            ValueError: ``loss`` is not a scalar, has no graph, is batched by vmap, or depends on no
                parameter; module and state are as before then.
            RuntimeError: ``loss`` was computed in a graph that torch.compile has made, whose second
                derivative torch drops (not with ``first_order`` or ``backend="eager"``).
        """
        groups = [trainable(module) for module in self._modules]
        grown = [self._grown(index, params) for index, params in enumerate(groups)]
        parts = [
            StepPart(self.transformation, params, state)
            for params, (state, _) in zip(groups, grown, strict=True)
        ]
        results = differentiable_step(
            type(self).__name__, loss, parts, not self.first_order, extra=extra
        )
        for index, (module, old, (new, state)) in enumerate(
            zip(self._modules, groups, results, strict=True)
        ):
            replace_tensors(module, {id(old[name]): tensor for name, tensor in new.items()})
            self._states[index], self._places[index] = state, grown[index][1]

    def _grown(self, index: int, params: ParamDict) -> tuple[Any, dict[str, Place]]:
        """A state with zeros for parameters it does not know, without those that are gone."""
        state, known = self._states[index], self._places[index]
        places = places_of(self._modules[index], params)
        if places == known:
            return state, places
        return grow(state, self.transformation.init(params), known, places), places

    def _map_states(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._states = [map_tensors(function, state) for state in self._states]

    def state_dict(self) -> tuple[Any, ...]:
        """The states of the groups, by names of parameters: references, still in the graph.

        To copy or to save them, take ``optdiff.extract_state_dict(opt, by="deepcopy")``: what is in
        the graph cannot be copied deeply. They are named tuples, which ``torch.load`` reads with
        ``weights_only=False``.
        """
        return tuple(self._states)

    def load_state_dict(self, state_dict: Sequence[Any]) -> None:
        """Go on from states that :meth:`state_dict` gave, with parameters of the same names.

        Raises:
            TypeError: No sequence of states.
            ValueError: Not one state per group, or states of another optimizer or of parameters of
                other names or shapes; the states are as before then.
        """
        who = f"{type(self).__name__}.load_state_dict"
        if not isinstance(state_dict, (tuple, list)):
            raise TypeError(
                f"{who}: expected a tuple of states, got {type(state_dict).__name__}; take that of "
                "state_dict()"
            )
        states = list(state_dict)
        if len(states) != len(self._states):
            raise ValueError(
                f"{who}: expected {len(self._states)} states, one per module, got {len(states)}"
            )
        places = []
        for index, (new, old) in enumerate(zip(states, self._states, strict=True)):
            check_structure(who, new, old, self.transformation, index)
            params = trainable(self._modules[index])
            now = {**self._places[index], **places_of(self._modules[index], params)}
            fresh = self.transformation.init(params)
            places.append(places_in(who, new, fresh, now, index))
        self._states, self._places = states, places

    def __copy__(self) -> MetaOptimizer:
        return self._duplicate(self._modules, self._states, self._places)

    def __deepcopy__(self, memo: dict[int, Any]) -> MetaOptimizer:
        modules = [copy.deepcopy(module, memo) for module in self._modules]
        states = [map_tensors(_outside_the_graph, state) for state in self._states]
        memo[id(self)] = twin = self._duplicate(modules, states, copy.deepcopy(self._places, memo))
        return twin

    def _duplicate(
        self,
        modules: Sequence[nn.Module],
        states: Sequence[Any],
        places: Sequence[dict[str, Place]],
    ) -> MetaOptimizer:
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin._modules, twin._states, twin._places = list(modules), list(states), list(places)
        return twin

    def __repr__(self) -> str:
        modules = ", ".join(type(module).__name__ for module in self._modules)
        return f"{type(self).__name__}({modules}, {self.transformation!r})"


class TableMetaOptimizer(MetaOptimizer):
    """Differentiable steps on the parameters of a module, by one optimizer of optcore's table."""

    row: OptimizerRow

    def __init__(self, module: nn.Module, *, first_order: bool = False, **hyperparams: Any) -> None:
        super().__init__(module, self.row.factory(**hyperparams), first_order=first_order)


def check_transformation(who: str, transformation: object) -> None:
    """Refuse what is no transformation.

    Raises:
        TypeError: It is none.
    """
    if not isinstance(transformation, GradientTransformation):
        raise TypeError(
            f"{who}: expected a GradientTransformation, got {type(transformation).__name__}; e.g. "
            "optcore.adam(lr=0.1)"
        )


def derive(
    name: str, base: type[TableMetaOptimizer] = TableMetaOptimizer, module: str = __name__
) -> Any:
    """The Meta class of a row of optcore's table, documented by what the row's factory says."""
    row = {**OPTIMIZERS, **INFORMED_OPTIMIZERS}[name]
    cls = derive_class(row, base, module, "Meta")
    cls.__doc__ = documentation(name, cls.__name__, row.factory) or cls.__doc__
    return cls


MetaSGD = derive("sgd")
MetaAdam = derive("adam")
MetaAdamW = derive("adamw")
MetaAdamax = MetaAdaMax = derive("adamax")
MetaAdaBelief = derive("adabelief")
MetaYogi = derive("yogi")
MetaAMSGrad = derive("amsgrad")
MetaRAdam = derive("radam")
MetaNAdam = derive("nadam")
MetaRMSprop = MetaRMSProp = derive("rmsprop")
MetaAdagrad = MetaAdaGrad = derive("adagrad")
MetaAdadelta = MetaAdaDelta = derive("adadelta")
MetaAdan = derive("adan")
MetaNovoGrad = derive("novograd")
MetaASGD = derive("asgd")
MetaAdafactor = derive("adafactor")
MetaMuon = derive("muon")
MetaLamb = derive("lamb")
MetaLARS = derive("lars")
MetaLion = derive("lion")
MetaSM3 = derive("sm3")
MetaFromage = derive("fromage")
MetaAdamaxW = derive("adamaxw")
MetaNAdamW = derive("nadamw")
MetaNoisySGD = derive("noisy_sgd")
MetaOptimisticGradientDescent = derive("optimistic_gradient_descent")
MetaOptimisticAdam = derive("optimistic_adam")
MetaAdEMAMix = derive("ademamix")
MetaADOPT = derive("adopt")
MetaMADGRAD = derive("madgrad")
MetaDAdaptAdamW = derive("dadapt_adamw")
MetaProdigy = derive("prodigy")
MetaPolyakSGD = derive("polyak_sgd")
MetaShampoo = derive("shampoo")
MetaSophia = derive("sophia")
MetaSOAP = derive("soap")


def _outside_the_graph(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)
