# SPDX-License-Identifier: Apache-2.0
"""``torch.optim`` classes derived from the functional optimizers."""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from optcore._kept import comparable
from optcore._optimizer import Optimizer
from optcore._optimizers import INFORMED_OPTIMIZERS, OPTIMIZERS
from optcore._rows import OptimizerRow
from optcore._torch_state import (
    handed_over,
    row_of,
    taken_over,
)
from optcore._transform import GradientTransformation

if TYPE_CHECKING:
    from typing_extensions import Self


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


@lru_cache
def _parameters_of(base: type) -> tuple[inspect.Parameter, ...]:
    return tuple(inspect.signature(base.__init__).parameters.values())  # type: ignore[misc]


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
    own = _parameters_of(base)
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
AdamaxW = derive_class(OPTIMIZERS["adamaxw"], TableOptimizer, __name__)
NAdamW = derive_class(OPTIMIZERS["nadamw"], TableOptimizer, __name__)
NoisySGD = derive_class(OPTIMIZERS["noisy_sgd"], TableOptimizer, __name__)
OptimisticGradientDescent = derive_class(
    OPTIMIZERS["optimistic_gradient_descent"], TableOptimizer, __name__
)
OptimisticAdam = derive_class(OPTIMIZERS["optimistic_adam"], TableOptimizer, __name__)
AdEMAMix = derive_class(OPTIMIZERS["ademamix"], TableOptimizer, __name__)
ADOPT = derive_class(OPTIMIZERS["adopt"], TableOptimizer, __name__)
MADGRAD = derive_class(OPTIMIZERS["madgrad"], TableOptimizer, __name__)
DAdaptAdamW = derive_class(OPTIMIZERS["dadapt_adamw"], TableOptimizer, __name__)
Prodigy = derive_class(OPTIMIZERS["prodigy"], TableOptimizer, __name__)


Shampoo = derive_class(OPTIMIZERS["shampoo"], TableOptimizer, __name__)
SOAP = derive_class(OPTIMIZERS["soap"], TableOptimizer, __name__)
Sophia = derive_class(INFORMED_OPTIMIZERS["sophia"], TableOptimizer, __name__)
PolyakSGD = derive_class(INFORMED_OPTIMIZERS["polyak_sgd"], TableOptimizer, __name__)


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
