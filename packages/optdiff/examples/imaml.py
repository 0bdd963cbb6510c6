# SPDX-License-Identifier: Apache-2.0
r"""Implicit MAML (Rajeswaran et al., 2019, arXiv:1909.04630): where the inner loop ends, not how.

The inner problem keeps the weights near the initialisation. So its solution depends on it, and the
implicit function theorem gives the derivative; the steps are not recorded:

.. math::
    \phi^\star(\theta) = \arg\min_\phi L_{support}(\phi) + \tfrac\lambda2 \|\phi - \theta\|^2,
    \qquad
    \frac{\partial\phi^\star}{\partial\theta}
    = \Bigl(I + \tfrac1\lambda \nabla^2 L_{support}(\phi^\star)\Bigr)^{-1}
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from episodes import Task, stack
from network import Weights, descend, loss_at, proximal_loss
from torch import Tensor, nn

import optcore
import optdiff
from optdiff.linear_solve import solve_cg


class ImplicitMAML:
    r"""The query loss at the solution of the inner problem, for all tasks at a time by ``vmap``.

    Neither solver runs to convergence, as in the paper: some steps come near the solution, some
    iterations of conjugate gradients near the derivative. So ``on_failure="ignore"``: each linear
    system would warn, rightly, that it is not solved.

    Args:
        model: Its parameters are the initialisation.
        inner: The rule of the inner solver.
        steps: Of the inner solver.
        pull: :math:`\lambda`.
        cg_iterations: Each is a product with the Hessian.
        damping: Added to the curvature in the derivative. Where the inner problem is not convex,
            conjugate gradients need it.
    """

    def __init__(
        self,
        model: nn.Module,
        inner: optcore.GradientTransformation,
        steps: int,
        *,
        pull: float,
        cg_iterations: int,
        damping: float = 0.0,
    ) -> None:
        linear = solve_cg(maxiter=cg_iterations, ridge=damping, on_failure="ignore")

        def objective(weights: Weights, start: Weights, images: Tensor, labels: Tensor) -> Tensor:
            return proximal_loss(weights, start, model, images, labels, pull)

        @optdiff.custom_root(torch.func.grad(objective), solve=linear)
        def solution(init: None, start: Weights, images: Tensor, labels: Tensor) -> Weights:
            *_, last = descend(lambda w: objective(w, start, images, labels), start, inner, steps)
            return last

        self._model, self._solution = model, solution

    def __call__(self, tasks: Sequence[Task]) -> Tensor:
        """Mean over the tasks, differentiable in the parameters of the model."""
        start = dict(self._model.named_parameters())

        def query_loss(task: Task) -> Tensor:
            weights = self._solution(None, start, task.support, task.support_labels)
            return loss_at(weights, self._model, task.query, task.query_labels)

        return torch.vmap(query_loss)(stack(tasks)).mean()
