# SPDX-License-Identifier: Apache-2.0
r"""ES-MAML (Song et al., 2020, arXiv:1910.01215): the meta-gradient from values alone.

Nothing is differentiated through the inner loop :math:`U`: it is run from initialisations on both
sides of :math:`\theta`, in random directions :math:`\varepsilon_i`:

.. math::
    f(\theta) = L_{query}(U(\theta)), \qquad
    \nabla f_\sigma(\theta) \approx \frac1n \sum_{i=1}^n
    \frac{f(\theta + \sigma\varepsilon_i) - f(\theta - \sigma\varepsilon_i)}{2\sigma}\,\varepsilon_i
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from episodes import Task, stack
from network import Weights, descend, loss_at
from torch import Tensor, nn

import optcore
import optdiff


class ZeroOrderMAML:
    """The query loss after ``steps`` inner steps, for all tasks and directions by ``vmap``.

    Args:
        model: Its parameters are the initialisation.
        inner: The rule of the inner steps.
        steps: How many.
        samples: Directions for each task, of two runs of the inner loop each.
        sigma: How far to go in them.
        seed: Seeds the directions.
    """

    def __init__(
        self,
        model: nn.Module,
        inner: optcore.GradientTransformation,
        steps: int,
        *,
        samples: int,
        sigma: float,
        seed: int,
    ) -> None:
        noise = torch.distributions.Normal(0.0, 1.0)
        generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)

        @optdiff.zero_order(
            noise, "antithetic", num_samples=samples, sigma=sigma, generator=generator
        )
        def query_loss(start: Weights, task: Task) -> Tensor:
            def objective(weights: Weights) -> Tensor:
                return loss_at(weights, model, task.support, task.support_labels)

            *_, weights = descend(objective, start, inner, steps)
            return loss_at(weights, model, task.query, task.query_labels)

        self._model, self._query_loss = model, query_loss

    def __call__(self, tasks: Sequence[Task]) -> Tensor:
        """Mean over the tasks; its gradient in the parameters of the model is an estimate."""
        start = dict(self._model.named_parameters())
        losses = torch.vmap(lambda task: self._query_loss(start, task), randomness="different")
        return losses(stack(tasks)).mean()
