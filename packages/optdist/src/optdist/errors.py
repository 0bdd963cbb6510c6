# SPDX-License-Identifier: Apache-2.0
"""What goes wrong between processes, as types that a program may catch."""

from __future__ import annotations


class WorkerLostError(RuntimeError):
    """A worker's connection is closed: its process or its host is gone."""


class WorkerTimeoutError(TimeoutError):
    """A worker did not answer in time: it is frozen, overloaded, or its task is longer."""
