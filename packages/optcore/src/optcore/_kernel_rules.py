# SPDX-License-Identifier: Apache-2.0
"""The kernel of a transformation in the place of its formula: one call for all leaves alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from optcore._kernels import Kernel
from optcore._tree import Tree, path_to


class KernelRule:
    """A kernel and what it gets beside the gradients: a column has an entry per leaf.

    Args:
        kernel: Of the transformation.
        columns: Its buffers.
        ticks: Step counts, if it has some.
        hyperparams: Handed over by name.
        trees: Those of them that have a value per leaf.
        tree: Like the gradients, for paths in errors.
    """

    def __init__(
        self,
        kernel: Kernel,
        columns: Sequence[Sequence[Any]],
        ticks: Sequence[Any] | None,
        hyperparams: Mapping[str, Any],
        trees: Mapping[str, Sequence[Any]],
        tree: Tree,
    ) -> None:
        self._kernel, self._columns, self._ticks = kernel, columns, ticks
        self._hyperparams, self._trees, self._tree = hyperparams, trees, tree
        self._ready: list[tuple[list[int], Any]] | None = None

    def check(self, grads: Sequence[torch.Tensor | None]) -> None:
        """Refuse what could not be done in place with these gradients; the calls are kept."""
        if self._kernel.prepared is not None:
            self._ready = self._apart(grads)

    def overwrite(self, grads: Sequence[torch.Tensor | None]) -> list[Any]:
        """The updates; the buffers move."""
        for tick in {id(tick): tick for tick in self._ticks or () if tick is not None}.values():
            tick.begin()
        if self._kernel.prepared is None:
            updates, *made = self.differentiable(grads, inplace=True)
            for column, values in zip(self._columns, made, strict=True):
                for old, new in zip(column, values, strict=True):
                    if new is not old:
                        old.copy_(new)
            return updates
        ready, self._ready = self._ready, None
        if ready is None:
            ready = self._apart(grads)
        updates = [None] * len(grads)
        for members, call in ready:
            for i, update in zip(members, call(), strict=True):
                updates[i] = update
        return updates

    def differentiable(
        self, grads: Sequence[torch.Tensor | None], inplace: bool = False
    ) -> list[list[Any]]:
        """The updates and each of the new buffers."""
        outputs: list[list[Any]] = [[None] * len(grads), *map(list, self._columns)]
        for members, lists, own in self._grouped(grads):
            results = self._kernel.run(*lists, inplace=inplace, **own)
            for output, values in zip(outputs, results, strict=True):
                for i, value in zip(members, values, strict=True):
                    output[i] = value
        return outputs

    def _apart(self, grads: Sequence[torch.Tensor | None]) -> list[tuple[list[int], Any]]:
        """The calls, checked one by one and against each other."""
        made = list(self._prepared(grads))
        for _, call in made[:1]:
            call.check_apart([call for _, call in made])
        return made

    def _prepared(self, grads: Sequence[torch.Tensor | None]) -> Iterator[tuple[list[int], Any]]:
        prepared: Any = self._kernel.prepared
        for members, lists, own in self._grouped(grads):
            where = _words(self._tree, members, self._kernel.buffers)
            yield members, prepared(*lists, where=where, **own)

    def _grouped(
        self, grads: Sequence[torch.Tensor | None]
    ) -> Iterator[tuple[list[int], list[list[Any]], dict[str, Any]]]:
        """Leaves alike in dtype, device, step count and hyperparameters."""
        alike: dict[Any, list[int]] = {}
        for i, grad in enumerate(grads):
            if grad is not None:
                own = [id(values[i]) for values in self._trees.values()]
                tick = None if self._ticks is None else id(self._ticks[i])
                dtypes = [column[i].dtype for column in self._columns]
                alike.setdefault((grad.device, grad.dtype, *dtypes, tick, *own), []).append(i)
        for members in alike.values():
            lists = [[column[i] for i in members] for column in (grads, *self._columns)]
            if self._ticks is not None:
                lists.append([self._ticks[i].count for i in members])
            values = {name: column[members[0]] for name, column in self._trees.items()}
            yield members, lists, {**self._hyperparams, **values}


def _words(
    tree: Tree, members: Sequence[int], buffers: Sequence[str]
) -> Callable[[str, int, int], str]:
    """Where a tensor stands: calls keep this, so it must not lead back to them."""

    def where(name: str, column: int, leaf: int) -> str:
        place = path_to(tree, members[leaf])
        named = name == "buffers" and column < len(buffers)
        return f"{place}, {buffers[column] if named else name}"

    return where
