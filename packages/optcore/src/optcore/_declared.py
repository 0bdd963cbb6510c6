# SPDX-License-Identifier: Apache-2.0
"""What a transformation was told of kernels, and what its ``update`` declares."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch


def uses_kernel(static: Mapping[str, Any]) -> bool:
    """Whether a transformation was told to use a kernel itself."""
    own = static.get("use_accelerated_op")
    return bool(own or getattr(static.get("rule"), "use_accelerated_op", False))


def holds_kernels(static: Mapping[str, Any]) -> bool:
    """Whether one that it holds was."""
    held: list[Any] = [*static.values()]
    while held:
        value = held.pop()
        if getattr(value, "holds_kernels", False) is True:  # a transformation
            return True
        if isinstance(value, (tuple, list)):
            held += value
        elif isinstance(value, dict):
            if value.get("use_accelerated_op") is True:  # for a factory of transformations
                return True
            held += value.values()
    return False


def takes_extra(update: Callable[..., Any]) -> bool:
    """Whether an ``update`` takes arguments beyond its own."""
    if torch.compiler.is_compiling():
        return _declares_extra(update)  # the compiler warns of caches
    return _declares_extra_cached(update)


def _declares_extra(update: Callable[..., Any]) -> bool:
    extra = inspect.signature(update).parameters.get("extra")
    return extra is not None and extra.kind is inspect.Parameter.VAR_KEYWORD


def declares(
    check: Callable[[Mapping[str, Any]], object] | None = None, calls: str = ""
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Mark an ``update``: what it asks of its extra arguments.

    Args:
        check: Refuses extra arguments with which the ``update`` would fail.
        calls: Name of the entry in ``static`` that holds the transformations to which every
            ``update`` hands its extra arguments on.
    """

    def mark(update: Callable[..., Any]) -> Callable[..., Any]:
        update.check_extra, update.calls = check, calls  # type: ignore[attr-defined]
        return update

    return mark


def extra_checks(update: Callable[..., Any], static: Mapping[str, Any]) -> tuple[Any, ...]:
    """The checks of its extra arguments that an ``update`` declares, and those of what it calls."""
    check = getattr(update, "check_extra", None)
    found = [check] if check is not None else []
    found += static.get("extra_checks", ())
    called = static.get(getattr(update, "calls", ""), ())
    if isinstance(called, Mapping):
        called = tuple(called.values())
    for member in called if isinstance(called, tuple) else (called,):
        inner = member[1] if isinstance(member, tuple) else member  # of a named chain
        found += inner.extra_checks
    return tuple(dict.fromkeys(found))


_declares_extra_cached = lru_cache(maxsize=1024)(_declares_extra)
