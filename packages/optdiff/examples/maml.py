# SPDX-License-Identifier: Apache-2.0
r"""Model-agnostic meta-learning (Finn et al., 2017, arXiv:1703.03400): explicit differentiation.

Learn an initialisation :math:`\theta` from which a few gradient steps on a new task suffice:

.. math::
    \phi_0 = \theta, \quad
    \phi_{k+1} = \phi_k - \alpha \nabla L_{support}(\phi_k), \quad
    \min_\theta \; \mathbb{E}_{task} \, L_{query}(\phi_K(\theta))
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from episodes import Task
from torch import Tensor, nn

import optcore
import optdiff


class MAML:
    """The query loss after ``steps`` recorded inner steps.

    Args:
        model: Its parameters are the initialisation.
        inner: The rule of the inner steps.
        steps: How many.
        first_order: Take the inner gradients as constants.
    """

    def __init__(
        self,
        model: nn.Module,
        inner: optcore.GradientTransformation,
        steps: int,
        *,
        first_order: bool = False,
    ) -> None:
        self._model, self._steps = model, steps
        self._inner = optdiff.MetaOptimizer(model, inner, first_order=first_order)

    def __call__(self, tasks: Sequence[Task]) -> Tensor:
        """Mean over the tasks, differentiable in the parameters of the model."""
        return torch.stack([self._query_loss(task) for task in tasks]).mean()

    def _query_loss(self, task: Task) -> Tensor:
        """Adapt to a task, then leave model and optimizer as they were."""
        start = optdiff.extract_state_dict(self._model, by="reference")
        inner_start = optdiff.extract_state_dict(self._inner, by="reference")
        for _ in range(self._steps):
            self._inner.step(F.cross_entropy(self._model(task.support), task.support_labels))
        loss = F.cross_entropy(self._model(task.query), task.query_labels)
        optdiff.recover_state_dict(self._model, start)
        optdiff.recover_state_dict(self._inner, inner_start)
        return loss
