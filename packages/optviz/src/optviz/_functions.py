# SPDX-License-Identifier: Apache-2.0
"""What an autograd function tells of itself."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import torch


def saved_tensors(function: Any) -> Iterable[tuple[str, torch.Tensor]]:
    """The tensors that a function keeps, by name, those in tuples too.

    Raises:
        RuntimeError: They are freed.
    """
    for attribute in _saved_attributes(type(function)):
        value = getattr(function, attribute)
        name = attribute[len("_saved_") :]
        if isinstance(value, torch.Tensor):
            yield name, value
        elif isinstance(value, (tuple, list)):
            for index, entry in enumerate(value):
                if isinstance(entry, torch.Tensor):
                    yield f"{name}[{index}]", entry
    if isinstance(function, torch.autograd.function.BackwardCFunction):
        for index, entry in enumerate(function.saved_tensors):
            if entry is not None:
                yield f"saved[{index}]", entry


def attributes_of(function: Any) -> tuple[tuple[str, str], ...]:
    """What a function knows besides tensors: numbers and words."""
    found: list[tuple[str, str]] = []
    for attribute in _saved_attributes(type(function)):
        try:
            value = getattr(function, attribute)
        except RuntimeError:  # freed
            continue
        if _is_plain(value):
            found.append((attribute[len("_saved_") :], str(value)))
    if isinstance(function, torch.autograd.function.BackwardCFunction):
        found += [
            (name, str(value)) for name, value in sorted(vars(function).items()) if _is_plain(value)
        ]
    return tuple(found)


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(isinstance(entry, (int, float, bool)) for entry in value) and len(value) <= 8
    return isinstance(value, (int, float, bool, str, torch.dtype))


@lru_cache(maxsize=4096)
def _saved_attributes(kind: type) -> tuple[str, ...]:
    names = [name for name in dir(kind) if name.startswith("_saved_")]
    return tuple(name for name in names if name != "_saved_tensors")


def made_by(function: Any) -> tuple[tuple[int, ...] | None, str]:
    """Shape and dtype of what a function made; of its first output, where it has several."""
    made = function._input_metadata
    if not made:
        return None, ""
    return tuple(int(size) for size in made[0].shape), dtype_name(made[0].dtype)


def dtype_name(dtype: Any) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")
