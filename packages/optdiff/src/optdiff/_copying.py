# SPDX-License-Identifier: Apache-2.0
"""Taking tensors over by reference, as clones or as detached clones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from optdiff._containers import detached

Replicate: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
CopyMode: TypeAlias = Literal["reference", "copy", "deepcopy", "ref", "clone", "deepclone"]
_MODES = {"ref": "reference", "clone": "copy", "deepclone": "deepcopy"}


def replicator(who: str, by: str, device: torch.device | str | None) -> Replicate:
    """What takes a tensor over by a mode.

    Args:
        who: The function that is named in errors.
        by: A :data:`CopyMode`.
        device: Where the tensor goes.

    Raises:
        ValueError: ``by`` is unknown.
    """
    mode = _MODES.get(by, by)
    if mode not in ("reference", "copy", "deepcopy"):
        raise ValueError(f"{who}: expected by='reference', 'copy' or 'deepcopy', got {by!r}")

    def replicate(tensor: torch.Tensor) -> torch.Tensor:
        if mode == "reference":
            return tensor if device is None else tensor.to(device)
        if mode == "copy":
            return tensor.clone() if device is None else tensor.clone().to(device)
        moved = tensor if device is None else tensor.detach().to(device)
        own = detached(moved, parameter=isinstance(tensor, nn.Parameter))
        return own.requires_grad_(tensor.requires_grad)

    return replicate


def buffer_replicator(by: str, device: torch.device | str | None, detach: bool) -> Replicate:
    """What takes a buffer over: never itself, as modules overwrite it."""
    mode = "deepcopy" if detach or _MODES.get(by, by) == "deepcopy" else "copy"
    return replicator("buffers", mode, device)


def once(fn: Replicate) -> Replicate:
    """``fn`` that gives one result per tensor, so that what is tied stays tied."""
    seen: dict[int, torch.Tensor] = {}

    def replicate(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in seen:
            seen[id(tensor)] = fn(tensor)
        return seen[id(tensor)]

    return replicate


def mapped(fn: Replicate, container: Any) -> dict[str, torch.Tensor]:
    """What ``fn`` makes of the tensors in a container of a module."""
    return {name: fn(tensor) for name, tensor in container.items() if tensor is not None}
