# SPDX-License-Identifier: Apache-2.0
"""An ordinary training run of a module, and gradients in whatever shaped it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import nn
from torch.utils.data import default_collate

import optcore
from optcore import GradientTransformation, ParamDict
from optdiff._containers import swapped
from optdiff._innerloop import groups_of
from optdiff._meta_step import StepPart, differentiable_step, trainable
from optdiff._random_states import random_states, restore
from optdiff._replay import Offload, checked_options, replay
from optdiff._trees import tree_flatten, tree_map
from optdiff._unroll import check_count

Tree: TypeAlias = Any
Indices: TypeAlias = torch.Tensor | Sequence[int]


GOLDEN_RATIO = 0x9E3779B1  # of 2^32: its multiples are far from each other


class ShuffledBatches:
    """Batches of a data set, shuffled anew in every epoch, as a function of the step.

    Args:
        size: Examples in the data set.
        batch_size: Examples in a batch; those left over at the end of an epoch are left out.
        seed: Of the order.

    Raises:
        TypeError: A size is no integer.
        ValueError: A size below 1, or a batch larger than the data set.

    Example:
        >>> batches = ShuffledBatches(6, 3)
        >>> len(batches)  # steps in an epoch
        2
        >>> sorted(torch.cat([batches(2), batches(3)]).tolist())
        [0, 1, 2, 3, 4, 5]
    """

    def __init__(self, size: int, batch_size: int, *, seed: int = 0) -> None:
        who = type(self).__name__
        check_count(who, "size", size, 1)
        check_count(who, "batch_size", batch_size, 1)
        if batch_size > size:
            raise ValueError(f"{who}: expected batch_size <= {size} examples, got {batch_size}")
        self._size, self._batch_size, self._seed = size, batch_size, seed
        self._shuffled = -1, torch.empty(0, dtype=torch.long)  # the last epoch and its order

    def __len__(self) -> int:
        return self._size // self._batch_size

    def __call__(self, i: int) -> torch.Tensor:
        """Indices ``(batch_size,)`` of the examples of step ``i``."""
        epoch, place = divmod(i, len(self))
        if self._shuffled[0] != epoch:
            # sums of seed and epoch would give the orders of one seed to the next one, too
            mixed = (self._seed * GOLDEN_RATIO + epoch) % (1 << 32)
            generator = torch.Generator().manual_seed(mixed)
            self._shuffled = epoch, torch.randperm(self._size, generator=generator)
        return self._shuffled[1][place * self._batch_size :][: self._batch_size]


class Replay:
    r"""Train a module in an ordinary loop, and differentiate a later loss in what shaped the run.

    Step ``i`` computes ``loss_fn(model, batch, indices, meta)`` of the examples that ``sampler``
    chooses, and moves the parameters by ``optimizer``. All of it is a function of ``meta`` and of
    the initial weights, and :meth:`backward` gives the exact gradient of any loss of the trained
    model in both, by :func:`replay`.

    Args:
        model: The module. Its parameters, buffers and training flags, and torch's random numbers,
            are noted now: every run starts from them. Parameters that the optimizer does not
            move are constants.
        optimizer: A transformation of optcore; or an optimizer of the parameters of ``model``, of
            torch.optim (one that optcore has too) or of optcore, whose groups and state are taken
            over as they are now; or a function ``(meta, i) -> transformation`` for hyperparameters
            that are in ``meta``, such as ``lambda meta, i: optcore.adamw(meta["lr"][i])``.
        dataset: A tuple of tensors with one row for each example, or a map-style data set, whose
            examples are collated as by ``torch.utils.data.DataLoader``.
        loss_fn: ``loss_fn(model, batch, indices, meta) -> loss``, a scalar. Weights of examples
            are ``meta["weights"][indices]``.
        meta: Tree of tensors; those that require grad are differentiated in.
        num_steps: Steps in a run.
        sampler: ``sampler(i)`` gives the indices of the batch of step ``i``, always the same ones,
            as :class:`ShuffledBatches` does; or a sequence with an item for each step, such as
            ``list(batch_sampler)``.
        checkpoint: As ``branching``, ``offload``, ``directory`` and ``progress``: see
            :func:`replay`.
        branching: See :func:`replay`.
        offload: See :func:`replay`.
        directory: See :func:`replay`.
        progress: See :func:`replay`.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: An option outside its range, no parameter that requires grad, an optimizer of
            none of them, or a sampler with too few batches.

    Example:
        >>> x, y = torch.tensor([[1.0], [1.0]]), torch.tensor([[1.0], [3.0]])
        >>> def loss_fn(model, batch, indices, meta):
        ...     x, y = batch
        ...     return (meta[indices] * (model(x) - y).square().sum(1)).mean()
        >>> weights = torch.ones(2, requires_grad=True)
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> loop = Replay(
        ...     net, optcore.sgd(lr=0.1), (x, y), loss_fn, weights,
        ...     num_steps=100, sampler=ShuffledBatches(2, 2),
        ... )
        >>> val_loss = (loop.run().weight - 3.0).square().sum()  # trained on 1 and 3: w = 2
        >>> loop.backward(val_loss).round(decimals=4)  # the second example draws it to 3
        tensor([ 1., -1.])

    Reference:
        Engstrom, Ilyas, Chen, Feldmann, Moses and Madry, 2025, arXiv:2503.13751, sections 2, 3.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: GradientTransformation
        | torch.optim.Optimizer
        | Callable[[Tree, int], GradientTransformation],
        dataset: Any,
        loss_fn: Callable[[nn.Module, Any, torch.Tensor, Tree], torch.Tensor],
        meta: Tree,
        *,
        num_steps: int,
        sampler: Callable[[int], Indices] | Sequence[Indices],
        checkpoint: Literal["log"] | int = "log",
        branching: int = 2,
        offload: Offload = None,
        directory: str | os.PathLike[str] | None = None,
        progress: bool = False,
    ) -> None:
        who = self._who = type(self).__name__
        if not isinstance(model, nn.Module):
            raise TypeError(f"{who}: expected an nn.Module, got {type(model).__name__}")
        check_count(who, "num_steps", num_steps, 1)
        checked_options(who, checkpoint, branching, offload, directory, progress)
        params = trainable(model)
        if not params:
            raise ValueError(f"{who}: expected parameters that require grad, got none")
        if not callable(loss_fn):
            raise TypeError(
                f"{who}: expected a callable loss_fn(model, batch, indices, meta), got "
                f"{type(loss_fn).__name__}"
            )
        if not callable(sampler) and not hasattr(sampler, "__getitem__"):
            raise TypeError(
                f"{who}: expected a sampler as a function of the step or a sequence of batches, "
                f"got {type(sampler).__name__}; make a list of what gives batches one by one"
            )
        if not callable(sampler) and len(sampler) < num_steps:
            raise ValueError(
                f"{who}: expected a batch for each of {num_steps} steps, got {len(sampler)}"
            )
        self.model = model
        self.meta = meta
        self._num_steps = num_steps
        self._batch_of, self._rows = _rows(dataset)
        self._sampler = sampler if callable(sampler) else sampler.__getitem__
        self._loss_fn = loss_fn
        self._options: dict[str, Any] = {
            "checkpoint": checkpoint,
            "branching": branching,
            "offload": offload,
            "directory": directory,
            "progress": progress,
        }
        self._rule: Callable[[Tree, int], GradientTransformation] | None = None
        if callable(optimizer) and not isinstance(
            optimizer, (GradientTransformation, torch.optim.Optimizer)
        ):
            self._rule = optimizer
            optimizer = optimizer(meta, 0)
        groups = groups_of(who, model, optimizer, {})
        self._names = [group.names for group in groups]
        self._transformations = [group.transformation for group in groups]
        moved = {name for names in self._names for name in names}
        if not moved:
            raise ValueError(
                f"{who}: expected an optimizer of parameters that require grad, got "
                f"{type(optimizer).__name__} of none"
            )
        self._start = {
            name: param.detach().clone().requires_grad_()
            for name, param in params.items()
            if name in moved
        }
        self._states = [
            optcore.map_tensors(lambda tensor: tensor.detach().clone(), group.state)
            for group in groups
        ]
        self._buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        self._training = [(module, module.training) for module in model.modules()]
        self._random = random_states()
        self._versions: dict[str, int] = {}
        self._last: dict[str, torch.Tensor] = {}
        self._used = meta  # in the last run
        self.initial_gradient: dict[str, torch.Tensor] = {}

    def run(self, meta: Tree = None) -> nn.Module:
        """Train from the start that was noted; the model ends up with the trained weights.

        Args:
            meta: Other values for this run; None: ``self.meta``, those of the constructor.

        Returns:
            The model.
        """
        self._used = self.meta if meta is None else meta
        self._last = {}  # the run before is over, and the directory free
        self._reset_modules()
        live = random_states()
        restore(self._random)
        try:
            self._last, _ = replay(
                self._step,
                (self._start, self._states),
                self._num_steps,
                self._used,
                **self._options,
            )
        finally:
            restore(live)
        params = trainable(self.model)
        with torch.no_grad():
            for name, value in self._last.items():
                params[name].copy_(value)
        self._versions = {name: param._version for name, param in params.items()}
        return self.model

    def backward(self, val_loss: torch.Tensor) -> Tree:
        """The gradient of a loss of the trained model in ``meta`` of the run, a tree like it.

        Tensors of ``meta`` that do not require grad get None. The gradient in the initial weights
        is in ``initial_gradient`` afterwards, by name. May be called again, for other losses.

        Args:
            val_loss: Scalar ``()``, computed from the model after :meth:`run`. Buffers, such as
                the running statistics of batch normalisation, are constants to it.

        Raises:
            TypeError: It is no tensor.
            ValueError: It is no scalar, or does not depend on the model.
            RuntimeError: Nothing was run before, or the weights were changed after it.
        """
        who = f"{self._who}.backward"
        if not isinstance(val_loss, torch.Tensor):
            raise TypeError(f"{who}: expected a tensor, got {type(val_loss).__name__}")
        if val_loss.numel() != 1 or not val_loss.requires_grad:
            raise ValueError(
                f"{who}: expected a scalar loss with a graph, got "
                f"{str(val_loss.dtype).removeprefix('torch.')}{list(val_loss.shape)}"
                f"{'' if val_loss.requires_grad else ' without one'}"
            )
        if not any(value.requires_grad for value in self._last.values()):
            raise RuntimeError(
                f"{who}: expected a model trained with gradients enabled, got none; call run() "
                "first"
            )
        params = trainable(self.model)
        for name, version in self._versions.items():
            if name not in params or params[name]._version != version:
                raise RuntimeError(
                    f"{who}: expected the weights that run() left, got others, at {name!r}; call "
                    "run() again"
                )
        leaves, spec = tree_flatten(self._used)
        wanted = [isinstance(x, torch.Tensor) and x.requires_grad for x in leaves]
        metas = [leaf for leaf, want in zip(leaves, wanted, strict=True) if want]
        own = [params[name] for name in self._last]
        found = torch.autograd.grad(val_loss, [*own, *metas], allow_unused=True)
        seeds, direct = found[: len(own)], found[len(own) :]
        ends = [
            (end, seed)
            for end, seed in zip(self._last.values(), seeds, strict=True)
            if seed is not None
        ]
        if not ends:
            raise ValueError(
                f"{who}: expected a loss of the model, got one that depends on none of its weights"
            )
        start = list(self._start.values())
        through = torch.autograd.grad(
            [end for end, _ in ends],
            [*start, *metas],
            [seed for _, seed in ends],
            retain_graph=True,
            materialize_grads=True,
        )
        self.initial_gradient = dict(zip(self._start, through, strict=False))
        sums = iter(
            indirect if at_once is None else indirect + at_once
            for indirect, at_once in zip(through[len(start) :], direct, strict=True)
        )
        return spec.unflatten([next(sums) if want else None for want in wanted])

    def _step(self, carry: Any, i: int, meta: Tree) -> Any:
        params, states = carry
        indices = self._indices(i)
        # what the optimizer does not move is a constant
        own = {
            id(live): params[name] if name in params else live.detach()
            for name, live in trainable(self.model).items()
        }
        with swapped(self.model, own):
            loss = self._loss_fn(self.model, self._batch_of(indices), indices, meta)
        transformations = self._transformations
        if self._rule is not None:
            transformations = [self._rule(meta, i)]
        parts = [
            StepPart(transformation, ParamDict((name, params[name]) for name in names), state)
            for transformation, names, state in zip(
                transformations, self._names, states, strict=True
            )
        ]
        results = differentiable_step(self._who, loss, parts, True)
        new = {name: param for moved, _ in results for name, param in moved.items()}
        return {name: new[name] for name in params}, [state for _, state in results]

    def _indices(self, i: int) -> torch.Tensor:
        indices = torch.as_tensor(self._sampler(i))
        if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
            raise TypeError(
                f"{self._who}: expected integers from sampler, got "
                f"{str(indices.dtype).removeprefix('torch.')}{list(indices.shape)}, at step {i}"
            )
        if self._rows is not None and indices.numel():
            least, most = int(indices.min()), int(indices.max())
            if least < -self._rows or most >= self._rows:
                raise ValueError(
                    f"{self._who}: expected indices below {self._rows} from sampler, as many as "
                    f"there are examples, got {most if most >= self._rows else least}, at step {i}"
                )
        return indices

    def _reset_modules(self) -> None:
        for module, training in self._training:
            module.training = training
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                buffer.copy_(self._buffers[name])


def _rows(dataset: Any) -> tuple[Callable[[torch.Tensor], Any], int | None]:
    """What gives the batch of some indices, and how many examples there are, if that is known."""
    if isinstance(dataset, torch.utils.data.TensorDataset):
        dataset = dataset.tensors
    if isinstance(dataset, (tuple, list)) and all(isinstance(x, torch.Tensor) for x in dataset):
        size = min((len(rows) for rows in dataset), default=None)
        return lambda indices: tree_map(lambda rows: rows[indices.to(rows.device)], dataset), size
    if not hasattr(dataset, "__getitem__"):
        raise TypeError(
            "Replay: expected a tuple of tensors or a map-style data set, got "
            f"{type(dataset).__name__}"
        )
    size = len(dataset) if hasattr(dataset, "__len__") else None
    return lambda indices: default_collate([dataset[j] for j in indices.tolist()]), size
