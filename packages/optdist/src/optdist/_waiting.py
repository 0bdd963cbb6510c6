# SPDX-License-Identifier: Apache-2.0
"""Waiting that a signal can end: torch's own waits hold Ctrl-C and SIGTERM back until they end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch.futures import Future

MOST_SECONDS = 1_000_000  # eleven days; torch counts milliseconds in 32 bits


def arrives(future: Future[Any], seconds: float | None) -> bool:
    """Wait for a future, at most so long; tell whether it is there."""
    there = threading.Event()
    future.add_done_callback(lambda _: there.set())
    return there.wait(seconds)


def check_seconds(who: str, what: str, value: Any) -> None:
    """Refuse what is not a time that every clock below can count.

    Raises:
        TypeError: it is not a number.
        ValueError: it is not above 0, not finite or too long.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{who}: expected {what} in seconds, got {type(value).__name__}")
    if not value > 0:
        raise ValueError(f"{who}: expected {what} above 0 s, got {value!r}")
    if value > MOST_SECONDS:
        raise ValueError(
            f"{who}: expected {what} of at most {MOST_SECONDS} s, got {value!r}; waits are bounded"
        )


class OpenFuture(Future[Any]):
    """A future whose ``wait`` hears signals."""

    def wait(self) -> Any:
        """Return the result, or raise what its computation raised."""
        arrives(self, None)  # whoever made it has bounds of its own
        return super().wait()


def in_thread(func: Callable[[], Any], name: str) -> OpenFuture:
    """Run a function in a thread of its own.

    The process does not wait for that thread at its end.
    """
    future = OpenFuture()

    def run() -> None:
        try:
            found = func()
        except Exception as error:  # noqa: BLE001 - raised where the future is waited for
            future.set_exception(error)
        except BaseException as error:  # noqa: BLE001 - a future takes no SystemExit
            future.set_exception(RuntimeError(f"{type(error).__name__}: {error}"))
        else:
            future.set_result(found)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
