# SPDX-License-Identifier: Apache-2.0
"""Schedule-free Meta optimizers: the average, too, is a function of the initial parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from optcore import schedule_free_eval_params
from optdiff._containers import replace_tensors
from optdiff.meta import TableMetaOptimizer, derive, trainable


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

        No parameter of the modules may be replaced meanwhile.

        Raises:
            RuntimeError: The average is there already.
        """
        self._check_trains("evaluating")
        moved = []
        for module, state in zip(self._modules, self._states, strict=True):
            params = trainable(module)
            moved.append((params, schedule_free_eval_params(self._grown(params, state), params)))
        for module, (old, new) in zip(self._modules, moved, strict=True):
            replace_tensors(module, {id(old[name]): new[name] for name in old})
        self._evaluates = True
        try:
            yield
        finally:
            self._evaluates = False
            for module, (old, new) in zip(self._modules, moved, strict=True):
                replace_tensors(module, {id(new[name]): old[name] for name in old})

    def step(self, loss: torch.Tensor) -> None:
        """As :meth:`MetaOptimizer.step`.

        Raises:
            RuntimeError: The modules hold the average.
        """
        self._check_trains("step")
        super().step(loss)

    def _check_trains(self, what: str) -> None:
        if self._evaluates:
            raise RuntimeError(
                f"{type(self).__name__}.{what}: expected parameters to train, got the average; "
                "call it after `with ....evaluating():`"
            )


MetaScheduleFreeSGD = derive("schedule_free_sgd", ScheduleFreeMetaOptimizer, __name__)
MetaScheduleFreeAdamW = derive("schedule_free_adamw", ScheduleFreeMetaOptimizer, __name__)
