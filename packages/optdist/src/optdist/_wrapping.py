# SPDX-License-Identifier: Apache-2.0
"""What decorators make of a function that they were put on without parentheses."""

from __future__ import annotations

from typing import Any


def only_function(who: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the one function to decorate.

    ``@parallelize`` without parentheses takes the function for an option, and its first call for
    the decoration.

    Raises:
        TypeError: there is something else.
    """
    if len(args) == 1 and not kwargs and callable(args[0]):
        return args[0]
    kinds = [type(value).__name__ for value in (*args, *kwargs.values())]
    raise TypeError(
        f"{who}: expected one function to decorate, got {kinds or 'nothing'}; "
        f"write @{who}(), with parentheses"
    )
