# SPDX-License-Identifier: Apache-2.0
"""Recognising tensors again without keeping them alive."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

_numbers: WeakIdKeyDictionary = WeakIdKeyDictionary()
_count = itertools.count()


def number_of(tensor: torch.Tensor) -> int:
    """A number that no other tensor object ever gets."""
    number = _numbers.get(tensor)
    if number is None:
        _numbers[tensor] = number = next(_count)
    return number


def key_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    """What finds the node of a tensor: the operation that made it, or the leaf itself."""
    if tensor.grad_fn is None:
        return ("leaf", number_of(tensor))
    return key_of_function(tensor.grad_fn)


def key_of_function(fn: Any) -> tuple[Any, ...]:
    """What finds an autograd function again: its place in the order in which all were made."""
    variable = getattr(fn, "variable", None)
    if variable is not None:
        return ("leaf", number_of(variable))
    return ("op", fn._sequence_nr(), fn.name())
