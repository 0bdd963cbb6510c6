# SPDX-License-Identifier: Apache-2.0
"""What an autograd function tells of itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch


@dataclass
class Kept:
    """What a function keeps for its backward pass, by name."""

    tensors: list[tuple[str, torch.Tensor]] = field(default_factory=list)
    by_hooks: list[str] = field(default_factory=list)  # reading would run them, maybe a forward
    overwritten: list[str] = field(default_factory=list)  # in place, after they were saved
    freed: bool = False


def kept_by(function: Any) -> Kept:
    """The tensors that a function keeps, those in tuples too, without running hooks of theirs."""
    kept = Kept()
    for name, attribute, raw in _saved_attributes(type(function))[0]:
        try:
            if _unpacks(getattr(function, raw)):
                kept.by_hooks.append(name)
                continue
            _take(kept, name, getattr(function, attribute))
        except RuntimeError as error:
            _note_loss(kept, name, error)
    if isinstance(function, torch.autograd.function.BackwardCFunction):
        try:
            saved = function._raw_saved_tensors  # type: ignore[attr-defined]
            if _unpacks(saved):
                kept.by_hooks += [f"saved[{index}]" for index in range(len(saved))]
            else:
                _take(kept, "saved", function.saved_tensors)
        except RuntimeError as error:
            _note_loss(kept, "saved", error)
    return kept


def _unpacks(raw: Any) -> bool:
    """Whether a hook unpacks a saved variable, or one of a tuple; torch told that late."""
    entries = raw if isinstance(raw, (tuple, list)) else [raw]
    return any(getattr(entry, "unpack_hook", None) is not None for entry in entries)


def _take(kept: Kept, name: str, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        kept.tensors.append((name, value))
    elif isinstance(value, (tuple, list)):
        kept.tensors += [
            (f"{name}[{index}]", entry)
            for index, entry in enumerate(value)
            if isinstance(entry, torch.Tensor)
        ]


def _note_loss(kept: Kept, name: str, error: RuntimeError) -> None:
    """Tell "... a second time" from "... modified by an inplace operation"."""
    if "inplace" in str(error):
        kept.overwritten.append(name)
    else:
        kept.freed = True


def attributes_of(function: Any) -> tuple[tuple[str, str], ...]:
    """What a function knows besides tensors: numbers and words."""
    found: list[tuple[str, str]] = []
    for attribute in _saved_attributes(type(function))[1]:
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
def _saved_attributes(kind: type) -> tuple[tuple[tuple[str, str, str], ...], tuple[str, ...]]:
    """What functions of a kind save: tensors by name, attribute and raw attribute; and the rest."""
    names = [name for name in dir(kind) if name.startswith("_saved_") and name != "_saved_tensors"]
    tensors = [name for name in names if hasattr(kind, f"_raw{name}")]
    told = tuple((name[len("_saved_") :], name, f"_raw{name}") for name in tensors)
    return told, tuple(name for name in names if name not in tensors)


def made_by(function: Any) -> tuple[tuple[int, ...] | None, str]:
    """Shape and dtype of what a function made; of its first output, where it has several."""
    made = function._input_metadata
    if not made:
        return None, ""
    return tuple(int(size) for size in made[0].shape), dtype_name(made[0].dtype)


def dtype_name(dtype: Any) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")
