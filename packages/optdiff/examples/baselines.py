# SPDX-License-Identifier: Apache-2.0
"""What few-shot learning is compared with: the same tasks, without meta-learning."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from episodes import Task
from network import conv_net


def nearest_neighbour(task: Task) -> float:
    """Give each query image the label of the nearest support image, in pixels."""
    distance = torch.cdist(task.query.flatten(1), task.support.flatten(1))
    return (task.support_labels[distance.argmin(dim=1)] == task.query_labels).float().mean().item()


def from_scratch(task: Task, *, ways: int, width: int, steps: int = 60, fit: float = 0.01) -> float:
    """Train the network from random weights on the support set, until it fits, by Adam."""
    model = conv_net(ways, width).to(task.support.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
    for _ in range(steps):
        loss = F.cross_entropy(model(task.support), task.support_labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < fit:
            break
    with torch.no_grad():
        right = model(task.query).argmax(dim=1) == task.query_labels
    return right.float().mean().item()
