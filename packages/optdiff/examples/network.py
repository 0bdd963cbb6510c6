# SPDX-License-Identifier: Apache-2.0
"""The network that learns, and how it adapts to a task, as functions of its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from episodes import Task
from torch import Tensor, nn
from torch.func import functional_call

import optcore

Weights = dict[str, Tensor]


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


def inner_rule(name: str, lr: float) -> optcore.GradientTransformation:
    """Build the inner optimizer, ``"sgd"`` or ``"adam"``.

    Adam's ``eps`` is large because its derivative grows as ``1 / eps`` where a gradient is tiny.
    """
    return optcore.adam(lr, eps=1e-2) if name == "adam" else optcore.sgd(lr)


def loss_at(weights: Weights, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of ``model`` with these weights."""
    return F.cross_entropy(functional_call(model, weights, (images,)), labels)


def proximal_loss(
    weights: Weights, start: Weights, model: nn.Module, images: Tensor, labels: Tensor, pull: float
) -> Tensor:
    r"""Cross entropy plus :math:`\frac{pull}{2} \|weights - start\|^2`."""
    distance = sum((weights[name] - start[name]).square().sum() for name in start)
    return loss_at(weights, model, images, labels) + pull / 2 * distance


def descend(
    objective: Callable[[Weights], Tensor],
    weights: Weights,
    inner: optcore.GradientTransformation,
    steps: int,
) -> Iterator[Weights]:
    """Yield the weights after 0, 1, ..., ``steps`` inner steps."""
    state = inner.init(weights)
    yield weights
    for _ in range(steps):
        grads = torch.func.grad(objective)(weights)
        updates, state = inner.update(grads, state, weights, inplace=False)
        weights = optcore.apply_updates(weights, updates, inplace=False)
        yield weights


def adaptation(
    model: nn.Module,
    inner: optcore.GradientTransformation,
    tasks: Task,
    after: Sequence[int],
    pull: float = 0.0,
) -> Tensor:
    """Query accuracy of each of a stack of tasks after each number of inner steps.

    Returns:
        Accuracies, ``(tasks, len(after))``.
    """
    start = {name: param.detach() for name, param in model.named_parameters()}

    def accuracies(task: Task) -> Tensor:
        def objective(weights: Weights) -> Tensor:
            return proximal_loss(weights, start, model, task.support, task.support_labels, pull)

        found = []
        for step, weights in enumerate(descend(objective, start, inner, max(after))):
            if step in after:
                logits = functional_call(model, weights, (task.query,))
                found.append((logits.argmax(dim=1) == task.query_labels).float().mean())
        return torch.stack(found)

    return torch.vmap(accuracies)(tasks)
