# SPDX-License-Identifier: Apache-2.0
"""Schedule-free ``torch.optim`` classes, whose parameters are switched for evaluation."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch

from optcore._optimizers import OPTIMIZERS
from optcore._schedule_free import average, interpolation
from optcore._transform import GradientTransformation
from optcore._tree import Tree
from optcore.optim import TableOptimizer, derive_class

_SCALARS = ("b1", "max_lr", "weight_sum")  # state in float64 whatever the parameters are


class ScheduleFreeOptimizer(TableOptimizer):
    """A schedule-free optimizer; its parameters are switched between training and evaluation.

    It starts ready to train. :meth:`eval` turns the parameters into the average that has been
    learned, :meth:`train` turns them back; both cost one pass over the parameters and round once,
    which half precision feels. Save module and optimizer in the same mode: the mode is part of
    ``state_dict()``.

    Example:
        >>> import torch
        >>> import optcore
        >>> w = torch.nn.Parameter(torch.tensor([4.0]))
        >>> optimizer = optcore.ScheduleFreeSGD([w], lr=1.0, b1=0.5)
        >>> for _ in range(2):
        ...     w.grad = torch.tensor([1.0])
        ...     optimizer.step()
        >>> optimizer.eval()
        >>> w.detach()  # the average of 3 and 2
        tensor([2.5000])
        >>> optimizer.train()
        >>> w.detach()
        tensor([2.2500])
    """

    @property
    def training(self) -> bool:
        """Whether the parameters are those to train, not those to evaluate."""
        return not self.param_groups or self.param_groups[0]["train_mode"]

    def train(self) -> None:
        """Turn the parameters into those to train; nothing happens if they are."""
        self._switch(True, interpolation)

    def eval(self) -> None:
        """Turn the parameters into the average; nothing happens if they are."""
        self._switch(False, average)

    @torch.no_grad()
    def _switch(self, training: bool, move: Callable[..., torch.Tensor]) -> None:
        for group in self.param_groups:
            if group["train_mode"] != training:
                for param in group["params"]:
                    kept = self.state.get(param)
                    if kept:  # before its first step a parameter is its own average
                        param.copy_(move(param, kept["z"], kept["b1"]))
                group["train_mode"] = training

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take in more parameters, in the mode that the others are in.

        Raises:
            ValueError: A hyperparameter is out of range; the optimizer is as before then.
        """
        if isinstance(param_group, dict):  # torch says what else is wrong
            param_group = {**param_group, "train_mode": self.training}
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state; its mode is taken over, parameters are left to the module's own."""
        super().load_state_dict(state_dict)

    def _restore(self, loaded: dict[str, Any]) -> None:
        super()._restore(loaded)
        saved = chain.from_iterable(group["params"] for group in loaded["param_groups"])
        own = chain.from_iterable(group["params"] for group in self.param_groups)
        for index, param in zip(saved, own, strict=True):
            kept = loaded["state"].get(index, {})
            for name in _SCALARS:  # torch has cast them to the dtype of the parameter
                if name in kept:
                    self.state[param][name] = kept[name].clone()

    def functional(self, params: Tree) -> tuple[GradientTransformation, Tree]:
        """As :meth:`Optimizer.functional`, of the parameters to train.

        Raises:
            RuntimeError: The parameters are those to evaluate.
            ValueError: A leaf is no parameter of this optimizer, or they are of several groups.
        """
        self._check_training("functional", "first")
        return super().functional(params)

    def _check_ready(self) -> None:
        self._check_training("step", "before the forward pass")

    def _check_training(self, method: str, when: str) -> None:
        if not self.training:
            name = type(self).__name__
            raise RuntimeError(
                f"{name}.{method}: expected parameters to train, got those to evaluate; call "
                f"{name}.train() {when}"
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("train_mode", True)


ScheduleFreeSGD = derive_class(OPTIMIZERS["schedule_free_sgd"], ScheduleFreeOptimizer, __name__)
ScheduleFreeAdamW = derive_class(OPTIMIZERS["schedule_free_adamw"], ScheduleFreeOptimizer, __name__)
