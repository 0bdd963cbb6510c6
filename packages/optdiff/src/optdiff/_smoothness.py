# SPDX-License-Identifier: Apache-2.0
"""Whether a gradient tells what happens when one moves: the check for metagradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch

from optdiff._steps import taken_apart
from optdiff._unroll import check_count

Tree: TypeAlias = Any


class Smoothness(NamedTuple):
    """What :func:`check_smoothness` found, with a row for each direction, a column for each step.

    The ratio of a smooth function is 1; of one that is chaotic on the scale of the step it is
    anything, and its gradient, however exact, does not tell where to go.
    """

    steps: tuple[float, ...]  # how far, as a share of the norm of the point
    slopes: torch.Tensor  # (directions,): the gradient along each direction
    differences: torch.Tensor  # (directions, steps): central differences
    ratios: torch.Tensor  # (directions, steps): slope by difference

    @property
    def agreement(self) -> torch.Tensor:
        r"""For each step, :math:`1 - \lVert s - d\rVert / (\lVert s\rVert + \lVert d\rVert)`.

        Of slopes :math:`s` and differences :math:`d` over all directions ``(steps,)``: 1 for a
        smooth function, near 0 for a chaotic one.
        """
        slopes = self.slopes[:, None].expand_as(self.differences)
        apart = (slopes - self.differences).norm(dim=0)
        return 1 - apart / (slopes.norm(dim=0) + self.differences.norm(dim=0))

    def __str__(self) -> str:
        lines = ["step      agreement  ratio of slope to difference, by direction"]
        for column, (step, agreed) in enumerate(zip(self.steps, self.agreement.tolist())):
            ratios = "  ".join(f"{ratio:.3g}" for ratio in self.ratios[:, column].tolist())
            lines.append(f"{step:<9.0e} {agreed:<10.2f} {ratios}")
        return "\n".join(lines)


def check_smoothness(
    function: Callable[[Tree], torch.Tensor],
    point: Tree,
    *,
    gradient: Tree = None,
    steps: Sequence[float] = (1e-1, 1e-2, 1e-3),
    directions: int = 3,
    generator: torch.Generator | None = None,
) -> Smoothness:
    r"""Compare a gradient with central differences along random directions.

    .. math::
        s = \langle \nabla f(x), v\rangle, \qquad
        d_h = \frac{f(x + h v) - f(x - h v)}{2 h}, \qquad \lVert v\rVert = \lVert x\rVert

    A metagradient can be exact and useless: after a long, chaotic training run the loss is so rough
    a function of what shaped the run that its slope holds for no step one would take. Look at the
    step that you mean to take: where the ratio :math:`s / d_h` is far from 1, make the run smoother
    before you use its metagradients. What helps depends on the run: a smooth activation instead of
    ReLU, whose gradient jumps, did most in ours (the README has a table); larger batches, batch
    normalisation before activations, a larger ``eps`` of Adam and a shorter warm-up are others.

    Args:
        function: ``function(point) -> value`` ``()``: a whole run and the loss behind it, with the
            same random numbers each time. It is called twice for each step and direction, and once
            more for the gradient.
        point: Tree of floating tensors, such as the meta-parameters. What does not require grad
            stays where it is.
        gradient: Tree of its gradient; None: that of ``function`` by torch.autograd.
        steps: Step sizes :math:`h`, as shares of the norm of the point (of 1, where that is 0).
        directions: How many.
        generator: Of the directions.

    Raises:
        TypeError: ``directions`` is no integer, ``function`` is not callable or gives no tensor.
        ValueError: No step, one that is not positive, nothing in ``point`` that requires grad, or a
            value that is no scalar, or without ``gradient`` has no graph.

    Example:
        >>> x = torch.ones(3, dtype=torch.float64, requires_grad=True)
        >>> found = check_smoothness(
        ...     lambda x: x.square().sum() + 1e-2 * (1e3 * x).sin().sum(), x, steps=(1e-1, 1e-6)
        ... )
        >>> [round(agreed, 1) for agreed in found.agreement.tolist()]  # rough on the larger scale
        [0.4, 1.0]

    Reference:
        Engstrom, Ilyas, Chen, Feldmann, Moses and Madry, 2025, arXiv:2503.13751, section 3
        (smoothness of a training run, and what makes it smooth).
    """
    who = "check_smoothness"
    if not callable(function):
        raise TypeError(f"{who}: expected a callable function, got {type(function).__name__}")
    check_count(who, "directions", directions, 1)
    if not steps or any(not step > 0 for step in steps):
        raise ValueError(f"{who}: expected positive steps, got {list(steps)}")
    tensors, layout = taken_apart(point)
    moving = [tensor for tensor in tensors if tensor.requires_grad]
    if not moving:
        raise ValueError(f"{who}: expected tensors that require grad in point, got none")
    if gradient is None:
        here = _scalar(who, function(point))
        if not here.requires_grad:
            raise ValueError(
                f"{who}: expected a value with a graph, got one without; compute it from point, or "
                "give its gradient"
            )
        found = torch.autograd.grad(here, moving, materialize_grads=True)
    else:
        given = taken_apart(gradient)[0]
        if [tensor.shape for tensor in given] != [tensor.shape for tensor in moving]:
            raise ValueError(
                f"{who}: expected a gradient of shapes {[list(t.shape) for t in moving]}, got "
                f"{[list(t.shape) for t in given]}"
            )
        found = tuple(given)
    length = float(_norm(moving)) or 1.0

    def value(direction: list[torch.Tensor], step: float) -> float:
        each = iter(direction)
        moved = [
            (tensor.detach() + step * next(each)).requires_grad_()
            if tensor.requires_grad
            else tensor
            for tensor in tensors
        ]
        return float(_scalar(who, function(layout.filled(moved))).detach())

    slopes, differences = [], []
    for _ in range(directions):
        raw = [
            torch.randn(t.shape, generator=generator, dtype=t.dtype).to(t.device) for t in moving
        ]
        scale = length / float(_norm(raw))
        direction = [scale * tensor for tensor in raw]
        slopes.append(float(sum((g * v).sum() for g, v in zip(found, direction, strict=True))))
        differences.append([(value(direction, h) - value(direction, -h)) / (2 * h) for h in steps])
    slope = torch.tensor(slopes, dtype=torch.float64)
    difference = torch.tensor(differences, dtype=torch.float64)
    return Smoothness(tuple(steps), slope, difference, slope[:, None] / difference)


def _scalar(who: str, value: Any) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{who}: expected function to return a tensor, got {type(value).__name__}")
    if value.numel() != 1:
        raise ValueError(
            f"{who}: expected function to return a scalar, got shape {list(value.shape)}"
        )
    return value


def _norm(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack([t.detach().double().norm().cpu() for t in tensors]).norm()
