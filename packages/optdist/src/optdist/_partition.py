# SPDX-License-Identifier: Apache-2.0
"""Splitting the arguments of a call along a dimension of its tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed.rpc as rpc
from torch import nn

import treeops
from optdist._program import NAMESPACE, Row

Args = tuple[Any, ...]
KwArgs = dict[str, Any]
Part = tuple[int, "Args | None", "KwArgs | None"]
Partitioner = "Callable[..., Sequence[Part]] | int | str"


class Split(NamedTuple):
    """Arguments in which numbered rows stand for tensors, and what each chunk has for them."""

    args: Args
    kwargs: KwArgs
    pieces: list[list[torch.Tensor]]  # per chunk, per row number
    sizes: list[int]  # rows per chunk


class TensorDimensionPartitioner:
    """Split every tensor of the arguments along a dimension; everything else goes whole.

    Modules, remote references, tensors without dimensions and what is not a tensor stay whole, and
    so do the arguments named in ``replicate``. Sizes of chunks differ by one at most.

    Args:
        dim: The dimension, of all tensors.
        exclusive: Every chunk is one row, as many chunks as rows.
        keepdim: Keep the dimension. ``False`` needs ``exclusive``; ``None`` keeps it otherwise.
        workers: Ranks or names that take part; all if not given.
        replicate: Names or positions of arguments that stay whole.

    Raises:
        ValueError: ``keepdim=False`` without ``exclusive``.

    Example:
        >>> parts = TensorDimensionPartitioner(0)(torch.ones(3, 2), "a word")
        >>> [(rank, args[0].shape, args[1]) for rank, args, _ in parts]
        [(0, torch.Size([3, 2]), 'a word')]
    """

    def __init__(
        self,
        dim: int,
        *,
        exclusive: bool = False,
        keepdim: bool | None = None,
        workers: Sequence[int | str] | None = None,
        replicate: Sequence[int | str] = (),
    ) -> None:
        if not isinstance(dim, int) or isinstance(dim, bool):
            raise TypeError(f"dim_partitioner: expected an integer for dim, got {dim!r}")
        if keepdim is False and not exclusive:
            raise ValueError(
                "dim_partitioner: expected keepdim=True without exclusive, got False; chunks of "
                "several rows have the dimension"
            )
        if workers is not None and not workers:
            raise ValueError("dim_partitioner: expected at least one of the workers, got none")
        self.dim, self.exclusive, self.workers = dim, exclusive, workers
        self.keepdim = (not exclusive) if keepdim is None else keepdim
        self.replicate = tuple(replicate)

    def __call__(self, *args: Any, **kwargs: Any) -> list[Part]:
        """Return ``(rank, args, kwargs)`` for each chunk, round and round over the workers."""
        from optdist.world import get_worker_id, get_world_size

        chosen = range(get_world_size()) if self.workers is None else self.workers
        ranks = [get_worker_id(worker) for worker in chosen]
        split = self.split("dim_partitioner", args, kwargs, len(ranks), self.replicate)
        filled = (
            treeops.tree_map(
                lambda x, p=pieces: p[x.number] if isinstance(x, Row) else x,
                (split.args, split.kwargs),
                none_is_leaf=True,
                namespace=NAMESPACE,
            )
            for pieces in split.pieces
        )
        return [(ranks[i % len(ranks)], *both) for i, both in enumerate(filled)]

    def split(
        self, who: str, args: Args, kwargs: KwArgs, chunks: int, replicate: Iterable[int | str]
    ) -> Split:
        """Split into so many chunks, or fewer where there are fewer rows.

        Raises:
            ValueError: no tensor to split, none with rows, or not the same number in all.
        """
        replicate = set(replicate)
        rows: dict[str, torch.Tensor] = {}

        def note(path: str, leaf: Any) -> Any:
            splits = isinstance(leaf, torch.Tensor) and leaf.dim() > 0
            if not splits or isinstance(leaf, nn.Module):
                return leaf
            rows[path] = leaf
            return Row(len(rows) - 1)

        def walk(name: int | str, tree: Any) -> Any:
            if name in replicate:
                return tree
            paths, leaves, spec = treeops.tree_flatten_with_path(
                tree, is_leaf=_is_whole, none_is_leaf=True, namespace=NAMESPACE
            )
            place = f"args[{name}]" if isinstance(name, int) else name
            marked = [
                note(place + "".join(f"[{key!r}]" for key in path), leaf)
                for path, leaf in zip(paths, leaves, strict=True)
            ]
            return treeops.tree_unflatten(spec, marked)

        new_args = tuple(walk(number, tree) for number, tree in enumerate(args))
        new_kwargs = {name: walk(name, tree) for name, tree in kwargs.items()}
        sizes = self._sizes(who, rows, chunks)
        columns = [self._cut(tensor, sizes) for tensor in rows.values()]
        return Split(new_args, new_kwargs, [list(piece) for piece in zip(*columns)], sizes)

    def _sizes(self, who: str, rows: dict[str, torch.Tensor], chunks: int) -> list[int]:
        if not rows:
            raise ValueError(
                f"{who}: expected a tensor with a dimension to split in the arguments, got none; "
                "give a batch, and leave it out of replicate="
            )
        counts = {}
        for path, tensor in rows.items():
            if not -tensor.dim() <= self.dim < tensor.dim():
                raise ValueError(
                    f"{who}: expected a dimension {self.dim} to split at {path}, got shape "
                    f"{list(tensor.shape)}; name that argument in replicate= to send it whole"
                )
            counts[path] = tensor.shape[self.dim]
        (first, count), *others = counts.items()
        for path, other in others:
            if other != count:
                raise ValueError(
                    f"{who}: expected as many rows at {path} as at {first}, {count}, got {other}; "
                    "name arguments that every worker gets whole in replicate="
                )
        if count == 0:
            raise ValueError(f"{who}: expected at least one row at {first}, got none")
        chunks = count if self.exclusive else min(chunks, count)
        small, larger = divmod(count, chunks)
        return [small + 1] * larger + [small] * (chunks - larger)

    def _cut(self, tensor: torch.Tensor, sizes: list[int]) -> Sequence[torch.Tensor]:
        return tensor.split(sizes, self.dim) if self.keepdim else tensor.unbind(self.dim)


def _is_whole(value: Any) -> bool:
    return isinstance(value, nn.Module) or (rpc.is_available() and isinstance(value, rpc.PyRRef))


def dim_partitioner(
    dim: int = 0,
    *,
    exclusive: bool = False,
    keepdim: bool = True,
    workers: Sequence[int | str] | None = None,
    replicate: Sequence[int | str] = (),
) -> TensorDimensionPartitioner:
    """Split along a dimension; see :class:`TensorDimensionPartitioner`.

    Example:
        >>> [args[0].shape for _, args, _ in dim_partitioner(1, exclusive=True)(torch.ones(4, 2))]
        [torch.Size([4, 1]), torch.Size([4, 1])]
    """
    return TensorDimensionPartitioner(
        dim, exclusive=exclusive, keepdim=keepdim, workers=workers, replicate=replicate
    )


batch_partitioner = dim_partitioner()
exclusive_batch_partitioner = dim_partitioner(exclusive=True, keepdim=False)
