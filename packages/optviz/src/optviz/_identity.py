# SPDX-License-Identifier: Apache-2.0
"""Recognising tensors again without keeping them alive."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

_numbers: WeakIdKeyDictionary = WeakIdKeyDictionary()
_count = itertools.count()
_MARK = "optviz"  # in the metadata of a function


def number_of(tensor: torch.Tensor) -> int:
    """A number that no other tensor object ever gets."""
    number = _numbers.get(tensor)
    if number is None:
        _numbers[tensor] = number = next(_count)
    return number


def fresh_number() -> int:
    """A number for something that is no tensor."""
    return next(_count)


def key_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    """What finds the node of a tensor: the operation that made it, or the leaf itself."""
    if tensor.grad_fn is None:
        return ("leaf", number_of(tensor))
    return key_of_function(tensor.grad_fn)


def key_of_function(fn: Any) -> tuple[Any, ...]:
    """What finds an autograd function again: its place in the order in which its thread made them.

    Threads count by themselves, hence a mark that no other function has.
    """
    variable = getattr(fn, "variable", None)
    if variable is not None:
        return ("leaf", number_of(variable))
    metadata = fn.metadata
    mark = metadata.get(_MARK)
    if mark is None:
        metadata[_MARK] = mark = next(_count)
    return ("op", fn._sequence_nr(), fn.name(), mark)


def end_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    """What finds a tensor among all that its operation made."""
    return (*key_of(tensor), 0 if tensor.grad_fn is None else tensor.output_nr)
