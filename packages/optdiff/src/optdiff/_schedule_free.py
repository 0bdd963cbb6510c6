# SPDX-License-Identifier: Apache-2.0
"""Schedule-free Meta optimizers: the average, too, is a function of the initial parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from optcore import schedule_free_eval_params
from optdiff._containers import replace_tensors
from optdiff._meta_step import trainable
from optdiff.meta import MetaOptimizer, TableMetaOptimizer, derive


class ScheduleFreeMetaOptimizer(TableMetaOptimizer):
    """Differentiable schedule-free steps; an outer loss belongs inside :meth:`evaluating`.

    Example:
        >>> import torch, optdiff
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> init = net.weight
        >>> opt = optdiff.MetaScheduleFreeSGD(net, lr=0.25, b1=1.0)
        >>> for _ in range(2):  # w is halved, and then averaged with its half less a quarter
        ...     opt.step((net.weight**2).sum())
        >>> with opt.evaluating():
        ...     outer = net.weight.sum()
        >>> torch.autograd.grad(outer, init)[0]
        tensor([[0.3750]])
    """

    _evaluates = False

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Have the average in the modules, in the graph; afterwards what was there before.

        What is put in the place of parameters meanwhile, as by ``stop_gradient``, is gone then.

        Raises:
            RuntimeError: The average is there already.
        """
        self._check_trains("evaluating")
        moved = []
        for index, module in enumerate(self._modules):
            params = trainable(module)
            average = schedule_free_eval_params(self._grown(index, params)[0], params)
            moved.append((params, average))
        for module, (old, new) in zip(self._modules, moved, strict=True):
            replace_tensors(module, {id(old[name]): new[name] for name in old})
        self._evaluates = True
        try:
            yield
        finally:
            self._evaluates = False
            for module, (old, _) in zip(self._modules, moved, strict=True):
                now = dict(module.named_parameters())
                back = {id(now[name]): param for name, param in old.items() if name in now}
                replace_tensors(module, back)

    def step(self, loss: torch.Tensor, **extra: Any) -> None:
        """As :meth:`MetaOptimizer.step`.

        Raises:
            RuntimeError: The modules hold the average.
        """
        self._check_trains("step")
        super().step(loss, **extra)

    def _duplicate(self, *parts: Any) -> MetaOptimizer:
        self._check_trains("copy")
        return super()._duplicate(*parts)

    def _check_trains(self, what: str) -> None:
        if self._evaluates:
            raise RuntimeError(
                f"{type(self).__name__}.{what}: expected parameters to train, got the average; "
                "call it after `with ....evaluating():`"
            )


MetaScheduleFreeSGD = derive("schedule_free_sgd", ScheduleFreeMetaOptimizer, __name__)
MetaScheduleFreeAdamW = derive("schedule_free_adamw", ScheduleFreeMetaOptimizer, __name__)
