# SPDX-License-Identifier: Apache-2.0
"""Meta optimizers around any other: sharpness-aware steps, smaller ones on a plateau."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from optcore import (
    GradientTransformation,
    ParamDict,
    chain,
    describe,
    normalize,
    reduce_on_plateau,
    sam,
    sgd,
)
from optdiff._containers import swapped
from optdiff._meta_step import inner_gradients, trainable
from optdiff._uncompiled import uncompiled
from optdiff.meta import MetaOptimizer, check_transformation


class MetaSAM(MetaOptimizer):
    r"""Differentiable sharpness-aware steps on the parameters of a module.

    ``step`` takes the loss as a function, because it evaluates it twice: at the parameters
    :math:`\theta` and uphill of them, whence ``base`` gets its gradients:

    .. math::
        \theta' = \theta + u\Bigl(\nabla L\Bigl(\theta
            + \rho\,\frac{\nabla L(\theta)}{\lVert \nabla L(\theta) \rVert}\Bigr)\Bigr)

    What a step does to the module: :class:`MetaOptimizer`.

    Args:
        module: The module to optimize.
        base: The optimizer in its functional form, e.g. ``optcore.adam(lr=0.1)``.
        rho: :math:`\rho \ge 0`, how far uphill: a number, a schedule or a tensor to learn.
        first_order: Take the inner gradients as constants (FOMAML).

    Differentiable:
        As :func:`optcore.sam`, through both gradients, also in ``rho``. Where all gradients are
        zero the direction uphill has no derivative, and 0 is taken.

    Raises:
        TypeError: ``module`` is no module, ``base`` no transformation, ``rho`` no hyperparameter.
        ValueError: No parameter of the module requires grad, or ``rho`` is negative.

    Example:
        >>> import optcore
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> rho = torch.tensor(0.5, requires_grad=True)
        >>> opt = MetaSAM(net, optcore.sgd(lr=0.1), rho=rho)
        >>> opt.step(lambda: (net.weight**2).sum())  # w' = w - 0.1 * 2 (w + rho sign(w))
        >>> torch.autograd.grad(net.weight.abs().sum(), rho)[0]
        tensor(-0.2000)

    Reference:
        Foret et al., 2021, arXiv:2010.01412, Algorithm 1.
    """

    def __init__(
        self,
        module: nn.Module,
        base: GradientTransformation,
        rho: Any = 0.05,
        *,
        first_order: bool = False,
    ) -> None:
        check_transformation(type(self).__name__, base)
        try:
            ascent = chain(normalize(), sgd(lr=rho))
        except (TypeError, ValueError) as error:  # the user knows nothing of sgd
            said = str(error).replace("sgd: expected lr", f"{type(self).__name__}: expected rho", 1)
            raise type(error)(said) from None
        around = sam(base, ascent, reset_state=False, opaque_mode=True)  # or rho would start over
        super().__init__(module, around, first_order=first_order)

    def add_param_group(self, module: nn.Module) -> None:
        """Take the one module that there may be: the way uphill is that of all parameters.

        Raises:
            TypeError: ``module`` is not a module.
            ValueError: There is one already; as :meth:`MetaOptimizer.add_param_group`.
        """
        if self._modules:
            raise ValueError(
                f"{type(self).__name__}: expected one module, got another: the norm of the "
                "gradient is that of all parameters; put them into one nn.ModuleList"
            )
        super().add_param_group(module)

    @uncompiled
    def step(self, loss: Callable[[], torch.Tensor], **extra: Any) -> None:  # type: ignore[override]
        """Replace the parameters by those after one step.

        Args:
            loss: A function without arguments that computes the scalar ``()`` from the module. It
                is called twice; the second time the module has its parameters uphill.
            extra: Other arguments that ``base`` asks for; ``value`` is the first loss.

        Raises:
            TypeError: ``loss`` is no function, or gives no tensor.
            ValueError: As :meth:`MetaOptimizer.step`; module and state are as before then.
            RuntimeError: As :meth:`MetaOptimizer.step`.
        """
        who = f"{type(self).__name__}.step"
        if "grad_fn" in extra:
            raise TypeError(
                f"{who}: expected no grad_fn, got {describe(extra['grad_fn'])}; the gradients "
                "uphill come from loss"
            )
        if not callable(loss):
            raise TypeError(
                f"{who}: expected the loss as a function, got {describe(loss)}; it is evaluated "
                "twice: step(lambda: ...)"
            )
        (module,) = self._modules
        before = trainable(module)

        def grad_fn(params: ParamDict, index: int) -> ParamDict:
            moved = {id(before[name]): param for name, param in params.items()}
            with swapped(module, moved):
                found = inner_gradients(who, loss(), [*params.values()], not self.first_order)
            return ParamDict(zip(params, found, strict=True))

        with torch.inference_mode(False), torch.enable_grad():
            first = loss()
        super().step(first, grad_fn=grad_fn, **extra)


class MetaReduceOnPlateau(MetaOptimizer):
    """Differentiable steps of any optimizer that get smaller once the inner loss stops falling.

    :func:`optcore.reduce_on_plateau` stands behind ``base`` and is told every inner loss. What a
    step does to the module: :class:`MetaOptimizer`.

    Args:
        module: The module to optimize.
        base: The optimizer in its functional form, e.g. ``optcore.adam(lr=0.1)``.
        first_order: Take the inner gradients as constants (FOMAML).
        options: ``factor``, ``patience`` and the other arguments of
            :func:`optcore.reduce_on_plateau`.

    Differentiable:
        As ``base``; the scale is a constant.

    Raises:
        TypeError: ``module`` is no module, ``base`` no transformation; as
            :func:`optcore.reduce_on_plateau`.
        ValueError: No parameter of the module requires grad; as :func:`optcore.reduce_on_plateau`.

    Example:
        >>> import optcore
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> init = net.weight
        >>> opt = MetaReduceOnPlateau(net, optcore.sgd(lr=0.25), factor=0.5, patience=1, atol=9.0)
        >>> for _ in range(2):  # w / 2, then w / 2 less a quarter of it
        ...     opt.step((net.weight**2).sum())
        >>> torch.autograd.grad(net.weight.sum(), init)[0]
        tensor([[0.3750]])

    Reference:
        As :func:`optcore.reduce_on_plateau`.
    """

    def __init__(
        self,
        module: nn.Module,
        base: GradientTransformation,
        *,
        first_order: bool = False,
        **options: Any,
    ) -> None:
        check_transformation(type(self).__name__, base)
        behind = chain(base, reduce_on_plateau(**options))
        super().__init__(module, behind, first_order=first_order)
