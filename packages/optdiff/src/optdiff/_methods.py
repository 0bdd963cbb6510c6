# SPDX-License-Identifier: Apache-2.0
"""Methods that users write and a base class wraps, wherever in the class they come from."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from optcore import describe

Method = Callable[..., Any]


def check_method(cls: type, name: str) -> None:
    """Refuse what is no method of instances.

    Raises:
        TypeError: A static method, a class method, or nothing that can be called.
    """
    method = inspect.getattr_static(cls, name)
    if isinstance(method, (staticmethod, classmethod)) or not callable(method):
        raise TypeError(
            f"{cls.__name__}: expected {name} to be a method, got {type(method).__name__}; "
            f"write def {name}(self, ...)"
        )


def wrap_method(cls: type, name: str, kind: type, wrap: Callable[[Method], Method]) -> None:
    """Wrap the method of a new subclass of ``kind``, its own or that of a class beside ``kind``.

    Not one that a parent has wrapped. A wrapper of another class's method does not hide what a
    class further on makes of that method: the next subclass looks past it.
    """
    owner = next(
        parent
        for parent in cls.__mro__
        if name in parent.__dict__ and not parent.__dict__.get("_borrows", False)
    )
    borrows = owner is not cls
    if owner in kind.__mro__ or (borrows and issubclass(owner, kind)):
        return
    setattr(cls, name, wrap(owner.__dict__[name]))
    cls._borrows = borrows  # type: ignore[attr-defined]


def refuse_on_instance(module: object, name: str, value: object) -> None:
    """Say that a method belongs to the class, where it is wrapped.

    Raises:
        TypeError: Always.
    """
    who = type(module).__name__
    raise TypeError(
        f"{who}.assignment: expected {name} to be written in a class, got {describe(value)} for an "
        f"instance, at {name!r}; write a subclass of {who}"
    )
