# SPDX-License-Identifier: Apache-2.0
r"""Model-agnostic meta-learning (Finn et al., 2017) by explicit differentiation.

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

import optdiff


def conv_net(ways: int, width: int) -> nn.Sequential:
    """Build the four convolution blocks of the MAML paper, strided as it does for Omniglot.

    Batch norm always uses the statistics of the batch at hand, as in the paper: a query batch is
    classified together (the transductive setting).
    """
    blocks: list[nn.Module] = []
    for channels in (1, width, width, width):
        blocks += [
            nn.Conv2d(channels, width, kernel_size=3, stride=2, padding=1),
            nn.BatchNorm2d(width, track_running_stats=False),
            nn.ReLU(),
        ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, ways))


def inner_optimizer(
    model: nn.Module, name: str, lr: float, *, first_order: bool
) -> optdiff.MetaOptimizer:
    """Build the differentiable inner optimizer, ``"sgd"`` or ``"adam"``.

    Adam's ``eps`` is large because its derivative grows as ``1 / eps`` where a gradient is tiny.
    """
    if name == "adam":
        return optdiff.MetaAdam(model, lr=lr, eps=1e-2, first_order=first_order)
    return optdiff.MetaSGD(model, lr=lr, first_order=first_order)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of right answers."""
    return (logits.argmax(dim=1) == labels).float().mean().item()


def query_loss(
    model: nn.Module, inner: optdiff.MetaOptimizer, task: Task, steps: int
) -> tuple[Tensor, float]:
    """Adapt to a task, then leave model and optimizer as they were.

    Returns:
        The loss on the query set, differentiable with respect to the parameters that the model
        started from, and the accuracy there.
    """
    start = optdiff.extract_state_dict(model, by="reference")
    inner_start = optdiff.extract_state_dict(inner, by="reference")
    for _ in range(steps):
        inner.step(F.cross_entropy(model(task.support), task.support_labels))
    logits = model(task.query)
    optdiff.recover_state_dict(model, start)
    optdiff.recover_state_dict(inner, inner_start)
    return F.cross_entropy(logits, task.query_labels), accuracy(logits, task.query_labels)


def meta_step(
    model: nn.Module,
    inner: optdiff.MetaOptimizer,
    outer: torch.optim.Optimizer,
    tasks: Sequence[Task],
    steps: int,
) -> tuple[float, float]:
    """Move the initialisation by one outer step over ``tasks``; returns their loss and accuracy."""
    outer.zero_grad()
    losses, accuracies = [], []
    for task in tasks:
        loss, right = query_loss(model, inner, task, steps)
        (loss / len(tasks)).backward()
        losses.append(loss.item())
        accuracies.append(right)
    outer.step()
    return sum(losses) / len(tasks), sum(accuracies) / len(tasks)


def adaptation(
    model: nn.Module, inner: optdiff.MetaOptimizer, task: Task, after: Sequence[int]
) -> list[float]:
    """Query accuracy after each number of inner steps in ``after`` (ascending)."""
    start = optdiff.extract_state_dict(model, by="reference")
    inner_start = optdiff.extract_state_dict(inner, by="reference")
    accuracies = []
    for step in range(after[-1] + 1):
        if step:
            inner.step(F.cross_entropy(model(task.support), task.support_labels))
            optdiff.stop_gradient(model)
            optdiff.stop_gradient(inner)
        if step in after:
            with torch.no_grad():
                accuracies.append(accuracy(model(task.query), task.query_labels))
    optdiff.recover_state_dict(model, start)
    optdiff.recover_state_dict(inner, inner_start)
    return accuracies
