# SPDX-License-Identifier: Apache-2.0
"""A transformation with its state, for loops that hold parameters as trees."""

from __future__ import annotations

from typing import Any

import torch

from optcore._apply import apply_updates
from optcore._transform import GradientTransformation
from optcore._tree import (
    Tree,
    describe,
    map_tensors,
    tensors_in,
    tree_flatten,
    tree_map,
    tree_unflatten,
)


def check_loss(who: str, loss: Any) -> None:
    """Refuse a loss that cannot be differentiated.

    Raises:
        TypeError: Not a real floating tensor.
        ValueError: Not one element, or without a graph.

    Example:
        >>> check_loss("step", torch.ones(2, requires_grad=True))
        Traceback (most recent call last):
        ...
        ValueError: step: expected a scalar loss, got f32[2]; reduce it, e.g. loss.mean()
    """
    if not isinstance(loss, torch.Tensor):
        raise TypeError(f"{who}: expected a scalar loss tensor, got {describe(loss)}")
    if not loss.dtype.is_floating_point:
        raise TypeError(f"{who}: expected a real floating loss, got {describe(loss)}")
    if loss.numel() != 1:
        raise ValueError(
            f"{who}: expected a scalar loss, got {describe(loss)}; reduce it, e.g. loss.mean()"
        )
    if not loss.requires_grad:
        raise ValueError(
            f"{who}: expected a loss that depends on parameters that require grad, got one without "
            "a graph; compute it from the parameters outside torch.no_grad()"
        )


class FuncOptimizer:
    """Take optimizer steps on a tree of parameters.

    Args:
        transformation: The optimizer in its functional form, e.g. ``optcore.adam()``.

    Example:
        >>> import torch
        >>> import optcore
        >>> optimizer = FuncOptimizer(optcore.sgd(lr=0.5))
        >>> params = {"w": torch.tensor([2.0], requires_grad=True)}
        >>> params = optimizer.step((params["w"] ** 2).sum(), params)
        >>> params
        {'w': tensor([0.], requires_grad=True)}
    """

    def __init__(self, transformation: GradientTransformation) -> None:
        if not isinstance(transformation, GradientTransformation):
            raise TypeError(
                "FuncOptimizer: expected a GradientTransformation, got "
                f"{describe(transformation)}; e.g. optcore.adam()"
            )
        self.transformation = transformation
        self.state: Tree = None

    def step(
        self, loss: torch.Tensor, params: Tree, *, inplace: bool | None = None, **extra: Any
    ) -> Tree:
        """Parameters after one step on ``loss``.

        Args:
            loss: Scalar that depends on ``params``.
            params: Tree of tensors; those that do not require grad stay as they are.
            inplace: False: the result is differentiable, through the gradients too. True:
                ``params`` are overwritten. None: new tensors, detached leaves; the state that is
                kept has no graph of this step.
            extra: Arguments for transformations that ask for some; ``value`` is the loss.

        Returns:
            Parameters like ``params``.

        Raises:
            ValueError: The loss is not a scalar or has no graph, or no parameter requires grad.
        """
        who = "FuncOptimizer.step"
        check_loss(who, loss)
        leaves, spec = tree_flatten(params)
        wanted = [p for p in leaves if _is_trained(p)]
        if not wanted:
            raise ValueError(
                f"{who}: expected parameters that require grad, got none; call requires_grad_()"
            )
        found = iter(
            torch.autograd.grad(loss, wanted, create_graph=inplace is False, allow_unused=True)
        )
        trained = [p if _is_trained(p) else None for p in leaves]
        grads = tree_unflatten(spec, [None if p is None else next(found) for p in trained])
        own = tree_unflatten(spec, trained)
        state = self.transformation.init(own) if self.state is None else self.state
        extra = {"value": loss if inplace is False else loss.detach(), **extra}
        if inplace is None:  # the buffers may be overwritten, the parameters not
            updates, after = self.transformation.update(grads, state, own, **extra)
            moved = apply_updates(params, updates, inplace=False)
            self.state = _without_graph(after, state)
            return tree_map(_as_leaf, moved, params)
        moved, after = self.transformation.step(grads, state, own, inplace=inplace, **extra)
        self.state = after if inplace is False else _without_graph(after, state)
        return params if inplace else tree_map(_moved_or_not, moved, params)

    def state_dict(self) -> Tree:
        """The state: a reference, None before the first step."""
        return self.state

    def load_state_dict(self, state_dict: Tree) -> None:
        """Go on from a state that :meth:`state_dict` gave."""
        self.state = state_dict

    def __repr__(self) -> str:
        return f"FuncOptimizer({self.transformation!r})"


def _is_trained(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.requires_grad


def _moved_or_not(new: Any, old: Any) -> Any:
    return old if new is None else new


def _without_graph(state: Tree, before: Tree) -> Tree:
    """The state without the graph of the step; what it only passed on stays as it is."""
    given = set(tensors_in([before]))  # by identity

    def cut(tensor: torch.Tensor) -> torch.Tensor:
        # a copy: the next step may overwrite it, and an earlier graph may hold the original
        made = tensor.grad_fn is not None and tensor not in given
        return tensor.detach().clone() if made else tensor

    return map_tensors(cut, state)


def _as_leaf(new: Any, old: Any) -> Any:
    if not isinstance(new, torch.Tensor):
        return new
    return new.detach().requires_grad_(old.requires_grad)
