# SPDX-License-Identifier: Apache-2.0
"""Waiting that a signal can end: torch's own waits hold Ctrl-C and SIGTERM back until they end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch.futures import Future


def arrives(future: Future[Any], seconds: float | None) -> bool:
    """Wait for a future, at most so long; tell whether it is there."""
    there = threading.Event()
    future.add_done_callback(lambda _: there.set())
    return there.wait(seconds)


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
